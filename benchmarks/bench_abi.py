"""The memory ABI: calls on the software engine beside the same calls on this machine's kernel, in one run.

    python benchmarks/bench_abi.py [--json FILE] [--quick]

Each call is a structure in bytes through the front door's ``ioctl``; the kernel gets the same bytes. Both in turns, so
that both see the machine in the same state; medians in µs, and the ratio of the software engine's to the kernel's. With
``vcpu``, a vCPU runs in the guest of the side whose turn it is, since only then there is somebody to wait for; the
other side's is paused, or three busy threads would share the cores. Without a usable ``/dev/kvm`` only the software
engine is shown.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import mmap
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.conform.kernel import host_of
from guestmem.conform.log import KernelSide
from guestmem.conform.run import conform
from guestmem.engines.kvm.device import unusable
from guestmem.engines.kvm.x86 import real_mode
from guestmem.engines.load import Access, Load, Target
from guestmem.memslots import Memslots
from guestmem.vm import KvmModel, Vm

SIZES = (10, 509, 32_764)
SET = MemoryIoctl.SET_USER_MEMORY_REGION
PAGE, SIZE = 0x1000, 0x4000
LAST = 32_763
HOST = 0x7000_0000_0000
A_TURN = 10
"""Rounds on one side before the other's turn."""
SETTLES_S = 0.001
"""For a vCPU to be in the guest again."""
ELSEWHERE = 1 << 38
LIMITS = {"any": 1.0, "create at 32764": 1 / 3, "delete at 32764": 1 / 3}
FRONT_DOOR_US = 2.0
MODEL_US = 40.0


def region(slot: int, gpa: int = 0, size: int = 0, flags: int = 0) -> bytes:
    return MemoryRegion(slot, flags, gpa, size, HOST if size else 0).pack()


def call_us(call: Callable[[int, bytes], object], argument: bytes) -> float:
    begun = time.perf_counter_ns()
    call(SET, argument)
    return (time.perf_counter_ns() - begun) / 1000


def rounds(call: Callable[[int, bytes], object], slot: int, found: dict[str, list[float]]) -> None:
    """One round: create, flags, move and back, delete; each timed by itself."""
    here = region(slot, ELSEWHERE, SIZE)
    found["create"].append(call_us(call, here))
    found["flags"].append(call_us(call, region(slot, ELSEWHERE, SIZE, 1)))
    found["flags"].append(call_us(call, here))
    found["move"].append(call_us(call, region(slot, ELSEWHERE + 2 * SIZE, SIZE)))
    found["move"].append(call_us(call, here))
    found["delete"].append(call_us(call, region(slot)))
    found["delete+create"].append(found["delete"][-1] + found["create"][-1])


class KernelSlots:
    """A VM of the kernel; slot 0 is a page of code, and with ``vcpu`` a vCPU spins in it, in a thread of its own."""

    def __init__(self, *, vcpu: bool) -> None:
        from guestmem.engines.kvm.vm import KvmVm

        self.vm = KvmVm(1)
        self._code = mmap.mmap(-1, PAGE)
        self._code[:2] = b"\xeb\xfe"  # jmp to itself
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self.vm.set_user_memory_region(0, PAGE, PAGE, address)
        if vcpu:
            self.vm.vcpus[0].set_sregs(real_mode(self.vm.vcpus[0].sregs()))
            self.vm.vcpus[0].set_registers(rip=PAGE, rflags=2)
            self.vm.start()

    def call(self, request: int, argument: bytes) -> int:
        result: int = fcntl.ioctl(self.vm.file, request, bytearray(argument))
        return result

    def pause(self) -> None:
        self.vm.pause()

    def resume(self) -> None:
        self.vm.resume()

    def close(self) -> None:
        self.vm.close()


def soft_vm(*, vcpu: bool) -> Vm:
    """The same on the software engine: with ``vcpu``, one that reads and writes slot 0."""
    vm = Vm()
    host = vm.memory.create(0, gpa=PAGE, size=PAGE).userspace_addr
    if vcpu:
        vm.engine.set_access(Access())
        vm.engine.start()
        vm.engine.set_load(Load([Target(PAGE + 8 * word, host + 8 * word, host + 8 * word) for word in range(64)]))
    return vm


