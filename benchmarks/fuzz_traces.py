"""Mutated lines of every format, read without a traceback or a hang.

Each format has a corpus of lines, real ones and those of its options. Lines are changed at random (a byte, a cut, a
piece of another line, a digit repeated many times) and given to all readers as reading a file does, one by one, in
blocks, and in blocks of which a second process made something; a TraceError of one line is right, any other exception is a defect, and so is a batch that takes longer than
SECONDS.

    python benchmarks/fuzz_traces.py [--lines 1000000] [--formats qemu,strace] [--seed 1]
"""

from __future__ import annotations

import argparse
import marshal
import random
import resource
import sys
import time
from pathlib import Path

from guestmem.errors import TraceError
from guestmem.traces import pieces
from guestmem.traces.dispatch import Lines
from guestmem.traces.reading import AHEAD
from guestmem.traces.recording import Recording

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "traces" / "cases"
EXAMPLES = ROOT / "examples" / "traces"
BATCH = 500
SECONDS = 20
SHORTEST_PIECE = 2
"""So that what is mutated is often in a piece."""
ALPHABET = "0123456789abcdefx=#@:, {}()[]<>\n\t.-+/*\"'|é\0KVM_"

REGION = "{slot=0, flags=KVM_MEM_READONLY, guest_phys_addr=0x1000, memory_size=4096, userspace_addr=0x7f0000000000}"
# ruff: noqa: E501, ISC004 (lines as the tracers print them)
EXTRA = {
    "qemu": [
        "2026-01-10T10:05:00.000000Z kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
        "Jan 10 10:00:00 host qemu-kvm[77]: kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
        '{"msg": "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0"}',
        "7@1.000000:vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]",
        "7@1.000000:vfio_listener_region_del region_del 0x0 - 0xfff",
        "7@1.000000:kvm_clear_dirty_log slot#0 start 0x40 size 0xff40",
    ],
    "strace": [
        f"[pid 5<CPU 0/KVM>] 1764400000.000100 [00007f0000abcd6b] ioctl(fd=4<anon_inode:kvm-vm>, "
        f"op=KVM_SET_USER_MEMORY_REGION, argp={REGION}) = 0 <0.000188>",
        f"5      0.000125 [  16] ioctl(4, 0x4020ae46 /* KVM_SET_USER_MEMORY_REGION */, {REGION}) = -1 EEXIST (File exists)",
        "6 10:00:00 (+     0.000123) ioctl(12<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.000004>",
        "6 1764400000.000100 ioctl(12, KVM_RUN <unfinished ...>",
        "6 1764400000.000200 <... ioctl resumed>, 0) = -1 EINTR (Interrupted system call)",
        "6 1764400000.000200 ioctl(4, _IOC(_IOC_WRITE, 0xae, 0x49, 0xa0), 0x7ffc) = 0",
        "6 1764400000.000200 ioctl(3</dev/kvm<char 10:232>>, KVM_CREATE_VM, 0) = 4<anon_inode:kvm-vm>",
        "strace: Process 25566 attached",
        " > /usr/lib/libc.so.6(ioctl+0x3b) [0x107d6b]",
        "[pid 6] +++ exited with 0 +++",
    ],
    "ftrace": [
        "       CPU 0/KVM-9    ( 4140) [002] d..1. 95526.463470: kvm_entry: vcpu 0, rip 0xfff0 [immediate exit]",
        "preempt_test 25070 95526.463690:      kvm:kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x4131a0 info 0 0 intr 0",
        "       qemu-25070     6d..2 95526.390000: kvm_userspace_exit:   reason KVM_EXIT_IO (2)",
        "CPU:6 [LOST 12 EVENTS]",
        "qemu 7/8 [001] 95526.4: PERF_RECORD_LOST lost 3",
        "# entries-in-buffer/entries-written: 9/250280   #P:8",
        "##### CPU 2 buffer started ####",
        " qemu-7 [001] ..... 95526.4: sys_enter_ioctl: fd: 0x0000000c, cmd: 0x0000ae80, arg: 0x00000000",
        " qemu-7 [001] ..... 95526.4: sys_exit_ioctl: 0x0",
    ],
    "perf trace": [
        "     0.000 ( 0.012 ms): CPU 0/KVM/25070 ioctl(fd: 12<anon_inode:kvm-vcpu:0>, cmd: KVM_RUN)           = 0",
        "     1.000 (         ): CPU 0/KVM/25070 ioctl(fd: 12<anon_inode:kvm-vcpu:0>, cmd: KVM_RUN) ...",
        "     2.000 ( 1.000 ms): CPU 0/KVM/25070  ... [continued]: ioctl())                                  = 0",
        "     3.000 qemu/25070 kvm:kvm_entry(vcpu_id: 0, rip: 65520)",
    ],
    "bpftrace": [
        "3966082125942 16451/16451 [0] memslot vm=9 request=4020ae46 slot=0 flags=0 gpa=0 size=8000000 hva=7fcc83e00000",
        "3966082389920 16451/16451 [0] memslot_end ret=0",
        "3966082389930 16451/16452 [0] run",
        "3966082389940 16451/16452 [0] run_end ret=-4",
        "3966082389950 16451/16452 [0] kvm_exit vcpu=0 isa=1 reason=48",
        "3966082389950 16451/16452 [0] create_vcpu vcpu=0",
        "# guestmem-bpftrace 1 form=syscalls clock=nsecs",
        "Lost 12 events",
    ],
    "simpletrace": [
        "kvm_vcpu_ioctl 3.120 pid=7 cpu_index=0x1 type=0xae80 arg=0x0",
        "kvm_run_exit 9.999 pid=7 cpu_index=0x1 reason=0x2",
        "Dropped_Event 1.000 pid=7 num_events_dropped=0x5",
    ],
}
FILES = {
    "qemu": [EXAMPLES / "pc-seabios-smp2.log", EXAMPLES / "pc-migration.log", CASES / "qemu-runexit-x86.log",
             CASES / "qemu-trace-stap.txt", CASES / "libvirt-two-boots.log"],
    "strace": [CASES / "strace-i.strace", CASES / "two-vms-verbose.strace", CASES / "strace-stderr.strace",
               CASES / "strace-r-10s.strace", CASES / "guest-died.strace", CASES / "irqchip-sipi.strace"],
    "ftrace": [CASES / "ftrace-overwritten.txt", CASES / "ftrace-tsc.txt", CASES / "only-kvm-exit.txt"],
    "perf trace": [],
    "bpftrace": [],
    "simpletrace": [CASES / "simpletrace.txt"],
}  # fmt: skip


