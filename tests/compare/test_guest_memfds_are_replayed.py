"""``compare`` replays slots that have a guest_memfd with files: private pages, bound where the recording bound them."""

from __future__ import annotations

import io
from pathlib import Path

from chance import until_met
from guestmem.compare import Comparison, compare
from guestmem.compare.plan import Plan, plan
from guestmem.memslots.slot import KVM_MEM_GUEST_MEMFD
from guestmem.report.compare import print_comparison
from guestmem.traces import read

TRACE = Path(__file__).parents[2] / "examples/traces/synthetic-guest-memfd.log"
HVA, PAGE = 0x7F0000000000, 0x1000
Recorded = tuple[int, int, int, int, int, int, int]
"""Slot, flags, first frame, pages, first page of host memory, file, first page of it."""


def log(path: Path, *changes: Recorded) -> Path:
    path.write_text(
        "".join(
            f"7@{1 + i / 10_000:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gfn * PAGE:#x} "
            f"size={count * PAGE:#x} ua={HVA + at * PAGE:#x} guest_memfd={fd} guest_memfd_offset={page * PAGE:#x} "
            "ret=0\n"
            for i, (slot, flags, gfn, count, at, fd, page) in enumerate(changes)
        )
    )
    return path


def planned(tmp_path: Path, *changes: Recorded) -> Plan:
    return plan(read(log(tmp_path / "log", *changes)), files=True)


SPLIT: tuple[Recorded, ...] = (
    (0, 4, 0, 32, 0, 9, 0),
    (0, 0, 0, 0, 0, 9, 0),
    (0, 4, 0, 16, 0, 9, 0),
    (1, 4, 16, 16, 16, 9, 16),
)


def test_a_split_binds_two_ranges_of_one_file_and_its_accesses_are_private(tmp_path: Path) -> None:
    made = planned(tmp_path, *SPLIT)
    file = made.bound.files[0]
    address = file.inode.backing.address
    assert [file.size for file in made.bound.files] == [32 * PAGE]
    last = made.steps[-1]
    bound = [(each.slot, each.flags, each.guest_memfd, each.guest_memfd_offset) for each in last.changes if each.npages]
    assert bound == [(0, KVM_MEM_GUEST_MEMFD, 1, 0), (1, KVM_MEM_GUEST_MEMFD, 1, 16 * PAGE)]
    for target in last.load.targets:
        assert target.private
        assert target.new // PAGE == (address + target.gpa) // PAGE
    (note,) = made.notes
    assert note.startswith("3 changes with KVM_MEM_GUEST_MEMFD: with 1 file of our own, whose pages are all private")
    made.close()


def test_a_descriptor_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    made = planned(tmp_path, (0, 4, 0, 32, 0, 9, 0), (1, 4, 64, 8, 64, 9, 4), (2, 4, 128, 8, 128, 10, 0))
    changes = [change for step in made.steps for change in step.changes]
    assert [change.guest_memfd for change in changes] == [1, 2, 3]
    assert [file.size // PAGE for file in made.bound.files] == [32, 12, 8]
    made.close()


def test_what_kvm_would_not_take_with_a_file_is_replayed_by_userspace_addr(tmp_path: Path) -> None:
    made = planned(tmp_path, (0, 5, 0, 32, 0, 9, 0), (1, 4, 64, 8, 64, 10, 0), (2, 4, 128, 8, 128, 9, 64))
    changes = [change for step in made.steps for change in step.changes]
    assert [(change.guest_memfd, change.flags) for change in changes] == [(0, 1), (1, 4), (0, 0)]
    assert made.notes[1] == "2 changes with KVM_MEM_GUEST_MEMFD: replayed by userspace_addr, as shared memory"
    made.close()


def test_a_frame_whose_kind_changes_is_not_touched_meanwhile(tmp_path: Path) -> None:
    made = planned(tmp_path, (0, 4, 0, 32, 0, 9, 0), (0, 0, 0, 0, 0, 9, 0), (0, 0, 0, 32, 0, -1, 0))
    assert made.steps[0].load.targets
    assert not made.steps[1].load.targets
    made.close()


def test_the_example_is_right_with_atomic_and_costs_no_private_page_it_keeps() -> None:
    def met(_: int) -> Comparison | None:
        """Whether vCPUs had mapped pages before, and were at it meanwhile: they may be kept from their cores."""
        result = compare(read(TRACE), vcpus=[2], designs=["sequential", "atomic"], repeat=2, interval_ms=1)
        rows = {row.design: row for row in result.rows}
        sequential, atomic = rows["sequential"], rows["atomic"]
        assert (atomic.holes, atomic.killed, atomic.lost, atomic.wrong, atomic.stale, atomic.strange) == (0,) * 6
        for row in rows.values():
            assert row.replays == 2
            assert not row.refusals
        cheaper = sequential.counts.private_zaps > atomic.counts.private_zaps
        return result if cheaper and all(row.inside for row in rows.values()) else None

    result = until_met(met, "accesses inside updates, and private pages that sequential removes")
    text = io.StringIO()
    print_comparison(result, stream=text)
    assert "private pages removed, at most in a replay (a TDX guest loses what is in them): sequ" in text.getvalue()
    assert "15 changes with KVM_MEM_GUEST_MEMFD: with 1 file of our own" in text.getvalue()
