"""A vCPU's stage-2 fault against an invalidation of the frame that it is about to map: KVM's invalidation sequence.

The fault (``user_mem_abort.py``), slots, ranges in flux, SRCU, table, TLB and zap are those of production. A slot of
one frame gets other memory, and the old page is freed, by three kinds of updater: one that publishes, zaps and waits
(KVM's memslot update), one that holds the invalidation open until the change is over (KVM's MMU notifier), and one that
puts the range in flux first (an atomic batch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...compiled import Own
from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label, vm_label
from ..tables import PAGE, SmallTable

__all__ = ["MODELS"]

GFN, _OLD, _NEW, _FREED = 1, 1, 2, 0
_IDS, _NODE_WORDS = 2, 17
_READ = 1
_OK, _TRANSLATION = 0, 1

_Update = Callable[["Host", Own, Own, Own], None]


class Host:
    """What the updater calls: parts of an update of the slot, in the order that the model chooses."""

    def __init__(self, scene: Scene) -> None:
        self.small = SmallTable(scene, walkers=2)  # first: its monitor has to know of invalidations before rooms do
        self.atomics, self.at = scene.room("atomics"), scene.room("engines.soft.layout")
        self._layout, self.phases = scene.room("memslots.layout"), scene.room("memslots.phases")
        self._srcu, self._zap = scene.room("rcu.srcu"), scene.room("stage2.zap")
        self._flux, self._retry = scene.room("engines.soft.flux"), scene.room("stage2.retry")
        self._rwlock = scene.room("stage2.rwlock")
        shape = self._layout.geometry(1, _IDS, node_words=_NODE_WORDS)
        self.memslots, self.desk = self._layout.new_memslots(shape)
        self.domain = self._srcu.Srcu(1)
        self.old, self.new = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
        self._stage(self.desk, 1, self.old)
        self.publish(self.desk)
        assert self.phases.settle(self.memslots, self.desk)
        assert self.phases.bring(self.memslots, self.desk, False)
        self.vm = scene.words("vm", self.at.vm_words(1), vm_label(scene))
        scene.words("memslots", self.memslots, memslots_label(scene, shape.first_record, shape.first_node))
        scene.words("srcu", self.domain.words, srcu_label)
        self.ids = _IDS
        self.ranges = scene.own([GFN, GFN + 1, int(self.at.STALLS_ALL)])
        self.lock = int(self.small.layout.MMU_FIXED)

    def _stage(self, desk: Own, npages: int, hva: int) -> None:
        done = self.phases.stage(self.memslots, desk, 0, GFN if npages else 0, npages, hva, 0, _IDS)
        assert done < self.phases.FIRST_REASON

    def stage(self, desk: Own) -> None:
        """Delete and create, on the inactive set."""
        self._stage(desk, 0, 0)
        self._stage(desk, 1, self.new)

    def publish(self, desk: Own) -> None:
        """The instant."""
        assert self.phases.publish(self.memslots, desk)

    def zap(self, desk: Own) -> None:
        """The frame, with the lock, as an invalidation."""
        self._zap.zap_ranges(self._zap.Table(*self.small.words, desk), self.ranges, 1, True)

    def begin(self) -> None:
        """As ``Stage2.begin``."""
        mmu = self.small.table.mmu
        self._rwlock.write_lock(mmu, self.lock, 2)
        self._retry.invalidate_begin(mmu, GFN * PAGE, (GFN + 1) * PAGE)
        self._rwlock.write_unlock(mmu, self.lock)

    def end(self) -> None:
        """As ``Stage2.end``."""
        mmu = self.small.table.mmu
        self._rwlock.write_lock(mmu, self.lock, 2)
        self._retry.invalidate_end(mmu)
        self._rwlock.write_unlock(mmu, self.lock)

    def synchronize(self) -> None:
        """Wait for the readers of the old set."""
        self._srcu.srcu_synchronize(self.domain.words, 0, 1)

    def mark(self, ranges: Own) -> None:
        """Put the frame in flux."""
        self._flux.flux_mark(self.vm, ranges, 1)

    def release(self) -> None:
        """Nothing is in flux any more."""
        self._flux.flux_release(self.vm)


def build(scene: Scene, faults: int, update: _Update, *, swapped: bool = False) -> None:
    """A vCPU reads the frame, faulting ``faults`` times at most, while ``update`` gives the slot other memory.

    ``swapped``: it is the last walker of the table, as the vCPUs of production are, and not the first.
    """
    host = Host(scene)
    small, at = host.small, host.at
    walk, fault = scene.room("stage2.tlb_walk"), scene.room("engines.soft.user_mem_abort")
    code, address = scene.room("engines.soft.vcpu"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.READ_ATTRIBUTES)] = own[int(at.WRITE_ATTRIBUTES)] = small.attributes
    own[int(at.BLOCK_LEVEL)] = 3

    def vcpu(desk: Own, tlb: Own, own: Own) -> int:
        left = faults
        while True:
            walk.tlb_enter(shape, pool, mmu, tlb)
            status = walk.tlb_translate(shape, pool, mmu, tlb, GFN * PAGE, GFN * PAGE, _READ)
            if status == _OK:
                saw: int = host.atomics.host_load(tlb[address])
                assert saw != _FREED, "an access went to the old memory after the update was over"
                walk.tlb_leave(mmu, tlb)
                return saw
            walk.tlb_leave(mmu, tlb)
            assert status == _TRANSLATION, f"the access faulted with {status}"
            if not left:
                return 0
            left -= 1
            outcome = fault.stage2_fault(
                fault.Slots(host.vm, host.memslots, host.domain.words, own),
                fault.Table(*small.words, desk),
                tlb,
                GFN,
                False,
                False,
            )
            if outcome == code.IN_FLUX:
                while host.atomics.load_acquire(host.vm, at.FLUX) == own[at.STALL_FLUX]:
                    host.atomics.wait(host.vm, at.FLUX, own[at.STALL_FLUX])
            else:
                assert outcome == code.FILLED, "the frame has memory before and after"

    def updater(desk: Own, slots: Own, ranges: Own) -> Own:
        host.stage(slots)
        update(host, desk, slots, ranges)
        host.atomics.host_store(host.old, _FREED)
        return slots

    for updates in (swapped, not swapped):
        if updates:
            small.thread("updater", updater, host.desk, host.ranges)
        else:
            small.thread("vCPU", vcpu, small.tlb(int(swapped)).words, own)
    small.begin()
    invalidating = int(small.layout.INVALIDATING)
    scene.final("no invalidation is left under way", lambda view: view.word("mmu", invalidating) == 0)
    scene.final("nobody is left in a section", lambda _view: host.domain.check() or not host.domain.inside())
    scene.final("nothing is left in flux", lambda view: view.word("vm", int(at.FLUX)) & 255 == 0)


def slot(host: Host, desk: Own, slots: Own, _ranges: Own) -> None:
    """Publish, zap, wait."""
    host.publish(slots)
    host.zap(desk)
    host.synchronize()


def notifier(host: Host, desk: Own, slots: Own, _ranges: Own) -> None:
    """The change happens between an invalidation's begin, with the zap, and its end."""
    host.begin()
    host.zap(desk)
    host.publish(slots)
    host.synchronize()
    host.end()


