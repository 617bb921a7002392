"""Every instruction of 64-bit user code that accesses memory, natively and in the hole of an update: is it the same?

    python tests/support/instruction_sweep.py [--of 1] [--part 0] [--vector 1] [--json]

runs each form that a decoder knows (``kvm_every_instruction``), VEX and EVEX every ``--vector``-th, with its memory at
six kinds of places, and prints what became of them. ``--of N --part K``: every N-th, from the K-th. The oracle is the
processor: registers, vector state and memory are compared with those of a native run. Exits with 1 if one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import struct
import sys
import time
from collections import Counter, defaultdict
from typing import Any

import iced_x86

from guestmem.engines.kvm import Shutdown
from guestmem.engines.kvm.x86.registers import REG_NAMES, REGS, X86Ioctl
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from kvm_every_instruction import every_instruction, every_vector_instruction
from kvm_window import AFTER, NOWHERE, PRIVATE, RESTLESS, Emulated, State, Window, died

PLACES: dict[str, dict[str, int]] = {
    "all in the hole": {},
    "its operand there, its stack not": {"rsp": PRIVATE + 0x800, "rsi": PRIVATE + 0x100},
    "its stack there, its operand not": {"rbx": PRIVATE, "rsi": PRIVATE + 0x100},
    "across a page": {"rbx": RESTLESS + 0x2FFE, "rsp": PRIVATE + 0x800, "rsi": PRIVATE, "rdi": RESTLESS + 0x5FFE},
    "into the hole": {"rbx": RESTLESS - 3, "rsp": PRIVATE + 0x800, "rsi": PRIVATE, "rdi": RESTLESS - 1},
    "out of the hole": {"rbx": AFTER - 3, "rsp": PRIVATE + 0x800, "rsi": PRIVATE, "rdi": AFTER - 1},
}
OUTCOMES = {
    "answered": "as natively: carried out by KVM's emulator, on answers",
    "run again": "as natively: the emulator's effect undone, then run by the processor",
    "native": "as natively: the emulator does not know it, so the processor ran it after the update",
    "spun": "as natively: no exit; KVM tried until the memory was there",
    "refused": "not on the list: the vCPU stops, and says so",
    "not met": "as natively: it did not touch the hole",
    "faults": "it faults natively",
    "should fault": "fxsave of an odd address: #GP by the SDM and the emulator; this processor carries it out",
    "denied": "CPUID denies it to the guest; the processor runs it all the same, the emulator says #UD, and no exit",
    "unsteady": "two native runs differ (a clock, say), so there is nothing to compare with",
    "different": "WRONG",
}
_GET_XSAVE, _SET_XSAVE = 0x9000AEA4, 0x5000AEA5
_SPIN_S, _LIMIT_S = 0.05, 60.0
_TRIES = 20
"""More emulations than one instruction takes."""
NAMES = {getattr(iced_x86.Mnemonic, name): name for name in dir(iced_x86.Mnemonic) if name.isupper()}


def name_of(instruction: Any) -> str:
    """The mnemonic."""
    return NAMES[instruction.mnemonic]


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def is_locked(instruction: Any) -> bool:
    """With a lock prefix, or as if it had one."""
    return bool(instruction.has_lock_prefix) or name_of(instruction) == "XCHG"


def has_movbe(cpuid: bytes | bytearray) -> bool:
    """Whether CPUID tells the guest of movbe: leaf 1, ecx, bit 22."""
    (count,) = struct.unpack_from("<I", cpuid)
    entries = (struct.unpack_from("<10I", cpuid, 8 + 40 * number) for number in range(count))
    return any(entry[0] == 1 and entry[5] >> 22 & 1 for entry in entries)


class Player:
    """Plays instructions in one VM after another: a VM that has stopped is not used again."""

    def __init__(self) -> None:
        self._window: Window | None = None

    def close(self) -> None:
        """Free everything."""
        if self._window is not None:
            self._emulated.close()
            self._window.close()
            self._window = None

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def window(self) -> Window:
        """The VM."""
        if self._window is None:
            self._window = Window()
            self._window.engine.retry_exits(True)
            self._emulated = Emulated(self._window)
            state = bytearray(4096)
            fcntl.ioctl(self._window.vcpu.fd, _GET_XSAVE, state)
            for register in range(16):  # XMM, and the upper halves of YMM
                state[160 + 16 * register : 176 + 16 * register] = bytes(range(register, register + 16))
                state[576 + 16 * register : 592 + 16 * register] = bytes(range(100 + register, 116 + register))
            state[0:2] = b"\x7f\x03"
            state[24:28] = (0x1F80).to_bytes(4, "little")
            state[512:520] = (7).to_bytes(8, "little")
            self._vectors = bytes(state)
        return self._window

    def _prepare(self, code: bytes, registers: dict[str, int]) -> None:
        window = self.window
        window.prepare(code, **registers)
        fcntl.ioctl(window.vcpu.fd, _SET_XSAVE, bytearray(self._vectors))

    def _vector_state(self) -> bytes:
        state = bytearray(4096)
        fcntl.ioctl(self.window.vcpu.fd, _GET_XSAVE, state)
        return bytes(state)

    def _rip(self) -> int:
        registers = bytearray(REGS.size)
        fcntl.ioctl(self.window.vcpu.fd, X86Ioctl.GET_REGS, registers)  # its thread waits, outside KVM_RUN
        return int(REGS.unpack(registers)[REG_NAMES.index("rip")])

    def _natively(self, code: bytes, registers: dict[str, int]) -> tuple[State, bytes]:
        self._prepare(code, registers)
        found = self.window.run()
        return found, b"" if isinstance(found.exit, Shutdown) else self._vector_state()

    def play(self, code: bytes, registers: dict[str, int]) -> str:
        """What became of it: a key of OUTCOMES."""
        registers = {"rax": 0x45, "rcx": 3, "rdx": 0, "rdi": RESTLESS + 0x5000} | registers
        native = self._natively(code, registers)
        if not died(native[0].exit):
            self.close()
            return "faults"
        if self._natively(code, registers) != native:
            return "unsteady"
        self._prepare(code, registers)
        return self._in_a_hole(native)

    def _in_a_hole(self, native: tuple[State, bytes]) -> str:
        window = self.window
        before = window.counts()
        with window.engine.exits_held():
            window.engine.set_memory_region(Change(1))
            window.start()
            begun = time.monotonic()
            count = self._emulated.count()
            while not window.waits() and window.thread.is_alive() and time.monotonic() < begun + _LIMIT_S:
                if time.monotonic() > begun + _SPIN_S and self._emulated.count() > count + _TRIES:
                    break
                time.sleep(0.0001)
            waited = window.waits()
            met = waited and self._rip() != NOWHERE
            spun = window.thread.is_alive() and not waited
            window.engine.set_memory_region(window.slot1)
        window.thread.join(_LIMIT_S)
        if window.thread.is_alive():
            window.vm.stop()
            self.close()
            return "different"
        (ended,) = window.ended
        if isinstance(ended, GuestmemError):
            self.close()
            return "refused"
        if window.state(ended) != native[0] or self._vector_state() != native[1]:
            self.close()
            return "different"
        after = window.counts()
        if waited and not met:
            return "not met"
        if after["again"] > before["again"]:
            return "run again"
        if after["retried_answers"] > before["retried_answers"]:
            return "answered"
        if spun:
            return "spun"
        return "native" if after["retried_fetches"] > before["retried_fetches"] else "not met"


def instructions(part: int, of: int, vector: int) -> list[tuple[str, bytes, Any]]:
    """Those that a sweep runs."""
    found = [*every_instruction(iced_x86)]
    if vector:
        found += [*every_vector_instruction(iced_x86)][::vector]
    return found[part::of]


def sweep(part: int = 0, of: int = 1, vector: int = 0, *, show: bool = False) -> dict[str, dict[str, list[str]]]:
    """Outcome, mnemonic, and each text, code and place that had it."""
    result: dict[str, dict[str, list[str]]] = {outcome: defaultdict(list) for outcome in OUTCOMES}
    begun = time.monotonic()
    given = instructions(part, of, vector)
    with Player() as player:
        for number, (text, code, instruction) in enumerate(given):
            for place, registers in PLACES.items():
                if is_locked(instruction) and "rbx" in registers and registers["rbx"] & 0xF:
                    continue  # Linux slows split locks down natively, on a busy machine without end
                outcome = player.play(code, registers)
                if outcome == "different" and name_of(instruction).startswith("FXSAVE") and registers["rbx"] & 0xF:
                    outcome = "should fault"
                if outcome == "different" and name_of(instruction) == "MOVBE" and not has_movbe(player.window.vm.cpuid):
                    outcome = "denied"
                result[outcome][name_of(instruction)].append(f"{text} [{code.hex()}], {place}")
                if outcome == "different" and show:
                    say(f"DIFFERENT: {text} [{code.hex()}], {place}")
            if show and number % 100 == 0:
                sys.stderr.write(f"\r{number} of {len(given)}, {time.monotonic() - begun:.0f} s ")
    return result


def main() -> int:
    """Run, print, and say by the exit status whether one differs."""
    parser = argparse.ArgumentParser(description="every instruction, natively and in the hole of an update")
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--vector", type=int, default=1, help="VEX and EVEX: every so many; 0: none")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    begun = time.monotonic()
    result = sweep(given.part, given.of, given.vector, show=not given.json)
    if given.json:
        say(json.dumps(result))
        return bool(result["different"])
    for outcome, what in OUTCOMES.items():
        names = result[outcome]
        say(f"{sum(map(len, names.values())):6} {outcome}: {what}")
        if names and outcome not in ("answered", "native", "not met", "faults"):
            counts = Counter({name: len(each) for name, each in names.items()})
            say("       " + ", ".join(f"{name.lower()} {count}" for name, count in sorted(counts.items())))
    runs = sum(len(each) for names in result.values() for each in names.values())
    count = len(instructions(given.part, given.of, given.vector))
    say(f"{count} instructions at {len(PLACES)} kinds of places, {runs} runs, {time.monotonic() - begun:.0f} s")
    return bool(result["different"])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
