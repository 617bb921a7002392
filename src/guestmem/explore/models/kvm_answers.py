"""The kernel engine's whole loop: KVM_RUN leaves in an update's hole, the exit is answered, the instruction completed.

What production runs, and what of the kernel is the model's, says ``explore/small_kvm.py``.
"""

from __future__ import annotations

from functools import partial

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_kvm import AT, DEVICE, GPA, HANDED, NEW, OLD, PAGE, PHASE, STORED, SmallKvm
from ..view import View

__all__ = ["MODELS"]

_TID = 100


def _loads(scene: Scene, fragments: int) -> None:
    kvm = SmallKvm(scene, fragments=fragments)

    def vcpu(vm: Words, entries: Words, own: Own) -> None:
        assert kvm.vcpu(vm, entries, own) in {OLD, NEW}, "an access saw memory that was freed"

    scene.thread("vCPU", vcpu, kvm.vm, kvm.entries, scene.own(kvm.at.OWN_WORDS))
    scene.thread("updater", kvm.update)


def loads(scene: Scene) -> None:
    """A load of 8 bytes."""
    _loads(scene, 1)


def loads_wide(scene: Scene) -> None:
    """A load of 16."""
    _loads(scene, 2)


def _stores(scene: Scene, *, fragments: int = 1, pauses: bool = False, stops: bool = False) -> None:
    kvm = SmallKvm(scene, writes=True, fragments=fragments)
    old = kvm.pages[0]
    at, atomics = kvm.at, kvm.atomics

    def snapshot(vm: Words, targets: Own) -> None:
        kvm.kicks.pause_all(vm, 1, targets, True)
        ended = atomics.load_relaxed(kvm.guest, PHASE) >= HANDED
        stored = [atomics.host_load(old + 8 * part) == STORED for part in range(fragments)]
        assert stored == [ended] * fragments, "registers and memory of a snapshot do not belong together"
        kvm.kicks.resume_all(vm)

    def stopper(vm: Words) -> None:
        atomics.store_release(vm, at.STOP, 1)
        atomics.wake_all(vm, at.PAUSED)
        atomics.wake_all(vm, at.UPDATES)

    def looker(_vm: Words) -> None:
        scene.lock(kvm.at_once, 0)
        first, second = (atomics.host_load(old + half) for half in (0, 8))
        scene.unlock(kvm.at_once, 0)
        assert first == second, "a store of 16 bytes is there by halves"

    scene.thread("vCPU", kvm.vcpu, kvm.vm, kvm.entries, scene.own(at.OWN_WORDS))
    scene.thread("updater", partial(kvm.update, same=True))
    if pauses:
        scene.thread("snapshot", snapshot, kvm.vm, scene.own(1))
    if stops:
        scene.thread("stopper", stopper, kvm.vm)
    if fragments > 1:
        scene.thread("looker", looker, kvm.vm)
    place = next(region for address, region in scene.hosts if address == old)

    def whole(view: View) -> bool:
        begun = view.word(kvm.guest, PHASE) != AT
        return all((view.word(place.words, part) == STORED) == begun for part in range(fragments))

    scene.final("what the guest has stored is in memory", whole)


def stores(scene: Scene) -> None:
    """A store of 16 bytes."""
    _stores(scene, fragments=2)


def paused(scene: Scene) -> None:
    """A store, and a pause."""
    _stores(scene, pauses=True)


def stopped(scene: Scene) -> None:
    """A store, and a stop."""
    _stores(scene, stops=True)


def logged(scene: Scene) -> None:
    """A store to a slot that logs after the update; a harvester takes the bits and copies the page."""
    kvm = SmallKvm(scene, writes=True)
    atomics = kvm.atomics
    bits = scene.words("bits", 1)
    at_bits = scene.address(bits)

    def vcpu(vm: Words, entries: Words, own: Own) -> None:
        kvm.vcpu(vm, entries, own)
        if not own[kvm.at.RETRIED_ANSWERS]:
            atomics.host_fetch_or(at_bits, 1)  # what the kernel does where the guest stores itself

    def harvester() -> bool:
        marked = atomics.exchange(bits, 0, 0)
        atomics.fence()
        return bool(marked and atomics.host_load(kvm.pages[0]) != STORED)

    scene.thread("vCPU", vcpu, kvm.vm, kvm.entries, scene.own(kvm.at.OWN_WORDS))
    scene.thread("updater", partial(kvm.update, same=True, bits=at_bits))
    scene.thread("harvester", harvester)
    scene.final("no mark is taken before what it marks", lambda view: view.result("harvester") is False)