def flux(host: Host, desk: Own, slots: Own, ranges: Own) -> None:
    """Who faults meanwhile waits."""
    host.mark(ranges)
    host.zap(desk)
    host.publish(slots)
    host.release()
    host.synchronize()


def faults_slot(scene: Scene) -> None:
    """A slot update."""
    build(scene, 1, slot)


def faults_notifier(scene: Scene) -> None:
    """A notifier."""
    build(scene, 1, notifier)


def faults_last(scene: Scene) -> None:
    """A notifier; the vCPU is the last walker."""
    build(scene, 1, notifier, swapped=True)


def faults_flux(scene: Scene) -> None:
    """An atomic batch."""
    build(scene, 1, flux)


_PROVES = "a fault maps nothing that was invalidated since it looked: the old page is out of reach when it is freed"
_SIZE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 access, 1 fault, 2 levels, 8 entries"
MODELS = (
    Model("fault", _PROVES, f"{_SIZE}; publish, zap, wait", faults_slot, buffer=2),
    Model("fault-notifier", _PROVES, f"{_SIZE}; a notifier's begin and end", faults_notifier, buffer=2),
    Model(
        "fault-last",
        _PROVES,
        f"{_SIZE}; a notifier's begin and end; the vCPU is the last walker",
        faults_last,
        buffer=2,
        dpor=False,
    ),
    Model("fault-flux", _PROVES, f"{_SIZE}; in flux, zap, publish", faults_flux, buffer=2, stale=True),
)
