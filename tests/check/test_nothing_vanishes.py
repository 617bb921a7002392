"""Frames that come back later than a transaction lasts are reported, unless the order shows two steps."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import check
from guestmem.cli import main
from guestmem.report.check import print_report

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.check import Report

PAGES = 8
Step = tuple[str, int, int, float]
"""What, slot (place and number), thread, time."""


def report_of(tmp_path: Path, *steps: Step, gap: float | None = None) -> Report:
    lines = []
    for what, slot, thread, time in steps:
        gpa = (slot & 0xFFFF) << 16
        size = 0 if what == "delete" else PAGES << 12
        lines.append(
            f"{thread}@{time:.6f}:kvm_set_user_memory Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} "
            f"ua={gpa + 0x100000:#x} ret=0\n"
        )
    (tmp_path / "trace.log").write_text("".join(lines))
    return check(traces.read(tmp_path / "trace.log", gap=gap))


def test_a_pause_longer_than_the_gap_is_reported_with_the_gap_that_joins_it(tmp_path: Path) -> None:
    steps: list[Step] = [("create", 1, 7, 1.0), ("delete", 1, 7, 2.0), ("create", 1, 7, 2.014)]
    report = report_of(tmp_path, *steps)
    (late,) = report.late
    assert (report.holes, late.npages, late.removed.line, late.restored.line) == ((), PAGES, 2, 3)
    assert (late.why.value, late.gap) == ("pause", 0.014)
    assert late.duration == pytest.approx(0.014)
    assert (report.fails("hole"), report.fails("open")) == (True, False)
    text = io.StringIO()
    print_report(report, stream=text)
    assert "8 frames [0x10000, 0x18000) come back after 14.0 ms: a slow transaction or two? --gap 14" in text.getvalue()
    assert "\nno hole inside a transaction, but see below: no frame" in text.getvalue()
    assert "\nno hole: " not in text.getvalue()
    assert late.gap is not None
    joined = report_of(tmp_path, *steps, gap=late.gap + 1e-6)
    assert (len(joined.holes), joined.late) == (1, ())


def test_a_slow_transaction_of_many_changes_is_one(tmp_path: Path) -> None:
    steps: list[Step] = [("create", 1, 7, 1.0), ("create", 2, 7, 1.0)]
    steps += [("delete", 1, 7, 2.0), ("delete", 2, 7, 2.02), ("create", 2, 7, 2.05), ("create", 1, 7, 2.06)]
    report = report_of(tmp_path, *steps)
    (late,) = report.late
    assert (late.npages, late.gap, late.removed.line, late.restored.line) == (2 * PAGES, 0.03, 3, 6)
    assert report_of(tmp_path, *steps, gap=0.030001).late == ()


def test_who_issued_it_is_told(tmp_path: Path) -> None:
    (late,) = report_of(tmp_path, ("create", 1, 7, 1.0), ("delete", 1, 7, 2.0), ("create", 1, 8, 2.001)).late
    assert (late.why.value, late.gap) == ("thread", None)


def test_what_comes_back_a_step_later_is_told(tmp_path: Path) -> None:
    steps: list[Step] = [("create", 1, 7, 1.0), ("create", 2, 7, 1.0), ("delete", 1, 7, 2.0), ("create", 3, 7, 2.001)]
    steps += [("delete", 2, 7, 2.002), ("create", 1, 7, 2.003)]
    (late,) = report_of(tmp_path, *steps).late
    assert (late.why.value, late.removed.line, late.restored.line) == ("order", 3, 6)


def test_a_bar_that_the_guest_switched_off_and_on_is_none(tmp_path: Path) -> None:
    smm = 1 << 16
    set_up: list[Step] = [("create", 3, 7, 1.0), ("create", smm | 3, 7, 1.0)]
    toggle: list[Step] = [("delete", 3, 7, 2.0), ("delete", smm | 3, 7, 2.0001)]
    toggle += [("create", 3, 7, 2.001), ("create", smm | 3, 7, 2.0011)]
    report = report_of(tmp_path, *set_up, *toggle)
    assert (report.holes, report.late, report.fails("hole")) == ((), (), False)
    one: list[Step] = [("delete", 3, 7, 2.0), ("create", 3, 7, 2.0001)]
    one += [("delete", smm | 3, 7, 2.0002), ("create", smm | 3, 7, 2.0003)]
    assert len(report_of(tmp_path, *set_up, *one).holes) == 2


def test_unplugged_and_plugged_again_minutes_later_is_none(tmp_path: Path) -> None:
    report = report_of(tmp_path, ("create", 1, 7, 1.0), ("delete", 1, 7, 2.0), ("create", 1, 7, 90.0))
    assert (report.holes, report.late) == ((), ())


def test_a_stack_below_each_call_tells_that_strace_was_slow(tmp_path: Path) -> None:
    region = "KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=%d, userspace_addr=0x1000})"
    stack = " > /usr/lib/x86_64-linux-gnu/libc.so.6(ioctl+0x3b) [0x107d6b]\n"
    sizes = ((1.0, 4096), (2.0, 0), (2.02, 4096))
    calls = [f"7 {time:.6f} ioctl(4, {region % size} = 0 <0.000100>\n" for time, size in sizes]
    path = tmp_path / "k.txt"
    path.write_text("".join(calls))
    assert [len(each) for each in (check(traces.read(path)).holes, check(traces.read(path)).late)] == [0, 1]
    path.write_text(stack.join([*calls, ""]))
    report = check(traces.read(path))
    assert (len(report.holes), report.late, report.gap, report.slow) == (1, (), 0.1, "strace -k")
    assert main(["check", str(path), "--gap", "5", "--fail-on", "hole"]) == 1


SMM = 1 << 16


def line(thread: int, time: float, slot: int, gpa: int, size: int, hva: int) -> str:
    return (
        f"{thread}@{time:.6f}:kvm_set_user_memory AddrSpace#{slot >> 16} Slot#{slot & 0xFFFF} flags=0x0 gpa={gpa:#x} "
        f"size={size:#x} ua={hva:#x} ret=0\n"
    )


def test_a_slot_that_is_deleted_in_both_address_spaces_and_comes_back_in_two_is_no_bar(tmp_path: Path) -> None:
    path = tmp_path / "split.log"
    text = "".join(line(7, 1.0, space, 0, 0x8000, 0x100000) for space in (0, SMM))
    text += "".join(line(7, 2.0 + space / 1e9, space, 0, 0, 0x100000) for space in (0, SMM))
    for space, time in ((0, 2.0002), (SMM, 2.0003)):
        text += line(7, time, space, 0, 0x4000, 0x100000)
        text += line(7, time + 1e-5, space | 1, 0x4000, 0x4000, 0x104000)
    path.write_text(text)
    report = check(traces.read(path))
    assert report.fails("hole")
    assert sum(each.npages for each in report.late) == 16
    assert {each.why.value for each in report.late} == {"space"}


def test_what_was_switched_off_and_on_is_said(tmp_path: Path) -> None:
    smm: list[Step] = [("create", 3, 7, 1.0), ("create", SMM | 3, 7, 1.0)]
    smm += [("delete", 3, 7, 2.0), ("delete", SMM | 3, 7, 2.1), ("create", 3, 7, 2.2), ("create", SMM | 3, 7, 2.3)]
    report = report_of(tmp_path, *smm)
    assert (report.late, report.fails("hole")) == ((), False)
    assert any("2 times the same slot came back" in note and "lines 3-5" in note for note in report.notes)


RAN = "7@2.000100:kvm_vcpu_ioctl cpu_index 0, type 0xae80, arg (nil)\n7@2.000900:kvm_run_exit cpu_index 0, reason {}\n"


@pytest.mark.parametrize(
    ("between", "back", "holes", "late", "notes"),
    [
        (RAN.format(2), 0x8000, 0, 0, 1),  # off and on
        ("", 0x8000, 1, 0, 0),  # nothing shows two steps
        (RAN.format(2).replace("7@", "8@"), 0x8000, 1, 0, 0),  # another vCPU ran: that is the hole's victim
        (RAN.format(2), 0x4000, 0, 1, 0),  # something else came back
    ],
)
def test_a_bar_without_smm_is_told_by_its_vcpu_that_ran_in_between(
    tmp_path: Path, between: str, back: int, holes: int, late: int, notes: int
) -> None:
    path = tmp_path / "bar.log"
    first = RAN.format(2).replace("@2.", "@1.")
    text = line(7, 0.5, 3, 0, 0x8000, 0x100000) + first + line(7, 2.0, 3, 0, 0, 0x100000) + between
    path.write_text(text + line(7, 2.001, 3, 0, back, 0x100000))
    report = check(traces.read(path))
    assert (len(report.holes), len(report.late)) == (holes, late)
    assert sum("switched off and on" in note for note in report.notes) == notes
    assert report.fails("hole") or not late
