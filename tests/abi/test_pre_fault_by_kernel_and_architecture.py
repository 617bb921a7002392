"""KVM_PRE_FAULT_MEMORY: what is done stays and is said; each refusal by kernel, architecture and state of the vCPU."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from guestmem import CapabilityError, GuestmemError, MemslotError, UsageError
from guestmem.abi.checks import Host
from guestmem.abi.model import KvmModel
from guestmem.abi.pre_fault import PRE_FAULT_MEMORY, VcpuOfPreFault, pre_fault_memory
from guestmem.abi.structures import MemoryIoctl, MemoryRegion, PreFaultMemory
from guestmem.abi.versions import LINUX_6_12, LINUX_6_18, LINUX_7_3, LINUX_7_4, KernelVersion

PAGE = 4096
ARM = VcpuOfPreFault("arm64")


def vm(version: KernelVersion = LINUX_6_18, **host: Any) -> KvmModel:
    """Slots of frames 0 to 15 and 32 to 47."""
    made = KvmModel(Host(version=version, **{"tdp": True, **host}))
    made.ioctl(MemoryIoctl.CREATE_VCPU, 0)
    made.set_region(MemoryRegion(0, 0, 0, 16 * PAGE, 0), v2=False)
    made.set_region(MemoryRegion(1, 0, 32 * PAGE, 16 * PAGE, 1 << 20), v2=False)
    return made


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(MemslotError) as caught:
        call()
    return caught.value.errno


def test_the_structure_is_64_bytes() -> None:
    asked = PreFaultMemory(0x1000, 0x2000, 5)
    assert len(asked.pack()) == PRE_FAULT_MEMORY >> 16 & 0x3FFF == 64
    assert PreFaultMemory.unpack(asked.pack()) == asked
    with pytest.raises(UsageError, match="63 bytes; the structure has 64 bytes"):
        PreFaultMemory.unpack(asked.pack()[:63])


@pytest.mark.parametrize(("version", "of"), [(LINUX_6_12, None), (LINUX_7_3, None), (LINUX_7_4, ARM)])
def test_partial_progress(version: KernelVersion, of: VcpuOfPreFault | None) -> None:
    model = vm(version)
    assert pre_fault_memory(model, 0, PreFaultMemory(0, 16 * PAGE), of) == (16 * PAGE, 0, 0)
    assert pre_fault_memory(model, 0, PreFaultMemory(14 * PAGE, 4 * PAGE), of) == (16 * PAGE, 2 * PAGE, 0)
    assert errno_of(lambda: pre_fault_memory(model, 0, PreFaultMemory(16 * PAGE, 2 * PAGE), of)) == errno.ENOENT
    signals = iter([False, False, True])
    left = pre_fault_memory(model, 0, PreFaultMemory(32 * PAGE, 8 * PAGE), of, interrupted=lambda: next(signals))
    assert left == (34 * PAGE, 6 * PAGE, 0)
    assert errno_of(lambda: pre_fault_memory(model, 0, left, of, interrupted=lambda: True)) == errno.EINTR
    left = pre_fault_memory(model, 0, PreFaultMemory(14 * PAGE, 20 * PAGE), of, invalid=[1])
    assert left.gpa == 16 * PAGE


@pytest.mark.parametrize("of", [VcpuOfPreFault(), ARM])
@pytest.mark.parametrize(
    "asked",
    [(0, 0, 0), (1, PAGE, 0), (0, PAGE + 1, 0), ((1 << 64) - PAGE, PAGE, 0), (0, PAGE, 1), (64 * PAGE, PAGE, 1)],
)
def test_what_is_refused_before_the_vcpu_is_looked_at(asked: tuple[int, int, int], of: VcpuOfPreFault) -> None:
    model = vm(LINUX_7_4, tdp=False)
    assert errno_of(lambda: pre_fault_memory(model, 0, PreFaultMemory(*asked), of)) == errno.EINVAL


@pytest.mark.parametrize(
    ("version", "tdp", "of", "number"),
    [
        (LINUX_6_18, False, VcpuOfPreFault(), errno.EOPNOTSUPP),
        (LINUX_6_18, True, VcpuOfPreFault(nested=True), errno.EOPNOTSUPP),
        (LINUX_7_3, True, ARM, errno.EINVAL),
        (LINUX_7_4, True, VcpuOfPreFault("arm64", initialised=False), errno.ENOEXEC),
        (LINUX_7_4, True, VcpuOfPreFault("arm64", pkvm=True), errno.EOPNOTSUPP),
        (LINUX_7_3, True, VcpuOfPreFault("arm64", pkvm=True), errno.EINVAL),
    ],
)
def test_vcpus_that_cannot(version: KernelVersion, tdp: bool, of: VcpuOfPreFault, number: int) -> None:
    assert errno_of(lambda: pre_fault_memory(vm(version, tdp=tdp), 0, PreFaultMemory(0, PAGE), of)) == number


def test_arm64_takes_the_canonical_table_of_a_vcpu_with_a_nested_guest() -> None:
    assert pre_fault_memory(vm(LINUX_7_4), 0, PreFaultMemory(0, PAGE), VcpuOfPreFault("arm64", nested=True)).size == 0


def test_a_slot_that_is_invalid_just_now() -> None:
    ask = PreFaultMemory(0, PAGE)
    with pytest.raises(GuestmemError, match=r"Linux 6\.12 would not return"):
        pre_fault_memory(vm(LINUX_6_12), 0, ask, invalid=[0])
    assert errno_of(lambda: pre_fault_memory(vm(LINUX_6_18), 0, ask, invalid=[0])) == errno.EAGAIN
    assert errno_of(lambda: pre_fault_memory(vm(LINUX_7_4), 0, ask, ARM, invalid=[0])) == errno.EAGAIN


def test_poison_and_what_was_not_read() -> None:
    assert errno_of(lambda: pre_fault_memory(vm(LINUX_7_4), 0, PreFaultMemory(0, PAGE), poisoned=[0])) == 133
    assert pre_fault_memory(vm(LINUX_7_4), 0, PreFaultMemory(0, 4 * PAGE), poisoned=[2]) == (2 * PAGE, 2 * PAGE, 0)
    with pytest.raises(CapabilityError, match=r"Linux 7\.3 answers for poisoned memory was not read"):
        pre_fault_memory(vm(LINUX_7_3), 0, PreFaultMemory(0, PAGE), poisoned=[0])


def test_bad_input() -> None:
    with pytest.raises(UsageError, match=r"^vcpu: 3 does not exist$"):
        pre_fault_memory(vm(), 3, PreFaultMemory(0, PAGE))
    with pytest.raises(UsageError, match=r"^arch: 'riscv' is not one of x86, arm64$"):
        VcpuOfPreFault("riscv")
