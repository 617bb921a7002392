"""How fast traces are read and checked, and how much memory that takes.

For each format and ten sizes up to the largest, writes a trace into a temporary file, reads and checks it in a process
of its own, and prints seconds (passed, and of the processor), seconds per million lines, and the peak resident memory
of that process.

    python benchmarks/bench_traces.py [--lines 1000000] [--formats qemu,strace]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEASURE = """
import json, resource, sys, time
from guestmem import traces
from guestmem.check import check
start, cpu = time.perf_counter(), time.process_time()
timeline = traces.read(sys.argv[1])
read, cpu = time.perf_counter(), time.process_time() - cpu
report = check(timeline)
done = time.perf_counter()
kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "read": read - start, "cpu": cpu, "check": done - read, "mib": kib / 1024, "changes": len(timeline.changes),
    "transactions": len(timeline.transactions), "holes": len(report.holes),
}))
"""
BOUND_SECONDS, BOUND_MIB, BOUND_LINES = 8.0, 1024.0, 1_000_000
SLOTS = 500


def changes(count: int, seed: int) -> Iterator[tuple[float, int, int, int, int, int, int]]:
    """(time, thread, slot, flags, gpa, size, hva): slots are split and put together again, as firmware does."""
    rng = random.Random(seed)
    mib = 1 << 20
    time, done = 1_700_000_000.0, 0
    host = [0x7F00_0000_0000 + i * (mib << 4) for i in range(SLOTS)]
    for i in range(SLOTS):
        yield time, 1000, i, 0, i * 2 * mib, mib, host[i]
        done += 1
    split: dict[int, int] = {}
    while done < count:
        time += 0.02
        i = rng.randrange(SLOTS)
        thread = 1000 + rng.randrange(4)
        base = i * 2 * mib
        if i in split:
            cut = split.pop(i)
            burst = [
                (i, base, 0, host[i]),
                (SLOTS + i, base + cut, 0, host[i] + cut),
                (i, base, mib, host[i]),
            ]
        else:
            cut = split[i] = rng.randrange(1, 256) << 12
            burst = [(i, base, 0, host[i]), (i, base, cut, host[i]), (SLOTS + i, base + cut, mib - cut, host[i] + cut)]
        for slot, gpa, size, hva in burst[: count - done]:
            time += rng.randrange(20, 200) / 1e6
            yield time, thread, slot, 0, gpa, size, hva
            done += 1


def write_qemu(stream: TextIO, lines: int, seed: int) -> None:
    stream.writelines(
        f"{thread}@{time:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} "
        f"size={size:#x} ua={hva:#x} guest_memfd=-1 guest_memfd_offset=0x0 ret=0\n"
        for time, thread, slot, flags, gpa, size, hva in changes(lines, seed)
    )


def write_strace(stream: TextIO, lines: int, seed: int) -> None:
    """Every other line is a KVM_RUN of another thread, as a trace with run state has them."""
    for time, thread, slot, flags, gpa, size, hva in changes(lines // 2, seed):
        stream.write(
            f"{thread} {time:.6f} ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags={flags}, "
            f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={hva:#x}}}) = 0 <0.000012>\n"
        )
        stream.write(f"{2000 + slot % 4} {time + 1e-6:.6f} ioctl(13, KVM_RUN, 0) = 0 <0.000004>\n")


WRITERS: dict[str, Callable[[TextIO, int, int], None]] = {"qemu": write_qemu, "strace": write_strace}


def measure(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)  # noqa: S603 (ourselves)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--lines", type=int, default=BOUND_LINES, help="lines of the largest trace")
    parser.add_argument("--formats", default=",".join(WRITERS), help="which formats, with commas")
    parser.add_argument("--sizes", type=int, default=10, help="how many sizes, evenly spaced")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print("format      lines   read s    cpu s  cpu s/1M    check s  peak MiB  bytes/line  transactions    holes")
    for name in arguments.formats.split(","):
        for step in range(1, arguments.sizes + 1):
            lines = arguments.lines * step // arguments.sizes
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace"
                with path.open("w") as stream:
                    WRITERS[name](stream, lines, arguments.seed)
                got = measure(path)
            print(
                f"{name:8} {lines:8} {got['read']:8.2f} {got['cpu']:8.2f} {got['cpu'] / lines * 1e6:11.2f} "
                f"{got['check']:8.2f} "
                f"{got['mib']:9.0f} {got['mib'] * 2**20 / lines:11.0f} {got['transactions']:13} {got['holes']:8}",
                flush=True,
            )
        if lines == BOUND_LINES:
            seconds, mib = got["read"], got["mib"]
            verdict = "reached" if seconds <= BOUND_SECONDS and mib <= BOUND_MIB else "NOT reached"
            bounds = f"at most {BOUND_SECONDS:.0f} s and {BOUND_MIB:.0f} MiB"
            took = f"{seconds:.2f} s by the clock ({got['cpu']:.2f} s of the processor), {mib:.0f} MiB"
            print(f"{name}: {took}; {bounds}: {verdict}")


if __name__ == "__main__":
    main()
