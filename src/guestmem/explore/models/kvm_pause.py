"""The kernel engine's pause: when it returns, no vCPU has an exit that is still to be answered.

For a store KVM puts rip behind it before it hands it out, so a vCPU that leaves KVM_RUN with one is HOLDING, until what
it had to store is in memory. Entering, holding, waiting for an update's end, pausing and resuming are production's
(``run_loop.enter``, ``answers.keep_turn``, ``kicks``); KVM_RUN is two words, where rip is and what was stored, with a
full barrier on both sides. Kicks send no signal here (TID is 0): the guest's store ends KVM_RUN by itself.
"""

from __future__ import annotations

from functools import partial

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..twin import Mutation
from ..view import View

__all__ = ["MODELS"]

_RIP, _STORED = 0, 1
_DATA = 64


class _Vm:
    """The words of a VM of the kernel engine, and what its threads call."""

    def __init__(self, scene: Scene, vcpus: int) -> None:
        self.at, self.lock = scene.room("engines.kvm.layout"), scene.room("engines.kvm.update_lock")
        self.answers, self.kicks = scene.room("engines.kvm.answers"), scene.room("engines.kvm.kicks")
        self.loop, self.atomics = scene.room("engines.kvm.run_loop"), scene.room("atomics")
        at = self.at
        names = {int(getattr(at, name)): name for name in ("STOP", "PAUSED", "ACKS", "WAITING", "UPDATES", "ANSWERING")}
        for vcpu in range(vcpus):
            names |= {int(at.VCPUS) + int(at.VCPU) * vcpu + int(at.STATE): f"STATE {vcpu}"}
        self.vm = scene.words("vm", at.vm_words(vcpus), lambda i: names.get(i, ""))
        self.guest = scene.words("guest", 2 * vcpus, lambda i: ("rip", "memory")[i % 2])
        self.vcpus = vcpus
        scene.final("nobody answers any more", lambda view: view.word(self.vm, int(at.ANSWERING)) == 0)
        scene.final("nobody waits any more", lambda view: view.word(self.vm, int(at.WAITING)) == 0)
        scene.final("no pause is left over", lambda view: view.word(self.vm, int(at.PAUSED)) == 0)
        for vcpu in range(vcpus):
            scene.final(f"the store of vCPU {vcpu} is made", partial(self._is_stored, vcpu))

    def _is_stored(self, vcpu: int, view: View) -> bool:
        return view.word(self.guest, 2 * vcpu + _STORED) == 1

    def vcpu(self, vm: Words, guest: Words, own: Own, me: int, run: int) -> None:
        """A vCPU that stores once where an update may have taken memory away."""
        at, atomics = self.at, self.atomics
        own[at.GUEST] = 1  # in the compiled loop, which nobody leaves to look for signals
        own[at.RUN] = run
        assert self.loop.enter(vm, own, me) == at.GO_ON, "the VM does not stop"
        atomics.fence()
        atomics.store_relaxed(guest, 2 * me + _RIP, 1)
        atomics.fence()
        self.kicks.leave(vm, me, at.HOLDING)
        assert self.answers.keep_turn(vm, own) == at.GO_ON, "the VM does not stop"
        atomics.store_relaxed(guest, 2 * me + _STORED, 1)
        self.kicks.leave(vm, me, at.OUTSIDE)
        self.lock.give_shared(vm)

    def turn(self, vm: Words, guest: Words, own: Own, me: int) -> None:
        """A vCPU that answers an exit from outside, as one that a stop kept: it is inside while it does."""
        at, atomics = self.at, self.atomics
        own[at.GUEST] = 1
        assert self.answers.take_turn(vm, own, me) == at.GO_ON, "the VM does not stop"
        atomics.store_relaxed(guest, 2 * me + _RIP, 1)
        atomics.store_relaxed(guest, 2 * me + _STORED, 1)
        self.kicks.leave(vm, me, at.OUTSIDE)
        self.lock.give_shared(vm)

    def pause(self, vm: Words, guest: Words, targets: Own, settles: bool = False) -> None:
        """A snapshot in a pause, which waits for exits to be answered at once, or (``settles``) after it has begun."""
        atomics = self.atomics
        self.kicks.pause_all(vm, self.vcpus, targets, not settles)
        if settles:
            self.kicks.settle_all(vm, self.vcpus, targets)
        for vcpu in range(self.vcpus):
            rip = atomics.load_relaxed(guest, 2 * vcpu + _RIP)
            stored = atomics.load_relaxed(guest, 2 * vcpu + _STORED)
            assert rip == stored, "registers and memory of a snapshot do not belong together"
        self.kicks.resume_all(vm)

    def update(self, vm: Words) -> None:
        """An update of slots, which answers wait for."""
        self.lock.take_exclusive(vm)
        self.lock.give_exclusive(vm)


def _scene(scene: Scene, vcpus: int, *, update: bool, pauses: int = 1) -> None:
    kvm = _Vm(scene, vcpus)
    for me in range(vcpus):
        run = scene.host(f"kvm_run {me}", [0] * _DATA)
        scene.thread(f"vCPU {me}", kvm.vcpu, kvm.vm, kvm.guest, scene.own(kvm.at.OWN_WORDS), me, run)
    for nth in range(pauses):
        scene.thread(f"snapshot {nth}" if pauses > 1 else "snapshot", kvm.pause, kvm.vm, kvm.guest, scene.own(vcpus))
    if update:
        scene.thread("updater", kvm.update, kvm.vm)


