"""Reading and writing by calls that can fail, beside plain copies, and the check before an answer of exit_retry.

Each figure is a median; the ratio is to the plain copy of the same size, in the same run.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import sys
import time
from collections.abc import Callable

from guestmem.compiled import U64, compiled, u64
from guestmem.process_memory import read_memory, write_memory
from guestmem.system import host_may_access
from guestmem.vm import Vm

ROUNDS = 15


@compiled
def check_often(address: U64, count: U64, writes: bool) -> U64:
    """``count`` checks; how many passed."""
    passed = u64(0)
    done = u64(0)
    while done < count:
        if host_may_access(address, writes):
            passed += u64(1)
        done += u64(1)
    return passed


def median_ns(call: Callable[[], object], repeat: int) -> float:
    """Time of one call."""
    call()
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        for _ in range(repeat):
            call()
        times.append((time.perf_counter_ns() - begun) / repeat)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    memory = mmap.mmap(-1, 1 << 21)
    memory[:] = bytes(1 << 21)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    sys.stdout.write("bytes     plain read      can fail  ratio    plain write      can fail  ratio\n")
    for size in (8, 4096, 65536, 1 << 20):
        repeat = 2000 if size <= 4096 else 50
        content = bytes(size)
        figures = [
            median_ns(lambda size=size: ctypes.string_at(address, size), repeat),  # type: ignore[misc]
            median_ns(lambda size=size: read_memory(address, size), repeat),  # type: ignore[misc]
            median_ns(lambda size=size, content=content: ctypes.memmove(address, content, size), repeat),  # type: ignore[misc]
            median_ns(lambda content=content: write_memory(address, content), repeat),  # type: ignore[misc]
        ]
        plain, safe, plain_write, safe_write = (figure / 1000 for figure in figures)
        sys.stdout.write(
            f"{size:7} {plain:9.2f} us {safe:10.2f} us {safe / plain:6.1f} "
            f"{plain_write:11.2f} us {safe_write:10.2f} us {safe_write / plain_write:6.1f}\n"
        )
    for writes in (False, True):
        check_often(address, 10, writes)
        begun = time.perf_counter_ns()
        check_often(address, 20_000, writes)
        took = (time.perf_counter_ns() - begun) / 20_000
        sys.stdout.write(f"check before an answer, {'store' if writes else 'load'}: {took:.0f} ns\n")
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=1 << 20)
        for size in (8, 4096):
            read = median_ns(lambda size=size: vm.memory.read(0x1000, size), 1000) / 1000  # type: ignore[misc]
            sys.stdout.write(f"Memory.read of {size} bytes: {read:.2f} us\n")


if __name__ == "__main__":
    main()
