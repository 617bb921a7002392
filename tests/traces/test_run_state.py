"""When each vCPU was in the guest: the same from strace, ftrace, trace-cmd and perf, and asked for correctly."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.errors import TraceError, UsageError
from guestmem.traces import RunState, Vcpu, Where

if TYPE_CHECKING:
    from pathlib import Path

QEMU = """\
    7@10.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0
    7@11.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x1000 ret=0
    """


def write(tmp_path: Path, text: str, name: str = "run.txt") -> Path:
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path


def pieces(state: RunState) -> dict[tuple[int, int | None], list[tuple[float, float, str]]]:
    """What is known of each vCPU, and is not that it was in user space."""
    return {
        (vcpu.thread, vcpu.index): [
            (each.start, each.end, each.where.value)
            for each in state.stretches(vcpu)
            if each.where not in (Where.UNKNOWN, Where.USER)
        ]
        for vcpu in state.vcpus
    }


FTRACE_LINE = {
    "ftrace": "       CPU {v}/KVM-{tid}    [00{v}] d..1. {time:.6f}: {event}: {fields}",
    "old ftrace": "           <...>-{tid}    [00{v}] d..1 {time:.6f}: {event}: {fields}",
    "ftrace with record-tgid": "   CPU {v}/KVM-{tid}    (  4140) [00{v}] d..1. {time:.6f}: {event}: {fields}",
    "trace-cmd": "       CPU {v}/KVM-{tid}  [00{v}]  {time:.6f}: {event}:             {fields}",
    "perf": "       CPU {v}/KVM  {tid} [00{v}]  {time:.6f}:              kvm:{event}: {fields}",
    "perf with process": "       CPU {v}/KVM  4140/{tid} [00{v}]  {time:.6f}: kvm:{event}: {fields}",
}
FIELDS = {
    "kvm_entry": "vcpu {v}, rip 0xfff0 intr_info 0x00000000 error_code 0x00000000",
    "kvm_exit": "vcpu {v} reason EPT_VIOLATION rip 0xfff0 info1 0x0000000000000182",
    "kvm_userspace_exit": "reason KVM_EXIT_MMIO (6)",
}


def tracepoints(shape: str, *events: tuple[float, int, str]) -> str:
    return "# tracer: nop\n" + "".join(
        FTRACE_LINE[shape].format(v=v, tid=100 + v, time=time, event=event, fields=FIELDS[event].format(v=v)) + "\n"
        for time, v, event in events
    )


@pytest.mark.parametrize("shape", FTRACE_LINE)
def test_entry_and_exit_in_every_shape_of_tracepoints(tmp_path: Path, shape: str) -> None:
    text = tracepoints(
        shape,
        (1.0, 0, "kvm_entry"),
        (1.5, 1, "kvm_entry"),
        (2.0, 0, "kvm_exit"),
        (3.0, 0, "kvm_entry"),
        (4.0, 1, "kvm_exit"),
        (5.0, 1, "kvm_exit"),
        (6.0, 1, "kvm_entry"),
    )
    state = traces.read_run_state(write(tmp_path, text))
    assert pieces(state) == {
        (100, 0): [(1.0, 2.0, "guest"), (2.0, 3.0, "kvm"), (3.0, 6.0, "kvm_run")],  # the last exit is not there
        (101, 1): [(1.5, 4.0, "guest"), (5.0, 6.0, "kvm")],  # two exits in a row: an entry is missing
    }
    assert (state.first, state.last, state.losses.all) == (1.0, 6.0, ())


def test_with_kvm_userspace_exit_a_vcpu_is_served_until_then(tmp_path: Path) -> None:
    text = tracepoints(
        "ftrace",
        (1.0, 0, "kvm_entry"),
        (2.0, 0, "kvm_exit"),
        (2.5, 0, "kvm_entry"),
        (3.0, 0, "kvm_exit"),
        (3.1, 0, "kvm_userspace_exit"),
        (4.0, 0, "kvm_entry"),
        (5.0, 0, "kvm_exit"),
        (6.0, 1, "kvm_exit"),
        (6.5, 1, "kvm_userspace_exit"),
        (7.0, 1, "kvm_userspace_exit"),
    )
    state = traces.read_run_state(write(tmp_path, text))
    assert pieces(state) == {
        (100, 0): [
            (1.0, 2.0, "guest"),
            (2.0, 2.5, "kvm"),
            (2.5, 3.0, "guest"),
            (3.0, 3.1, "kvm"),
            (4.0, 5.0, "guest"),
            (5.0, 7.0, "kvm"),
        ],
        (101, 1): [(6.0, 7.0, "kvm")],
    }


def test_an_interrupt_needs_no_memory_so_what_follows_it_is_outside(tmp_path: Path) -> None:
    text = tracepoints("ftrace", (1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit"), (9.0, 0, "kvm_entry"))
    state = traces.read_run_state(write(tmp_path, text.replace("EPT_VIOLATION", "EXTERNAL_INTERRUPT")))
    (vcpu,) = state.vcpus
    assert [(each.start, each.where) for each in state.stretches(vcpu, 1.0, 8.0)][1:] == [
        (1.0, Where.GUEST),
        (2.0, Where.USER),
    ]


def test_an_entry_that_exits_at_once_runs_nothing(tmp_path: Path) -> None:
    text = tracepoints("ftrace", (1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit"))
    text = text.replace("0xfff0", "0xfff0[immediate exit]")
    assert pieces(traces.read_run_state(write(tmp_path, text))) == {(100, 0): [(1.0, 2.0, "kvm")]}


def test_nothing_is_known_of_a_vcpu_before_its_first_event(tmp_path: Path) -> None:
    text = tracepoints("ftrace", (1.0, 0, "kvm_entry"), (3.0, 1, "kvm_exit"), (4.0, 0, "kvm_exit"))
    state = traces.read_run_state(write(tmp_path, text))
    assert pieces(state)[101, 1] == [(3.0, 4.0, "kvm")]
    assert state.known(Vcpu(101, 1)) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("line", "cpu"),
    [
        ("CPU:0 [LOST 512 EVENTS]", 0),  # the kernel's
        ("CPU:0 [LOST EVENTS]", 0),
        ("CPU:0 [12 EVENTS DROPPED]", 0),  # trace-cmd's
        ("CPU:0 [EVENTS DROPPED]", 0),
        ("CPU 0/KVM 100 [000] 2.500000: PERF_RECORD_LOST lost 3", 0),
        ("PERF_RECORD_LOST lost 3", None),
        ("PERF_RECORD_LOST_SAMPLES lost 3", None),
        ("LOST 3 EVENTS!", None),
        ("LOST 3 events!", None),  # perf trace
        ("CPU:0 [3 EVENTS LOST]", 0),
        ("[ perf record: Captured and wrote 1 MB (lost 3 samples) ]", None),
        ("Processed 99 samples and lost 34.00%!", None),
        ("CPU 0/KVM 100 [000] 2.500000: PERF_RECORD_THROTTLE", 0),
        ("overrun: 7", None),  # per_cpu/cpu0/stats
        ("dropped events: 3", None),
        ("Lost 7 events", None),  # bpftrace's
    ],
)
def test_lost_events_are_kept_with_the_events_around_them(tmp_path: Path, line: str, cpu: int | None) -> None:
    events = [(1.0, 0, "kvm_entry"), (1.5, 1, "kvm_entry"), (2.0, 0, "kvm_exit")]
    text = tracepoints("ftrace", *events) + line + "\n"
    text += tracepoints("ftrace", (3.0, 1, "kvm_exit"), (4.0, 0, "kvm_entry"), (5.0, 1, "kvm_entry"))
    state = traces.read_run_state(write(tmp_path, text))
    (loss,) = state.losses.all
    assert (loss.cpu, loss.after, loss.before) == ((cpu, 2.0, 4.0) if cpu is not None else (None, -math.inf, math.inf))
    assert "lost" in str(state)
    known = pieces(state)
    assert ((1.0, 2.0, "guest") in known[100, 0]) is (cpu is not None)
    assert (2.0, 4.0, "kvm") not in known[100, 0]
    assert ((1.5, 3.0, "guest") in known[101, 1]) is (cpu is not None)  # in the guest on another CPU all the while
    assert all(each[0] < 3.0 for each in known[101, 1] if each[2] != "kvm_run")


def test_what_a_cpu_overwrote_is_not_known(tmp_path: Path) -> None:
    events = [(1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit"), (5.0, 1, "kvm_entry"), (6.0, 1, "kvm_exit")]
    events += [(8.0, 0, "kvm_entry"), (9.0, 0, "kvm_exit")]
    whole = tracepoints("ftrace", *events)
    overwritten = whole.replace("nop\n", "nop\n#\n# entries-in-buffer/entries-written: 4/70   #P:2\n")
    assert (2.0, 8.0, "kvm") in pieces(traces.read_run_state(write(tmp_path, whole)))[100, 0]
    known = pieces(traces.read_run_state(write(tmp_path, overwritten)))
    assert known[100, 0] == [(1.0, 2.0, "guest"), (8.0, 9.0, "guest")]
    assert known[101, 1] == [(5.0, 6.0, "guest"), (6.0, 9.0, "kvm")]
    # Any event that a CPU has left says that none after it was overwritten.
    line = "      swapper/1-0       [001] d..1. 1.500000: sched_switch: prev_comm=swapper/1"
    known = pieces(traces.read_run_state(write(tmp_path, overwritten.replace("#P:2\n", f"#P:2\n{line}\n"))))
    assert (2.0, 8.0, "kvm") in known[100, 0]


def test_a_tracepoint_without_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"run.txt:2: kvm_entry: no thread and time before it"):
        traces.read_run_state(write(tmp_path, "x\nkvm_entry: vcpu 0, rip 0xfff0\n"))


def test_one_vcpu_on_two_threads_at_once_is_two_vms(tmp_path: Path) -> None:
    shape = FTRACE_LINE["ftrace"]
    text = "".join(
        shape.format(v=0, tid=tid, time=time, event=event, fields=FIELDS[event].format(v=0)) + "\n"
        for time, tid, event in [(1.0, 100, "kvm_entry"), (1.5, 200, "kvm_entry"), (2.0, 100, "kvm_exit")]
    )
    with pytest.raises(TraceError, match=r"vCPU 0 .* threads 100 and 200 at once.*two VMs"):
        traces.read_run_state(write(tmp_path, text))


def test_kvm_run_with_duration_split_and_neither(tmp_path: Path) -> None:
    state = traces.read_run_state(
        write(
            tmp_path,
            """\
            5 1.000000 ioctl(8<anon_inode:kvm-vm>, KVM_CREATE_VCPU, 0) = 12<anon_inode:kvm-vcpu:0> <0.000010>
            6 2.000000 ioctl(12<anon_inode:kvm-vcpu:0>, KVM_RUN, 0) = 0 <0.250000>
            6 3.000000 ioctl(12, KVM_RUN, 0) = -1 EINTR (Interrupted system call) <0.500000>
            7 4.000000 ioctl(13<anon_inode:kvm-vcpu:1>, KVM_RUN <unfinished ...>
            6 4.500000 ioctl(12, KVM_RUN <unfinished ...>
            7 5.000000 <... ioctl resumed>, 0) = 0 (KVM_EXIT_MMIO)
            5 6.000000 close(3) = 0
            """,
        )
    )
    run = "kvm_run"
    assert pieces(state) == {(6, 0): [(2.0, 2.25, run), (3.0, 3.5, run), (4.5, 6.0, run)], (7, 1): [(4.0, 5.0, run)]}
    assert [(each.time, each.name) for each in state.returns(Vcpu(6, 0), 0, 9)] == [(2.25, ""), (3.5, "EINTR")]
    assert [(each.time, each.name) for each in state.returns(Vcpu(7, 1), 0, 9)] == [(5.0, "KVM_EXIT_MMIO")]
    assert (state.first, state.last) == (1.0, 6.0)


def test_kvm_run_without_duration_lasts_until_the_threads_next_line(tmp_path: Path) -> None:
    text = """\
        6 1.000000 ioctl(12, KVM_RUN, 0) = 0
        7 2.000000 ioctl(13, KVM_RUN, 0) = 0
        6 3.000000 ioctl(12, KVM_RUN, 0) = 0
        7 4.000000 getpid() = 7
        """
    state = traces.read_run_state(write(tmp_path, text))
    assert pieces(state) == {(6, None): [(1.0, 4.0, "kvm_run")], (7, None): [(2.0, 4.0, "kvm_run")]}


def test_where_strace_splits_calls_a_whole_kvm_run_ends_before_any_other_line(tmp_path: Path) -> None:
    text = """\
        6 1.000000 ioctl(12, KVM_RUN, 0) = 0
        7 2.000000 ioctl(13, KVM_RUN, 0 <unfinished ...>
        6 3.000000 ioctl(12, KVM_RUN, 0) = 0
        7 4.000000 <... ioctl resumed>) = 0
        """
    state = traces.read_run_state(write(tmp_path, text))
    assert pieces(state) == {
        (6, None): [(1.0, 2.0, "kvm_run"), (3.0, 4.0, "kvm_run")],
        (7, None): [(2.0, 4.0, "kvm_run")],
    }


def test_kvm_run_of_another_vm_is_left_out(tmp_path: Path) -> None:
    text = """\
        5 1.000000 ioctl(8, KVM_CREATE_VCPU, 0) = 12
        5 1.100000 ioctl(9, KVM_CREATE_VCPU, 0) = 13
        6 2.000000 ioctl(12, KVM_RUN, 0) = 0 <0.1>
        7 2.000000 ioctl(13, KVM_RUN, 0) = 0 <0.1>
        """
    assert [vcpu.thread for vcpu in traces.read_run_state(write(tmp_path, text), vm=9).vcpus] == [7]


def test_changes_that_strace_cannot_show_do_not_spoil_its_run_state(tmp_path: Path) -> None:
    text = """\
        5 1.000000 ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffde882e140) = 0
        6 2.000000 ioctl(12, KVM_RUN, 0) = 0 <0.100000>
        """
    assert pieces(traces.read_run_state(write(tmp_path, text))) == {(6, None): [(2.0, 2.1, "kvm_run")]}


def test_a_trace_without_run_state_has_none(tmp_path: Path) -> None:
    assert traces.read(write(tmp_path, QEMU)).run_state is None


def test_run_state_may_stand_in_the_trace_itself(tmp_path: Path) -> None:
    text = tracepoints("ftrace", (1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit"))
    text += (
        " qemu-system-x86-99  [001] d..1.  1.500000: tracing_mark_write: "
        "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0\n"
    )
    timeline = traces.read(write(tmp_path, text))
    assert timeline.run_state is not None
    assert pieces(timeline.run_state) == {(100, 0): [(1.0, 2.0, "guest")]}
    assert (timeline.changes[0].time, timeline.changes[0].thread, timeline.format) == (1.5, 99, "qemu")


def test_run_state_from_a_second_file_is_shifted(tmp_path: Path) -> None:
    second = write(tmp_path, tracepoints("perf", (110.5, 0, "kvm_entry"), (110.75, 0, "kvm_exit")), "perf.txt")
    timeline = traces.read(write(tmp_path, QEMU), run_state=second, run_state_offset=-100.0)
    assert timeline.run_state is not None
    assert pieces(timeline.run_state) == {(100, 0): [(10.5, 10.75, "guest")]}


def test_two_clocks_that_do_not_meet_are_an_error_that_gives_both(tmp_path: Path) -> None:
    second = write(tmp_path, tracepoints("perf", (110.5, 0, "kvm_entry"), (110.75, 0, "kvm_exit")), "perf.txt")
    with pytest.raises(TraceError, match=r"110.5\d* to 110.75\d*, .* 10.0\d* to 11.0\d*: .*--run-state-offset"):
        traces.read(write(tmp_path, QEMU), run_state=second)


def test_run_state_for_a_trace_without_times_is_an_error(tmp_path: Path) -> None:
    second = write(tmp_path, tracepoints("perf", (1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit")), "perf.txt")
    bare = write(tmp_path, textwrap.dedent(QEMU).replace("7@10.000000:", "").replace("7@11.000000:", ""))
    with pytest.raises(TraceError, match="no times"):
        traces.read(bare, run_state=second)


def test_a_second_file_without_run_state_is_an_error(tmp_path: Path) -> None:
    second = write(tmp_path, QEMU, "second.log")
    with pytest.raises(TraceError, match=r"second.log: no vCPU enters or leaves the guest in 2 lines"):
        traces.read(write(tmp_path, QEMU), run_state=second)


def test_run_state_alone_is_no_trace(tmp_path: Path) -> None:
    text = tracepoints("ftrace", (1.0, 0, "kvm_entry"), (2.0, 0, "kvm_exit"))
    with pytest.raises(TraceError, match=r"no memslot event .*--run-state, beside"):
        traces.read(write(tmp_path, text))


def test_standard_input_cannot_be_both() -> None:
    with pytest.raises(UsageError, match="standard input"):
        traces.read("-", run_state="-")
