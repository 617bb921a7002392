"""What KVM checks of a memory region before it looks at any slot, in its order; the first failure is the answer.

Steps 3 to 13 of KVM_SET_USER_MEMORY_REGION and …REGION2 (the numbers are those of docs/abi.md). They are run for a
delete, too. Source: ``kvm_vm_ioctl()``, ``check_memory_region_flags()``, ``kvm_set_memory_region()``, Linux 6.18.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..errors import MemslotError, UsageError
from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEM_SLOTS_NUM, KVM_USER_MEM_SLOTS
from ..units import PAGE_SIZE, U64_MAX
from .structures import GUEST_MEMFD_FLAG_INIT_SHARED, KVM_MEM_GUEST_MEMFD, KVM_MEM_MAX_NR_PAGES, MAX_VCPU_IDS, V1_FLAGS
from .versions import LINUX_6_18, KernelVersion

__all__ = ["Host", "check_region"]

_OFFSET = PAGE_SIZE - 1
_TASK_SIZE_MAX = (1 << 47) - PAGE_SIZE
_MAX_GFN = (1 << 40) - 1


@dataclass(frozen=True, slots=True)
class Host:
    """What of the host and the VM's type decides answers; the defaults are x86-64, an ordinary VM, without TDP."""

    version: KernelVersion = LINUX_6_18
    address_spaces: int = 1
    """2 with SMM."""
    user_slots: int = KVM_USER_MEM_SLOTS
    readonly: bool = True
    """Whether the VM may have read-only slots; not with protected state."""
    private_memory: bool = False
    """Whether the VM's type has private memory."""
    guest_memfd: bool = True
    """CONFIG_KVM_GUEST_MEMFD."""
    task_size_max: int = _TASK_SIZE_MAX
    """End of user addresses; (1 << 56) - 4096 with five levels of tables."""
    max_gfn: int = _MAX_GFN
    """Last frame a slot may have: from the physical address width with TDP, from 52 bits without."""
    tdp: bool = False
    """Whether the hardware walks two dimensions of tables."""
    pml: bool = False
    """Whether the hardware logs dirty pages itself, 512 at a time (Intel PML): rings then hold more in reserve."""
    word_bits: int = 64
    max_vcpu_ids: int = MAX_VCPU_IDS
    """vCPU ids are below: 4 * CONFIG_KVM_MAX_NR_VCPUS."""

    def __post_init__(self) -> None:
        if not 1 <= self.address_spaces <= 2:
            raise UsageError(f"address_spaces: {self.address_spaces} is not 1 or 2")
        if self.private_memory and self.address_spaces != 1:
            raise UsageError("address_spaces: a VM with private memory has 1, not 2")

    @property
    def has_guest_memfd(self) -> bool:
        """Whether KVM_MEM_GUEST_MEMFD is a legal flag."""
        return self.guest_memfd and (self.private_memory or not self.version.gmem_needs_private_vm)

    @property
    def gmem_flags(self) -> int:
        """Flags that KVM_CREATE_GUEST_MEMFD knows: not INIT_SHARED where memory can be private."""
        known = self.version.gmem_flags
        return known & ~GUEST_MEMFD_FLAG_INIT_SHARED if self.private_memory else known


def check_region(
    host: Host,
    slot: int,
    flags: int,
    gpa: int,
    size: int,
    hva: int,
    offset: int = 0,
    *,
    v2: bool,
    internal: bool = False,
) -> None:
    """Steps 3 to 13 for the fields of a region, of the second form if ``v2``; MemslotError (EINVAL) names one. O(1).

    >>> check_region(Host(), 3, 0, 0, 0x1800, 0, v2=False)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EINVAL: slot 3: memory_size 0x1800 is not a multiple of 0x1000
    """
    id_ = slot & 0xFFFF
    name = id_
    if not v2 and flags & ~V1_FLAGS and not internal:
        raise _refused(name, f"flags {flags:#x} are not of KVM_MEM_LOG_DIRTY_PAGES 0x1, KVM_MEM_READONLY 0x2")
    if id_ >= host.user_slots and not internal:
        raise MemslotError(errno.EINVAL, f"slot: {id_} is not in 0..{host.user_slots - 1}")
    private = flags & KVM_MEM_GUEST_MEMFD
    if flags:
        legal = KVM_MEM_LOG_DIRTY_PAGES
        if host.has_guest_memfd:
            legal |= KVM_MEM_GUEST_MEMFD
        if private:
            legal &= ~KVM_MEM_LOG_DIRTY_PAGES
        elif host.readonly:
            legal |= KVM_MEM_READONLY
        if flags & ~legal:
            raise _refused(name, f"flags {flags:#x} are not of {legal:#x}")
        if internal and not host.version.internal_slots_have_flags:
            raise _refused(name, f"flags {flags:#x}: KVM's own slots have none")
    if size & _OFFSET or size >> host.word_bits:
        why = f"is not a multiple of {PAGE_SIZE:#x}" if size & _OFFSET else f"is no word of {host.word_bits} bits"
        raise _refused(name, f"memory_size {size:#x} {why}")
    if gpa & _OFFSET:
        raise _refused(name, f"guest_phys_addr {gpa:#x} is not a multiple of {PAGE_SIZE:#x}")
    if hva & _OFFSET:
        raise _refused(name, f"userspace_addr {hva:#x} is not a multiple of {PAGE_SIZE:#x}")
    if hva + size > host.task_size_max:
        raise _refused(name, f"userspace_addr {hva:#x} with size {size:#x} passes {host.task_size_max:#x}")
    if private and (offset & _OFFSET or offset + size > U64_MAX):
        raise _refused(name, f"guest_memfd_offset {offset:#x} is unaligned, or wraps with size {size:#x}")
    as_id = slot >> 16
    if as_id >= host.address_spaces:
        raise MemslotError(errno.EINVAL, f"as_id: {as_id} is not in 0..{host.address_spaces - 1}")
    if id_ >= KVM_MEM_SLOTS_NUM:
        raise MemslotError(errno.EINVAL, f"slot: {id_} is not in 0..{KVM_MEM_SLOTS_NUM - 1}")
    if gpa + size > U64_MAX:
        raise _refused(name, f"guest_phys_addr {gpa:#x} with size {size:#x} passes 2**64")
    if size >> 12 > KVM_MEM_MAX_NR_PAGES and (not internal or host.version.page_limit_for_internal_slots):
        raise _refused(name, f"memory_size {size:#x} is more than {KVM_MEM_MAX_NR_PAGES:#x} pages")


def _refused(name: int, why: str) -> MemslotError:
    return MemslotError(errno.EINVAL, f"slot {name}: {why}")
