"""Which primitive a set of changes is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import Primitive, check

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.check import Hole

Slot = tuple[int, int, int, int]  # id, first page, pages, first host page; ids from 100 on are read-only


def line(slot: Slot, *, delete: bool = False) -> str:
    i, base, npages, host = slot
    flags = 2 if i >= 100 and not delete else 0
    size = 0 if delete else npages
    return (
        f"7@1.000000:kvm_set_user_memory Slot#{i} flags={flags:#x} gpa={base << 12:#x} size={size << 12:#x} "
        f"ua={host << 12:#x} ret=0\n"
    )


def hole(tmp_path: Path, old: list[Slot], new: list[Slot]) -> Hole | None:
    """Create ``old``; then delete all of it and create ``new``."""
    path = tmp_path / "trace.log"
    path.write_text("".join([*map(line, old), *(line(each, delete=True) for each in old), *map(line, new)]))
    found = check(traces.read(path)).holes
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([(0, 0, 8, 50)], [(0, 0, 4, 50), (1, 4, 4, 54)], "split"),
        ([(0, 0, 4, 50), (1, 4, 4, 54)], [(0, 0, 8, 50)], "merge"),
        ([(0, 0, 4, 50)], [(0, 0, 8, 50)], "grow"),
        ([(0, 4, 4, 54)], [(0, 0, 8, 50)], "grow"),
        ([(0, 0, 8, 50)], [(0, 0, 4, 50)], "truncate"),
        ([(0, 0, 8, 50)], [(0, 4, 4, 54)], "truncate"),
        ([(0, 0, 8, 50)], [(0, 2, 8, 50)], "move"),
        ([(0, 2, 8, 50)], [(1, 0, 8, 50)], "move"),
        ([(0, 0, 8, 50)], [(0, 0, 8, 70)], "re-host"),
        ([(0, 0, 8, 50)], [(100, 0, 8, 50)], "read-only toggle"),
        ([(0, 0, 8, 50)], [(0, 0, 8, 50)], "re-create"),
        ([(0, 0, 8, 50)], [(1, 0, 8, 50)], "re-create"),
        ([(0, 0, 8, 50)], [(0, 0, 3, 50), (1, 5, 3, 55)], "split, truncate"),
        ([(0, 0, 8, 50)], [(0, 0, 4, 50), (1, 4, 4, 70)], "split, re-host"),
        ([(0, 0, 8, 50)], [(0, 0, 4, 50), (100, 4, 4, 54)], "split, read-only toggle"),
        ([(0, 0, 4, 50), (1, 4, 4, 54)], [(0, 0, 2, 50), (1, 2, 6, 52)], "split, merge"),
        ([(0, 0, 8, 50)], [(0, 4, 8, 54)], "grow, truncate"),
        ([(0, 0, 8, 50)], [(0, 4, 8, 70)], "grow, truncate, re-host"),
        ([(0, 0, 8, 50)], [(0, 0, 4, 70), (1, 4, 4, 70)], "split, re-host"),
    ],
)
def test_each_primitive(tmp_path: Path, old: list[Slot], new: list[Slot], expected: str) -> None:
    found = hole(tmp_path, old, new)
    assert found is not None
    (only,) = found.atomic_sets
    assert ", ".join(each.value for each in only.primitives) == expected
    assert only.lines == tuple(range(len(old) + 1, 2 * len(old) + len(new) + 1))


def test_every_primitive_has_a_case() -> None:
    cases = test_each_primitive.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {word for _, _, expected in cases for word in expected.split(", ")} == {each.value for each in Primitive}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([(0, 0, 8, 50)], []),
        ([(0, 0, 8, 50)], [(0, 20, 8, 50)]),
        ([], [(0, 0, 8, 50)]),
        ([(0, 0, 8, 50)], [(0, 8, 8, 50)]),
    ],
)
def test_what_only_goes_or_only_comes_is_no_hole(tmp_path: Path, old: list[Slot], new: list[Slot]) -> None:
    assert hole(tmp_path, old, new) is None


def test_two_slots_with_one_host_memory_are_not_reported(tmp_path: Path) -> None:
    assert hole(tmp_path, [], [(0, 0, 8, 50), (1, 8, 8, 50), (2, 16, 4, 52)]) is None


def test_changes_that_have_nothing_to_do_with_each_other_are_sets_of_their_own(tmp_path: Path) -> None:
    found = hole(
        tmp_path, [(0, 0, 4, 50), (1, 8, 4, 60), (2, 16, 4, 90)], [(0, 0, 2, 50), (1, 8, 8, 60), (3, 30, 1, 9)]
    )
    assert found is not None
    assert [(each.lines, [one.value for one in each.primitives]) for each in found.atomic_sets] == [
        ((4, 7), ["truncate"]),
        ((5, 8), ["grow"]),
    ]
    assert found.frames == ((0, 2), (8, 12))


def test_a_readonly_flip_of_qemu_is_a_hole_inside_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(line((0, 0, 8, 50)) + line((0, 0, 8, 50)).replace("flags=0x0", "flags=0x2"))
    (found,) = check(traces.read(path)).holes
    assert (found.first_line, found.last_line, found.duration, found.same_host_memory) == (2, 2, 0.0, True)
    assert [each.primitives for each in found.atomic_sets] == [(Primitive.READONLY_TOGGLE,)]


def test_a_move_onto_its_own_frames_is_a_hole_inside_one_call(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(line((0, 0, 8, 50)) + line((0, 2, 8, 50)))
    (found,) = check(traces.read(path)).holes
    assert (found.first_line, found.last_line, found.frames) == (2, 2, ((2, 8),))
    assert [each.primitives for each in found.atomic_sets] == [(Primitive.MOVE,)]


def test_a_move_elsewhere_is_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text(line((0, 0, 8, 50)) + line((0, 20, 8, 50)))
    assert not check(traces.read(path)).holes
