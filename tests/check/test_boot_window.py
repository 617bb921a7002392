"""The recorded boot has the window that killed guests: all memory above 1 MiB gone, with another vCPU running."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem import traces
from guestmem.check import Verdict, check

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"
MIB = 1 << 20


def test_lines_10_to_16_of_the_pc_boot() -> None:
    report = check(traces.read(EXAMPLES / "pc-seabios-smp2.log"))
    (hole,) = [each for each in report.holes if (each.first_line, each.last_line) == (10, 16)]
    assert hole.thread == 21671
    assert hole.frames == ((0xC0, 0x10000),)
    assert hole.nbytes == 256 * MIB - 0xC0000
    above = [each for each in hole.ranges if each.start_gfn << 12 >= MIB]
    assert [(each.start_gfn, each.end_gfn, each.removed.line, each.restored.line) for each in above] == [
        (0x100, 0x10000, 12, 16)
    ]
    assert above[0].same_host_memory
    assert above[0].duration == pytest.approx(175e-6, abs=1e-6)
    assert hole.duration == pytest.approx(329e-6, abs=1e-6)
    assert hole.same_host_memory is None
    assert [(each.lines, [one.value for one in each.primitives]) for each in hole.atomic_sets] == [
        ((10, 13, 14), ["split", "re-host"]),
        ((11, 12, 15, 16), ["split", "merge", "re-host"]),
    ]
    assert (hole.verdict, hole.vcpus, hole.reason) == (Verdict.UNKNOWN, (), "no run state")


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("pc-seabios-smp2.log", [(3, 7), (8, 9), (10, 16), (17, 21), (25, 31), (32, 35)]),
        ("q35-seabios-smp2.log", [(5, 7), (8, 11), (12, 18), (19, 23), (27, 33), (34, 37)]),
        ("pc-migration.log", [(3, 7), (8, 9), (10, 16), (17, 21)]),
        ("strace-pc.txt", [(115, 119), (123, 124), (190, 196), (197, 201), (504, 510), (511, 514)]),
    ],
)
def test_the_windows_of_every_recorded_boot(name: str, windows: list[tuple[int, int]]) -> None:
    report = check(traces.read(EXAMPLES / name))
    assert [(each.first_line, each.last_line) for each in report.holes] == windows
    assert report.verdicts == {Verdict.OPEN: 0, Verdict.CLOSED: 0, Verdict.UNKNOWN: len(windows)}
    assert report.fails("hole")
    assert not report.fails("open")


def test_q35_shares_host_memory_between_two_slots_and_that_is_no_hole() -> None:
    report = check(traces.read(EXAMPLES / "q35-seabios-smp2.log"))
    assert all(hole.first_line not in (3, 4) for hole in report.holes)
