"""Every form in which QEMU prints a slot change is read the same, whatever stands before it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.errors import TraceError
from guestmem.memslots.changes import Change, ChangeKind

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.traces import Timeline

PAYLOADS = {
    "A": "Slot#{combined} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x} ret={ret}",
    "B": "AddrSpace#{as_id} Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x} ret={ret}",
    "B'": "AddrSpace#{as_id} Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x} ret={ret} "
    "restricted_fd=-1 restricted_offset=0x0",
    "C": "AddrSpace#{as_id} Slot#{slot} flags={flags:#x} gpa={gpa:#x} size={size:#x} ua={ua:#x} guest_memfd=12 "
    "guest_memfd_offset=0x1000 ret={ret}",
}
PREFIXES: dict[str, tuple[int | None, float | None]] = {
    "": (None, None),
    "21669@1795228977.762315:": (21669, 1795228977.762315),
    "2026-11-21T04:43:01.250000Z ": (None, 1795236181.25),
    "2026-11-21T05:43:01.250000+01:00 ": (None, 1795236181.25),
    "2026-11-21T04:43:01.250000+0000 host qemu-system-x86_64[77]: ": (None, 1795236181.25),
    "Nov 21 04:43:01 host qemu-system-x86_64[77]: ": (None, None),
    "Nov 21 04:43:01 host qemu[77]: 21669@1795228977.762315:": (21669, 1795228977.762315),
    " qemu-system-x86-4145  [001] d..1.  86.581928: tracing_mark_write: ": (4145, 86.581928),
    "    CPU 0/KVM-4146    [000] .... 86.581928: tracing_mark_write: ": (4146, 86.581928),
}


def read(tmp_path: Path, text: str) -> Timeline:
    path = tmp_path / "trace.log"
    path.write_text(text)
    return traces.read(path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", PAYLOADS)
def test_every_payload_after_every_prefix(tmp_path: Path, form: str, prefix: str, ending: str) -> None:
    payload = PAYLOADS[form].format(
        combined=65536 + 3, as_id=1, slot=3, flags=1, gpa=0x100000, size=0x20000, ua=0x7F4500000000, ret=0
    )
    timeline = read(tmp_path, f"{prefix}kvm_set_user_memory {payload}{ending}")
    (change,) = timeline.changes
    assert change.change == Change(3, 0x100, 0x20, 0x7F4500000000, 1, 1)
    assert (change.thread, change.time) == PREFIXES[prefix]
    assert (change.kind, change.ret, change.line, change.old) == (ChangeKind.CREATE, 0, 1, None)
    assert timeline.format == "qemu"
    assert timeline.skipped == 0


@pytest.mark.parametrize("seed", range(5))
def test_what_is_printed_is_what_is_read(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    expected, lines = [], []
    for slot in range(200):
        as_id, slot_id = rng.randrange(2), slot
        gpa, size = slot << 40, rng.randrange(1, 1 << 20) << 12
        ua = rng.randrange(1 << 34) << 12
        flags, ret = rng.randrange(4), rng.choice([0, 0, 0, -17, -22])
        payload = rng.choice(list(PAYLOADS.values())).format(
            combined=as_id << 16 | slot_id, as_id=as_id, slot=slot_id, flags=flags, gpa=gpa, size=size, ua=ua, ret=ret
        )
        lines.append(f"7@{1000 + slot}.000001:kvm_set_user_memory {payload}\n")
        expected.append((Change(slot_id, gpa >> 12, size >> 12, ua, flags, as_id), ret))
    timeline = read(tmp_path, "".join(lines))
    assert [(each.change, each.ret) for each in timeline.changes] == expected, f"seed {seed}"


def test_dirty_log_clears_are_pages_of_a_combined_slot(tmp_path: Path) -> None:
    timeline = read(
        tmp_path,
        "7@1.500000:global_dirty_changed bitmask 0x1\n"
        "7@2.500000:kvm_clear_dirty_log slot#65538 start 0x40 size 0xff40\n",
    )
    (clear,) = timeline.dirty_log_clears
    assert (clear.as_id, clear.slot, clear.start, clear.npages, clear.line) == (1, 2, 0x40, 0xFF40, 2)
    (dirty,) = timeline.global_dirty_changes
    assert (dirty.bitmask, dirty.line, dirty.time, dirty.thread) == (1, 1, 1.5, 7)
    assert not timeline.changes


@pytest.mark.parametrize(
    "line",
    [
        "qemu-system-x86_64 -accel kvm -trace kvm_set_user_memory -trace kvm_clear_dirty_log",
        "/usr/bin/qemu -trace enable=kvm_set_user_memory,file=x.log",
        "qemu -d trace:kvm_set_user_memory -D log",
        "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0, start=0x0, size=0x1000: EINVAL",
        'write(2, "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x0 ret=0\\n", 80) = 80',
        "7@1.000000:kvm_dirty_ring_flush 0",
        "",
    ],
)
def test_other_lines_are_skipped_and_counted(tmp_path: Path, line: str) -> None:
    good = "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0\n"
    timeline = read(tmp_path, f"{line}\n{good}{line}\n")
    assert len(timeline.changes) == 1
    assert (timeline.skipped, timeline.lines, timeline.changes[0].line) == (2, 3, 2)


@pytest.mark.parametrize(
    "line",
    [
        "kvm_set_user_memory",
        "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=",
        "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000",
        "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=zz ua=0x1000 ret=0",
        "7@1.000000:kvm_set_user_memory Slot#-1 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
        "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=-0x1 size=0x1000 ua=0x1000 ret=0",
        "7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0 trailing",
        "7@1.000000:kvm_set_user_memory Slot#" + "9" * 5000 + " flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
        "7@1.000000:kvm_clear_dirty_log slot#0 start 0x0",
        "7@1.000000:global_dirty_changed bitmask",
        "7@1.000000:kvm_set_user_memory AddrSpace#65536 Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
        "7@1.000000:kvm_set_user_memory AddrSpace#0 Slot#65536 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0",
    ],
)
def test_a_line_that_names_the_event_and_cannot_be_read_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.log"
    path.write_text(f"other\n{line}\n")
    with pytest.raises(TraceError) as caught:
        traces.read(path)
    assert (caught.value.path, caught.value.line, caught.value.text.strip()) == (str(path), 2, line)
    assert "\n" not in str(caught.value)


def test_a_stamp_that_is_not_understood_is_said(tmp_path: Path) -> None:
    """A time that is lost in silence would join, or part, transactions by order alone."""
    change = "kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0\n"
    for before, notes in (("qemu-77 [002] 100.000000: print: 0xffffffff81 ", 1), ("qemu: ", 0), ("", 0)):
        (tmp_path / "t.log").write_text(before + change)
        timeline = traces.read(tmp_path / "t.log")
        assert timeline.changes[0].time is None
        assert sum("not understood as a time" in note for note in timeline.notes) == notes
