"""An update of ``vm.map`` looks only at the slots that it reaches, and ends with those of a plan of all of them."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from guestmem.errors import GuestmemError, MemslotError, UsageError
from guestmem.memslots.slot import KVM_USER_MEM_SLOTS
from guestmem.vm import Hlt, Read, Vm, Write
from guestmem.vm import map as vm_map
from guestmem.vmm import FlatView, fewest_pieces
from guestmem.vmm.plan import WAYS, slots_after
from guestmem.vmm.slots import run_around
from map_painter import RandomMap

PAGE = 0x1000


def shown(slots: Any) -> list[tuple[int, ...]]:
    return sorted(tuple(slot)[2:] for slot in slots)


def by_a_plan_of_all(vm: Vm, before: list[Any], way: str) -> list[tuple[int, ...]]:
    pieces = fewest_pieces(vm.map.space("memory").view)
    return shown(slots_after(before, WAYS[way](before, pieces, max_slots=KVM_USER_MEM_SLOTS)))


def row_of(vm: Vm) -> list[Any]:
    """Pages side by side of one RAM, of which every other one is nonvolatile."""
    ram = vm.map.ram("row", 6 * PAGE)
    pieces = [vm.map.alias(f"row {page}", ram, page * PAGE, PAGE, nonvolatile=bool(page % 2)) for page in range(6)]
    with vm.map.transaction():
        for page, piece in enumerate(pieces):
            vm.map.system.add_subregion((1 << 29) + page * PAGE, piece)
    return pieces


def wrong(rng: random.Random, way: str, trees: int) -> str:
    """Random trees and edits: what a local plan ends with that a plan of all does not, or nothing."""
    for index in range(trees):
        with Vm() as vm:
            vm.map.way = way
            tree = RandomMap(rng, SimpleNamespace(MemoryMap=lambda vm=vm: vm.map))
            far, row = vm.map.alias("far", tree.root), row_of(vm)
            with vm.map.transaction():
                vm.map.system.add_subregion(0x800, vm.map.alias("within pages", tree.root))
                vm.map.system.add_subregion(1 << 30, far)
            for edit in range(6):
                before = list(vm.memory)
                with vm.map.transaction():
                    for _ in range(rng.randrange(2)):
                        tree.edit()
                    piece = rng.choice(row)  # ranges of their own that one slot can hold
                    piece.set_enabled(not piece.enabled)
                    if edit == 4:
                        far.set_address(far.addr + 0x10000)
                if shown(vm.memory) != by_a_plan_of_all(vm, before, way):
                    return f"tree {index}, edit {edit}: {list(vm.memory)}"
    return ""


@pytest.mark.parametrize("way", WAYS)
def test_a_local_plan_ends_as_a_plan_of_all(way: str, rng: random.Random) -> None:
    assert wrong(rng, way, 15) == ""


def test_slots_that_reach_out_of_what_changed_are_reached() -> None:
    with Vm() as vm:
        vm.map.way = "fewest"
        row = row_of(vm)
        assert [slot.npages for slot in vm.memory] == [6]
        row[2].set_enabled(False)
        assert [slot.npages for slot in vm.memory] == [2, 3]
        row[2].set_enabled(True)
        assert [slot.npages for slot in vm.memory] == [6]


@pytest.mark.parametrize("way", WAYS)
def test_a_plan_that_leaves_a_range_out_is_caught(
    way: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(view: FlatView, low: int, high: int) -> tuple[int, int]:
        first, last = run_around(view, low, high)
        return first, max(first, last - 1)

    monkeypatch.setattr(vm_map, "run_around", short)
    assert wrong(rng, way, 25)


def test_only_slots_that_are_reached_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vm() as vm:
        regions = [vm.map.ram(f"ram {number}", PAGE) for number in range(200)]
        with vm.map.transaction():
            for place, region in enumerate(regions):
                vm.map.system.add_subregion(2 * place * PAGE, region)
        regions[0].set_enabled(False)
        planned: list[int] = []
        for name, real in list(WAYS.items()):

            def counting(mine: Any, *rest: Any, real: Any = real, **more: Any) -> Any:
                planned.append(len(mine))
                return real(mine, *rest, **more)

            monkeypatch.setitem(WAYS, name, counting)
        regions[100].set_enabled(False)
        regions[100].set_enabled(True)
        assert planned == [1, 0]
        assert len(vm.memory) == 199


def test_slots_made_by_hand_keep_their_ids() -> None:
    with Vm() as vm:
        first, second = vm.map.ram("first", PAGE), vm.map.ram("second", PAGE)
        vm.map.system.add_subregion(0, first)
        for slot in (1, 2):
            vm.memory.create(slot, gpa=slot << 20, size=PAGE)
        vm.map.system.add_subregion(4 * PAGE, second)
        assert sorted(slot.id for slot in vm.memory) == [0, 1, 2, 3]


def test_another_way_plans_everything_anew() -> None:
    with Vm() as vm:
        vm.map.way = "least"
        ram, hole = vm.map.ram("ram", 8 * PAGE), vm.map.mmio("hole", PAGE)
        far = vm.map.ram("far", PAGE)
        with vm.map.transaction():
            vm.map.system.add_subregion(0, ram)
            vm.map.system.add_subregion(2 * PAGE, hole, 1)
        hole.set_enabled(False)
        assert len(vm.memory) == 3
        vm.map.way = "fewest"
        vm.map.system.add_subregion(1 << 30, far)
        assert len(vm.memory) == 2


def test_two_aliases_of_one_ram_move_together() -> None:
    with Vm() as vm:
        vm.map.way = "least"
        ram = vm.map.ram("ram", PAGE)
        low, high = vm.map.alias("low", ram), vm.map.alias("high", ram)
        vm.map.system.add_subregion(0, low)
        vm.map.system.add_subregion(16 * PAGE, high)
        with vm.map.transaction():
            low.set_address(64 * PAGE)
            high.set_address(80 * PAGE)
        assert [slot.base_gfn for slot in vm.memory] == [64, 80]


def test_ram_cannot_grow_over_memory_that_was_not_made_for_it() -> None:
    with Vm() as vm:
        ram, dimm = vm.map.ram("ram", PAGE), vm.map.ram("dimm", PAGE, max_size=4 * PAGE)
        vm.map.system.add_subregion(0, ram)
        vm.map.system.add_subregion(1 << 20, dimm)
        with pytest.raises(UsageError, match=r"region ram: size: 0x2000 is more than the 0x1000 bytes of host memory"):
            ram.set_size(2 * PAGE)
        with pytest.raises(UsageError, match="region dimm: size: 0x5000 is more than the 0x4000 bytes"):
            dimm.set_size(5 * PAGE)
        assert ram.size == dimm.size == PAGE
        dimm.set_size(4 * PAGE)
        vm.vcpus[0].load([Write((1 << 20) + 3 * PAGE, b"grew"), Read((1 << 20) + 3 * PAGE, 4)])
        assert vm.map.run(vm.vcpus[0]) == Hlt()
        assert bytes(vm.map.memory_of(dimm)[3 * PAGE :][:4]) == b"grew"
        with pytest.raises(UsageError, match="region small: max_size: 0x1000 is not in 0x2000"):
            vm.map.ram("small", 2 * PAGE, max_size=PAGE)


def test_a_refused_update_gives_back_ids_and_borders(rng: random.Random) -> None:
    refused = 0
    for _ in range(30):
        with Vm(smm=True) as vm:
            tree = RandomMap(rng, SimpleNamespace(MemoryMap=lambda vm=vm: vm.map))
            vm.map.system.add_subregion(0x10000, vm.map.alias("painted", tree.root))
            vm.memory.create(9, gpa=0x8000000, size=PAGE, as_id=1)  # by hand, where SMM alone will refuse
            clash = vm.map.ram("clash", PAGE)
            for _ in range(4):
                tree.edit()
                before = list(vm.memory)
                try:
                    with vm.map.transaction():
                        children = {container: [*each] for container, each in tree.painter.children.items()}
                        tree.edit()
                        vm.map.system.add_subregion(0x8000000, clash)
                except MemslotError:
                    tree.painter.children = children
                    refused += 1
                assert list(vm.memory) == before
                assert tree.wrong() == ""
    assert refused > 50


def test_a_refusal_that_cannot_be_undone_is_mended_by_the_next_update(monkeypatch: pytest.MonkeyPatch) -> None:
    with Vm(smm=True) as vm:
        ram, late = vm.map.ram("ram", PAGE), vm.map.ram("late", PAGE)
        vm.map.system.add_subregion(0, ram)
        vm.memory.create(9, gpa=0x8000, size=PAGE, as_id=1)

        def fails(*_arguments: Any) -> None:
            raise UsageError("no")

        with monkeypatch.context() as patched:
            patched.setattr(vm_map, "restored", fails)
            with pytest.raises(MemslotError, match="EEXIST") as caught:
                vm.map.system.add_subregion(0x8000, late)
        assert caught.value.__notes__ == ["a listener could not undo what it had prepared: no"]
        assert late.container is None
        ram.set_log(True)
        assert [slot.base_gfn for slot in vm.memory if slot.as_id == 0] == [0]
        vm.map.check()


def test_callbacks_change_the_map_as_a_guests_write_to_pam_does() -> None:
    with Vm() as vm:
        ram, rom = vm.map.ram("ram", 4 * PAGE), vm.map.rom("rom", PAGE)
        port = vm.map.mmio("pam", PAGE, write=lambda offset, value, size: rom.set_enabled(bool(value)))
        with vm.map.transaction():
            vm.map.system.add_subregion(0, ram)
            vm.map.system.add_subregion(PAGE, rom, 1)
            vm.map.system.add_subregion(16 * PAGE, port)
        vm.vcpus[0].load([Write(PAGE, b"rom."), Write(16 * PAGE, bytes(4)), Write(PAGE, b"ram."), Read(PAGE, 4)])
        assert vm.map.run(vm.vcpus[0]) == Hlt()
        assert vm.vcpus[0].values == [b"ram."]
        assert len(vm.memory) == 1


def test_a_region_of_no_room_is_no_region() -> None:
    with Vm() as vm:
        with pytest.raises(GuestmemError, match="region huge"):
            vm.map.ram("huge", 1 << 60)
        assert vm.map.regions[-1].name != "huge"
