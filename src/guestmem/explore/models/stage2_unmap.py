"""Unmap against a vCPU whose hardware walks and caches, and against one that faults and puts the table again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own, Words

__all__ = ["MODELS"]

OK, EAGAIN = 0, 11
DEFER = 128
TRANSLATION = 1
READ = 1


def hardware(scene: Scene, flags: int = 0, *, between: bool = False, whole: bool = True) -> None:
    """A vCPU accesses a page that it has in its TLB; all is unmapped, then the host frees the page.

    ``whole``: the table goes, too; else it has another page. ``between``: the
    hardware fills its TLB again between any two steps of an invalidation.
    """
    small = SmallTable(scene, discipline="rcu")
    rwlock, unmap, atomics = scene.room("stage2.rwlock"), scene.room("stage2.unmap"), scene.room("atomics")
    walk, lock = scene.room("stage2.tlb_walk"), int(small.layout.MMU_FIXED)
    at = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    memory = scene.words("memory", [1])
    small.table.map(PAGE, PAGE, OFFSET + PAGE, 3)
    if not whole:
        small.table.map(2 * PAGE, PAGE, OFFSET + 2 * PAGE, 3)
    tlb = small.tlb(0)
    tlb.enter()
    assert tlb.translate(PAGE)[0] == "ok"
    tlb.speculate(PAGE, between=between)
    tlb.leave()
    shape, pool, _, mmu = small.words

    def vcpu(_desk: Own, tlb: Own, memory: Words) -> int:
        walk.tlb_enter(shape, pool, mmu, tlb)
        status: int = walk.tlb_translate(shape, pool, mmu, tlb, PAGE, PAGE, READ)
        if status == OK:
            assert tlb[at] == OFFSET + PAGE, f"translated to {tlb[at]:#x}"
            assert atomics.load_acquire(memory, 0), "the host page was freed, and the vCPU still reaches it"
        walk.tlb_leave(mmu, tlb)
        assert status in {OK, TRANSLATION}, f"the access faulted with {status}"
        return status

    def unmapper(desk: Own, memory: Words) -> None:
        rwlock.write_lock(mmu, lock, 2)
        assert unmap.unmap_range(unmap.Table(*small.words, desk), 0, BLOCK if whole else 2 * PAGE, flags) == OK
        rwlock.write_unlock(mmu, lock)
        atomics.store_relaxed(memory, 0, 0)

    small.thread("vcpu", vcpu, tlb.words, memory)
    small.thread("unmapper", unmapper, memory)
    small.begin()
    scene.final("nothing is mapped", _nothing(small))


def walkers(scene: Scene, discipline: str, readers: int = 0) -> None:
    """All is unmapped while a vCPU maps a page, and others look one up."""
    small = SmallTable(scene, discipline=discipline, walkers=2 + readers)
    rwlock, unmap, locked = scene.room("stage2.rwlock"), scene.room("stage2.unmap"), scene.room("stage2.locked")
    walk, lock = scene.room("stage2.walk"), int(small.layout.MMU_FIXED)
    found, enoent = int(small.layout.FIND) + 2, int(small.layout.ENOENT)
    mmu = small.table.mmu
    small.table.map(PAGE, PAGE, OFFSET + PAGE, 3)

    def mapper(desk: Own) -> int:
        status: int = locked.map_shared(locked.Table(*small.words, desk), 0, PAGE, OFFSET, small.attributes, 3, 0)
        assert status == OK, f"map said {status}"
        return status

    def unmapper(desk: Own) -> None:
        rwlock.write_lock(mmu, lock, 2 + readers)
        assert unmap.unmap_range(unmap.Table(*small.words, desk), 0, BLOCK, 0) == OK
        rwlock.write_unlock(mmu, lock)

    def reader(desk: Own, me: int) -> None:
        rwlock.read_lock(mmu, lock, me)
        status = walk.lookup_shared(walk.Table(*small.words, desk), PAGE)
        rwlock.read_unlock(mmu, lock, me)
        assert status in {OK, EAGAIN, enoent}, f"lookup said {status}"
        assert status != OK or desk[found] == OFFSET + PAGE, f"lookup found {desk[found]:#x}"

    small.thread("mapper", mapper)
    small.thread("unmapper", unmapper)
    for me in range(2, 2 + readers):
        small.thread(f"reader {me}", reader, me)
    small.begin()
    scene.final("all maps to its own memory", lambda _: small.check_addresses([0, PAGE]))


def _nothing(small: SmallTable) -> Any:
    return lambda _: small.leaf(PAGE) is None


_PROVES = "when unmap returns nobody reaches the memory or the table pages, through a TLB or a walk"
_SIZE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 unmap that takes the table, 2 levels, 8 entries"
_PAGE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 unmap of 1 page, 2 levels, 8 entries"
MODELS = (
    Model("stage2-unmap-tlb", _PROVES, _SIZE, hardware),
    Model(
        "stage2-unmap-fills",
        _PROVES,
        f"{_PAGE}; fills between",
        partial(hardware, between=True, whole=False),
        stale=True,
    ),
    Model("stage2-unmap-defer", _PROVES, f"{_SIZE}, deferred", partial(hardware, flags=DEFER)),
    Model(
        "stage2-unmap",
        _PROVES,
        "1 map, 1 unmap that takes the table, 2 levels, 8 entries; rcu",
        partial(walkers, discipline="rcu"),
        stale=True,
    ),
    Model(
        "stage2-unmap-3",
        _PROVES,
        "1 map, 1 lookup, 1 unmap that takes the table, 2 levels, 8 entries; rcu",
        partial(walkers, discipline="rcu", readers=1),
        exhaustive=False,
    ),
)
