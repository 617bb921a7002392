"""guest_memfd: conversions against the host's accesses, pins, and the guest's faults; the last put against conversion.

Faults, pins, conversions, the invalidate lock and (for the guest) the stage-2 table are those of production. When a
page has become private, the guest writes a word that only it may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...compiled import Own, Words
from ...errors import GuestMemfdError
from ..scene import Model, Scene
from ..small_file import PAGE, PUBLIC, SECRET, SMALL_FILE, SmallFile
from ..tables import OFFSET, SmallTable

__all__ = ["MODELS"]

_OK, _LAST, _WRONG_KIND = 0, 9, 7
_SHARED_BIT = 1 << 17
_READ = 1
_PRESENT, _TYPED = 1 << 32, 1 << 35


def _convert(file: SmallFile, inode: Any) -> bool:
    """The page becomes private, and the guest writes to it; or it is refused."""
    try:
        inode.generation.convert(inode, 0, 0, private=True)
    except GuestMemfdError:
        return False
    file.atomics.host_store(file.memory, SECRET)
    return True


def _host(scene: Scene, *, mapped: bool) -> None:
    """The host reads while the page is converted; ``mapped``: without a fault, if it is first."""
    file = SmallFile(scene)
    if mapped:
        file.fault.host_fault(file.words, file.states, 0, True)

    def reader(words: Words, states: Words, out: Own) -> tuple[int, int]:
        status: int = file.fault.host_access(words, states, 1, 0, 0, False, True, out)
        assert status in {_OK, int(file.at.BARRED)}, f"the access came to {status}"
        if status != _OK:
            return status, 0
        assert out[0] == PUBLIC, "the host reads what the guest wrote after the page was private"
        return status, out[0]

    def converter(desk: Own, freed: Own, found: Own) -> bool:
        return _convert(file, file.of(desk, freed, found))

    scene.thread("host", reader, file.words, file.states, scene.own(1))
    scene.thread("converter", converter, *file.writers())
    scene.final("the lock is free", lambda view: view.word("inode", int(file.at.LOCK)) == 0)
    scene.final("mapped pages are counted", lambda _view: file.inode.mapped_pages() == (file.reference() != 0))
    scene.final(
        "the host is refused what is private, and nothing else",
        lambda view: view.result("host")[0] == _OK or file.state() == 8,
    )
    scene.final(
        "a page that was not converted is refused for a reference",
        lambda view: view.result("converter") == (file.state() == 8),
    )


def host(scene: Scene) -> None:
    """It faults the page in."""
    _host(scene, mapped=False)


def host_mapped(scene: Scene) -> None:
    """It has the page mapped."""
    _host(scene, mapped=True)


def pin(scene: Scene) -> None:
    """A device of the host reads through a pin, held while the page is converted."""
    file = SmallFile(scene)
    file.fault.host_fault(file.words, file.states, 0, True)

    def device(words: Words, states: Words) -> int:
        status: int = file.fault.pin_page(words, states, 0, True)
        if status == _OK:
            assert file.atomics.host_load(file.memory) == PUBLIC, "a device reads what the guest wrote in private"
            file.folio.folio_put(words, 0)
        return status

    def converter(desk: Own, freed: Own, found: Own) -> bool:
        return _convert(file, file.of(desk, freed, found))

    scene.thread("device", device, file.words, file.states)
    scene.thread("converter", converter, *file.writers())
    scene.final("the lock is free", lambda view: view.word("inode", int(file.at.LOCK)) == 0)
    scene.final("no reference is left but the mapping's", lambda _view: file.reference() == file.inode.mapped_pages())


def _guest(scene: Scene, *, reads: bool) -> None:
    """A vCPU faults by a shared access, and maps the page in its stage-2 table, while it is converted; ``reads`` it."""
    small = SmallTable(scene, walkers=2)
    file = SmallFile(scene)
    file.folio.folio_create(file.words, 0, 0)
    small.table.map(_SHARED_BIT + PAGE, PAGE, OFFSET, 1)  # so that the last table is there
    abort = scene.room("engines.soft.gmem_abort")
    zap = scene.room("stage2.zap")

    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words

    def vcpu(desk: Own, words: Words, states: Words, out: Own, tlb: Own) -> int:
        fault = abort.GmemFault(0, False, _SHARED_BIT, 0, small.attributes)
        came_to: int = abort.gmem_abort(words, states, abort.Table(*small.words, desk), fault, out)
        assert came_to in {_OK, _WRONG_KIND}, f"the fault came to {came_to}"
        if reads:
            walk.tlb_enter(shape, pool, mmu, tlb)
            if walk.tlb_translate(shape, pool, mmu, tlb, _SHARED_BIT, _SHARED_BIT, _READ) == _OK:
                saw: int = file.atomics.host_load(tlb[address])
                assert saw == PUBLIC, "a shared access reads private memory through a stale translation"
            walk.tlb_leave(mmu, tlb)
        return came_to

    def converter(table_desk: Own, desk: Own, freed: Own, found: Own, ranges: Own) -> bool:
        inode = file.of(desk, freed, found)

        @contextmanager
        def invalidation(_first: int, _last: int, kinds: str) -> Iterator[None]:
            ranges[0] = _SHARED_BIT >> 12 if kinds == "shared" else 0
            ranges[1], ranges[2] = ranges[0] + 1, int(small.layout.TAKES_ALL)
            zap.zap_ranges(zap.Table(*small.words, table_desk), ranges, 1, True)
            yield

        inode.invalidation = invalidation
        return _convert(file, inode)

    small.thread("vCPU", vcpu, file.words, file.states, scene.own(3), small.tlb(0).words if reads else scene.own(1))
    small.thread("converter", converter, *file.writers(), scene.own(3))
    small.begin()
    scene.final("the lock is free", lambda view: view.word("inode", int(file.at.LOCK)) == 0)
    scene.final(
        "nothing shared maps what is private", lambda _view: small.leaf(_SHARED_BIT) is None or not file.state()
    )


def guest(scene: Scene) -> None:
    """It maps the page."""
    _guest(scene, reads=False)


def guest_reads(scene: Scene) -> None:
    """It maps the page, and reads it through its TLB."""
    _guest(scene, reads=True)


def _held(scene: Scene, *, waits: bool) -> SmallFile:
    """A page of mappability that a pin holds; ``waits``: unshared, and registered for its last put."""
    file = SmallFile(scene, "mappability")
    word = int(file.at.PAGES)
    file.atomics.poke(file.words, word, _PRESENT | (_TYPED if waits else 0) | 1)
    if waits:
        file.inode.states.store(0, 1, 3)
    return file


def _put(file: SmallFile, words: Words, inode: Any) -> bool:
    last: bool = file.folio.folio_put(words, 0)
    if last:
        inode.generation.last_put(inode, 0)
    return last


def share(scene: Scene) -> None:
    """The last put of a page that waits for it, while the guest shares it again."""
    file = _held(scene, waits=True)

    def holder(words: Words, desk: Own, freed: Own, found: Own) -> bool:
        return _put(file, words, file.of(desk, freed, found))

    def sharer(desk: Own, freed: Own, found: Own) -> None:
        inode = file.of(desk, freed, found)
        inode.generation.share(inode, 0, 0)

    scene.thread("holder", holder, file.words, *file.writers())
    scene.thread("sharer", sharer, *file.writers())
    scene.final("what was shared last is shared", lambda _view: file.state() == 0)
    scene.final("nobody waits for a put any more", lambda _view: not file.inode.folio(0) & _TYPED)


def unshare(scene: Scene) -> None:
    """The last put of a page, while the guest takes it back and registers for that put."""
    file = _held(scene, waits=False)

    def holder(words: Words, desk: Own, freed: Own, found: Own) -> bool:
        return _put(file, words, file.of(desk, freed, found))

    def taker(desk: Own, freed: Own, found: Own) -> None:
        inode = file.of(desk, freed, found)
        inode.generation.convert(inode, 0, 0, private=True)

    scene.thread("holder", holder, file.words, *file.writers())
    scene.thread("taker", taker, *file.writers())
    scene.final("the page is the guest's in the end", lambda _view: file.state() == 2)


_PRIVATE = "the host never sees what the guest wrote after a page was converted to private"
_SIZE = "1 page"
MODELS = (
    Model(
        "gmem-host",
        _PRIVATE,
        f"{_SIZE}, 1 host access that faults, 1 conversion",
        host,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-host-mapped",
        _PRIVATE,
        f"{_SIZE}, mapped; 1 host access, 1 conversion",
        host_mapped,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-pin",
        "a device that holds a pin reads nothing private",
        f"{_SIZE}, mapped; 1 pin, 1 conversion",
        pin,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-guest",
        "no shared access of the guest maps a page that is private",
        f"{_SIZE}, 1 vCPU, 1 fault, 2 levels, 1 conversion",
        guest,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-guest-reads",
        "no shared access of the guest reads a page that is private",
        f"{_SIZE}, 1 vCPU with a TLB, 1 fault, 1 access, 2 levels, 1 conversion",
        guest_reads,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-last-put-share",
        "a page that is shared before its last put stays shared",
        f"{_SIZE}, mappability; 1 put, 1 share",
        share,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
    Model(
        "gmem-last-put-take",
        "the last put of a page that was taken back is heard, whenever it comes",
        f"{_SIZE}, mappability; 1 put, 1 unshare with registration",
        unshare,
        geometry=SMALL_FILE,
        buffer=2,
        stale=True,
    ),
)
