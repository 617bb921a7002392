"""SRCU: readers that follow a pointer, and an updater that replaces it, waits, and reuses what it pointed to."""

from __future__ import annotations

from ...compiled import Words
from ..scene import Model, Scene
from ..small_vm import srcu_label

__all__ = ["MODELS"]

POINTER, OLD, NEW = 0, 1, 2
_NAMES = ("pointer", "old", "new")
_FREED = 99


def build(scene: Scene, readers: int, sections: int, updates: int) -> None:
    """``readers`` go through ``sections`` each; the updater frees what the pointer pointed to, ``updates`` times."""
    atomics, srcu = scene.room("atomics"), scene.room("rcu.srcu")
    domain = srcu.Srcu(readers)
    state = scene.words("srcu", domain.words, srcu_label)
    # The pointer holds the index of an object's word; an object is its own index as long as it lives.
    objects = scene.words("object", [1, *range(1, updates + 2)], lambda i: "pointer" if i == POINTER else "")

    def reader(state: Words, objects: Words, me: int) -> None:
        for _ in range(sections):
            srcu.srcu_enter(state, 0, me)
            pointer = atomics.load_acquire(objects, POINTER)
            assert atomics.load_relaxed(objects, pointer) == pointer, f"object {pointer} was freed under its reader"
            srcu.srcu_exit(state, 0, me)

    def updater(state: Words, objects: Words) -> None:
        for old in range(1, updates + 1):
            atomics.store_release(objects, POINTER, old + 1)
            srcu.srcu_synchronize(state, 0, readers)
            atomics.store_relaxed(objects, old, _FREED)

    for me in range(readers):
        scene.thread(f"reader {me}", reader, state, objects, me)
    scene.thread("updater", updater, state, objects)
    scene.final("nobody is left inside, nobody waits", lambda _view: domain.check() or not domain.inside())
    scene.final("nobody waits for a period to come", lambda view: view.word("srcu", 16) <= view.word("srcu", 0))


def one_reader(scene: Scene) -> None:
    """One reader."""
    build(scene, 1, 2, 1)


def two_readers(scene: Scene) -> None:
    """Two readers."""
    build(scene, 2, 1, 1)


def many(scene: Scene) -> None:
    """For random search."""
    build(scene, 3, 4, 3)


_PROVES = "nothing is freed that a reader inside a section can reach, and no grace period waits for ever"
MODELS = (
    Model("srcu", _PROVES, "1 reader, 2 sections, 1 updater, 1 update", one_reader, stale=True),
    Model("srcu-2", _PROVES, "2 readers, 1 section each, 1 updater, 1 update", two_readers),
    Model("srcu-many", _PROVES, "3 readers, 4 sections each, 1 updater, 3 updates", many, exhaustive=False),
)
