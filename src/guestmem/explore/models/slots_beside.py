"""A slot beside the one looked for, a hole behind it, and a record that is used again for another slot.

``memslots`` and ``cached-slot`` have one slot. Here a vCPU that remembers its last slot looks up the last frame of one,
the first of its neighbour and the first frame behind it, which has none; and a fault reads a record that an update
frees, and the next one takes again for a slot elsewhere.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_engine import SmallEngine
from ..small_vm import SMALL, memslots_label, srcu_label
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own, Words

__all__ = ["MODELS"]

_IDS, _NODE_WORDS = 2, 17
_BASE, _PAGES = 16, 2
_LOW, _HIGH, _NEW = 0x10_0000, 0x50_0000, 0x90_0000
_FRAMES = (_BASE + 1, _BASE + 2, _BASE + 3, _BASE + 4)


def build(scene: Scene) -> None:
    """Two slots of two frames, side by side; the lower gets other memory while all their frames are looked up."""
    layout, phases = scene.room("memslots.layout"), scene.room("memslots.phases")
    lookup, srcu = scene.room("memslots.lookup"), scene.room("rcu.srcu")
    shape = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    words, desk = layout.new_memslots(shape)
    domain = srcu.Srcu(1)

    def stage(desk: Own, id_: int, gfn: int, npages: int, hva: int) -> None:
        assert phases.stage(words, desk, id_, gfn, npages, hva, 0, _IDS) < phases.FIRST_REASON

    stage(desk, 0, _BASE, _PAGES, _LOW)
    stage(desk, 1, _BASE + _PAGES, _PAGES, _HIGH)
    assert phases.publish(words, desk)
    assert phases.settle(words, desk)
    assert phases.bring(words, desk, False)
    scene.words("memslots", words, memslots_label(scene, shape.first_record, shape.first_node))
    scene.words("srcu", domain.words, srcu_label)

    def found(words: Words, record: int, gfn: int) -> None:
        if gfn == _BASE + 2 * _PAGES:
            assert not record, f"frame {gfn:#x} has no slot, but a lookup found one"
            return
        assert record, f"frame {gfn:#x} has a slot, but a lookup found none"
        hva = layout.slot_userspace_addr(words, record) + ((gfn - layout.slot_base_gfn(words, record)) << 12)
        low = gfn < _BASE + _PAGES
        known = {at + ((gfn - _BASE) << 12) for at in (_LOW, _NEW)} if low else {_HIGH + ((gfn - _BASE - _PAGES) << 12)}
        assert hva in known, f"frame {gfn:#x} is at {hva:#x}"

    def reader(hint: Own, words: Words, state: Words) -> None:
        srcu.srcu_enter(state, 0, 0)
        for gfn in _FRAMES:
            found(words, lookup.find(words, 0, gfn), gfn)
            found(words, lookup.find_hinted(words, 0, gfn, hint, 0), gfn)
            found(words, lookup.find_with_hint(words, 0, gfn, hint[0], hint[1]), gfn)
        srcu.srcu_exit(state, 0, 0)

    def update(words: Words, desk: Own, state: Words) -> Own:
        stage(desk, 0, 0, 0, 0)
        stage(desk, 0, _BASE, _PAGES, _NEW)
        assert phases.publish(words, desk)
        srcu.srcu_synchronize(state, 0, 1)
        assert phases.settle(words, desk)
        assert phases.bring(words, desk, False)
        return desk

    scene.thread("reader", reader, scene.own(2), words, domain.words)
    scene.thread("updater", update, words, desk, domain.words)
    scene.final("nobody is left inside", lambda _view: domain.check() or not domain.inside())


_SLOT, _OTHER = 16, 48


def reuse(scene: Scene, *, region: bool) -> None:
    """A slot goes, and then a slot elsewhere is made, of the record that was freed.

    With ``atomic``, another slot has the same memory from then on, so that nothing is zapped: only the section keeps
    the record. ``region``: as KVM_SET_USER_MEMORY_REGION has it: the slot is deleted.
    """
    memory, elsewhere = scene.host("memory", [1]), scene.host("memory of the other slot", [2])
    small = SmallEngine(scene, [(0, _SLOT, 1, memory)])
    code, change, atomic = small.vcpu, small.change, scene.room("designs.atomic")

    def run(desk: Own, tlb: Own, own: Own) -> Own:
        came = small.fault(desk, tlb, own, _SLOT)
        assert came in ({code.FILLED, code.HOLE, code.INVALID} if region else {code.FILLED}), f"it came to {came}"
        small.enter(tlb, own)
        if small.reaches(tlb, _SLOT << 12, 0):
            assert small.atomics.host_load(small.host(tlb)) == 1, "a fault mapped the memory of a slot elsewhere"
        small.leave(tlb, own)
        return desk

    def update(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        engine = small.of(slots_desk, ranges, took, desk)
        if region:
            engine.set_memory_region(change(0))
            engine.set_memory_region(change(1, _OTHER, 1, elsewhere))
        else:
            atomic.apply(engine, [change(0), change(1, _SLOT, 1, memory)])
            atomic.apply(engine, [change(0, _OTHER, 1, elsewhere)])
        return slots_desk, desk

    scene.thread("vCPU", run, *small.vcpu_words())
    scene.thread("updater", update, *small.updater_words())
    small.finals()
    scene.final(
        "slots and tables are sound", lambda view: small.are_sound(*view.result("updater"), view.result("vCPU"))
    )


def move(scene: Scene) -> None:
    """A slot is moved, and then the guest writes to it where it is: nobody sees that where the slot was."""
    memory = scene.host("memory", [1])
    small = SmallEngine(scene, [(0, _SLOT, 1, memory)])
    code = small.vcpu

    def run(desk: Own, tlb: Own, own: Own) -> Own:
        came = small.fault(desk, tlb, own, _SLOT)
        assert came in {code.FILLED, code.HOLE, code.INVALID}, f"it came to {came}"
        small.enter(tlb, own)
        if small.reaches(tlb, _SLOT << 12, 0):
            assert small.atomics.host_load(small.host(tlb)) == 1, "a slot is still mapped where it was"
        small.leave(tlb, own)
        return desk

    def update(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        small.of(slots_desk, ranges, took, desk).set_memory_region(small.change(0, _OTHER, 1, memory))
        small.atomics.host_store(memory, 2)
        return slots_desk, desk

    scene.thread("vCPU", run, *small.vcpu_words())
    scene.thread("updater", update, *small.updater_words())
    small.finals()
    scene.final(
        "slots and tables are sound", lambda view: small.are_sound(*view.result("updater"), view.result("vCPU"))
    )


def invalid(scene: Scene) -> None:
    """A vCPU meets a slot that is marked INVALID until it is gone, and waits for the swap that says so."""
    small = SmallEngine(scene, [(0, _SLOT, 1, scene.host("memory", [1]))])
    code, at = small.vcpu, small.at
    assert small.vm.cells[int(at.RETRIES_INVALID)], "x86 retries"

    def run(desk: Own, tlb: Own, own: Own) -> Own:
        assert code.enter_guest(small.vm, small.load, own, 0), "the VM does not stop"
        while True:
            swaps = small.atomics.load_acquire(small.vm, at.SWAPS)
            came = small.fault(desk, tlb, own, _SLOT)
            if came != code.INVALID:
                break
            assert code.wait_out_invalid(small.vm, small.load, own, 0, swaps), "the VM does not stop"
        assert came in {code.FILLED, code.HOLE}, f"the fault came to {came}"
        code.leave_core(small.vm, own, 0, False)
        return desk

    def update(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own]:
        small.of(slots_desk, ranges, took, desk).set_memory_region(small.change(0))
        return slots_desk, desk

    scene.thread("vCPU", run, *small.vcpu_words())
    scene.thread("updater", update, *small.updater_words())
    small.finals()
    scene.final(
        "slots and tables are sound", lambda view: small.are_sound(*view.result("updater"), view.result("vCPU"))
    )


_PATIENT = Mutation(
    "engines/soft/vcpu.py", "        wait_for(vm, at.SWAPS, swaps, _RETRY_NS)\n", "        wait(vm, at.SWAPS, swaps)\n"
)
"""Who looks again after a while hides a wake that was lost."""

MODELS = (
    Model(
        "slots-beside",
        "a lookup, with a hint or without, finds the slot that holds the frame, not its neighbour, and none in a hole",
        "1 vCPU, 2 slots of 2 frames side by side, 12 lookups, 1 batch that re-hosts one",
        build,
        buffer=2,
        dpor=False,
        stale=True,
    ),
    Model(
        "slots-reused",
        "a fault reads its slot only as long as the record is that slot's",
        "1 vCPU, 1 fault, 2 batches: another slot has the memory; a slot elsewhere is made",
        partial(reuse, region=False),
        geometry=SMALL,
        buffer=2,
        dpor=False,
        stale=True,
    ),
    Model(
        "slots-region",
        "a fault reads its slot only as long as the record is that slot's",
        "1 vCPU, 1 fault, 2 KVM_SET_USER_MEMORY_REGION: the slot is deleted; another is made",
        partial(reuse, region=True),
        geometry=SMALL,
        buffer=2,
        dpor=False,
    ),
    Model(
        "slots-moved",
        "a slot that is moved is found no more where it was",
        "1 vCPU, 1 fault, 1 access, 1 slot moved by KVM_SET_USER_MEMORY_REGION",
        move,
        geometry=SMALL,
        buffer=2,
        dpor=False,
    ),
    Model(
        "slots-invalid",
        "a vCPU that met an INVALID slot is woken when there is something else to see",
        "1 vCPU, 1 access, 1 slot deleted by KVM_SET_USER_MEMORY_REGION, no retry after a while",
        invalid,
        geometry=(*SMALL, _PATIENT),
        buffer=2,
        dpor=False,
    ),
)
