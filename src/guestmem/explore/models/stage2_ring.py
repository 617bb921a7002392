"""A log of invalidations that is as short as one: a vCPU that comes in reads a record that is being overwritten.

Production's log has 256 records, and no model gets so far. Here it has two, what one invalidation by address takes, so
the second writes over the records of the first while a vCPU that was outside applies them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import OFFSET, PAGE, SmallTable
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own, Words

__all__ = ["MODELS"]

_OK, _TRANSLATION, _READ = 0, 1, 1
_SHORT = (Mutation("stage2/table_state.py", "TLB_RING = 256", "TLB_RING = 2"),)


def build(scene: Scene, *, defer: bool) -> None:
    """A vCPU outside has three pages in its TLB; two or all are unmapped, one after the other, and their memory freed.

    ``defer``: in one call, with one invalidation for all of them.
    """
    small = SmallTable(scene)
    rwlock, unmap, atomics = scene.room("stage2.rwlock"), scene.room("stage2.unmap"), scene.room("atomics")
    walk, lock = scene.room("stage2.tlb_walk"), int(small.layout.MMU_FIXED)
    at = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    pages = 3 if defer else 2
    memory = scene.words("memory", [1] * pages, lambda i: f"page {i}")
    small.table.map(0, 4 * PAGE, OFFSET, 3)
    tlb = small.tlb(0, combined=4, leaves=4)
    tlb.enter()
    for page in range(pages):
        assert tlb.translate(page * PAGE)[0] == "ok"
    tlb.leave()
    shape, pool, _, mmu = small.words

    def vcpu(_desk: Own, tlb: Own, memory: Words) -> None:
        walk.tlb_enter(shape, pool, mmu, tlb)
        for page in range(pages):
            status = walk.tlb_translate(shape, pool, mmu, tlb, page * PAGE, page * PAGE, _READ)
            if status == _OK:
                assert tlb[at] == OFFSET + page * PAGE, f"translated to {tlb[at]:#x}"
                assert atomics.load_acquire(memory, page), "the host page was freed, and the vCPU still reaches it"
            assert status in {_OK, _TRANSLATION}, f"the access faulted with {status}"
        walk.tlb_leave(mmu, tlb)

    def unmapper(desk: Own, memory: Words) -> None:
        each = pages if defer else 1
        for page in range(0, pages, each):
            rwlock.write_lock(mmu, lock, 2)
            flags = int(small.layout.DEFER_INVALIDATE) if defer else 0
            assert unmap.unmap_range(unmap.Table(*small.words, desk), page * PAGE, each * PAGE, flags) == _OK
            rwlock.write_unlock(mmu, lock)
            for gone in range(page, page + each):
                atomics.store_relaxed(memory, gone, 0)

    small.thread("vcpu", vcpu, tlb.words, memory)
    small.thread("unmapper", unmapper, memory)
    small.begin()
    scene.final("the last page is mapped", lambda _: small.check_leaf(3 * PAGE, 3))


_PROVES = "when unmap returns nobody reaches the memory through a TLB, however far its vCPU is behind"
_SIZE = "1 vCPU with a TLB of 4 + 4 + 2 entries that comes in"
MODELS = (
    Model(
        "stage2-ring",
        _PROVES,
        f"{_SIZE}, 2 unmaps of 1 page, a log of 2 records, 2 levels",
        partial(build, defer=False),
        geometry=_SHORT,
        buffer=2,
        stale=True,
        dpor=False,
    ),
    Model(
        "stage2-unmap-pages",
        _PROVES,
        f"{_SIZE}, 1 unmap of 3 pages, deferred, 2 levels",
        partial(build, defer=True),
        buffer=2,
        stale=True,
        dpor=False,
    ),
)
