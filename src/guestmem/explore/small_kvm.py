"""A VM of the kernel engine with one slot and one vCPU, and a kernel of a few lines that carries out one access of it.

The vCPU's loop, answers, fragments, address map, kicks and update lock are those of production. KVM_RUN is not: it is
one access of the guest, to memory where there is some, else an MMIO exit that the next KVM_RUN completes. Nor is what
the instruction decoder says: the access can be answered. An ioctl and an exit have full barriers.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..compiled import Own, Words

if TYPE_CHECKING:
    from .scene import Scene

__all__ = ["AT", "DEVICE", "GPA", "HANDED", "NEW", "OLD", "PAGE", "PHASE", "STORED", "SmallKvm"]

GPA, PAGE = 0x1000, 0x1000
FREED, OLD, NEW, DEVICE = 0, 1, 5, 9
"""What memory holds once it is freed, before the update and after it; what a device answers."""
STORED = 3
"""What the guest stores."""
PHASE, SAW, _INSIDE = 0, 1, 2
AT, HANDED = 0, 1
"""PHASE: the access is to be made; its first fragment is handed out. Above: one more is done."""
_EINTR, _HLT, _MMIO = (1 << 64) - 4, 5, 6
_REASON, _ADDRESS, _BYTES = 8, 32, 48
_RUN_WORDS = 0x160 >> 3


class SmallKvm:
    """A VM of the kernel engine with one slot, and a kernel that carries out one access of each vCPU.

    ``writes``: it is a store. ``computed``: of one more than is there, which KVM's emulator has read itself.
    ``fragments``: it comes in so many parts of 8 bytes. ``device``: there is a device where the access goes.
    """

    def __init__(
        self, scene: Scene, *, writes: bool = False, computed: bool = False, fragments: int = 1, device: bool = False
    ) -> None:
        self.at, self.lock = scene.room("engines.kvm.layout"), scene.room("engines.kvm.update_lock")
        self.answers, self.kicks = scene.room("engines.kvm.answers"), scene.room("engines.kvm.kicks")
        self.loop, self.fragments = scene.room("engines.kvm.run_loop"), scene.room("engines.kvm.fragments")
        self.map, self.atomics = scene.room("engines.kvm.address_map"), scene.room("atomics")
        self.data = int(scene.room("engines.kvm.abi").RUN_DATA)
        self.writes, self.computed, self.parts = writes, computed, fragments
        self.gpa = GPA + PAGE if device else GPA
        at = self.at
        names = {int(getattr(at, name)): name for name in ("STOP", "PAUSED", "ACKS", "WAITING", "UPDATES", "ANSWERING")}
        names |= {int(at.VCPUS) + int(getattr(at, name)): name for name in ("TID", "STATE", "REQUESTED", "DONE")}
        self.vm = scene.words("vm", at.vm_words(1), lambda i: names.get(i, ""))
        self.vm.cells[int(at.HOLES)] = int(at.RETRY)
        self.entries = scene.words("map", self.map.map_words(1))
        self.map.map_begin(self.entries, 1)
        self.guest = scene.words("guest", 3, lambda i: ("phase", "saw", "inside")[i])
        self.pages = scene.host("old page", [OLD] * 2), scene.host("new page", [NEW] * 2)
        self.scene, self.at_once = scene, scene.words("access of 16 bytes", 1)
        self.there = scene.words("memory", [self.pages[0], int(computed)], lambda i: ("host address", "read-only")[i])
        self.map.map_insert(self.entries, GPA, GPA + PAGE, self.pages[0], 2 * computed)
        self.run = scene.host("kvm_run", [0] * _RUN_WORDS)
        for room in (self.loop, self.answers, self.kicks):
            vars(room).update(system_call=self._run)
        for room in (self.loop, self.answers):
            vars(room).update(host_load32=partial(self._narrow, 32), host_load16=partial(self._narrow, 16))
        vars(self.answers).update(host_may_access=self._yes, verdict=self._answered)
        vars(self.fragments).update(host_copy16=self._copy16)
        scene.final("nobody answers any more", lambda view: view.word(self.vm, int(at.ANSWERING)) == 0)
        scene.final("no update is left over", lambda view: view.word(self.vm, int(at.UPDATES)) & 1 == 0)
        scene.final("nobody waits any more", lambda view: view.word(self.vm, int(at.WAITING)) == 0)
        scene.final("no pause is left over", lambda view: view.word(self.vm, int(at.PAUSED)) == 0)
        scene.final("the vCPU is outside", lambda view: view.word(self.vm, int(at.VCPUS) + int(at.STATE)) == 0)

    @staticmethod
    def _yes(*_: int) -> bool:
        return True

    @staticmethod
    def _answered(*_: object) -> int:
        return 0

    def _narrow(self, bits: int, address: int) -> int:
        word: int = self.atomics.host_load(address & ~7)
        return word >> 8 * (address & 7) & (1 << bits) - 1

    def _copy16(self, target: int, source: int) -> None:
        first, second = (self.atomics.host_load(source + half) for half in (0, 8))
        self._store_at_once(target, [first, second])

    def _store_at_once(self, target: int, values: list[int]) -> None:
        self.scene.lock(self.at_once, 0)
        for half, value in enumerate(values):
            self.atomics.host_store(target + 8 * half, value)
        self.scene.unlock(self.at_once, 0)

    def _run(self, _number: int, _fd: int, _request: int, _argument: int) -> int:
        """KVM_RUN."""
        atomics, guest = self.atomics, self.guest
        atomics.fence()
        phase = atomics.load_relaxed(guest, PHASE)
        if phase >= HANDED and phase < HANDED + self.parts:
            if not self.writes:
                value = atomics.host_load(self.run + self.data)
                assert phase == HANDED or value == atomics.load_relaxed(guest, SAW), "one load saw two memories"
                atomics.store_relaxed(guest, SAW, value)
            phase += 1
            atomics.store_relaxed(guest, PHASE, phase)
            if phase < HANDED + self.parts:
                return self._hand_out(phase - HANDED, STORED)
        if atomics.host_load(self.run):
            return _EINTR
        if phase == AT:
            return self._access()
        atomics.host_store(self.run + _REASON, _HLT)
        atomics.fence()
        return 0

    def _access(self) -> int:
        atomics, guest = self.atomics, self.guest
        value = STORED
        atomics.store_relaxed(guest, _INSIDE, 1)
        atomics.fence()
        host = atomics.load_relaxed(self.there, 0) if self.gpa == GPA else 0
        emulated = host == 0
        if host and self.writes:
            if self.computed:
                value = atomics.host_load(host) + 1
                emulated = bool(atomics.load_relaxed(self.there, 1))
            if not emulated:
                self._store_at_once(host, [value] * self.parts)
        elif host:
            atomics.store_relaxed(guest, SAW, atomics.host_load(host))
        atomics.store_release(guest, _INSIDE, 0)
        atomics.wake(guest, _INSIDE, 1)
        if emulated:
            atomics.store_relaxed(guest, PHASE, HANDED)
            return self._hand_out(0, value)
        atomics.store_relaxed(guest, PHASE, HANDED + self.parts)
        atomics.host_store(self.run + _REASON, _HLT)
        atomics.fence()
        return 0

    def _hand_out(self, part: int, value: int) -> int:
        atomics = self.atomics
        atomics.host_store(self.run + _REASON, _MMIO)
        atomics.host_store(self.run + _ADDRESS, self.gpa + 8 * part)
        atomics.host_store(self.run + _BYTES, 8 | self.writes << 32)
        if self.writes:
            atomics.host_store(self.run + self.data, value)
        atomics.fence()
        return 0

    # Threads.

    def vcpu(self, vm: Words, entries: Words, own: Own, *, to_device: bool = False) -> int:
        """Run until the guest halts; what it saw. ``to_device``: its exit may go to user space instead: 0."""
        at = self.at
        own[at.RUN] = self.run
        status = at.SIGNALLED
        while status == at.SIGNALLED:
            status = self.loop.vcpu_run(vm, entries, own, 0)
            if status == at.EXIT and self.gpa != GPA and self._narrow(32, self.run + _REASON) == _MMIO:
                self.atomics.host_store(self.run + self.data, DEVICE)  # user space, for the device
                status = at.SIGNALLED
        if status == at.STOPPED:
            while (status := self.answers.finish_pending(vm, entries, own, 0)) == at.STOPPED:
                self.lock.wait_out_update(vm)  # as an update's end does
            assert status == at.GO_ON, "what a stop kept was not answered"
            return 0
        assert status == at.EXIT, f"the run said {status}"
        if to_device and self._narrow(32, self.run + _REASON) == _MMIO:
            assert own[at.DEVICE], "the exit was left to a device"
            own[at.PENDING] = 0
            return 0
        assert self._narrow(32, self.run + _REASON) == _HLT, "an exit in the hole of an update reached user space"
        saw: int = self.atomics.load_relaxed(self.guest, SAW)
        return saw

    def update(self, *, same: bool = False, bits: int = 0, writable: bool = False) -> None:
        """Delete and create, with exits held; the old page is freed, but if the slot gets the ``same`` back."""
        atomics, there, entries = self.atomics, self.there, self.entries
        old, new = self.pages
        self.lock.take_exclusive(self.vm)
        self._ioctl(0)
        assert not self.map.map_remove(entries, GPA + 8), "a slot is taken out by its first byte"
        assert self.map.map_remove(entries, GPA), "the slot was there"
        if not same:
            atomics.host_store(old, FREED)
            atomics.host_store(old + 8, FREED)
        if writable:
            atomics.store_relaxed(there, 1, 0)
        self._ioctl(old if same else new)
        self.map.map_insert(entries, GPA, GPA + PAGE, old if same else new, 0)
        if bits:
            self.map.map_log(entries, GPA, bits)
        self.lock.give_exclusive(self.vm)

    def _ioctl(self, host: int) -> None:
        """What is there is replaced, and who is at it in the kernel is waited for."""
        atomics = self.atomics
        atomics.fence()
        atomics.store_relaxed(self.there, 0, host)
        atomics.fence()
        while atomics.load_acquire(self.guest, _INSIDE):
            atomics.wait(self.guest, _INSIDE, 1)
        atomics.fence()