def readonly(scene: Scene) -> None:
    """KVM emulates a write of what it has read from a read-only slot, which is writable, and another's, afterwards."""
    kvm = SmallKvm(scene, writes=True, computed=True)
    new = kvm.pages[1]

    def updater(vm: Words, targets: Own) -> None:
        kvm.update(writable=True)
        was = [kvm.map.was_readonly(kvm.entries, gpa) for gpa in (GPA - 1, GPA, GPA + PAGE - 1, GPA + PAGE)]
        assert was == [False, True, True, False], "what went is what lay within the slot"
        kvm.kicks.pause_all(vm, 1, targets, True)
        if kvm.map.readonly_gone(kvm.entries):
            kvm.map.forget_readonly(kvm.entries)
        kvm.kicks.resume_all(vm)

    scene.thread("vCPU", partial(kvm.vcpu, to_device=True), kvm.vm, kvm.entries, scene.own(kvm.at.OWN_WORDS))
    scene.thread("updater", updater, kvm.vm, scene.own(1))
    page = next(region for address, region in scene.hosts if address == new)
    scene.final(
        "no write that was computed from what was there before is in what is there now",
        lambda view: view.word(page.words, 0) in {NEW, NEW + 1},
    )
    scene.final("nothing is remembered of what went", lambda view: view.word(kvm.entries, 1) == 0)


def device(scene: Scene) -> None:
    """A load from a device, which user space answers, and a pause; an update is elsewhere."""
    kvm = SmallKvm(scene, device=True)
    atomics = kvm.atomics

    def vcpu(vm: Words, entries: Words, own: Own) -> None:
        assert kvm.vcpu(vm, entries, own) == DEVICE, "what the device answered did not arrive"

    def snapshot(vm: Words, targets: Own) -> None:
        kvm.kicks.pause_all(vm, 1, targets, True)
        before = atomics.load_relaxed(kvm.guest, PHASE)
        assert atomics.load_relaxed(kvm.guest, PHASE) == before, "an instruction went on in a pause"
        kvm.kicks.resume_all(vm)

    scene.thread("vCPU", vcpu, kvm.vm, kvm.entries, scene.own(kvm.at.OWN_WORDS))
    scene.thread("updater", kvm.update)
    scene.thread("snapshot", snapshot, kvm.vm, scene.own(1))


def claims(scene: Scene) -> None:
    """Two threads run a vCPU while a third is at its registers."""
    kvm = SmallKvm(scene)
    at, atomics, loop = kvm.at, kvm.atomics, kvm.loop
    tid = int(at.VCPUS) + int(at.TID)
    users = scene.words("users", 1)

    def inside(vm: Words) -> None:
        assert atomics.fetch_add(users, 0, 1) == 0, "two have the vCPU at once"
        atomics.fetch_add(users, 0, (1 << 64) - 1)
        del vm

    def runner(vm: Words, entries: Words, own: Own, me: int) -> int:
        own[at.RUN] = kvm.run
        status: int = loop.vcpu_run_for(vm, entries, own, 0, me, 0)
        assert status in {at.EXIT, at.TAKEN}, f"the run said {status}"
        return status

    def registers(vm: Words) -> None:
        if loop.claim(vm, 0, at.AT_REGISTERS) == 0:
            inside(vm)
            assert atomics.load_acquire(vm, int(at.VCPUS) + int(at.STATE)) == at.OUTSIDE, "it runs meanwhile"
            atomics.store_release(vm, tid, 0)
            atomics.wake_all(vm, tid)

    for me in range(2):
        scene.thread(f"thread {me}", runner, kvm.vm, kvm.entries, scene.own(at.OWN_WORDS), _TID + me)
    scene.thread("registers", registers, kvm.vm)
    scene.final("nobody has the vCPU", lambda view: view.word(kvm.vm, tid) == 0)


_WHOLE = "an exit in an update's hole is answered once, from memory before or after, and its instruction is completed"
MODELS = (
    Model("kvm-answers", _WHOLE, "1 vCPU, 1 load, 1 update", loads, buffer=2, stale=True, dpor=False),
    Model(
        "kvm-answers-wide", _WHOLE, "1 vCPU, 1 load of 16 bytes, 1 update", loads_wide, buffer=2, stale=True, dpor=False
    ),
    Model("kvm-answers-stores", _WHOLE, "1 vCPU, 1 store of 16 bytes, 1 update", stores, buffer=2, dpor=False),
    Model("kvm-answers-paused", _WHOLE, "1 vCPU, 1 store, 1 update, 1 pause", paused, buffer=2, dpor=False),
    Model("kvm-answers-stopped", _WHOLE, "1 vCPU, 1 store, 1 update, 1 stop", stopped, buffer=2, dpor=False),
    Model(
        "kvm-answers-logged",
        "who takes the mark of an answered write finds the write",
        "1 vCPU, 1 store, 1 update, 1 harvest",
        logged,
        buffer=2,
        dpor=False,
    ),
    Model(
        "kvm-answers-readonly",
        "what was computed from a slot that is gone is not stored to the one that is there now",
        "1 vCPU, 1 emulated write, 1 update",
        readonly,
        buffer=2,
        stale=True,
        dpor=False,
    ),
    Model(
        "kvm-answers-device",
        "an instruction that a device has answered goes on neither in a pause nor in an update",
        "1 vCPU, 1 load from a device, 1 update, 1 pause",
        device,
        buffer=2,
        dpor=False,
    ),
    Model(
        "kvm-claim",
        "a vCPU is run, and its registers read, by one thread at a time",
        "2 threads that run 1 vCPU, 1 at its registers",
        claims,
        buffer=2,
        stale=True,
        dpor=False,
    ),
)
