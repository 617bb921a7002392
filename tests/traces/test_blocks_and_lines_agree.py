"""What is read a block at a time is what is read line by line: changes, holes, errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import renderings
from guestmem import traces
from guestmem.check import check
from guestmem.errors import TraceError
from guestmem.traces import dispatch
from guestmem.traces.lines import line_of
from guestmem.traces.recording import Recording
from true_histories import simulate

if TYPE_CHECKING:
    import random

ROOT = Path(__file__).parents[2]
FILES = sorted(
    each
    for folder in ("examples/traces", "tests/traces/cases")
    for each in (ROOT / folder).iterdir()
    if each.suffix in {".txt", ".log", ".strace", ".ftrace"}
)


def line_by_line(self: Any, number: int, block: str, _made: object = None) -> int:
    texts = block.split("\n")[:-1]
    for i, text in enumerate(texts):
        self.take(number + i, line_of(text))
    return len(texts)


def told(path: Path) -> Any:
    """All that is known of a file; of vCPUs but for how many events they have, since lines tell some twice."""
    try:
        timeline = traces.read(path)
        report = check(timeline).as_dict()
    except TraceError as error:
        return str(error)
    report.pop("run_state")
    return list(timeline.changes), report


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    at_once = told(path)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch.Lines, "take_block", line_by_line)
        return at_once, told(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_of_each_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, one_by_one = both(path, monkeypatch)
    assert at_once == one_by_one


def test_of_damaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Renderings of true histories, and pieces of recordings, with lines that are doubled, left out or cut."""
    plain = [each.read_text(errors="replace").splitlines(keepends=True) for each in FILES]
    forms = (renderings.strace, renderings.qemu_kvm_log, renderings.qemu_log, renderings.bpftrace)
    refused = read = 0
    for i in range(150):
        if i % 2:
            lines = rng.choice(forms)(simulate(rng), rng).splitlines(keepends=True)
        else:
            whole = rng.choice(plain)
            start = rng.randrange(len(whole)) if rng.random() < 0.5 else 0
            lines = whole[start : start + 400]
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(lines))
            lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at][: rng.randrange(1, 60)] + "\n"]))
            lines = lines or ["\n"]
        if rng.random() < 0.2:
            lines = list(itertools.chain.from_iterable((each, "kvm_entry\n", "noise\n") for each in lines))
        path = tmp_path / "trace"
        path.write_text("".join(lines))
        at_once, one_by_one = both(path, monkeypatch)
        assert at_once == one_by_one, f"{i}"
        refused += isinstance(at_once, str)
        read += not isinstance(at_once, str)
    assert min(refused, read) > 20


SET = (
    "ioctl({}, KVM_SET_USER_MEMORY_REGION, {{slot={}, flags=0, guest_phys_addr={:#x}, memory_size={}, "
    "userspace_addr=0x10000}})"
)


def change(time: float, slot: int, size: int, fd: int = 4) -> str:
    return f"7 {1700000000 + time:.6f} {SET.format(fd, slot, slot << 20, size)} = 0 <0.010000>\n"


PADDING = '7 1700000001.150000 read(3, "", 8) = 0 <0.000001>\n' * 7000
"""More than a block: by the next one it is known which format it is."""


def read(tmp_path: Path, text: str, **options: Any) -> traces.Timeline:
    (tmp_path / "trace").write_text(text)
    return traces.read(tmp_path / "trace", gap=1.0, **options)


def test_a_slot_in_the_way_is_refused_inside_a_block_too(tmp_path: Path) -> None:
    event = "7@{}:kvm_set_user_memory AddrSpace#0 Slot#{} flags=0x0 gpa={:#x} size={:#x} ua=0x7f0000000000 ret=0\n"
    lines = [event.format(f"{1 + i / 1e3:.6f}", i, i << 20, 0x1000) for i in range(200)]
    for gpa, size in ((50 << 20, 0x1000), ((50 << 20) - 0x1000, 0x2000)):
        with pytest.raises(TraceError, match=r":201: slot 300: .* overlaps slot 50 "):
            read(tmp_path, "".join([*lines, event.format("2.000000", 300, gpa, size)]))


