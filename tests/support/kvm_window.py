"""One vCPU and one update, in a known order: what it runs meets the hole for certain, and the update ends after that.

Memory: slot 0 at 0 and slots 2 and 3 on both sides of slot 1 stay; slot 1 [0x20000, 0x30000) goes and comes back. The
guest is in user mode; its code ends with a jump into nothing, whose exit leaves nothing pending.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from typing import NamedTuple

import pytest

from guestmem.engines.kvm import Exit, InternalError, KvmEngine, identity_tables, user_mode
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from guestmem.units import PAGE_SHIFT

__all__ = [
    "AFTER",
    "CODE",
    "DEVICE",
    "END",
    "NOWHERE",
    "PRIVATE",
    "REGISTERS",
    "RESTLESS",
    "State",
    "Window",
    "died",
    "emulated",
]

SIZE = 0x40000
CODE, TABLES, PRIVATE = 0x1000, 0x8000, 0xF000
BEFORE, RESTLESS, AFTER = 0x1F000, 0x20000, 0x30000
ZEROES = 0x25000
DEVICE, NOWHERE = 0x38000, 0x40000
_GET_STATS_FD = 0xAECE
_PATTERN = bytearray(place * 37 % 251 for place in range(SIZE))
_PATTERN[ZEROES : ZEROES + 0x1000] = bytes(0x1000)
END = bytes.fromhex("41ffe5")
"""jmp r13: into nothing."""
LIMIT_S = 200.0
REGISTERS = {"rax": 0x1122334455667788, "rbx": RESTLESS, "rcx": 3, "rdx": 0x99, "rsi": RESTLESS + 0x4000}
REGISTERS |= {"rdi": ZEROES, "rsp": RESTLESS + 0xA000, "rbp": AFTER - 3, "r8": RESTLESS - 3, "r9": RESTLESS + 0x3000}
REGISTERS |= {"r10": RESTLESS + 0x2FFE, "r11": 0xF069, "r12": PRIVATE, "r13": NOWHERE, "r14": PRIVATE + 0x200}
REGISTERS |= {"r15": DEVICE, "rip": CODE, "rflags": 2}


class State(NamedTuple):
    """What a run has left behind."""

    exit: Exit
    registers: dict[str, int]
    memory: bytes


class Window:
    """The machine. ``own`` holds the vCPU's counters."""

    def __init__(self, *, ring_bytes: int = 0) -> None:
        self.engine = KvmEngine(1, ring_bytes=ring_bytes)
        self.memory = mmap.mmap(-1, SIZE)
        self._view = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(self._view)
        self.slot1 = self.change(1, RESTLESS, AFTER)
        for change in (self.change(0, 0, 0x10000), self.slot1):
            self.engine.set_memory_region(change)
        self.engine.set_memory_region(self.change(2, AFTER, DEVICE))
        self.engine.set_memory_region(self.change(3, BEFORE, RESTLESS))
        self.vm = self.engine.vm
        self.vcpu = self.vm.vcpus[0]
        self.own = self.vcpu.words
        self.ended: list[Exit | GuestmemError] = []

    def change(self, slot: int, start: int, end: int, flags: int = 0) -> Change:
        """Slot ``slot`` at ``[start, end)``, on the memory that has the same offsets."""
        return Change(slot, start >> PAGE_SHIFT, end - start >> PAGE_SHIFT, self.address + start, flags)

    def prepare(self, code: bytes, **registers: int) -> None:
        """All memory and registers as at the start, and ``code`` before the jump into nothing."""
        self.memory[:SIZE] = _PATTERN
        tables = identity_tables(TABLES, 0x200000)
        self.memory[TABLES : TABLES + len(tables)] = tables
        given = REGISTERS | registers
        self.memory[given["rip"] : given["rip"] + len(code + END)] = code + END
        self.vcpu.set_xcr0(7)
        self.vcpu.set_sregs(user_mode(self.vcpu.sregs(), TABLES, avx=True))
        self.vcpu.set_registers(given)

    def run(self) -> State:
        """Run until an exit that comes back, in this thread."""
        return self.state(self.vcpu.run())

    def state(self, exit_: Exit) -> State:
        """What there is after ``exit_``."""
        return State(exit_, self.vcpu.registers(), bytes(self.memory))

    def word(self, gpa: int) -> int:
        """The 8 bytes at a guest address."""
        return int(struct.unpack_from("<Q", self.memory, gpa)[0])

    def poke(self, gpa: int, value: int) -> None:
        """Set them, from the host."""
        struct.pack_into("<Q", self.memory, gpa, value)

    def waits(self) -> bool:
        """Whether the vCPU waits for the end of an update, or of a pause."""
        return self.own[int(at.STALL_BEGUN)] != 0

    def until_it_waits(self) -> None:
        """AssertionError if the vCPU comes back instead."""
        end = time.monotonic() + LIMIT_S
        while not self.waits():
            assert self.thread.is_alive(), f"nothing held it up: {self.ended}"
            assert time.monotonic() < end
            time.sleep(0.0001)

    def start(self) -> None:
        """Run it in a thread of its own, until it comes back."""
        self.ended = []
        self.vcpu.compile()  # else the thread does, and takes its time
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.ended.append(self.vcpu.run())
        except GuestmemError as error:
            self.ended.append(error)

    def join(self) -> Exit:
        """Wait until it has come back; why it did."""
        self.thread.join(LIMIT_S)
        if self.thread.is_alive():
            self.vm.stop()
            raise AssertionError("the vCPU does not come back")
        (ended,) = self.ended
        assert isinstance(ended, Exit), ended
        return ended

    def run_in_a_hole(self) -> State:
        """The same as ``run``, but slot 1 is gone until the vCPU has met the hole."""
        with self.engine.exits_held():
            self.engine.set_memory_region(Change(1))
            self.start()
            try:
                self.until_it_waits()
            finally:
                self.engine.set_memory_region(self.slot1)
        return self.state(self.join())

    def counts(self) -> dict[str, int]:
        """The vCPU's counters."""
        return self.vm.counts()[0]

    def close(self) -> None:
        """Free everything."""
        self.engine.close()
        del self._view
        self.memory.close()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def died(exit_: Exit) -> bool:
    """Whether it is the jump into nothing."""
    return isinstance(exit_, InternalError) and exit_.suberror == 1


class Emulated:
    """KVM's vCPU statistic insn_emulation, which can be read while the vCPU is in KVM_RUN."""

    def __init__(self, guest: Window) -> None:
        self._fd = fcntl.ioctl(guest.vcpu.fd, _GET_STATS_FD, 0)  # waits for a KVM_RUN
        _, name_size, count, _, descriptors, data = struct.unpack("<6I", os.pread(self._fd, 24, 0))
        for number in range(count):
            place = descriptors + number * (16 + name_size)
            _, _, _, offset, _ = struct.unpack("<IhHII", os.pread(self._fd, 16, place))
            if os.pread(self._fd, name_size, place + 16).rstrip(b"\0") == b"insn_emulation":
                self._place = data + offset
                return
        self.close()
        pytest.skip("this kernel does not count emulated instructions")

    def count(self) -> int:
        """Instructions so far."""
        return int(struct.unpack("<Q", os.pread(self._fd, 8, self._place))[0])

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def emulated(guest: Window) -> int:
    """How many instructions KVM has emulated for a vCPU that does not run."""
    counter = Emulated(guest)
    try:
        return counter.count()
    finally:
        counter.close()