def pause_turn(scene: Scene) -> None:
    """One vCPU, which answers an exit that was kept."""
    kvm = _Vm(scene, 1)
    scene.thread("vCPU", kvm.turn, kvm.vm, kvm.guest, scene.own(kvm.at.OWN_WORDS), 0)
    scene.thread("snapshot", kvm.pause, kvm.vm, kvm.guest, scene.own(1))


def pause_settles(scene: Scene) -> None:
    """Two vCPUs; the pause begins with exits still to be answered, and waits for these then."""
    kvm = _Vm(scene, 2)
    for me in range(2):
        run = scene.host(f"kvm_run {me}", [0] * _DATA)
        scene.thread(f"vCPU {me}", kvm.vcpu, kvm.vm, kvm.guest, scene.own(kvm.at.OWN_WORDS), me, run)
    scene.thread("snapshot", kvm.pause, kvm.vm, kvm.guest, scene.own(2), True)


def kick(scene: Scene) -> None:
    """Memory goes from under a vCPU that stays in the guest until it is kicked: a signal, or what the signal found set.

    The signal is the model's: a word that the guest sleeps on. The other way out, a second kick after a while, is none.
    """
    kvm = _Vm(scene, 1)
    at, atomics = kvm.at, kvm.atomics
    mapping = scene.words("mapping", [1])
    freed = scene.words("page", [0, 0], lambda page: f"{page + 1} was freed")
    signal = scene.words("signal", 1)
    run = scene.host("kvm_run", [0] * _DATA)
    base = int(at.VCPUS)
    kvm.vm.cells[base + int(at.TID)], kvm.vm.cells[base + int(at.RUN_PAGE)] = 7, run

    def signalled(*_: int) -> int:
        atomics.store_release(signal, 0, 1)
        atomics.wake(signal, 0, 1)
        return 0

    vars(kvm.kicks).update(system_call=signalled)

    def vcpu(vm: Words, guest: Words, own: Own) -> None:
        own[at.GUEST], own[at.RUN] = 1, run
        for last in (False, True):
            assert kvm.loop.enter(vm, own, 0) == at.GO_ON, "the VM does not stop"
            page = atomics.load_relaxed(mapping, 0)
            if page == 2 or last:
                break
            assert not atomics.load_relaxed(freed, page - 1), "a vCPU that was kicked uses what was there before"
            atomics.fence()  # KVM_RUN, until it is kicked
            if not atomics.host_load(run):
                atomics.wait(signal, 0, 0)
            kvm.kicks.leave(vm, 0, at.OUTSIDE)
        assert page == 2, "a vCPU that was kicked finds what was there before"
        kvm.kicks.leave(vm, 0, at.OUTSIDE)
        atomics.store_relaxed(guest, _RIP, 1)
        atomics.store_relaxed(guest, _STORED, 1)

    def updater(vm: Words, targets: Own) -> None:
        atomics.store_relaxed(mapping, 0, 2)
        kvm.kicks.kick_all(vm, 1, targets)
        atomics.store_relaxed(freed, 0, 1)

    scene.thread("vCPU", vcpu, kvm.vm, kvm.guest, scene.own(at.OWN_WORDS))
    scene.thread("updater", updater, kvm.vm, scene.own(1))


def pause_1(scene: Scene) -> None:
    """One vCPU."""
    _scene(scene, 1, update=False)


def pause_update(scene: Scene) -> None:
    """One vCPU, whose exit waits for an update, while a pause waits for the exit."""
    _scene(scene, 1, update=True)


def pause_nested(scene: Scene) -> None:
    """One vCPU, and two pauses that may be in force at once."""
    _scene(scene, 1, update=False, pauses=2)


def pause_2(scene: Scene) -> None:
    """Two vCPUs: the pause waits for each in turn, and one may come in, or be holding, while it waits for the other."""
    _scene(scene, 2, update=False)


def pause_update_2(scene: Scene) -> None:
    """Two vCPUs, whose exits wait for an update, while a pause waits for the exits."""
    _scene(scene, 2, update=True)


_ONE_KICK = (
    Mutation(
        "engines/kvm/kicks.py",
        "                _kick(vm, vcpu)\n        vcpu",
        "                raise AssertionError\n        vcpu",
    ),
)
"""A kick that is made again hides one that was lost."""
_WHOLE = "what a pause finds of a vCPU's registers and memory belongs together, and nobody waits for ever"
MODELS = (
    Model("kvm-pause", _WHOLE, "1 vCPU, 1 store, 1 pause", pause_1, stale=True),
    Model("kvm-pause-settles", _WHOLE, "2 vCPUs, 1 store each, 1 pause that settles", pause_settles, dpor=False),
    Model("kvm-pause-turn", _WHOLE, "1 vCPU that answers 1 kept exit, 1 pause", pause_turn, stale=True, dpor=False),
    Model(
        "kvm-kick",
        "a vCPU that was kicked has looked again, or is outside, when the kick returns, without a second kick",
        "1 vCPU that is in the guest until it is kicked, 1 kick",
        kick,
        stale=True,
        dpor=False,
        geometry=_ONE_KICK,
    ),
    Model("kvm-pause-update", _WHOLE, "1 vCPU, 1 store, 1 pause, 1 update", pause_update),
    Model("kvm-pause-nested", _WHOLE, "1 vCPU, 1 store, 2 pauses", pause_nested, dpor=False),
    Model("kvm-pause-2", _WHOLE, "2 vCPUs, 1 store each, 1 pause", pause_2, dpor=False),
    Model("kvm-pause-update-2", _WHOLE, "2 vCPUs, 1 store each, 1 pause, 1 update", pause_update_2, dpor=False),
)
