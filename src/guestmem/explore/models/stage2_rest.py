"""A block that is broken for one page under others: hardware flags it, a walker looks its pages up, queues are full."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

OK, ENOENT, EAGAIN, ENOMEM = 0, 2, 11, 12
_KEEP_REST, _SHARED = 2048, 1
_READ = 1
_LOOKED_UP = 2 * PAGE


def flags(scene: Scene, *, shared: bool) -> None:
    """A vCPU reads a page of a block without access flag, while another breaks the block to map a page of its own.

    ``shared``: under the lock for reading, as a fault, which gives up if hardware was faster; else for writing.
    """
    small = SmallTable(scene)
    locked, walk, map_ = scene.room("stage2.locked"), scene.room("stage2.tlb_walk"), scene.room("stage2.map")
    rwlock, lock = scene.room("stage2.rwlock"), int(small.layout.MMU_FIXED)
    address = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    accessed = int(small.table.shape[int(small.layout.ACCESSED)])
    shape, pool, _, mmu = small.words
    small.table.map(0, BLOCK, OFFSET, 1)
    small.table.young(0, BLOCK, clear=True)
    tlb = small.tlb(0)

    def vcpu(_desk: Own, tlb: Own) -> int:
        walk.tlb_enter(shape, pool, mmu, tlb)
        status: int = walk.tlb_translate(shape, pool, mmu, tlb, _LOOKED_UP, _LOOKED_UP, _READ)
        assert status != OK or tlb[address] == OFFSET + _LOOKED_UP, f"translated to {tlb[address]:#x}"
        walk.tlb_leave(mmu, tlb)
        return status

    def mapper(desk: Own) -> int:
        what = (PAGE, PAGE, OFFSET + PAGE, small.attributes, 3, _KEEP_REST)
        if shared:
            status: int = locked.map_shared(locked.Table(*small.words, desk), *what)
            assert status in {OK, EAGAIN}, f"map said {status}"
        else:
            rwlock.write_lock(mmu, lock, 2)
            status = map_.map_range(map_.Table(*small.words, desk), *what)
            rwlock.write_unlock(mmu, lock)
            assert status == OK, f"map said {status}"
        return status

    small.thread("vcpu", vcpu, tlb.words)
    small.thread("mapper", mapper)
    small.begin()

    def flagged(view: View) -> None:
        small.check_leaf(_LOOKED_UP)
        if small.result(view, "vcpu") == OK:
            assert small.leaf(_LOOKED_UP).descriptor & accessed, "the access left no flag"

    scene.final("what was read has its access flag", flagged)


def look(scene: Scene) -> None:
    """A walker looks up a page of a block that another breaks to map a page of its own."""
    small = SmallTable(scene)
    locked, walk, rwlock = (scene.room(f"stage2.{room}") for room in ("locked", "walk", "rwlock"))
    lock, mmu = int(small.layout.MMU_FIXED), small.table.mmu
    find, between = int(small.layout.FIND), int(small.table.shape[int(small.layout.LOCKED)])
    small.table.map(0, BLOCK, OFFSET, 3)

    def reader(desk: Own) -> int:
        rwlock.read_lock(mmu, lock, 0)
        status: int = walk.lookup_shared(walk.Table(*small.words, desk), _LOOKED_UP)
        rwlock.read_unlock(mmu, lock, 0)
        there = status == OK and desk[find + 2] == OFFSET + _LOOKED_UP
        assert there or status == EAGAIN or desk[find] == between, f"lookup said {status}, found {desk[find]:#x}"
        return status

    def mapper(desk: Own) -> int:
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), PAGE, PAGE, OFFSET + PAGE, small.attributes, 3, _KEEP_REST
        )
        assert status == OK, f"map said {status}"
        return status

    small.thread("reader", reader)
    small.thread("mapper", mapper)
    small.begin()
    scene.final("all is mapped as before", lambda _: small.check_leaves(range(0, BLOCK, PAGE)))


def queue(scene: Scene) -> None:
    """Two tables become blocks in one walk, with room in the walker's queue for one, while a page is looked up."""
    small = SmallTable(scene, queue=1)
    map_, discipline, walk = (scene.room(f"stage2.{room}") for room in ("map", "discipline", "walk"))
    rwlock, mmu, lock = scene.room("stage2.rwlock"), small.table.mmu, int(small.layout.MMU_FIXED)
    find = int(small.layout.FIND)
    small.table.map(0, PAGE, OFFSET, 3)
    small.table.map(BLOCK, PAGE, OFFSET + BLOCK, 3)

    def reader(desk: Own) -> int:
        rwlock.read_lock(mmu, lock, 0)
        status: int = walk.lookup_shared(walk.Table(*small.words, desk), BLOCK)
        rwlock.read_unlock(mmu, lock, 0)
        assert status != OK or desk[find + 2] == OFFSET + BLOCK, f"lookup found {desk[find + 2]:#x}"
        return status

    def collapser(desk: Own) -> int:
        tries = 0
        status = ENOMEM
        while status == ENOMEM:
            tries += 1
            rwlock.read_lock(mmu, lock, 1)
            status = map_.map_range(
                map_.Table(*small.words, desk), 0, 2 * BLOCK, OFFSET, small.attributes, 2, _SHARED | 16
            )
            rwlock.read_unlock(mmu, lock, 1)
            discipline.reclaim_tables(discipline.Table(*small.words, desk), True)
        assert status == OK, f"map said {status}"
        return tries

    small.thread("reader", reader)
    small.thread("collapser", collapser)
    small.begin()
    scene.final("the second table waits for the first", lambda view: small.result(view, "collapser") == 2)
    for at in (0, BLOCK):
        scene.final(f"{at:#x} is a block", partial(_is_block, small, at))


def _is_block(small: SmallTable, at: int, _view: View) -> None:
    small.check_leaf(at, 2)


MODELS = (
    *(
        Model(
            f"stage2-rest-{name}",
            "no access flag is lost when a block is broken for one of its pages, and a table put back is as it was",
            f"1 vCPU that reads once, 1 page mapped in a block of 8 pages, {how}, 2 levels",
            partial(flags, shared=shared),
            buffer=2,
            stale=shared,
            dpor=False,
        )
        for name, how, shared in (("flags", "exclusively", False), ("late", "by a fault", True))
    ),
    Model(
        "stage2-rest-look",
        "who finds the table that took a block's place finds its entries, too",
        "2 walkers: a page of a block of 8 pages is mapped, another looked up, 2 levels",
        look,
        buffer=2,
        stale=True,
        dpor=False,
    ),
    Model(
        "stage2-queue",
        "a table that finds no room among those put aside stays until they are freed",
        "2 walkers: 2 tables become blocks, 1 page is looked up, room for 1 table, 2 levels",
        queue,
        buffer=2,
        stale=True,
        dpor=False,
    ),
)
