"""What simpletrace, system logs, perf, trace-cmd, ftrace, perf trace and bpftrace print is read as what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guestmem import traces
from guestmem.check import check
from guestmem.errors import TraceError
from guestmem.traces import Where

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"
SLOT = "kvm_set_user_memory AddrSpace#0 Slot#{} flags=0x0 gpa={:#x} size={:#x} ua={:#x} ret=0"


def written(tmp_path: Path, text: str, name: str = "trace.txt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def slot(number: int, gpa: int, size: int, ua: int = 0x7F0000000000) -> str:
    return SLOT.format(number, gpa, size, ua)


@pytest.mark.parametrize(
    ("prefix", "thread", "time"),
    [
        ("Jan 10 10:00:00.123456 host qemu-system-x86_64[5001]: ", None, 9 * 86400 + 36000.123456),
        ("2026-01-10T10:00:00.123456+00:00 host qemu-kvm[5001]: ", None, 1768039200.123456),
        ("1768039200.123456 host qemu-kvm[5001]: ", None, 1768039200.123456),
        ("[ 1234.567890] host qemu-kvm[5001]: ", None, 1234.56789),
        ("Jan 10 10:00:00 host qemu-kvm[5001]: ", None, None),
        ("qemu-7020  [001] 95526.400000: print:  tracing_mark_write: ", 7020, 95526.4),
        ("   qemu-7020    1d..1 95526.400000: tracing_mark_write: ", 7020, 95526.4),
        ("[5001]: 7020@95526.400000:", 7020, 95526.4),
    ],
)
def test_prefixes_of_loggers(tmp_path: Path, prefix: str, thread: int | None, time: float | None) -> None:
    timeline = traces.read(written(tmp_path, f"{prefix}{slot(0, 0, 0x1000)}\n"))
    (change,) = timeline.changes
    assert (change.thread, change.time) == (thread, None if time is None else pytest.approx(time))
    assert bool(timeline.notes) == (time is None), "whole seconds are no times, and that is said"


def test_a_log_of_json_objects(tmp_path: Path) -> None:
    line = json.dumps({"component": "virt-launcher", "msg": f"7020@95526.400000:{slot(0, 0, 0x1000)}"})
    (change,) = traces.read(written(tmp_path, line + "\n")).changes
    assert (change.thread, change.time) == (7020, 95526.4)


def test_an_event_in_a_string_is_noted(tmp_path: Path) -> None:
    text = f'5 write(2, "7@1.0:{slot(0, 0, 4096)}", 80) = 80\n7@1.000000:{slot(0, 0, 4096)}\n'
    timeline = traces.read(written(tmp_path, text))
    assert len(timeline.changes) == 1
    assert "inside a string" in timeline.notes[0]
    assert "line 1" in timeline.notes[0]


def test_simpletrace_adds_up_the_steps_of_all_events(tmp_path: Path) -> None:
    names = (
        "pid=7 as=0x0 slot=0x0 flags=0x0 guest_phys_addr=0x0 memory_size={} userspace_addr=0x1000 fd=0xffffffff ret={}"
    )
    timeline = traces.read(
        written(
            tmp_path,
            f"kvm_set_user_memory 0.000 {names.format('0x1000', '0x0')}\n"
            "qemu_mutex_lock 10.500 pid=7 mutex=0x1 file=a.c line=0x1\n"
            "kvm_vcpu_ioctl 1.000 pid=7 cpu_index=0x1 type=0xae80 arg=0x0\n"
            f"kvm_set_user_memory 4.250 {names.format('0x2000', '0xffffffea')}\n"
            "kvm_run_exit 4.000 pid=7 cpu_index=0x1 reason=0x2\n",
        )
    )
    assert [each.time for each in timeline.changes] == pytest.approx([0.0, 15.75e-6])
    assert timeline.changes[1].ret == -22
    assert timeline.run_state is not None
    assert [vcpu.index for vcpu in timeline.run_state.vcpus] == [1]


def test_dropped_events_of_simpletrace_are_said(tmp_path: Path) -> None:
    fields = "slot=0x0 flags=0x0 guest_phys_addr=0x0 memory_size=0x1000 userspace_addr=0x0 ret=0x0"
    line = f"kvm_set_user_memory 0.000 pid=7 {fields}\n"
    timeline = traces.read(written(tmp_path, line + "Dropped_Event 1.000 pid=7 num_events_dropped=0x5\n"))
    assert any("changes may be missing" in note for note in timeline.notes)


@pytest.mark.parametrize(
    ("line", "thread", "index"),
    [
        ("  CPU 0/KVM  4140/4141 [000]  5.000001: kvm:kvm_entry: vcpu 3, rip 0x0", 4141, 3),
        ("  CPU 0/KVM  4141  5.000001:          1 kvm:kvm_entry: vcpu 3, rip 0x0", 4141, 3),
        ("4140/4141 [000]  5.000001000:   kvm:kvm_entry: vcpu 3, rip 0x0", 4141, 3),
        ("  4141 [000]  5.000001:   kvm:kvm_entry: vcpu 3, rip 0x0", 4141, 3),
        ("  5.000001:   kvm:kvm_entry: vcpu 3, rip 0x0", -4, 3),
        ("  CPU 0/KVM-4141     0d..2 5.000001: kvm_entry:            vcpu 3, rip 0x0", 4141, 3),
        ("  a-b [1] c-4141  [000] 5.000001: kvm_entry: vcpu 3", 4141, 3),
        ("  CPU 0/KVM-4141  [000] 5.000001: kvm_entry: vcpu_id=3 rip=0x0", 4141, 3),
        ("     5.000 CPU 0/KVM/4141 kvm:kvm_entry(vcpu_id: 3, rip: 0)", 4141, 3),
        ("     5.000 (         ): CPU 0/KVM/4141 kvm:kvm_entry(vcpu_id: 3, rip: 0)", 4141, 3),
    ],
)
def test_columns_of_perf_and_ftrace(tmp_path: Path, line: str, thread: int, index: int) -> None:
    state = traces.read_run_state(written(tmp_path, line + "\n"))
    assert [(vcpu.thread, vcpu.index) for vcpu in state.vcpus] == [(thread, index)]


def test_ticks_alone_are_the_reason_that_is_given(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not count seconds"):
        traces.read_run_state(
            written(tmp_path, "  CPU 0/KVM-9 [000] d..1. 295526400300000: kvm_entry: vcpu 0, rip 0x0\n")
        )


def test_perf_trace_as_it_was_recorded() -> None:
    state = traces.read_run_state(EXAMPLES / "pc-perf-trace.txt")
    assert [vcpu.thread for vcpu in state.vcpus] == [24444, 24445]
    where = {piece.where for piece in state.stretches(state.vcpus[1], 0.2294, 0.25)}
    assert where == {Where.RUN}, "a call that is continued ends at its begin and its duration"


def test_perf_script_as_it_was_recorded() -> None:
    state = traces.read_run_state(EXAMPLES / "pc-perf-script.txt")
    assert [vcpu.thread for vcpu in state.vcpus] == [24909, 24910]
    assert "tracepoints of ioctl" in state.source


def test_bpftrace_as_it_was_recorded() -> None:
    report = check(traces.read(EXAMPLES / "pc-bpftrace.txt"))
    assert report.changes["create"] == 12
    assert [hole.verdict.value for hole in report.holes] == ["unknown", "unknown", "closed", "closed"]


BPF = """\
# guestmem-bpftrace 1 form=syscalls clock=nsecs
1000 7/7 [0] memslot vm=9 request=40a0ae49 slot=65539 flags=1 gpa=1000 size=2000 hva=7f0000000000
2000 7/7 [0] memslot_end ret=0
5000 7/7 [0] memslot vm=9 request=4020ae46 slot=65539 flags=0 gpa=0 size=0 hva=0
4000 7/8 [1] run
3000 7/8 [1] create_vcpu vcpu=2
6000 7/7 [0] memslot_end ret=-22
"""


def test_bpftraces_lines_of_several_cpus_are_put_in_order(tmp_path: Path) -> None:
    timeline = traces.read(written(tmp_path, BPF))
    assert [(each.change.as_id, each.change.slot, each.change.npages, each.ret) for each in timeline.changes] == [
        (1, 3, 2, 0),
        (1, 3, 0, -22),
    ]
    assert [each.began for each in timeline.changes] == [1e-6, 5e-6]
    assert timeline.run_state is not None
    assert [(vcpu.thread, vcpu.index) for vcpu in timeline.run_state.vcpus] == [(8, 2)]


@pytest.mark.parametrize("vm", ["7", "7:9", None])
def test_vms_of_bpftrace(tmp_path: Path, vm: str | None) -> None:
    path = written(tmp_path, BPF + BPF.replace(" 7/", " 17/1").replace("vm=9", "vm=4"))
    if vm is None:
        with pytest.raises(TraceError, match="--vm 7:9 or --vm 17:4"):
            traces.read(path)
    else:
        assert {each.thread for each in traces.read(path, vm=vm).changes} == {7}


def test_what_devices_lost_meanwhile_is_noted(tmp_path: Path) -> None:
    timeline = traces.read(
        written(
            tmp_path,
            f"7@1.000000:{slot(0, 0, 0x1000)}\n"
            "7@1.000000:vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]\n"
            "7@2.000000:vfio_listener_region_del region_del 0x0 - 0xfff\n"
            "7@2.000300:vfio_listener_region_add_ram region_add [ram] 0x0 - 0x7ff [0x7f0000000000]\n",
        )
    )
    assert len(timeline.dma_changes) == 3
    assert any("at most 300 µs (lines 3-4)" in note for note in timeline.notes)


SLOTS: list[dict[str, Any]] = [
    {"slot": 3, "guest_phys_addr": "0x10000", "memory_size": 0x8000, "userspace_addr": "0x7f0000000000"},
    {"guest_phys_addr": 0x100000, "memory_size": "0x2000"},
]


def test_slots_from_a_file_are_there_at_the_start(tmp_path: Path) -> None:
    slots = written(tmp_path, json.dumps(SLOTS), "slots.json")
    text = f"{slot(3, 0x10000, 0)}\n{slot(3, 0x10000, 0x4000)}\n{slot(5, 0x100000, 0, 0x5000)}\n"
    timeline = traces.read(written(tmp_path, text), assume_slots=slots)
    assert [each.removed.npages if each.removed else 0 for each in timeline.changes] == [8, 0, 2]
    assert sorted(timeline.assumed) == [0, 2]
    assert timeline.changes[2].removed is not None
    assert timeline.changes[2].removed.userspace_addr == 0x5000
    with pytest.raises(TraceError, match="overlaps"):
        traces.read(written(tmp_path, f"{slot(9, 0x101000, 0x1000)}\n"), assume_slots=slots)


def test_slots_from_the_monitor(tmp_path: Path) -> None:
    text = f"{slot(8, 0x100000, 0, 0x7F0000100000)}\n{slot(8, 0x100000, 0x1000, 0x7F0000100000)}\n"
    timeline = traces.read(written(tmp_path, text), assume_slots=EXAMPLES / "pc-hotplug-mtree.txt")
    (hole,) = check(timeline).holes
    assert hole.npages == 1
    assert timeline.changes[0].removed is not None
    assert timeline.changes[0].removed.npages == 0xFF00


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "no slot: known are"),
        ("[{]", "neither info mtree -f nor JSON"),
        ('{"slots": 3}', "a list of slots"),
        ("[3]", "entry 0: an object"),
        ('[{"guest_phys_addr": 0, "memory_size": 4096, "size": 1}]', "'size' is not known"),
        ('[{"guest_phys_addr": 1, "memory_size": 4096}]', "not a multiple"),
        ('[{"guest_phys_addr": "x", "memory_size": 4096}]', "not a number"),
        ('[{"guest_phys_addr": 0, "memory_size": 0}]', "one page or more"),
        ('[{"guest_phys_addr": 0}]', "memory_size is None"),
        (json.dumps([SLOTS[0], SLOTS[0]]), "twice"),
        (json.dumps([SLOTS[1], SLOTS[1]]), "overlaps"),
    ],
)
def test_a_file_of_slots_that_is_wrong_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    trace = written(tmp_path, slot(3, 0, 0) + "\n")
    with pytest.raises(TraceError, match=said) as caught:
        traces.read(trace, assume_slots=written(tmp_path, text, "slots"))
    assert "\n" not in str(caught.value)
