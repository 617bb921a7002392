"""A fault that maps a block while one of its pages, not the first, is invalidated or in flux; and its second try.

As ``fault``, with a slot of a whole block. The pages that change are in its middle, the fault is at its first page or
at one of these: what the fault asks about its range must be asked of all of it. With the discipline that takes no table
away under a shared walk (rwlock) a block that replaces a table needs the lock exclusively, so the fault unlocks, locks
again, and must ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label, vm_label
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

_FIRST, _CHANGED, _END = 8, 11, 16
_IDS, _NODE_WORDS = 2, 17
_READ = 1
_OK, _TRANSLATION = 0, 1
_NEW = OFFSET + 8 * BLOCK
"""Host address of frame 0, if what changed had its memory with all others."""
_GONE = 1


class _Block:
    """The words of a VM whose one slot is a block, and what its updater calls."""

    def __init__(self, scene: Scene, discipline: str) -> None:
        self.small = SmallTable(scene, walkers=2, discipline=discipline)
        self.atomics, self.at = scene.room("atomics"), scene.room("engines.soft.layout")
        self._layout, self._phases = scene.room("memslots.layout"), scene.room("memslots.phases")
        self._srcu, self._zap = scene.room("rcu.srcu"), scene.room("stage2.zap")
        self._flux, self._retry = scene.room("engines.soft.flux"), scene.room("stage2.retry")
        self._rwlock = scene.room("stage2.rwlock")
        shape = self._layout.geometry(1, _IDS, node_words=_NODE_WORDS)
        self.memslots, self.desk = self._layout.new_memslots(shape)
        self.domain = self._srcu.Srcu(1)
        self._stage(self.desk, 0, _FIRST, _END, OFFSET)
        assert self._phases.publish(self.memslots, self.desk)
        assert self._phases.settle(self.memslots, self.desk)
        assert self._phases.bring(self.memslots, self.desk, False)
        self.vm = scene.words("vm", self.at.vm_words(1), vm_label(scene))
        self.memory = scene.words("memory", 1, lambda _: "the old pages are gone")
        scene.words("memslots", self.memslots, memslots_label(scene, shape.first_record, shape.first_node))
        scene.words("srcu", self.domain.words, srcu_label)
        self.ranges = scene.own([_CHANGED, _END, int(self.at.STALLS_ALL)])

    def _stage(self, desk: Own, id_: int, start: int, end: int, memory: int) -> None:
        hva = memory + start * PAGE if end > start else 0
        done = self._phases.stage(self.memslots, desk, id_, start, end - start, hva, 0, _IDS)
        assert done < self._phases.FIRST_REASON

    def notifier(self, desk: Own, slots: Own, ranges: Own) -> Own:
        """The memory of some pages goes, and other memory takes its place: an MMU notifier's begin and end."""
        mmu, lock, start = self.small.table.mmu, int(self.small.layout.MMU_FIXED), _CHANGED * PAGE
        self._rwlock.write_lock(mmu, lock, 2)
        self._retry.invalidate_begin(mmu, start, _END * PAGE)
        self._rwlock.write_unlock(mmu, lock)
        self._zap.zap_ranges(self._zap.Table(*self.small.words, desk), ranges, 1, True)
        self.atomics.store_relaxed(self.memory, 0, _GONE)
        self.atomics.store_relaxed(self.memory, 0, 0)
        self._rwlock.write_lock(mmu, lock, 2)
        self._retry.invalidate_end(mmu)
        self._rwlock.write_unlock(mmu, lock)
        return slots

    def batch(self, desk: Own, slots: Own, ranges: Own) -> Own:
        """The last pages of the slot get other memory, atomically: only they are in flux."""
        self._stage(slots, 0, 0, 0, 0)
        self._stage(slots, 0, _FIRST, _CHANGED, OFFSET)
        self._stage(slots, 1, _CHANGED, _END, _NEW)
        self._flux.flux_mark(self.vm, ranges, 1)
        self._zap.zap_ranges(self._zap.Table(*self.small.words, desk), ranges, 1, True)
        assert self._phases.publish(self.memslots, slots)
        self._flux.flux_release(self.vm)
        self._srcu.srcu_synchronize(self.domain.words, 0, 1)
        self.atomics.store_relaxed(self.memory, 0, _GONE)
        return slots


