"""How fast traces are read and checked, and how much memory that takes.

For each format and ten sizes up to the largest, writes a trace into a temporary file, reads and checks it in a process
of its own, and prints seconds of the processor for reading and checking, both per million lines, the seconds that
passed, and the peak resident memory. Seconds and memory are those of both processes, where a second one is at work:
the memory is that of the first plus that of the largest other, of which they share what was read before. ``loop`` is
how long a million rounds of an empty loop took just before: what else the machine does makes all of it slower.

perf script, perf trace and trace-cmd have no event of a memslot: there the changes are in a second file, as QEMU's log.

    python benchmarks/bench_traces.py [--lines 1000000] [--formats qemu,strace] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEASURE = """
import json, os, resource, sys, time
from guestmem import traces
from guestmem.check import check
def processor():
    return sum(os.times()[:4])
jobs = int(sys.argv[1]) or None
start = time.process_time()
for i in range(1_000_000): pass
loop, start, cpu = time.process_time() - start, time.perf_counter(), processor()
timeline = traces.read(sys.argv[2], run_state=sys.argv[3] if sys.argv[3:] else None, jobs=jobs)
read = processor() - cpu
report = check(timeline, jobs=jobs)
done, cpu = time.perf_counter(), processor() - cpu
kib = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({
    "seconds": done - start, "read": read, "check": cpu - read, "mib": kib / 1024, "changes": len(timeline.changes),
    "transactions": len(timeline.transactions), "holes": len(report.holes), "loop": loop,
}))
"""
BOUND_SECONDS, BOUND_LINES = 6.0, 1_000_000
BOUND_MIB = {"qemu": 600.0}
OTHERS_MIB = 400.0
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
    """A tenth of the lines are changes, the others KVM_RUNs of four threads, as a trace with run state has them."""
    for time, thread, slot, flags, gpa, size, hva in changes(lines // 10, seed):
        stream.write(
            f"{thread} {time:.6f} ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags={flags}, "
            f"guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr={hva:#x}}}) = 0 <0.000012>\n"
        )
        for i in range(9):
            at = time + (i + 1) * 1e-6
            stream.write(f"{2000 + (slot + i) % 4} {at:.6f} ioctl(13, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.000001>\n")


def write_ftrace(stream: TextIO, lines: int, seed: int) -> None:
    """QEMU's ftrace backend: a tenth of the lines are changes, the others entries, exits and returns of four vCPUs."""
    events = (
        "kvm_entry: vcpu {}, rip 0xfff0",
        "kvm_exit: vcpu {} reason IO_INSTRUCTION rip 0xff",
        "kvm_userspace_exit: reason KVM_EXIT_IO (2)",
    )
    for time, thread, slot, flags, gpa, size, hva in changes(lines // 10, seed):
        stream.write(
            f" qemu-system-x86-{thread}    [001] ..... {time:.6f}: tracing_mark_write: kvm_set_user_memory "
            f"AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={hva:#x} "
            "guest_memfd=-1 guest_memfd_offset=0x0 ret=0\n"
        )
        for i in range(9):
            vcpu = (slot + i // 3) % 4
            event = events[i % 3].format(vcpu)
            stream.write(f"       CPU {vcpu}/KVM-{2000 + vcpu}    [002] d..1. {time + (i + 1) * 1e-6:.6f}: {event}\n")


def write_bpftrace(stream: TextIO, lines: int, seed: int) -> None:
    """guestmem's own program: a tenth of the lines are changes (in two lines), the others KVM_RUNs of four threads."""
    for time, thread, slot, flags, gpa, size, hva in changes(lines // 20, seed):
        ns = round(time * 1e6) * 1000
        stream.write(
            f"{ns} 1000/{thread} [1] memslot vm=9 request=4020ae46 slot={slot} flags={flags:x} gpa={gpa:x} "
            f"size={size:x} hva={hva:x}\n{ns + 900} 1000/{thread} [1] memslot_end ret=0\n"
        )
        for i in range(9):
            at, vcpu = ns + 1000 * (i + 1), 2000 + (slot + i) % 4
            stream.write(f"{at} 1000/{vcpu} [0] run\n{at + 500} 1000/{vcpu} [0] run_end ret=0\n")


def write_simpletrace(stream: TextIO, lines: int, seed: int) -> None:
    """simpletrace.py: a tenth of the lines are changes, the others events of other kinds."""
    last = 1_700_000_000.0
    for time, _, slot, flags, gpa, size, hva in changes(lines // 10, seed):
        stream.write(
            f"kvm_set_user_memory {(time - last) * 1e6:.3f} pid=7 as=0x0 slot={slot:#x} flags={flags:#x} "
            f"guest_phys_addr={gpa:#x} memory_size={size:#x} userspace_addr={hva:#x} fd=0xffffffff "
            "fd_offset=0x0 ret=0x0\n"
        )
        last = time
        stream.writelines("qemu_mutex_lock 0.000 pid=7 mutex=0x55d0c0ffee00 file=cpus.c line=0x1f4\n" for _ in range(9))


def write_qemu_kvm(stream: TextIO, lines: int, seed: int) -> None:
    """QEMU's ``-trace 'kvm_*'``: a tenth of the lines are changes, the others KVM_RUNs of four threads."""
    for time, thread, slot, flags, gpa, size, hva in changes(lines // 10, seed):
        for i in range(9):
            vcpu, at = (slot + i // 2) % 4, time + (i - 9) * 1e-6
            event = (
                f"kvm_run_exit cpu_index {vcpu}, reason 2"
                if i % 2
                else f"kvm_vcpu_ioctl cpu_index {vcpu}, type 0xae80, arg (nil)"
            )
            stream.write(f"{2000 + vcpu}@{at:.6f}:{event}\n")
        stream.write(
            f"{thread}@{time:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} "
            f"size={size:#x} ua={hva:#x} guest_memfd=-1 guest_memfd_offset=0x0 ret=0\n"
        )


def write_qemu_in_a_log(stream: TextIO, lines: int, seed: int) -> None:
    """QEMU 10's log with ISO 8601 times, in which a tenth of the lines are changes and the others say nothing."""
    for time, _, slot, flags, gpa, size, hva in changes(lines // 10, seed):
        at = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        stream.write(
            f"{at} kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} "
            f"ua={hva:#x} guest_memfd=-1 guest_memfd_offset=0x0 ret=0\n"
        )
        stream.writelines(f"{at} memory_region_ops_write cpu 0 mr 0x55d0c0ff addr 0x{i} size 4\n" for i in range(9))


def write_qemu_beside(stream: TextIO, lines: int, seed: int) -> None:
    """The changes that go with a file of run state: a tenth of all lines."""
    write_qemu(stream, lines // 10, seed)


def write_trace_cmd(stream: TextIO, lines: int, seed: int) -> None:
    """trace-cmd report: entries, exits and returns of four vCPUs."""
    _tracepoints(stream, lines, seed, "       CPU {0}/KVM-{1}  [002]  {2:.6f}: {3}\n", "kvm_")


def write_perf_script(stream: TextIO, lines: int, seed: int) -> None:
    """perf script: the same."""
    _tracepoints(stream, lines, seed, "       CPU {0}/KVM {1} [002] {2:.6f}: {3}\n", "kvm:kvm_")


def write_perf_trace(stream: TextIO, lines: int, seed: int) -> None:
    """perf trace -T -e ioctl: KVM_RUNs of four threads."""
    for time, _, slot, _, _, _, _ in changes(lines // 10, seed):
        for i in range(9):
            vcpu = (slot + i) % 4
            stream.write(
                f"{(time + (i + 1) * 1e-6) * 1e3:.3f} ( 0.001 ms): CPU {vcpu}/KVM/{2000 + vcpu} "
                f"ioctl(fd: 12<anon_inode:kvm-vcpu:{vcpu}>, cmd: KVM_RUN)           = 0\n"
            )


def _tracepoints(stream: TextIO, lines: int, seed: int, form: str, prefix: str) -> None:
    events = (
        "entry: vcpu {}, rip 0xfff0",
        "exit: vcpu {} reason IO_INSTRUCTION rip 0xff",
        "userspace_exit: reason KVM_EXIT_IO (2)",
    )
    for time, _, slot, _, _, _, _ in changes(lines // 10, seed):
        for i in range(9):
            vcpu = (slot + i // 3) % 4
            stream.write(
                form.format(vcpu, 2000 + vcpu, time + (i + 1) * 1e-6, prefix + events[i % 3].format(vcpu)),
            )


WRITERS: dict[str, Callable[[TextIO, int, int], None]] = {
    "qemu": write_qemu,
    "qemu kvm_*": write_qemu_kvm,
    "qemu in a log": write_qemu_in_a_log,
    "strace": write_strace,
    "ftrace": write_ftrace,
    "bpftrace": write_bpftrace,
    "simpletrace": write_simpletrace,
    "trace-cmd": write_trace_cmd,
    "perf script": write_perf_script,
    "perf trace": write_perf_trace,
}
"""Of QEMU's plain log every line is a change; of the others a tenth."""
RUN_STATE_ONLY = {"trace-cmd", "perf script", "perf trace"}


def measure(jobs: int, *paths: Path) -> dict[str, float]:
    """What it takes to read and check a trace, or a trace and a file of run state."""
    arguments = [sys.executable, "-c", MEASURE, str(jobs), *map(str, paths)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)  # noqa: S603 (ourselves)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--lines", type=int, default=BOUND_LINES, help="lines of the largest trace")
    parser.add_argument("--formats", default=",".join(WRITERS), help="which formats, with commas")
    parser.add_argument("--sizes", type=int, default=10, help="how many sizes, evenly spaced")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=0, help="processes: 1, 2, or 0 for what the cores allow")
    arguments = parser.parse_args()
    print("format           lines  cpu s: read   check   per 1M  seconds  loop ms  peak MiB  transactions   holes")
    for name in arguments.formats.split(","):
        for step in range(1, arguments.sizes + 1):
            lines = arguments.lines * step // arguments.sizes
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace"
                with path.open("w") as stream:
                    WRITERS[name](stream, lines, arguments.seed)
                paths = [path]
                if name in RUN_STATE_ONLY:
                    paths = [Path(folder) / "changes", path]
                    with paths[0].open("w") as stream:
                        write_qemu_beside(stream, lines, arguments.seed)
                got = measure(arguments.jobs, *paths)
            cpu = got["read"] + got["check"]
            print(
                f"{name:13} {lines:8} {got['read']:12.2f} {got['check']:7.2f} {cpu / lines * 1e6:8.2f} "
                f"{got['seconds']:8.2f} {got['loop'] * 1e3:8.0f} {got['mib']:9.0f} {got['transactions']:13} "
                f"{got['holes']:7}",
                flush=True,
            )
        if lines == BOUND_LINES:
            most = BOUND_MIB.get(name, OTHERS_MIB)
            verdict = "reached" if got["seconds"] <= BOUND_SECONDS and got["mib"] <= most else "NOT reached"
            took = f"{got['seconds']:.2f} s by the clock ({cpu:.2f} s of the processor), {got['mib']:.0f} MiB"
            print(f"{name}: {took}; at most {BOUND_SECONDS:.0f} s and {most:.0f} MiB: {verdict}")


if __name__ == "__main__":
    main()
