"""Whatever is given to a Vm: an error of the family, in one line that names it, and nothing has changed."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from guestmem import CapabilityError, GuestmemError, MemslotError, UsageError
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Fetch, Hlt, Read, Vm, Write

PAGE = 0x1000
ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))]
pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def vm(engine: str) -> Iterator[Vm]:
    with Vm(engine=engine) as made:
        made.memory.create(0, gpa=0, size=4 * PAGE)
        yield made


def refusals(vm: Vm) -> Iterator[tuple[str, type[GuestmemError], Callable[[], object]]]:
    """What must be in the message, the error, and the call."""
    memory: Any = vm.memory
    anything: Any = vm
    closed = mmap.mmap(-1, PAGE)
    closed.close()
    yield "slot: '1'", UsageError, lambda: memory.create("1", gpa=8 * PAGE, size=PAGE)
    yield "slot: -0x1", MemslotError, lambda: memory.create(-1, gpa=8 * PAGE, size=PAGE)
    yield "slot: 0x10000", MemslotError, lambda: memory.create(1 << 16, gpa=8 * PAGE, size=PAGE)
    yield "gpa: 0.5", UsageError, lambda: memory.create(1, gpa=0.5, size=PAGE)
    yield "gpa: -0x1000", MemslotError, lambda: memory.create(1, gpa=-PAGE, size=PAGE)
    yield "gpa: 0x10000000000000000", MemslotError, lambda: memory.create(1, gpa=1 << 64, size=PAGE)
    yield "guest_phys_addr 0x8800", MemslotError, lambda: memory.create(1, gpa=0x8800, size=PAGE)
    yield "size: -0x1000", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=-PAGE)
    yield "size 0x0 is not", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=0)
    yield "memory_size 0x64", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=100)
    yield "0x4000000000000000", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=1 << 62)
    yield "overlaps Slot 0", MemslotError, lambda: memory.create(1, gpa=PAGE, size=PAGE)
    yield "flags 0x10 are not of", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, flags=16)
    yield "flags: 'log'", UsageError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, flags="log")
    yield "as_id: 1 is not", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, as_id=1)
    yield "its last frame is past", MemslotError, lambda: memory.create(1, gpa=1 << 63, size=PAGE)
    yield "host: str", UsageError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, host="abc")
    yield "host: mmap", UsageError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, host=closed)
    yield "host: ndarray", UsageError, lambda: memory.create(1, gpa=8 * PAGE, size=1, host=np.zeros((8, 2))[:, 0])
    yield "host: the buffer begins at", MemslotError, lambda: memory.create(1, gpa=0, size=2, host=inside_a_page())
    yield "userspace_addr 0x7b", MemslotError, lambda: memory.create(1, gpa=8 * PAGE, size=PAGE, host=123)
    yield "slot 5: no such slot", MemslotError, lambda: memory.delete(5)
    yield "slot: None", UsageError, lambda: memory.delete(None)
    yield "slot 9: no such slot", MemslotError, lambda: memory.move(9, 0)
    yield "gpa: 'x'", UsageError, lambda: memory.move(0, "x")
    yield "guest_phys_addr 0x1 ", MemslotError, lambda: memory.move(0, 1)
    yield "flags 0x2 differs from 0x0", MemslotError, lambda: memory.set_flags(0, 2)
    yield "flags: 0x10000000000", MemslotError, lambda: memory.set_flags(0, 1 << 40)
    yield "change: 7", UsageError, lambda: memory.apply(7)
    yield "slot: 'a'", UsageError, lambda: memory["a"]
    yield "slot: (0, 0, 0)", UsageError, lambda: memory[0, 0, 0]
    yield "gpa: 'a'", UsageError, lambda: memory.find("a")
    yield "as_id: 9", MemslotError, lambda: memory.find(0, 9)
    yield "start: None", UsageError, lambda: memory.by_hva(None)
    yield "gpa: -0x4", MemslotError, lambda: memory.read(-4, 2)
    yield "size: 0x0", UsageError, lambda: memory.read(0, 0)
    yield "size: 'x'", UsageError, lambda: memory.view(0, "x")
    yield "gpa: 0x4000 is in no slot", MemslotError, lambda: memory.view(3 * PAGE, 2 * PAGE)
    yield "content: str", UsageError, lambda: memory.write(0, "abc")
    yield "content: list", UsageError, lambda: memory.write(0, [1, 2])
    yield "design: 'magic'", UsageError, lambda: memory.transaction(design="magic")
    yield "as_id: 'a'", UsageError, lambda: memory.transaction(as_id="a")
    yield "slot 0: it does not exist, or has no", MemslotError, lambda: vm.dirty_log(0)
    yield "slot: -0x1", MemslotError, lambda: vm.dirty_log(-1)
    yield "pages: NoneType", UsageError, lambda: anything.clear_dirty_log(0, None)
    yield "pages: ndarray", UsageError, lambda: vm.clear_dirty_log(0, np.zeros((2, 2), np.bool_))
    yield "first_page: -0x40", MemslotError, lambda: vm.clear_dirty_log(0, [True], first_page=-64)
    yield "request: 'x'", UsageError, lambda: anything.ioctl("x")
    yield "ioctl: 0x14020ae46", MemslotError, lambda: vm.ioctl(1 << 32 | 0x4020AE46, bytes(32))
    yield "argument: list", UsageError, lambda: anything.ioctl(0x4020AE46, [1])
    yield "SET_USER_MEMORY_REGION: 3 bytes, not 32", MemslotError, lambda: vm.ioctl(0x4020AE46, b"abc")
    yield "cannot be read", MemslotError, lambda: vm.ioctl(0x4020AE46, 8)
    yield "cap: 'x'", UsageError, lambda: anything.check_extension("x")
    yield "no dirty rings" if vm.model is None else "has none", MemslotError, vm.reset_dirty_rings


def inside_a_page() -> Any:
    return memoryview(mmap.mmap(-1, PAGE))[8:]


def test_each_is_refused_in_one_line_and_changes_nothing(vm: Vm) -> None:
    before = list(vm.memory)
    for says, kind, call in refusals(vm):
        with pytest.raises(kind) as caught:
            call()
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (caught.value.errno is None) == (kind is UsageError)
        assert list(vm.memory) == before, says
    vm.check()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vcpus": 0}, "vcpus: 0 is not at least 1"),
        ({"vcpus": "2"}, "vcpus: '2' is not a whole number"),
        ({"vcpus": 10**6}, "vcpus: 1000000 is more than 4096"),
        ({"ring_entries": -1}, "ring_entries: -1 is not at least 0"),
        ({"ring_entries": 3}, "ring_entries: 3: .*power of two"),
        ({"ring_entries": 64}, "ring_entries: 64: "),
        ({"cores": "x"}, "cores: 'x' is"),
        ({"word_bits": 16}, "word_bits: 16 is"),
        ({"version": "5.0"}, "'5.0' is"),
    ],
)
def test_options(engine: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, MemslotError), match=says):
        Vm(engine=engine, **options)


def test_whatever_is_a_number_or_a_buffer_is_taken(vm: Vm) -> None:
    memory: Any = vm.memory
    backing = np.frombuffer(mmap.mmap(-1, 2 * PAGE), np.uint64)
    slot = memory.create(np.int32(1), gpa=np.uint64(8 * PAGE), size=np.int64(PAGE), host=backing)
    assert repr(slot).startswith("Slot 1 [0x8000, 0x9000)")
    memory.create(np.int8(2), gpa=16 * PAGE, size=PAGE, host=np.uint64(slot.userspace_addr + PAGE))
    memory.write(np.uint32(8 * PAGE), np.arange(16, dtype=np.uint8)[::2])
    assert backing[0] == int.from_bytes(bytes(range(0, 16, 2)), "little")
    memory.write(0, np.asfortranarray([[1, 2], [3, 4]], np.uint8))
    assert memory.read(0, 4) == b"\1\2\3\4"
    assert slot in memory
    assert slot._replace(base_gfn=9) not in memory
    if vm.model is not None:
        vcpu = vm.vcpus[0]
        vcpu.load([Write(np.int64(4), np.uint16(7)), Read(np.int64(4), 2)])  # type: ignore[arg-type] # numbers all the same
        assert [vcpu.run(), vcpu.values] == [Hlt(), [b"\7\0"]]


def test_memory_in_use_cannot_be_unmapped(vm: Vm) -> None:
    backing = mmap.mmap(-1, PAGE)
    vm.memory.create(1, gpa=8 * PAGE, size=PAGE, host=backing)
    with pytest.raises(BufferError):
        backing.close()
    vm.memory.delete(1)
    backing.close()
    backing = mmap.mmap(-1, PAGE)
    vm.memory.create(1, gpa=8 * PAGE, size=PAGE, host=backing)
    vm.close()
    backing.close()


def test_a_region_by_address_is_known_as_one_by_bytes(vm: Vm) -> None:
    region = MemoryRegion(slot=3, guest_phys_addr=8 * PAGE, memory_size=PAGE, userspace_addr=vm.memory.hva(0)).pack()
    buffer = ctypes.create_string_buffer(region)
    assert vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, ctypes.addressof(buffer)) == 0
    assert vm.memory[3] == vm.memory.find(8 * PAGE)
    vm.memory.delete(3)
    vm.check()


def test_a_transaction_that_is_refused_names_the_entry_and_changes_nothing(vm: Vm) -> None:
    before = list(vm.memory)
    for last, says in (({"gpa": 0, "size": PAGE}, "overlaps"), ({"gpa": 1 << 30, "size": PAGE, "flags": 99}, "flags")):
        with (  # noqa: PT012 - what raises is the end of the block
            pytest.raises(MemslotError, match=f"entry 1: slot 6: .*{says}"),
            vm.memory.transaction() as change,
        ):
            change.create(5, gpa=1 << 31, size=PAGE)
            change.create(6, **last)
        assert list(vm.memory) == before
    with pytest.raises(MemslotError, match="slot 0: it exists"), vm.memory.transaction() as change:
        change.create(0, gpa=1 << 30, size=PAGE)
    with pytest.raises(UsageError, match="it is over"), change:
        pass
    assert "over" in repr(change)


def test_after_close_every_call_is_ebadf(engine: str) -> None:
    vm = Vm(engine=engine)
    vm.memory.create(0, gpa=0, size=PAGE, flags=1)
    view, vcpu, late = vm.memory.view(0, 8), vm.vcpus[0], vm.memory.transaction()
    vm.close()
    vm.close()
    assert vm.closed
    assert repr(vm) == f"Vm on engine {engine}, 1 vCPU, closed"
    assert "closed" in vm._repr_html_()
    calls: list[Callable[[], object]] = [
        lambda: vm.memory.create(1, gpa=PAGE, size=PAGE),
        lambda: vm.memory.delete(0),
        lambda: vm.memory.read(0, 1),
        lambda: vm.memory.view(0, 1),
        lambda: list(vm.memory),
        lambda: late.delete(0),
        lambda: vm.dirty_log(0),
        lambda: vm.check_extension(10),
        vm.__enter__,
        vcpu.run,
    ]
    for call in calls:
        with pytest.raises(MemslotError) as caught:
            call()
        assert caught.value.errno == errno.EBADF
    view[:] = 7  # its memory lives on
    assert view.sum() == 56


def test_a_vcpu_takes_accesses_or_code_and_nothing_else(vm: Vm, engine: str) -> None:
    vcpu = vm.vcpus[0]
    if engine == "soft":
        for wrong, says in (
            (5, "accesses: int"),
            ([Fetch(0), 1], r"accesses\[1\]: 1"),
            ([Write(0, "abc")], r"accesses\[0\].content: str"),  # type: ignore[arg-type] # the subject
            ([Read("a")], r"accesses\[0\].gpa: 'a'"),  # type: ignore[arg-type] # the subject
            ([Read(0, 0)], "no range"),
            ([Write(-1, b"a")], "gpa: -0x1"),
        ):
            with pytest.raises((UsageError, MemslotError), match=says):
                vcpu.load(wrong)  # type: ignore[arg-type] # the question
        for call in (lambda: vcpu.load_code([0xF4], 0, mode="long", tables=PAGE), vcpu.registers, vcpu.set_registers):
            with pytest.raises(CapabilityError, match="accesses only"):
                call()
        return
    vm.memory.create(1, gpa=1 << 20, size=64 * PAGE)
    for code, where, says in (
        ("abc", {"gpa": 0}, "code: 'abc'"),
        (3, {"gpa": 0}, "code: 3"),
        ([300], {"gpa": 0}, "code: list"),
        (b"", {"gpa": 0}, "code: no bytes"),
        (b"\xf4" * 32, {"gpa": 0xFFF0}, "below 64 KiB"),
        (b"\xf4", {"gpa": -1}, "gpa: -0x1"),
        (b"\xf4", {"gpa": 1 << 20, "mode": "long", "tables": 5}, "tables: 0x5"),
        (b"\xf4", {"gpa": 1 << 20, "mode": "long", "tables": 1 << 20}, "overlaps the code"),
        (b"\xf4", {"gpa": 1 << 27, "mode": "long", "tables": 1 << 20}, "first 64 MiB"),
        (b"\xf4", {"gpa": 0, "mode": "long", "tables": 1 << 30}, "in no slot"),
    ):
        with pytest.raises((UsageError, MemslotError), match=says):
            vcpu.load_code(code, **where)  # type: ignore[arg-type] # the question
    assert not any(vm.memory.read(0, 4 * PAGE))
    with pytest.raises(UsageError, match="foo"):
        vcpu.set_registers(foo=1)
    with pytest.raises(MemslotError, match="rip: -0x1"):
        vcpu.set_registers(rip=-1)
    vcpu.load_code([0xF4], PAGE)
    vcpu.set_registers({"rax": 5}, rbx=6)
    assert vcpu.run() == Hlt()
    registers = vcpu.registers()
    assert (registers["rax"], registers["rbx"], registers["rip"]) == (5, 6, PAGE + 1)
