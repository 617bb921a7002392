"""guest_memfd: a page's memory fails while the host or the guest faults on it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_file import PUBLIC, SECRET, SMALL_FILE, SmallFile

__all__ = ["MODELS"]

_OK = 0


def build(scene: Scene, mapped: bool) -> None:
    """The host reads; the memory fails: who reads it from then on would get nonsense."""
    file = SmallFile(scene)
    file.folio.folio_create(file.words, 0, 0)
    if mapped:
        file.fault.host_fault(file.words, file.states, 0, True)

    def reader(words: Words, states: Words, out: Own) -> int:
        status: int = file.fault.host_access(words, states, 1, 0, 0, False, True, out)
        if status == _OK:
            assert out[0] == PUBLIC, "the host reads a page that is poisoned"
        return status

    def failing(desk: Own, freed: Own, found: Own) -> None:
        inode: Any = file.of(desk, freed, found)
        inode.invalidation = lambda *_: nullcontext()
        inode.poison(0)
        file.atomics.host_store(file.memory, SECRET)

    scene.thread("host", reader, file.words, file.states, scene.own(1))
    scene.thread("memory", failing, *file.writers())
    scene.final("the lock is free", lambda view: view.word("inode", int(file.at.LOCK)) == 0)
    scene.final("nobody maps it", lambda _view: file.inode.mapped_pages() == 0)


MODELS = tuple(
    Model(
        name,
        "nobody reads a page of a file once it is poisoned",
        f"1 page{size}, 1 host access, 1 failure of its memory",
        partial(build, mapped=mapped),
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    )
    for name, size, mapped in (("gmem-poison", "", False), ("gmem-poison-mapped", ", mapped", True))
)
