"""A VM's accesses to private and shared pages of a guest_memfd: memory of their kind, or KVM_EXIT_MEMORY_FAULT."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from guestmem import MemslotError, UsageError
from guestmem.abi.model import KvmModel
from guestmem.engines.soft import SoftEngine
from guestmem.errors import GuestMemfdError
from guestmem.vm import Fetch, Hlt, InternalError, MemoryFault, Mmio, Read, Vm, Write

PAGE = 0x1000
AT = 1 << 20


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm(private_memory=True, version="7.4") as made:
        yield made
        made.check()


@pytest.fixture
def vm_with_attributes() -> Iterator[Vm[SoftEngine, KvmModel]]:
    with Vm(private_memory=True) as made:
        yield made
        made.check()


def run(vm: Vm[SoftEngine, KvmModel], *accesses: Read | Write | Fetch) -> tuple[object, list[bytes]]:
    vcpu = vm.vcpus[0]
    vcpu.load(accesses)
    return vcpu.run(), vcpu.values


def test_an_access_of_the_other_kind_exits_until_the_page_is_converted(vm: Vm[SoftEngine, KvmModel]) -> None:
    file = vm.create_guest_memfd(4 * PAGE)
    vm.memory.create(0, gpa=AT, size=4 * PAGE, guest_memfd=file)
    assert run(vm, Write(AT + PAGE, b"secret", private=True), Read(AT + PAGE, 6, private=True)) == (Hlt(), [b"secret"])
    with pytest.raises(MemslotError, match="EFAULT"):
        vm.memory.read(AT + PAGE, 6)
    vcpu = vm.vcpus[0]
    vcpu.load([Read(AT + PAGE + 8, 6)])
    fault = MemoryFault(0, AT + PAGE, PAGE)
    assert [vcpu.run(), vcpu.run()] == [fault, fault]
    file.convert(PAGE, PAGE, private=False)
    assert vcpu.run() == Hlt()
    vm.memory.write(AT + PAGE, b"public")
    assert run(vm, Read(AT + PAGE, 6)) == (Hlt(), [b"public"])
    assert run(vm, Write(AT + PAGE, b"x", private=True)) == (MemoryFault(8, AT + PAGE, PAGE), [])


def test_a_private_access_needs_a_file(vm: Vm[SoftEngine, KvmModel]) -> None:
    vm.memory.create(0, gpa=AT, size=PAGE)
    assert run(vm, Read(AT, 8, private=True))[0] == MemoryFault(8, AT, PAGE), "a slot without one"
    assert run(vm, Fetch(4 * AT, private=True))[0] == MemoryFault(8, 4 * AT, PAGE), "no slot"
    assert isinstance(run(vm, Read(4 * AT, 8))[0], Mmio)
    assert isinstance(run(vm, Fetch(4 * AT))[0], InternalError)


def test_without_mmap_shared_memory_is_userspace_addrs_by_the_vms_attributes(
    vm_with_attributes: Vm[SoftEngine, KvmModel],
) -> None:
    vm = vm_with_attributes
    file = vm.create_guest_memfd(4 * PAGE, 0)
    assert "states='vm-attributes'" in repr(file)
    vm.memory.create(0, gpa=AT, size=4 * PAGE, guest_memfd=file)
    vm.memory.write(AT, b"shared half")
    assert run(vm, Read(AT, 11)) == (Hlt(), [b"shared half"])
    vm.set_memory_attributes(AT, 2 * PAGE, 8)
    assert run(vm, Read(AT, 11))[0] == MemoryFault(0, AT, PAGE)
    assert run(vm, Read(AT, 11, private=True)) == (Hlt(), [bytes(11)])
    assert run(vm, Read(AT + 2 * PAGE, 8, private=True))[0] == MemoryFault(8, AT + 2 * PAGE, PAGE)
    vm.set_memory_attributes(AT, PAGE, 0)
    assert run(vm, Read(AT, 11)) == (Hlt(), [b"shared half"]), "two halves: nothing is copied"


def test_poison_and_a_closed_file_are_memory_faults(vm: Vm[SoftEngine, KvmModel]) -> None:
    file = vm.create_guest_memfd(4 * PAGE)
    vm.memory.create(0, gpa=AT, size=4 * PAGE, guest_memfd=file)
    assert run(vm, Write(AT, b"x", private=True))[0] == Hlt()
    file.poison(0)
    assert run(vm, Read(AT, 1, private=True))[0] == MemoryFault(8, AT, PAGE)
    assert run(vm, Read(AT + PAGE, 1, private=True))[0] == Hlt()
    file.close()
    assert run(vm, Read(AT + PAGE, 1, private=True))[0] == MemoryFault(8, AT + PAGE, PAGE)
    with pytest.raises(GuestMemfdError, match="EBADF"):
        file.close()
    with pytest.raises(MemslotError) as caught:
        vm.memory.create(1, gpa=2 * AT, size=PAGE, host=0x10000, guest_memfd=file)
    assert caught.value.errno == errno.EBADF
    vm.memory.delete(0)


def test_an_ordinary_vm_has_shared_pages_only_and_takes_them_from_the_file() -> None:
    with Vm() as vm:
        file = vm.create_guest_memfd(4 * PAGE)
        assert file.flags == 3
        vm.memory.create(0, gpa=AT, size=4 * PAGE, guest_memfd=file, host=bytearray_of(4 * PAGE))
        vm.memory.write(AT, b"KVM sees this")
        assert run(vm, Read(AT, 4)) == (Hlt(), [bytes(4)]), "the guest sees the file, which is not mapped there"
        with file.mmap() as host:
            host.write(0, b"file")
        assert run(vm, Read(AT, 4)) == (Hlt(), [b"file"])
        with pytest.raises(GuestMemfdError, match="ENOTTY"):
            file.set_memory_attributes2(0, PAGE, 8)
        with pytest.raises(GuestMemfdError, match="attributes 0x8 are not of 0x0"):
            vm.set_memory_attributes(AT, PAGE, 8)


def test_an_ordinary_vm_of_7_4_converts_nothing() -> None:
    with Vm(version="7.4") as vm:
        file = vm.create_guest_memfd(4 * PAGE)
        with pytest.raises(GuestMemfdError, match="the VM's type has no private memory"):
            file.set_memory_attributes2(0, PAGE, 8)
        with pytest.raises(GuestMemfdError, match="ENOTTY: memory attributes: the kernel has none of the VM"):
            vm.set_memory_attributes(AT, PAGE, 8)


def test_a_private_frame_has_no_shared_accesses_whatever_its_slot_is(
    vm_with_attributes: Vm[SoftEngine, KvmModel],
) -> None:
    """``kvm_mmu_faultin_pfn()`` compares kinds before it looks for a slot."""
    vm = vm_with_attributes
    vm.memory.create(0, gpa=AT, size=PAGE)
    vm.set_memory_attributes(AT, 2 * PAGE, 8)
    for gpa in (AT, AT + PAGE):
        assert run(vm, Read(gpa, 8))[0] == MemoryFault(0, gpa, PAGE)
        assert run(vm, Read(gpa, 8, private=True))[0] == MemoryFault(8, gpa, PAGE)
    vm.set_memory_attributes(AT, 2 * PAGE, 0)
    assert run(vm, Read(AT, 8))[0] == Hlt()
    assert isinstance(run(vm, Read(AT + PAGE, 8))[0], Mmio)


def bytearray_of(size: int) -> object:
    import mmap

    return mmap.mmap(-1, size)


def test_kernels_without_files_and_options_of_the_other_engine_are_said() -> None:
    with Vm(version="6.12") as vm, pytest.raises(MemslotError, match="flags 0x4 are not of"):
        vm.memory.create(0, gpa=AT, size=PAGE, guest_memfd=vm.create_guest_memfd(PAGE))
    with pytest.raises(UsageError, match="private_memory: True is for engine soft"):
        Vm(engine="kvm", private_memory=True)
    with pytest.raises(UsageError, match="address_spaces: a VM with private memory has 1, not 2"):
        Vm(private_memory=True, smm=True)