def corpus(name: str) -> list[str]:
    """Lines of one format."""
    return [*EXTRA[name], *(line for file in FILES[name] for line in file.read_text().splitlines())]


def mutated(rng: random.Random, lines: list[str]) -> str:
    """One of ``lines``, changed in one to three places."""
    text = rng.choice(lines)
    for _ in range(rng.randrange(1, 4)):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(ALPHABET) + text[at + 1 :]
        elif kind == 1:
            text = text[:at]
        elif kind == 2:
            other = rng.choice(lines)
            text = text[:at] + other[rng.randrange(len(other) + 1) :]
        elif kind == 3:
            text = text[:at] + rng.choice(ALPHABET) * rng.choice((2, 5, 20, 400)) + text[at:]
        elif kind == 4:
            end = min(at + rng.randrange(1, 40), len(text))
            text = text[:at] + text[at:end] * rng.choice((0, 2, 3, 60)) + text[end:]
        else:
            text = text[at:] + text[:at]
    return text.replace("\n", " ")[:16384] + "\n"


def campaign(name: str, count: int, seed: int) -> tuple[int, int]:
    """Read ``count`` mutated lines of format ``name``; how many were used, and how many refused."""
    rng = random.Random(f"{name}{seed}")
    lines = corpus(name)
    used = refused = 0
    for start in range(0, count, BATCH):
        recording = Recording("fuzz", wants_changes=rng.random() < 0.9, vm=rng.choice((None, None, "4", "5001")))
        handed = Lines(recording)
        began = time.process_time()
        texts = [
            mutated(rng, lines) if rng.random() < 0.8 else rng.choice(lines) + "\n"
            for _ in range(start, min(start + BATCH, count))
        ]
        at_once = rng.choice((1, 7, 60))
        """Lines of a block; an error ends its block, so most are short."""
        for first in range(0, len(texts), at_once):
            block = texts[first : first + at_once]
            number = start + first + 1
            handed.leading = rng.choice(handed.readers)
            try:
                if at_once > 1:
                    text = "".join(block)
                    work = AHEAD.get(type(handed.leading))
                    made = None
                    if work is not None and rng.random() < 0.5:
                        made = marshal.loads(marshal.dumps(work(text)))  # noqa: S302 (ours)
                    handed.take_block(number, text, made)
                else:
                    handed.look_at_all()
                    handed.take(number, block[0])
            except TraceError as error:
                refused += 1
                _check_message(error)
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}, lines from {number} on: {block!r}") from error
        used += len(texts) - handed.skipped
        readers = handed.readers
        for end in (*(reader.finish for reader in readers), recording.machines.finish):
            try:
                end()
            except TraceError as error:
                _check_message(error)
        try:
            recording.run.finish("fuzz")
        except TraceError as error:
            _check_message(error)
        assert len(recording.notes) <= 32
        if time.process_time() - began > SECONDS:
            raise AssertionError(f"{name}, seed {seed}, lines from {start} on: {time.process_time() - began:.0f} s")
    return used, refused


def _check_message(error: TraceError) -> None:
    if "\n" in str(error):
        raise AssertionError(f"more than one line: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--lines", type=int, default=1_000_000, help="mutated lines of each format")
    parser.add_argument("--formats", default=",".join(EXTRA))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    pieces.SHORTEST = SHORTEST_PIECE
    for name in arguments.formats.split(","):
        start = time.process_time()
        used, refused = campaign(name, arguments.lines, arguments.seed)
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.process_time() - start
        print(f"{name:12} {arguments.lines} lines: {used} used, {refused} refused, {seconds:.0f} s, {mib:.0f} MiB")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