_Update = Callable[[_Block, "Own", "Own", "Own"], "Own"]


def build(
    scene: Scene, update: _Update, frames: Sequence[int], discipline: str = "rcu", *, table: bool = False
) -> None:
    """A vCPU reads ``frames``, with a fault for the first at most. ``table``: the first page is mapped by itself."""
    block = _Block(scene, discipline)
    small, at, atomics = block.small, block.at, block.atomics
    walk, fault = scene.room("stage2.tlb_walk"), scene.room("engines.soft.user_mem_abort")
    code, address = scene.room("engines.soft.vcpu"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.READ_ATTRIBUTES)] = own[int(at.WRITE_ATTRIBUTES)] = small.attributes
    own[int(at.BLOCK_LEVEL)] = 2
    if table:
        small.table.map(_FIRST * PAGE, PAGE, OFFSET + _FIRST * PAGE, 3)

    def access(desk: Own, tlb: Own, own: Own, gfn: int) -> None:
        ipa = gfn * PAGE
        for last in (False, True) if gfn == frames[0] else (True,):
            walk.tlb_enter(shape, pool, mmu, tlb)
            status = walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, _READ)
            if status == _OK:
                old = tlb[address] == OFFSET + ipa
                assert old or (gfn >= _CHANGED and tlb[address] == _NEW + ipa), f"frame {gfn} is at {tlb[address]:#x}"
                if old and gfn >= _CHANGED:
                    gone = atomics.load_relaxed(block.memory, 0)
                    assert gone != _GONE, "an access went to memory that was gone"
            walk.tlb_leave(mmu, tlb)
            if status == _OK or last:
                return
            assert status == _TRANSLATION, f"the access faulted with {status}"
            came = fault.stage2_fault(
                fault.Slots(block.vm, block.memslots, block.domain.words, own),
                fault.Table(*small.words, desk),
                tlb,
                gfn,
                False,
                False,
            )
            if came == code.IN_FLUX:
                atomics.wait(block.vm, at.FLUX, own[at.STALL_FLUX])
            else:
                assert came == code.FILLED, "the frame has memory before and after"

    def vcpu(desk: Own, tlb: Own, own: Own) -> None:
        for gfn in frames:
            access(desk, tlb, own, gfn)

    small.thread("vCPU", vcpu, small.tlb(0).words, own)
    small.thread("updater", partial(_updater, block, update), block.desk, block.ranges)
    small.begin()
    invalidating = int(small.layout.INVALIDATING)
    scene.final("no invalidation is left under way", lambda view: view.word("mmu", invalidating) == 0)
    scene.final("nobody is left in a section", lambda _view: block.domain.check() or not block.domain.inside())


def _updater(block: _Block, update: _Update, desk: Own, slots: Own, ranges: Own) -> Own:
    return update(block, desk, slots, ranges)


_PROVES = "a fault that maps a block maps none of its pages that went, or are about to change, since it looked"
_SIZE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 slot of 8 pages, 2 levels, 8 entries"
MODELS = (
    Model(
        "fault-block",
        _PROVES,
        f"{_SIZE}; 1 access, 1 fault, a notifier of 5 pages",
        partial(build, update=_Block.notifier, frames=(_CHANGED,)),
        buffer=2,
        dpor=False,
    ),
    Model(
        "fault-block-flux",
        _PROVES,
        f"{_SIZE}; 2 accesses, 1 fault, 5 pages in flux",
        partial(build, update=_Block.batch, frames=(_FIRST, _CHANGED)),
        buffer=2,
        dpor=False,
    ),
    Model(
        "fault-block-again",
        _PROVES,
        f"{_SIZE}; 1 access, 1 fault, the block replaces a table (rwlock), a notifier of 5 pages",
        partial(build, update=_Block.notifier, frames=(_CHANGED,), discipline="rwlock", table=True),
        buffer=2,
        dpor=False,
    ),
)
