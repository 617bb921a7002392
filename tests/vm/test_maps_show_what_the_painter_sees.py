"""What a guest reads through a map's slots and callbacks is what a painter sees, page by page, after each random edit;
on both engines. Writes reach RAM and nothing else.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from guestmem.engines.kvm.device import unusable
from guestmem.errors import GuestmemError, MemslotError, UsageError
from guestmem.vm import Hlt, Read, Vm, Write
from map_painter import CELL, CELLS, RandomMap

needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable())
ENGINES = ["soft", pytest.param("kvm", marks=needs_kvm)]
CODE_AT = 0x1000
# mov ds, bx; mov eax, [0]; hlt  -- and with a store instead of the load
LOAD, STORE = bytes.fromhex("8edb 66a10000 f4"), bytes.fromhex("8edb 66a30000 f4")


class Guest:
    """A VM, and what its vCPU reads and writes, four bytes at a time. The painted tree begins at ``base``."""

    def __init__(self, vm: Vm) -> None:
        self.vm, self.vcpu, self.kvm = vm, vm.vcpus[0], vm.engine.name == "kvm"
        self.base = 0x10000
        if self.kvm:
            code = vm.map.ram("code", 0x10000)
            vm.map.system.add_subregion(0, code)

    def read(self, gpa: int) -> int:
        if not self.kvm:
            self.vcpu.load([Read(gpa, 4)])
            assert self.vm.map.run(self.vcpu) == Hlt()
            content: bytes = self.vcpu.values[0]
            return int.from_bytes(content, "little")
        return self.carry_out(LOAD, gpa, 0) & (1 << 32) - 1

    def write(self, gpa: int, value: int) -> None:
        if not self.kvm:
            self.vcpu.load([Write(gpa, value.to_bytes(4, "little"))])
            assert self.vm.map.run(self.vcpu) == Hlt()
        else:
            self.carry_out(STORE, gpa, value)

    def carry_out(self, code: bytes, gpa: int, rax: int) -> int:
        self.vcpu.load_code(code, CODE_AT)
        self.vcpu.set_registers(rbx=gpa >> 4, rax=rax)
        assert self.vm.map.run(self.vcpu) == Hlt()
        return int(self.vcpu.registers()["rax"])


def stamp(region: Any, cell: int) -> int:
    return int(region.number) << 8 | cell


def stamped(tree: RandomMap, vm: Vm, written: list[tuple[Any, int, int]]) -> None:
    """Each page of each region can be told by its first four bytes; an MMIO page by what it answers."""
    for region in tree.regions:
        if region.backed:
            memory = vm.map.memory_of(region)
            for cell in range(len(memory) // CELL):
                memory[cell * CELL : cell * CELL + 4] = stamp(region, cell).to_bytes(4, "little")
        if region.kind.value in ("mmio", "rom device"):
            region.read = lambda offset, size, region=region: 1 << 31 | stamp(region, offset // CELL)
            region.write = lambda offset, value, size, region=region: written.append((region, offset, value))


def expected(cell: Any) -> int:
    if cell is None:
        return 0
    region, at = cell[:2]
    if region.is_ram or (region.kind.value == "rom device" and region.romd_mode):
        return stamp(region, at)
    return 1 << 31 | stamp(region, at) if region.read is not None else 0


@pytest.mark.compiled_only
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", ["fewest", "least"])
def test_random_edits(engine: str, way: str, rng: random.Random) -> None:
    seen = {"memory": 0, "callback": 0, "nothing": 0, "read-only": 0}
    for _ in range(4):
        with Vm(engine=engine) as vm:
            vm.map.way = way
            guest = Guest(vm)
            numbered = random.Random(rng.random())
            tree = RandomMap(numbered, SimpleNamespace(MemoryMap=lambda vm=vm: vm.map))
            vm.map.system.add_subregion(guest.base, vm.map.alias("painted", tree.root))
            written: list[tuple[Any, int, int]] = []
            stamped(tree, vm, written)
            for edit in range(5):
                tree.edit()  # RAM does not grow past its host memory: that is refused
                look(guest, tree, written, numbered, seen)
                vm.map.check()
                vm.check()
                assert edit >= 0
    assert all(seen.values()), seen


def look(guest: Guest, tree: RandomMap, written: list[Any], rng: random.Random, seen: dict[str, int]) -> None:
    cells = tree.painter.paint(tree.root)
    for page in range(CELLS):
        gpa, cell = guest.base + page * CELL, cells.get(page)
        want = expected(cell)
        assert guest.read(gpa) == want, (page, cell)
        kind = "nothing" if cell is None else "memory" if cell[0].is_ram else "callback"
        seen[kind] += 1
        if rng.random() < 0.2:
            written.clear()
            guest.write(gpa, 0x12345678)
            called = cell is not None and cell[0].write is not None and not cell[2][0]
            assert [each[2] for each in written] == [0x12345678] * called
            if kind == "memory" and not (cell[2][0] or cell[0].readonly):  # type: ignore[index]
                assert guest.read(gpa) == 0x12345678
                guest.write(gpa, want)
            else:
                seen["read-only"] += kind == "memory"
            assert guest.read(gpa) == want


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rom_device_switches_between_rom_and_mmio(engine: str) -> None:
    with Vm(engine=engine) as vm:
        guest = Guest(vm)
        commands: list[int] = []
        flash = vm.map.rom_device(
            "flash", 0x1000, read=lambda offset, size: 0x80, write=lambda offset, value, size: commands.append(value)
        )
        vm.map.memory_of(flash)[:4] = b"code"
        vm.map.system.add_subregion(guest.base, flash)
        assert guest.read(guest.base).to_bytes(4, "little") == b"code"
        guest.write(guest.base, 0x70)
        flash.set_romd(False)
        assert guest.read(guest.base) == 0x80
        flash.set_romd(True)
        assert guest.read(guest.base).to_bytes(4, "little") == b"code"
        assert commands == [0x70]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_aliases_of_one_ram_and_shadowing(engine: str) -> None:
    with Vm(engine=engine) as vm:
        guest = Guest(vm)
        ram, rom = vm.map.ram("pc.ram", 0x4000), vm.map.rom("pc.bios", 0x1000)
        vm.map.memory_of(rom)[:4] = b"bios"
        low = vm.map.alias("low", ram, 0, 0x4000)
        high = vm.map.alias("smram-open-high", ram, 0x1000, 0x1000)
        shadow = vm.map.alias("pam-rom", ram, 0x2000, 0x1000, readonly=True)
        top = guest.base + 0x2000
        vm.map.system.add_subregion(guest.base, low)
        vm.map.system.add_subregion(guest.base + 0x8000, high)
        vm.map.system.add_subregion(top, rom, 1)
        guest.write(guest.base + 0x1000, 0x55)
        assert guest.read(guest.base + 0x8000) == 0x55
        assert guest.read(top).to_bytes(4, "little") == b"bios"
        with vm.map.transaction():
            rom.set_enabled(False)
        guest.write(top, 0x66)
        vm.map.system.add_subregion(top, shadow, 2)
        guest.write(top, 0x77)  # the alias is read-only: it goes nowhere
        assert guest.read(top) == 0x66
        assert len(vm.memory) == 4 + guest.kvm


def test_smm_has_a_view_of_its_own() -> None:
    with Vm(smm=True) as vm:
        ram = vm.map.ram("ram", 0x4000)
        vga = vm.map.mmio("vga", 0x1000, read=lambda offset, size: 0x11)
        assert vm.map.smram is not None
        with vm.map.transaction():
            vm.map.system.add_subregion(0, ram)
            vm.map.system.add_subregion(0x1000, vga, 1)
            vm.map.smram.add_subregion(0x1000, vm.map.alias("smram", ram, 0x1000, 0x1000), 1)
        assert [slot.as_id for slot in vm.memory] == [0, 0, 1]
        vcpu = vm.vcpus[0]
        for smm in (True, False):
            vcpu.smm = smm
            vcpu.load([Write(0x1000, b"smm!"), Read(0x1000, 4)])
            assert vm.map.run(vcpu) == Hlt()
            assert vcpu.values[0] == (b"smm!" if smm else b"\x11\0\0\0")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_refuses_leaves_map_and_slots_as_they_were(engine: str) -> None:
    with Vm(engine=engine) as vm:
        ram = vm.map.ram("ram", 0x2000)
        vm.map.system.add_subregion(0, ram)
        vm.memory.create(500, gpa=0x10000, size=0x1000)  # not the map's
        before = list(vm.memory)
        with pytest.raises(MemslotError, match="EEXIST"):
            ram.set_address(0xF000)
        assert ram.addr == 0
        assert list(vm.memory) == before
        other = vm.map.ram("far", 0x1000)
        with pytest.raises(GuestmemError):
            vm.map.system.add_subregion(1 << 62, other)
        assert other.container is None
        vm.map.way = "best"
        with pytest.raises(UsageError, match="way: 'best' is not one of fewest, least"):
            ram.set_enabled(False)
        vm.map.way = None
        ram.set_enabled(False)
        assert [slot.id for slot in vm.memory] == [500]
        vm.map.check()
    with pytest.raises(MemslotError, match="EBADF"):
        ram.set_enabled(True)


def test_dirty_pages_of_logs_that_end_are_kept() -> None:
    with Vm() as vm:
        ram = vm.map.ram("ram", 0x4000)
        vm.map.system.add_subregion(0, ram)
        ram.set_log(True)
        vm.vcpus[0].load([Write(0x1000, b"x"), Write(0x3000, b"y")])
        vm.map.run(vm.vcpus[0])
        ram.set_size(0x2000)
        assert [page.gfn for page in vm.map.dirty] == [3]
        assert vm.dirty_log(vm.memory.find(0).id).tolist() == [False, True]  # type: ignore[union-attr]


def test_a_refusal_in_one_address_space_undoes_the_other() -> None:
    with Vm(smm=True) as vm:
        ram = vm.map.ram("ram", 0x2000)
        vm.map.system.add_subregion(0, ram)
        vm.memory.create(9, gpa=0x8000, size=0x1000, as_id=1)  # by hand, where SMM alone will refuse
        before = list(vm.memory)
        with pytest.raises(MemslotError, match="EEXIST"):
            ram.set_address(0x7000)
        assert list(vm.memory) == before
        vm.map.check()


def test_accesses_of_mmio_are_cut_as_qemu_cuts_them() -> None:
    with Vm() as vm:
        calls: list[tuple[int, ...]] = []
        port = vm.map.mmio("port", 0x1000, write=lambda offset, value, size: calls.append((offset, value, size)))
        vm.map.system.add_subregion(0x1000, port)
        vm.map.write(0x1003, bytes(range(1, 9)))
        assert calls == [(3, 1, 1), (4, 0x05040302, 4), (8, 0x0706, 2), (10, 8, 1)]
        port.max_access = 8
        calls.clear()
        vm.map.write(0x1008, bytes(range(1, 9)))
        vm.map.write(0x1FFE, b"\1\2\3\4")  # its second half is nobody's
        assert calls == [(8, 0x0807060504030201, 8), (0xFFE, 0x0201, 2)]
