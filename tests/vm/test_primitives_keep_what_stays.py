"""split, merge, resize, set_readonly: slots as asked, contents and dirty bits of what stays kept, errors in a line."""

from __future__ import annotations

import errno
import mmap
import random
from collections.abc import Callable

import pytest

from guestmem.engines.kvm import unusable
from guestmem.errors import GuestmemError, MemslotError
from guestmem.memslots import KVM_MEMSLOT_NX
from guestmem.vm import Read, Vm, Write

ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]
PAGES = 16
SEED = 20261130


def shown(vm: Vm) -> list[tuple[int, int, int, bool]]:
    return [(slot.base_gfn, slot.npages, slot.id, slot.readonly) for slot in vm.memory]


@pytest.mark.parametrize("engine", ENGINES)
def test_random_splits_and_merges_against_a_list(engine: str) -> None:
    """A list of (start, ends, id) is the oracle; every page keeps its content."""
    rng = random.Random(SEED)
    host = mmap.mmap(-1, PAGES << 12)
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=PAGES << 12, host=host)
        for page in range(PAGES):
            vm.memory.write(page << 12, bytes([page + 1]))
        parts = [(0, PAGES, 0)]
        for number in range(60):
            if len(parts) > 1 and rng.random() < 0.5:
                at = rng.randrange(len(parts) - 1)
                (start, npages, slot), (_, more, upper) = parts[at : at + 2]
                vm.memory.merge(slot, upper)
                parts[at : at + 2] = [(start, npages + more, slot)]
            else:
                at = rng.randrange(len(parts))
                start, npages, slot = parts[at]
                if npages == 1:
                    continue
                lower = rng.randrange(1, npages)
                upper = next(name for name in range(PAGES) if name not in {part[2] for part in parts})
                vm.memory.split(slot, start + lower << 12, upper)
                parts[at : at + 1] = [(start, lower, slot), (start + lower, npages - lower, upper)]
            assert [(a, b, c) for a, b, c, _ in shown(vm)] == parts, f"seed {SEED}, step {number}"
            assert [vm.memory.read(page << 12, 1)[0] for page in range(PAGES)] == list(range(1, PAGES + 1))


def test_dirty_bits_stay_with_their_pages() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=4 << 12, flags=1)
        vm.vcpus[0].load([Write(0x1000, b"x"), Write(0x3000, b"y")])
        vm.vcpus[0].run()
        vm.memory.split(0, 0x2000, 1)
        assert vm.dirty_log(0).nonzero()[0].tolist() == [1]
        vm.memory.merge(0, 1)
        assert vm.dirty_log(0).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("engine", ENGINES)
def test_sizes_and_rights(engine: str) -> None:
    host = mmap.mmap(-1, 8 << 12)
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0x10000, size=2 << 12, host=host)
        vm.memory.write(0x11000, b"stays")
        assert vm.memory.resize(0, 8 << 12).npages == 8
        assert vm.memory.set_readonly(0, True).readonly
        assert vm.memory.set_readonly(0, True).readonly
        assert not vm.memory.set_readonly(0, False).readonly
        assert vm.memory.read(0x11000, 5) == b"stays"
        assert vm.memory.resize(0, 1 << 12).npages == 1
        assert vm.memory.find(0x11000) is None


WRONG: dict[str, tuple[Callable[[Vm], object], int, str]] = {
    "no slot": (lambda vm: vm.memory.split(9, 0x1000, 1), errno.ENOENT, "slot 9"),
    "not a page": (lambda vm: vm.memory.split(0, 0x1001, 7), errno.EINVAL, "gpa 0x1001 is no page boundary"),
    "its start": (lambda vm: vm.memory.split(0, 0, 7), errno.EINVAL, "gpa 0x0 is no page boundary"),
    "past its end": (lambda vm: vm.memory.split(0, 0x4000, 7), errno.EINVAL, "gpa 0x4000 is no page boundary"),
    "id taken": (lambda vm: vm.memory.split(0, 0x1000, 1), errno.EEXIST, "slot 1: it exists"),
    "not neighbours": (lambda vm: vm.memory.merge(0, 1), errno.EINVAL, "guest memory ends at 0x4000"),
    "other host memory": (lambda vm: vm.memory.merge(0, 2), errno.EINVAL, "host memory ends at"),
    "wrong order": (lambda vm: vm.memory.merge(2, 0), errno.EINVAL, "guest memory ends at 0x5000"),
    "itself": (lambda vm: vm.memory.merge(0, 0), errno.EINVAL, "guest memory ends at 0x4000"),
    "no size": (lambda vm: vm.memory.resize(0, 0), errno.EINVAL, "size 0x0 is not a positive multiple"),
    "part of a page": (lambda vm: vm.memory.resize(0, 0x1800), errno.EINVAL, "size 0x1800 is not a positive multiple"),
    "past its memory": (
        lambda vm: vm.memory.resize(0, 0x8000),
        errno.EINVAL,
        "size 32 KiB: its host memory has 16 KiB",
    ),
    "into another slot": (lambda vm: vm.memory.resize(3, 0x2000), errno.EEXIST, "slot 3"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_is_one_line_and_changes_nothing(engine: str, what: str) -> None:
    wrong, number, message = WRONG[what]
    host = mmap.mmap(-1, 4 << 12)
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=4 << 12)
        vm.memory.create(1, gpa=0x100000, size=0x1000)
        vm.memory.create(2, gpa=0x4000, size=0x1000)
        vm.memory.create(3, gpa=0x200000, size=0x1000, host=host)
        vm.memory.create(4, gpa=0x201000, size=0x1000)
        before = shown(vm)
        with pytest.raises(MemslotError) as caught:
            wrong(vm)
        assert caught.value.errno == number
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert shown(vm) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_kinds_are_one_line(engine: str) -> None:
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=4 << 12)
        for wrong in (
            lambda: vm.memory.split(0, "x", 1),  # type: ignore[arg-type] # deliberately wrong
            lambda: vm.memory.split(0, 0x1000, 1 << 20),
            lambda: vm.memory.resize(0, -4096),
            lambda: vm.memory.split(0, 0x1000, 1, design="no such"),
        ):
            with pytest.raises(GuestmemError):
                wrong()
        assert len(vm.memory) == 1


def test_rights_are_taken_above_the_slots_where_that_is_asked_for() -> None:
    """By ``attributes``: one swap behind them, no slot is away; by ``sequential`` three. What is no flag is refused."""
    for design, swaps in (("attributes", 1), ("sequential", 3)):
        with Vm() as vm:
            vm.memory.create(0, gpa=0, size=0x4000)
            vm.vcpus[0].load([Read(0, 1)])
            vm.vcpus[0].run()
            before = vm.engine.counts.swaps
            assert vm.memory.set_readonly(0, True, design=design).readonly
            assert vm.engine.counts.swaps - before == swaps
            with pytest.raises(MemslotError, match="flags 0x80000 are not of"):
                vm.memory.create(1, gpa=0x4000, size=0x1000, flags=KVM_MEMSLOT_NX)
            vm.check()
