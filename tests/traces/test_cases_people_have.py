"""Recordings that check once misread, from public reports and from tracers' options, are read as what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem import traces
from guestmem.check import Verdict, check
from guestmem.errors import TraceError

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize(
    ("name", "changes", "seconds"),
    [
        ("strace-r-10s.strace", 4, 200e-6),
        ("simpletrace.txt", 3, 71e-6),
        ("qemu-trace-stap.txt", 3, 100e-6),
        ("qemu-runexit-x86.log", 5, 120e-6),
        ("strace-argnames.strace", 3, 100e-6),
        ("strace-i.strace", 3, 200e-6),
        ("strace-stderr.strace", 3, 200e-6),
    ],
)
def test_one_hole_of_its_length(name: str, changes: int, seconds: float) -> None:
    timeline = traces.read(CASES / name)
    (hole,) = check(timeline).holes
    assert len(timeline.changes) == changes
    assert hole.duration == pytest.approx(seconds, abs=1e-6)


def test_ticks_are_no_seconds_and_that_is_said() -> None:
    timeline = traces.read(CASES / "ftrace-tsc.txt")
    (hole,) = check(timeline).holes
    assert hole.duration is None
    assert all(each.time is None for each in timeline.changes)
    assert any("does not count seconds" in note for note in timeline.notes)
    assert timeline.run_state is None


def test_processes_that_each_format_tells() -> None:
    assert {each.thread for each in traces.read(CASES / "qemu-trace-stap.txt").changes} == {5555}
    assert {each.thread for each in traces.read(CASES / "simpletrace.txt").changes} == {4134}
    threads = [each.thread for each in traces.read(CASES / "strace-stderr.strace").changes]
    assert threads == [25525, 25525, 25525]


def test_qemus_own_trace_of_kvm_run_tells_where_vcpus_are() -> None:
    state = traces.read(CASES / "qemu-runexit-x86.log").run_state
    assert state is not None
    assert [(vcpu.thread, vcpu.index) for vcpu in state.vcpus] == [(7021, 0), (7022, 1)]
    inside = {each.where.value for each in state.stretches(state.vcpus[1], 1567775824.00021, 1567775824.0003)}
    assert inside == {"kvm_run"}


def test_a_vm_is_chosen_where_requests_are_numbers() -> None:
    with pytest.raises(TraceError, match="--vm 4 or --vm 7"):
        traces.read(CASES / "two-vms-verbose.strace")
    (hole,) = check(traces.read(CASES / "two-vms-verbose.strace", vm=4)).holes
    assert hole.verdict is Verdict.CLOSED
    assert not check(traces.read(CASES / "two-vms-verbose.strace", vm="7")).holes


def test_perf_without_the_column_of_cpus() -> None:
    state = traces.read_run_state(CASES / "perf-nocpu.txt")
    assert [(vcpu.thread, vcpu.index) for vcpu in state.vcpus] == [(25070, 0)]
    (hole,) = check(traces.read(CASES / "changes.log", run_state=CASES / "perf-nocpu.txt")).holes
    assert hole.verdict is Verdict.OPEN


def test_a_second_vm_in_a_log_is_said_and_can_be_chosen() -> None:
    with pytest.raises(TraceError, match=r"two-boots.log:9: .*two VMs.*line 3.*--vm 5001 or --vm 5101"):
        traces.read(CASES / "libvirt-two-boots.log")
    for vm, lines in ((5001, [3, 4]), (5101, [9, 10])):
        assert [each.line for each in traces.read(CASES / "libvirt-two-boots.log", vm=vm).changes] == lines


def test_a_late_start_assumes_what_the_first_changes_imply() -> None:
    timeline = traces.read(CASES / "qemu-vga-bar-late.log")
    assert {(slot.as_id, slot.id, slot.base_gfn, slot.npages) for slot in timeline.assumed.values()} == {
        (0, 3, 0xFD000, 0x1000),
        (1, 3, 0xFD000, 0x1000),
    }
    assert any("assumed" in note for note in timeline.notes)
    assert len(timeline.changes) == 8
