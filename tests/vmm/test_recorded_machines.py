"""From the regions of real machines come the views and slots that QEMU itself had, and its own calls in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem import read_trace
from guestmem.memslots import Change
from guestmem.traces.timeline import Timeline
from guestmem.vmm import KvmListener, MemoryMap, MemoryRegion
from guestmem.vmm.description import read_description
from guestmem.vmm.mtree import parse_flat, read_mtree

EXAMPLES = Path(__file__).parents[2] / "examples"
MAPS = EXAMPLES / "maps"
RECORDED = sorted(path.name.removesuffix("-tree.txt") for path in MAPS.glob("*-tree.txt"))
CALLS_BEFORE_RESET = {"pc-7.2-reset": 9, "q35-10.0-reset": 7}
LOG = 1


def read(name: str) -> tuple[MemoryMap, str]:
    flat = (MAPS / f"{name}-flat.txt").read_text()
    return read_mtree((MAPS / f"{name}-tree.txt").read_text() + "\n" + flat, name), flat


def test_there_are_recordings_of_three_qemus_and_five_machines() -> None:
    assert {name.split("-")[-2] for name in RECORDED} == {"5.2", "7.2", "10.0"}
    assert {name.split("-")[0] for name in RECORDED} == {"pc", "q35", "microvm", "isapc", "virt"}


@pytest.mark.parametrize("name", RECORDED)
def test_each_address_space_renders_as_qemu_rendered_it(name: str) -> None:
    memory, flat = read(name)
    memory.check()
    views = parse_flat(flat)
    assert sum(len(view.ranges) for view in views) > 40
    for view in views:
        for space, _ in view.spaces:
            theirs = [(line.start, line.end, line.type, line.name, line.offset) for line in view.ranges]
            ours = [
                [(each.start, each.end, each.kind, each.region.name, each.offset) for each in found.view]
                for found in memory.spaces
                if found.name == space
            ]
            assert theirs in ours


@pytest.mark.parametrize("name", [name for name in RECORDED if not name.startswith("virt")])
def test_the_slots_are_those_of_the_trace(name: str) -> None:
    memory, _ = read(name)
    listener = KvmListener()
    memory.space("memory").register(listener)
    trace = read_trace(MAPS / f"{name.rpartition('-')[0]}.log")
    ours = {(slot.base_gfn, slot.npages, slot.flags & ~LOG) for slot in listener.slots.values()}
    assert ours == slots_of(trace, CALLS_BEFORE_RESET.get(name))  # `info mtree` does not say what is logged


def slots_of(trace: Timeline, calls: int | None) -> set[tuple[int, int, int]]:
    slots = {}
    for each in trace.changes[:calls]:
        slots[each.change.slot] = each.change
    return {(change.base_gfn, change.npages, change.flags & ~LOG) for change in slots.values() if not change.deletes}


def call(change: Change) -> tuple[int, int, int, int]:
    return change.slot, change.base_gfn, change.npages, change.flags


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("queued", [True, False])
def test_a_boot_makes_qemus_own_calls_one_by_one(machine: str, queued: bool) -> None:
    described = read_description((MAPS / f"{machine}-boot.json").read_text())
    listener = KvmListener(queued=queued)
    described.map.space("memory").register(listener)
    described.make()
    trace = read_trace(EXAMPLES / "traces" / f"{machine}-seabios-smp2.log")
    ours = [change for changes in listener.changes for change in changes]
    theirs = [each.change for each in trace.changes]
    assert [call(change) for change in ours] == [call(change) for change in theirs]
    assert len(theirs) == {"pc": 35, "q35": 37}[machine]
    same_host_memory(described.map, ours, theirs)


def same_host_memory(memory: MemoryMap, ours: list[Change], theirs: list[Change]) -> None:
    """Ours is made up, QEMU's is real: of each region they differ by one number."""
    shift: dict[MemoryRegion, set[int]] = {}
    for mine, other in zip(ours, theirs, strict=True):
        if not mine.deletes:
            region = next(
                each
                for each in memory.regions
                if each.userspace_addr is not None
                and each.userspace_addr <= mine.userspace_addr < each.userspace_addr + each.size
            )
            shift.setdefault(region, set()).add(other.userspace_addr - mine.userspace_addr)
    assert len(shift) >= 5
    assert all(len(each) == 1 for each in shift.values())


def test_qemu_stops_vcpus_exactly_where_a_deleted_section_comes_back() -> None:
    described = read_description((MAPS / "pc-boot.json").read_text())
    listener = KvmListener()
    described.map.space("memory").register(listener)
    described.make()
    assert [len(changes) for changes in listener.changes] == [1, 1, 5, 2, 7, 5, 1, 1, 1, 7, 4]
    assert listener.overlaps == [False, False, True, True, True, True, False, False, False, True, True]


def test_a_migration_switches_logs_as_qemu_did() -> None:
    trace = read_trace(EXAMPLES / "traces" / "pc-migration.log")
    described = read_description((MAPS / "pc-boot.json").read_text())
    listener = KvmListener()
    described.map.space("memory").register(listener)
    described.make(len(described.steps) - 3)  # it began before SeaBIOS locked its memory
    begun = len(listener.changes)
    described.map.log_global_start()
    ours = [change for changes in listener.changes[begun:] for change in changes]
    theirs = [each.change for each in trace.changes if each.kind.value == "flags-only"]
    ends = {(slot.base_gfn, slot.npages) for slot in listener.slots.values()}
    assert {(change.base_gfn, change.npages) for change in theirs} <= ends
    assert [(change.base_gfn, change.npages, change.flags) for change in ours] == [
        (change.base_gfn, change.npages, change.flags) for change in theirs
    ]
    described.map.log_global_stop()
    assert [slot.flags & LOG for slot in sorted(listener.slots.values(), key=lambda each: each.base_gfn)].count(1) == 1


def test_a_root_that_is_in_a_container_is_seen_at_its_address() -> None:
    """As QEMU's: "virtio-pci-cfg-mem-as" of the recording with hot-plug is such a one."""
    memory = MemoryMap()
    bar, outer = memory.container("bar", 0x4000), memory.container("outer")
    for at in (0, 0x2000):
        bar.add_subregion(at, memory.ram(f"ram {at}", 0x1000))
    space = memory.address_space("device", bar)
    starts = [[each.start for each in space.view]]
    for step in (
        lambda: outer.add_subregion(0x10000, bar),
        lambda: bar.set_address(0x20000),
        lambda: outer.del_subregion(bar),
    ):
        step()
        memory.check()
        starts.append([each.start for each in space.view])
    assert starts == [[0, 0x2000], [0x10000, 0x12000], [0x20000, 0x22000], [0, 0x2000]]
