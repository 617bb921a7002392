"""KVM_PRE_FAULT_MEMORY, an ioctl of a vCPU: what it answers, by kernel, architecture, and what is in the slots.

What was done stays, and the structure says what is left; an error comes only if nothing was done. Source:
``kvm_vcpu_pre_fault_memory()``, Linux 6.18, ``virt/kvm/kvm_main.c``; ``kvm_arch_vcpu_pre_fault_memory()``,
``arch/x86/kvm/mmu/mmu.c``; for arm64 commit 34cfa9b3af17 (applied for 7.4), and for the errno of pKVM the posting of 12
June 2026 ("pKVM filters the capability, and the ioctl returns -EOPNOTSUPP"); Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CapabilityError, GuestmemError, MemslotError, UsageError
from ..units import PAGE_SIZE
from .structures import PreFaultMemory
from .versions import KernelVersion

if TYPE_CHECKING:
    from .model import KvmModel

__all__ = ["PRE_FAULT_MEMORY", "VcpuOfPreFault", "check_pre_fault", "check_pre_fault_version", "pre_fault_memory"]

PRE_FAULT_MEMORY = 0xC040AED5
"""_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)."""
ARCHITECTURES = ("x86", "arm64")
EHWPOISON = 133


@dataclass(frozen=True, slots=True)
class VcpuOfPreFault:
    """What of a vCPU and its host decides the answer."""

    arch: str = "x86"
    nested: bool = False
    """It runs a nested guest: x86 refuses; arm64 takes the canonical stage 2."""
    initialised: bool = True
    """KVM_ARM_VCPU_INIT was called (arm64)."""
    pkvm: bool = False
    """The host runs pKVM (arm64)."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise UsageError(f"arch: {self.arch!r} is not one of {', '.join(ARCHITECTURES)}")


def check_pre_fault(gpa: int, size: int, flags: int) -> None:
    """EINVAL for flags, then for a range that is unaligned, empty or wraps: before the vCPU is looked at."""
    if flags:
        raise MemslotError(errno.EINVAL, f"pre-fault: flags {flags:#x} are not 0")
    if gpa < 0 or size <= 0 or gpa % PAGE_SIZE or size % PAGE_SIZE or gpa + size >= 1 << 64:
        raise MemslotError(errno.EINVAL, f"pre-fault: gpa {gpa:#x} with size {size:#x} is empty, unaligned, or wraps")


def check_pre_fault_version(arch: str, version: KernelVersion) -> None:
    """EINVAL where a vCPU has no such ioctl: on arm64 before 7.4."""
    if arch == "arm64" and not version.prefault_on_arm64:
        raise MemslotError(
            errno.EINVAL, f"pre-fault: {version} on arm64 has no such ioctl of a vCPU: it is from 7.4 on"
        )


def pre_fault_memory(
    vm: KvmModel,
    vcpu: int,
    asked: PreFaultMemory,
    of: VcpuOfPreFault | None = None,
    *,
    invalid: Container[int] = (),
    poisoned: Container[int] = (),
    interrupted: Callable[[], bool] = lambda: False,
) -> PreFaultMemory:
    """What is left of ``asked`` when vCPU ``vcpu`` of ``vm`` has done what it could. O(pages), or MemslotError.

    ``invalid``: ids of slots that an update has marked just now; ``poisoned``: frames with broken memory;
    ``interrupted``: whether a signal is pending, asked before each page. In order: EINVAL (no such ioctl; flags;
    range), then for each page EINTR, EOPNOTSUPP (x86: shadow paging, a nested guest; arm64: pKVM), ENOEXEC (arm64: not
    initialised), ENOENT (no slot), EAGAIN (INVALID slot), EHWPOISON. GuestmemError where 6.12 would not return;
    CapabilityError where the errno is not known: poison before 7.4. UsageError if there is no such vCPU.

    >>> from guestmem.abi.checks import Host
    >>> from guestmem.abi.model import KvmModel
    >>> from guestmem.abi.structures import MemoryIoctl, MemoryRegion, PreFaultMemory
    >>> vm = KvmModel(Host(tdp=True))
    >>> _ = vm.ioctl(MemoryIoctl.CREATE_VCPU, 0), vm.set_region(MemoryRegion(0, 0, 0, 0x4000, 0), v2=True)
    >>> pre_fault_memory(vm, 0, PreFaultMemory(0x2000, 0x4000))
    PreFaultMemory(gpa=16384, size=8192, flags=0)
    >>> pre_fault_memory(vm, 0, PreFaultMemory(0x4000, 0x2000))
    Traceback (most recent call last):
    guestmem.errors.MemslotError: ENOENT: pre-fault: gpa 0x4000 is in no slot
    """
    of = VcpuOfPreFault() if of is None else of
    if vcpu not in vm.dirty.rings:
        raise UsageError(f"vcpu: {vcpu} does not exist")
    check_pre_fault_version(of.arch, vm.host.version)
    gpa, size, flags = asked
    check_pre_fault(gpa, size, flags)
    while size:
        refusal = (
            MemslotError(errno.EINTR, "pre-fault: a signal came")
            if interrupted()
            else _refusal(vm, of, gpa, invalid, poisoned)
        )
        if refusal is not None:
            if gpa == asked.gpa:
                raise refusal
            break
        gpa, size = gpa + PAGE_SIZE, size - PAGE_SIZE
    return PreFaultMemory(gpa, size)


def _refusal(
    vm: KvmModel, of: VcpuOfPreFault, gpa: int, invalid: Container[int], poisoned: Container[int]
) -> GuestmemError | None:
    """Why one page is not mapped, or None."""
    version, gfn = vm.host.version, gpa // PAGE_SIZE
    if of.arch == "x86" and (not vm.host.tdp or of.nested):
        what = "the vCPU runs a nested guest" if vm.host.tdp else "shadow paging"
        return MemslotError(errno.EOPNOTSUPP, f"pre-fault: {what}")
    if of.arch == "arm64" and of.pkvm:
        return MemslotError(errno.EOPNOTSUPP, "pre-fault: the host runs pKVM")
    if of.arch == "arm64" and not of.initialised:
        return MemslotError(errno.ENOEXEC, "pre-fault: the vCPU is not initialised")
    slot = next(iter(vm.memslots.overlapping(gfn, gfn + 1, 0)), None)
    if slot is None:
        return MemslotError(errno.ENOENT, f"pre-fault: gpa {gpa:#x} is in no slot")
    if slot.id in invalid:
        if version.prefault_retries:
            return would_not_return(version)
        return MemslotError(errno.EAGAIN, f"pre-fault: the slot at gpa {gpa:#x} is being deleted or moved")
    if gfn in poisoned:
        if not version.prefault_on_arm64:  # the same kernel's documentation says it first
            return CapabilityError(f"pre-fault: what {version} answers for poisoned memory was not read")
        return MemslotError(EHWPOISON, f"pre-fault: the page at gpa {gpa:#x} is poisoned")
    return None


def would_not_return(version: KernelVersion) -> GuestmemError:
    """Of an INVALID slot, where the kernel tries again for ever."""
    return GuestmemError(
        f"pre-fault: {version} would not return: it tries again inside the read-side section for which the update of "
        "the slot waits"
    )