def test_a_thread_that_runs_vcpus_of_two_vms_is_told_apart_by_the_descriptor(tmp_path: Path) -> None:
    run = "9 {:.6f} ioctl({}, KVM_RUN, 0) = 0 <0.000050>\n"
    lines = ["7 1700000000.100000 ioctl(4, KVM_CREATE_VCPU, 0) = 5 <0.000010>\n"]
    lines += ["7 1700000000.200000 ioctl(8, KVM_CREATE_VCPU, 0) = 9 <0.000010>\n", change(1.0, 0, 4096)]
    lines += [PADDING, change(1.2, 0, 4096, fd=8)]
    lines += [run.format(1700000002 + i / 1e3, fd) for i in range(50) for fd in (5, 9)]
    state = read(tmp_path, "".join(lines), vm=4).run_state
    assert state is not None
    (vcpu,) = state.vcpus
    assert len(state.returns(vcpu, 0.0, 2e9)) == 50


def test_a_line_without_any_word_of_a_traces_ends_a_call(tmp_path: Path) -> None:
    """Without -T a KVM_RUN has returned at the thread's next line, whatever call that is."""
    lines = [
        change(1.0, 0, 4096),
        PADDING,
        *(f"9 {1700000001.2 + i / 10:.6f} ioctl(5, KVM_RUN, 0) = 0\n" for i in range(3)),
    ]
    lines += ['9 1700000001.600000 read(3, "", 8) = 0\n', change(2.0, 0, 0), change(2.1, 0, 4096)]
    lines += ["9 1700000003.000000 ioctl(5, KVM_RUN, 0) = 0\n", '9 1700000004.000000 read(3, "", 8) = 0\n']
    (hole,) = check(read(tmp_path, "".join(lines))).holes
    assert hole.verdict.value == "closed", hole.reason


def test_the_whole_of_a_hole_is_looked_at(tmp_path: Path) -> None:
    """Two slots go, the first comes back, a vCPU runs, the second comes back."""
    lines = [change(1.0, 0, 4096), change(1.1, 1, 4096), change(2.0, 0, 0), change(2.1, 1, 0), change(2.2, 0, 4096)]
    lines += ["9 1700000001.500000 ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_HLT) <0.000100>\n"]
    lines += ["9 1700000002.300000 ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.050000>\n", change(2.5, 1, 4096)]
    lines += ["9 1700000003.000000 ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.000100>\n"]
    (hole,) = check(read(tmp_path, "".join(lines))).holes
    assert (hole.verdict.value, hole.rule.name) == ("open", "guest-return")


NOISE = "noise\n" * 30


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("strace", "7 1700000000.000001 ioctl(12, KVM_RUN, 0) = 0 <0.000001>\n"),
        ("ftrace", " CPU 0/KVM-20    [002] d..1. 1700000000.000300: kvm_entry: vcpu 0, rip 0xfff0\n"),
        ("perf trace", "     0.001 ( 0.001 ms): CPU 0/KVM/20 ioctl(fd: 12<anon_inode:kvm-vcpu:0>, cmd: KVM_RUN) = 0\n"),
        ("qemu", "7@1700000000.000001:kvm_run_exit cpu_index 0, reason 2\n"),
    ],
)
def test_a_line_that_says_nothing_is_no_reason_to_lead(name: str, line: str) -> None:
    """Of blocks in which most lines say nothing the reader that takes the others is the next to look first."""
    lines = dispatch.Lines(Recording("trace", wants_changes=True))
    for other in ("7@1700000000.000001:kvm_run_exit cpu_index 0, reason 2\n" * 3, line * 3, NOISE + line, NOISE):
        lines.take_block(1, NOISE + other)
    assert lines.leading.name == name


def test_two_lines_in_one_are_refused_whatever_came_before(tmp_path: Path) -> None:
    """A change, and an event of a vCPU behind it without a line end in between: the change is not lost in silence."""
    entry = " CPU 0/KVM-20    [002] d..1. 1700000000.000300: kvm_entry: vcpu 0, rip 0xfff0\n"
    change = (
        " qemu-7    [001] d..1. 1700000000.000200: tracing_mark_write: "
        "kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x0 gpa=0x1000 size=0x1000 ua=0x7f0000000000 ret=0"
    )
    path = tmp_path / "trace"
    path.write_text(entry + change + entry)
    with pytest.raises(TraceError, match=":2: kvm_set_user_memory: its fields cannot be read"):
        traces.read(path)
