"""``compare`` replays what ``check`` reads: guest_memfd, refused changes, terabytes, larger pages; and says how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from guestmem.compare import Workload, compare
from guestmem.compare.plan import Plan, plan
from guestmem.errors import UsageError
from guestmem.traces import read

TIB = 1 << 40
KIB64 = 64 << 10

Recorded = tuple[int, int, int, int, int, int]
"""slot, flags, gpa, size, hva, ret"""


def log(path: Path, *changes: Recorded) -> Path:
    path.write_text(
        "".join(
            f"7@{1 + i / 10_000:.6f}:kvm_set_user_memory AddrSpace#0 Slot#{slot} flags={flags:#x} gpa={gpa:#x} "
            f"size={size:#x} ua={hva:#x} ret={ret}\n"
            for i, (slot, flags, gpa, size, hva, ret) in enumerate(changes)
        )
    )
    return path


@pytest.fixture
def planned(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Plan]:
    changes, page_size = request.param
    made = plan(read(log(tmp_path / "log", *changes)), page_size=page_size)
    yield made
    made.close()


SPLIT: tuple[Recorded, ...] = (
    (0, 0, 0, 0, 0x7F0000000000, 0),
    (0, 0, 0, 0x80000, 0x7F0000000000, 0),
    (1, 0, 0x80000, 0x80000, 0x7F0000080000, 0),
)
BOOT: tuple[Recorded, ...] = ((0, 0, 0, 0x100000, 0x7F0000000000, 0), *SPLIT)
MEMFD = tuple((slot, flags | 4 * bool(size), gpa, size, hva, ret) for slot, flags, gpa, size, hva, ret in BOOT)
REFUSED = (*BOOT, (7, 0, 0, 0x1000, 0x7F0000000000, -17))
LARGE_PAGES: tuple[Recorded, ...] = ((9, 0, TIB, 9 * TIB, 0x600000000000, 0), *BOOT)


@pytest.mark.parametrize("planned", [(MEMFD, 0)], indirect=True)
def test_slots_with_guest_memfd_are_replayed_by_userspace_addr(planned: Plan) -> None:
    assert planned.notes == ["3 changes with KVM_MEM_GUEST_MEMFD: replayed by userspace_addr, as shared memory"]
    assert {change.flags for step in planned.steps for change in step.changes} == {0}
    assert all(target.new for target in planned.steps[-1].load.targets)


@pytest.mark.parametrize("planned", [(REFUSED, 0)], indirect=True)
def test_refused_changes_are_left_out_and_counted(planned: Plan) -> None:
    assert planned.notes == ["1 change that KVM refused: left out, as they changed nothing"]
    assert {change.slot for step in planned.steps for change in step.changes} == {0, 1}


@pytest.mark.parametrize("planned", [(LARGE_PAGES, 0), (LARGE_PAGES, KIB64), (LARGE_PAGES, 16 << 10)], indirect=True)
def test_a_large_page_is_one_page_of_the_engine(planned: Plan) -> None:
    """A slot of 9 TiB needs pages of 16 KiB at least; frames and host memory shrink by the same factor."""
    factor = planned.page_size // 4096
    assert factor in {4, 16}
    (large,) = [change for step in planned.steps for change in step.changes if change.slot == 9]
    assert large.memory_size == 9 * TIB // factor
    assert large.guest_phys_addr == TIB // factor
    first = planned.steps[0].load.targets + planned.steps[-1].load.targets
    assert all(target.gpa < 10 * TIB // factor for target in first)
    assert planned.notes[0].startswith(f"pages of {4 * factor} KiB")


@pytest.mark.parametrize(
    ("changes", "page_size", "says"),
    [
        (LARGE_PAGES, 4096, "page size: with 4 KiB a slot has at most 0x7fffffff000 bytes; line 1 has 0x90000000000"),
        (((0, 0, 0x1000, 0x10000, 0x10000, 0),), KIB64, "line 1: guest_phys_addr 0x1000 is not a multiple of 0x10000"),
        (BOOT, 8192, "page size: 8192 is not one of 4096, 16384, 65536"),
    ],
)
def test_a_page_size_that_cannot_be_is_one_line(
    tmp_path: Path, changes: tuple[Recorded, ...], page_size: int, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(read(log(tmp_path / "log", *changes)), page_size=page_size)
    assert says in str(caught.value)


@pytest.mark.compiled_only
def test_x86_has_pages_of_4_kib_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="arch: x86 has pages of 4 KiB, this trace needs 16 KiB"):
        compare(read(log(tmp_path / "log", *LARGE_PAGES)), vcpus=(1,), designs=("pause",), repeat=1)


@pytest.mark.compiled_only
def test_terabytes_run_and_the_workload_is_told_before(tmp_path: Path) -> None:
    """9 TiB behind four slots, as a host with 4 KiB pages has them."""
    slots = tuple((2 + i, 0, (1 + 3 * i) * TIB, 3 * TIB, 0x600000000000 + 3 * i * TIB, 0) for i in range(3))
    told: list[Workload] = []
    shares: list[float] = []
    result = compare(
        read(log(tmp_path / "log", *slots, *BOOT)),
        vcpus=(1, 2),
        designs=("pause",),
        repeat=2,
        interval_ms=0.1,
        begins=told.append,
        stepped=lambda _row, share: shares.append(share),
    )
    assert [row.replays for row in result.rows] == [2, 2, 2, 2]
    assert all(row.holes == row.killed == row.lost == 0 for row in result.rows if row.design == "pause")
    before, after = told
    assert (before.designs, before.vcpus, before.repeat, before.transactions) == (2, 2, 2, result.steps)
    assert (before.measured, after.measured) == (False, True)
    assert after.step_ms > 0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert sum(share > 0 for share in shares) == before.steps == 2 * 2 * 2 * result.steps


LATE: tuple[Recorded, ...] = (
    *SPLIT,
    (1, 0, 0x80000, 0, 0x7F0000080000, 0),
    (1, 0, 0x80000, 0x80000, 0x7F0000080000, 0),
)


@pytest.mark.parametrize("planned", [(LATE, 0)], indirect=True)
def test_slots_of_a_late_start_are_created_first(planned: Plan) -> None:
    """The first change deletes a slot that the trace does not create; what follows tells that it was 1 MiB."""
    first, second = planned.steps[:2]
    assert [(change.slot, change.guest_phys_addr, change.memory_size) for change in first.changes] == [(0, 0, 0x100000)]
    assert second.changes[0].deletes
    assert any(target.old and target.new for target in second.load.targets)
    assert planned.notes[0].startswith("1 slot from before the trace began: created first")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (((1, 0, 0, 0, 0, 0),), ":1: slot 1: nothing tells where it was before the trace began"),
        (((1, 0, 0x1000, 0, 0x10000, 0), (2, 0, 0x1000, 0, 0x20000, 0)), ":2: slot 2: it may have overlapped slot 1"),
    ],
)
def test_a_late_start_that_tells_too_little_is_one_line(
    tmp_path: Path, changes: tuple[Recorded, ...], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan(read(log(tmp_path / "log", *changes)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
