"""Why exit_retry is enough, on the kernel: a guest that runs natively leaves at the first access of an instruction.

So nothing is done yet, or memory is found throughout. Not so where the host emulates throughout: there an increment has
read memory, and its write finds none. Nor is a locked operation that crosses a page one: its write looks at nothing.
"""

from __future__ import annotations

import threading
import time

import pytest

from chance import until_met
from guestmem.engines.kvm import Exit, Mmio, real_mode
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from kvm_guest import RESTLESS, Guest
from kvm_window import RESTLESS as SLOT_1
from kvm_window import Window, died

pytestmark = pytest.mark.compiled_only

REAL_MODE = bytes.fromhex("b80020 8ed8 66f0ff060000 ebf8")  # mov ax, 0x2000; mov ds, ax; l: lock inc dword [0]; jmp l
ENOUGH = 100


class Watched:
    """A guest that increments the word at RESTLESS for ever; its exits are answered from memory, at once, and noted."""

    def __init__(self, guest: Guest) -> None:
        self.guest, self.vcpu = guest, guest.engine.vm.vcpus[0]
        self.reads = self.writes_first = 0
        self.other: list[object] = []
        self.thread = threading.Thread(target=self.work, daemon=True)

    def work(self) -> None:
        read = -1
        while True:
            try:
                exit_ = self.vcpu.run()
            except GuestmemError:  # stopped
                return
            if not isinstance(exit_, Mmio) or exit_.gpa != RESTLESS:
                self.other.append(exit_)
                return
            if exit_.is_write:
                written = int.from_bytes(exit_.data, "little")
                self.writes_first += written != (read + 1) & 0xFFFFFFFF
                self.guest.memory[RESTLESS : RESTLESS + 4] = exit_.data
                read = -1
            else:
                self.reads += 1
                read = self.guest.word(RESTLESS) & 0xFFFFFFFF
                self.vcpu.answer(exit_, read.to_bytes(4, "little"))

    def update(self, wanted: str) -> None:
        """Delete and re-create the slot until enough exits of one kind were seen."""
        self.thread.start()

        def met(_: int) -> bool:
            self.guest.engine.set_memory_region(Change(1))
            self.guest.engine.set_memory_region(self.guest.slot1)
            time.sleep(0.0002)
            return int(getattr(self, wanted)) >= (ENOUGH if wanted == "reads" else 1)

        try:
            until_met(met, f"accesses inside an update ({wanted})")
        finally:
            self.guest.engine.vm.stop()
            self.thread.join(60)
            assert self.other == []


def test_a_native_guest_leaves_at_its_first_access() -> None:
    with Guest("inc", 1, fetch=False) as guest:
        watched = Watched(guest)
        watched.update("reads")
        assert watched.reads > 0, "no access fell inside"
        assert watched.writes_first == 0


def test_one_that_is_emulated_throughout_does_not() -> None:
    with Guest("inc", 1, fetch=False) as guest:
        if not guest.engine.vm.host.software:
            pytest.skip(f"{guest.engine.vm.host.module} runs real mode natively")
        guest.memory[0x1000 : 0x1000 + len(REAL_MODE)] = REAL_MODE
        vcpu = guest.engine.vm.vcpus[0]
        vcpu.set_sregs(real_mode(vcpu.sregs()))
        watched = Watched(guest)
        watched.update("writes_first")
        assert watched.writes_first > 0


SPLIT_LOCK_S = 15.0


def run_unless_it_never_ends(guest: Window) -> Exit:
    """Linux puts whoever makes a split lock to sleep (split_lock_mitigate): on a busy machine it may never end."""
    guest.start()
    guest.thread.join(SPLIT_LOCK_S)
    if guest.thread.is_alive():
        guest.vm.stop()
        pytest.skip("this host did not let a split lock through in time")
    (ended,) = guest.ended
    assert isinstance(ended, Exit), ended
    return ended


@pytest.mark.parametrize(("code", "place", "lost"), [("f048ff03", SLOT_1, 0), ("f049ff02", SLOT_1 + 0x2FFE, 1)])
def test_a_locked_increment_that_crosses_a_page_overwrites_what_came_between(code: str, place: int, lost: int) -> None:
    """Another processor adds 1 between its read and its end: the one that does not cross starts again, and sees it."""
    with Window() as guest:
        guest.prepare(bytes.fromhex(code))  # lock inc qword ptr [rbx], or [r10]
        before = guest.word(place)
        guest.engine.set_memory_region(Change(1))
        left = run_unless_it_never_ends(guest)
        while isinstance(left, Mmio):
            assert not left.is_write
            offset = left.gpa - place
            last = offset + left.size == 8
            if last:
                guest.engine.set_memory_region(guest.slot1)
                guest.poke(place, before + 1)
            guest.vcpu.answer(left, before.to_bytes(8, "little")[offset : offset + left.size])
            left = run_unless_it_never_ends(guest)
        assert died(left)
        assert guest.word(place) == before + 2 - lost