def measure(slots: int, times: int, *, vcpu: bool, kernel: bool) -> dict[str, tuple[float, float | None]]:
    """Medians by kind of call: software engine, kernel. ``slots`` are there when the last one is."""
    names = ("create", "delete", "delete+create", "move", "flags")
    vm = soft_vm(vcpu=vcpu)
    other = KernelSlots(vcpu=vcpu) if kernel else None
    calls: list[Callable[[int, bytes], object]] = [vm.ioctl] + ([other.call] if other is not None else [])
    found: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in calls]
    try:
        for call in calls:
            for slot in range(1, slots - 1):
                call(SET, region(slot, (slot + 16) << 16, SIZE))
        sides = [vm.engine] + ([other] if other is not None else [])
        if vcpu:
            for side in sides:
                side.pause()
        for _ in range(times // A_TURN):
            for side, call, times_found in zip(sides, calls, found, strict=True):
                if vcpu:
                    side.resume()
                    time.sleep(SETTLES_S)
                for _ in range(A_TURN):
                    rounds(call, LAST, times_found)
                if vcpu:
                    side.pause()
    finally:
        vm.close()
        if other is not None:
            other.close()
    medians = [{name: statistics.median(values) for name, values in side.items()} for side in found]
    return {name: (medians[0][name], medians[1][name] if other is not None else None) for name in names}


def front_door(times: int) -> dict[str, float]:
    """What each layer takes for a move: slots alone, the ABI's model, the front door."""
    memslots = Memslots()
    model = KvmModel()
    found: dict[str, list[float]] = {"Memslots.move": [], "KvmModel.ioctl": [], "Vm.ioctl": [], "Memory.move": []}
    moves = [region(5, gpa, SIZE) for gpa in (ELSEWHERE, ELSEWHERE + 2 * SIZE)]
    with Vm() as vm, Vm() as other:
        memslots.create(5, ELSEWHERE >> 12, SIZE >> 12, HOST)
        model.ioctl(SET, moves[0])
        vm.ioctl(SET, moves[0])
        other.ioctl(SET, moves[0])
        for turn in range(times):
            gpa = ELSEWHERE + 2 * SIZE * (turn & 1 ^ 1)
            for name, act in (
                ("Memslots.move", lambda gpa=gpa: memslots.move(5, gpa >> 12)),
                ("KvmModel.ioctl", lambda turn=turn: model.ioctl(SET, moves[turn & 1 ^ 1])),
                ("Vm.ioctl", lambda turn=turn: vm.ioctl(SET, moves[turn & 1 ^ 1])),
                ("Memory.move", lambda gpa=gpa: other.memory.move(5, gpa)),
            ):
                begun = time.perf_counter_ns()
                act()
                found[name].append((time.perf_counter_ns() - begun) / 1000)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    times = 60 if options.quick else 400
    why = unusable()
    results: dict[str, object] = {}
    missed = []
    if why:
        print(f"no kernel to compare with: {why}")
    else:
        from guestmem.engines.kvm.device import host

        print(host(), f"; {len(os.sched_getaffinity(0))} cores")
    print(f"{'call':<16}{'slots':>7}{'vCPU':>6}{'soft µs':>10}{'kernel µs':>11}{'ratio':>8}")
    for vcpu in (False, True):
        for slots in SIZES[:2] if options.quick else SIZES:
            for name, (soft, kernel) in measure(slots, times, vcpu=vcpu, kernel=not why).items():
                ratio = None if kernel is None else soft / kernel
                results[f"{name} at {slots}{' vcpu' if vcpu else ''}"] = {"soft": soft, "kernel": kernel}
                shown = "" if kernel is None else f"{kernel:>11.1f}{ratio:>8.2f}"
                print(f"{name:<16}{slots:>7}{'runs' if vcpu else '-':>6}{soft:>10.1f}{shown}")
                limit = LIMITS.get(f"{name} at {slots}", LIMITS["any"])
                if ratio is not None and not vcpu and ratio > limit:
                    missed.append(f"{name} at {slots}: {ratio:.2f}, limit {limit:.2f}")
    layers = front_door(4 * times)
    print("a move, by layer: " + ", ".join(f"{name} {us:.1f} µs" for name, us in layers.items()))
    results["layers"] = layers
    added = layers["Vm.ioctl"] - layers["KvmModel.ioctl"]
    print(f"the front door adds {added:.2f} µs to an ABI call (limit {FRONT_DOOR_US})")
    if added > FRONT_DOOR_US:
        missed.append(f"front door: {added:.2f} µs")
    if not why:
        from guestmem.conform.kernel import Kernel

        with Kernel() as opened:
            outcome = conform(host_of(), KernelSide(opened), steps=5_000 if options.quick else 40_000)
        share = outcome.model_seconds / outcome.calls * 1e6
        rate = outcome.calls / outcome.seconds
        print(f"conform: {rate:.0f} calls/s (at least 2000), the model takes {share:.1f} µs a call (limit {MODEL_US})")
        results["conform"] = {"calls_per_s": rate, "model_us": share}
        if share > MODEL_US:
            missed.append(f"conform's model: {share:.1f} µs")
    print("limits missed: " + "; ".join(missed) if missed else "all limits kept")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
