"""A slot beside the one looked for, a hole behind it, and a record that is used again for another slot.

``memslots`` and ``cached-slot`` have one slot. Here a vCPU that remembers its last slot looks up the last frame of one,
the first of its neighbour and the first frame behind it, which has none; and a fault reads a record that an update
frees, and the next one takes again for a slot elsewhere.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_vm import SMALL, SmallVm, memslots_label, srcu_label
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
        assert phases.stage(words, desk, 0, id_, gfn, npages, hva, 0, _IDS) < phases.FIRST_REASON

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
    """A slot gets other memory, and then a slot elsewhere is made, of records that were freed.

    ``region``: as KVM_SET_USER_MEMORY_REGION has it: the slot is deleted, another is made.
    """
    old = scene.host("memory 0", [1])
    new = scene.host("memory 1", [1])
    elsewhere = scene.host("memory of the other slot", [2])
    vm = SmallVm(scene, 1, 1, [(0, _SLOT, 1, old, 0)])
    atomic = scene.room("designs.atomic")
    code, tlb, atomics = vm.vcpu, vm.tlb, vm.atomics

    def run(own: Own) -> None:
        filled = code.fault(vm.vm, vm.memslots, vm.srcu, own, _SLOT, False)
        if filled == code.FILLED:
            host = tlb.tlb_lookup(own, _SLOT, False)
            assert atomics.host_load(host) == 1, "a fault mapped the memory of a slot elsewhere"
        else:
            others = {code.HOLE, code.INVALID} if region else {code.IN_FLUX}
            assert filled in others, f"the fault came to {filled}"

    def update(desk: Own, ranges: Own) -> Own:
        engine = vm.engine(desk, ranges)
        if region:
            engine.set_memory_region(vm.change(0))
            engine.set_memory_region(vm.change(1, _OTHER, 1, elsewhere))
            return desk
        atomic.apply(engine, [vm.change(0), vm.change(0, _SLOT, 1, new)])
        atomic.apply(engine, [vm.change(1, _OTHER, 1, elsewhere)])
        return desk

    scene.thread("vCPU 0", run, vm.vcpu_own(0))
    scene.thread("updater", update, *vm.updater_own())
    vm.finals("updater")


def invalid(scene: Scene) -> None:
    """A vCPU meets a slot that is marked INVALID until it is gone, and waits for the swap that says so."""
    memory = scene.host("memory", [1])
    vm = SmallVm(scene, 1, 1, [(0, _SLOT, 1, memory, 0)])
    code, atomics, at = vm.vcpu, vm.atomics, vm.at
    assert vm.vm.cells[int(at.RETRIES_INVALID)], "x86 retries"

    def run(own: Own) -> int:
        assert code.enter_guest(vm.vm, vm.load, own, 0), "the VM does not stop"
        while True:
            swaps = atomics.load_acquire(vm.vm, at.SWAPS)
            came: int = code.fault(vm.vm, vm.memslots, vm.srcu, own, _SLOT, False)
            if came != code.INVALID:
                break
            assert code.wait_out_invalid(vm.vm, vm.load, own, 0, swaps), "the VM does not stop"
        assert came in {code.FILLED, code.HOLE}, f"the fault came to {came}"
        code.leave_core(vm.vm, own, 0, False)
        return came

    def update(desk: Own, ranges: Own) -> Own:
        vm.engine(desk, ranges).set_memory_region(vm.change(0))
        return desk

    scene.thread("vCPU 0", run, vm.vcpu_own(0))
    scene.thread("updater", update, *vm.updater_own())
    vm.finals("updater")


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
    ),
    Model(
        "slots-reused",
        "a fault reads its slot only as long as the record is that slot's",
        "1 vCPU, 1 fault, 2 batches: the slot gets other memory; another slot is made",
        partial(reuse, region=False),
        geometry=SMALL,
        buffer=2,
        dpor=False,
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
        "slots-invalid",
        "a vCPU that met an INVALID slot is woken when there is something else to see",
        "1 vCPU, 1 access, 1 slot deleted by KVM_SET_USER_MEMORY_REGION, no retry after a while",
        invalid,
        geometry=(*SMALL, _PATIENT),
        buffer=2,
        dpor=False,
    ),
)
