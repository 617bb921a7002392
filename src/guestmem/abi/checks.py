"""The host and the VM's type, as far as they decide answers; a region held to their limits.

What is checked, in which order, and what is answered: ``memslots.checks``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..memslots.checks import Limits, refusal_of, refused
from ..memslots.slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_USER_MEM_SLOTS
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX
from .structures import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    KVM_MEM_MAX_NR_PAGES,
    MAX_VCPU_IDS,
    MAX_VCPUS,
    V1_FLAGS,
    MemoryRegion,
)
from .versions import LINUX_6_18, LINUX_7_4, MAPPABILITY_V7, SHAREABILITY_RFC2, KernelVersion

__all__ = ["Host", "check_region"]

_PRIVATE = 8
"""KVM_MEMORY_ATTRIBUTE_PRIVATE."""
_WHERE = {
    "attributes": f"{LINUX_7_4} with gmem_in_place_conversion",
    "vm-attributes": "6.12 to 7.3, and of 7.4 without gmem_in_place_conversion",
    "mappability": f"abi.versions.MAPPABILITY_V7 ({MAPPABILITY_V7})",
    "shareability": f"abi.versions.SHAREABILITY_RFC2 ({SHAREABILITY_RFC2})",
}
"""By generation of states, which kernels have it."""
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
    in_place_conversion: bool = True
    """The module's parameter ``gmem_in_place_conversion``, where there is one (7.4): files have attributes."""
    vm_attributes: bool | None = None
    """Whether KVM_SET_MEMORY_ATTRIBUTES is built (CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES, from 7.4 on
    CONFIG_KVM_VM_MEMORY_ATTRIBUTES); None: where files have no attributes, as distributions build it."""
    tdp: bool = False
    """Whether the hardware walks two dimensions of tables."""
    pml: bool = False
    """Whether the hardware logs dirty pages itself, 512 at a time (Intel PML): rings then hold more in reserve."""
    word_bits: int = 64
    max_vcpu_ids: int = MAX_VCPU_IDS
    """vCPU ids are below: 4 * CONFIG_KVM_MAX_NR_VCPUS."""
    max_vcpus: int = MAX_VCPUS
    """vCPUs of a VM: CONFIG_KVM_MAX_NR_VCPUS."""

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
        """Flags that KVM_CREATE_GUEST_MEMFD knows: not INIT_SHARED where the VM has the attributes of private memory.

        Source: ``kvm_arch_supports_gmem_init_shared()``, Linux 6.18, and as the series for in-place conversion has it.
        """
        known, own = self.version.gmem_flags, self.file_states != "vm-attributes"
        return known if own or not self.private_memory else known & ~GUEST_MEMFD_FLAG_INIT_SHARED

    @property
    def file_states(self) -> str:
        """The generation of pages' states that files of this VM have: see ``gmem.generations``."""
        if self.version.gmem_series:
            return self.version.gmem_series
        return "attributes" if self.version.gmem_attributes and self.in_place_conversion else "vm-attributes"

    @property
    def has_vm_attributes(self) -> bool:
        """Whether there is KVM_SET_MEMORY_ATTRIBUTES, an ioctl of the VM."""
        return self.file_states == "vm-attributes" if self.vm_attributes is None else self.vm_attributes

    @property
    def vm_attribute_bits(self) -> int:
        """Attributes that the VM's frames may have: none where files have them.

        Source: ``kvm_supported_vm_mem_attributes()``, in the series for in-place conversion.
        """
        own = self.file_states != "vm-attributes"
        return 0 if own or not self.has_vm_attributes or not self.private_memory else _PRIVATE

    @property
    def file_attribute_bits(self) -> int:
        """Attributes that a file's pages may have by KVM_SET_MEMORY_ATTRIBUTES2."""
        return _PRIVATE if self.file_states == "attributes" and self.private_memory else 0

    def states_of(self, asked: str | None) -> str:
        """The generation that was ``asked`` for, or this VM's; UsageError for one that its kernel does not have.

        >>> Host().states_of(None), Host(version=LINUX_7_4).states_of(None)
        ('vm-attributes', 'attributes')
        """
        if asked is not None and asked != self.file_states:
            where = _WHERE.get(asked) if isinstance(asked, str) else None
            if where is None:
                raise UsageError(f"states: {asked!r} is not one of {', '.join(_WHERE)}")
            raise UsageError(f"states: files of {self.version} have {self.file_states}; {asked} is of {where}")
        return self.file_states

    def limits(self, *, v2: bool = False, internal: bool = False) -> Limits:
        """What a region of either form, or one of KVM's own, is held to."""
        file = KVM_MEM_GUEST_MEMFD if self.has_guest_memfd else 0
        legal = KVM_MEM_LOG_DIRTY_PAGES | (KVM_MEM_READONLY if self.readonly else 0)
        no_flags = internal and not self.version.internal_slots_have_flags
        return Limits(
            ids=1 << 16 if internal else self.user_slots,
            not_v1=0 if v2 or internal else U64_MAX & ~V1_FLAGS,
            illegal=U64_MAX if no_flags else U64_MAX & ~legal,
            illegal_with_file=U64_MAX if no_flags else U64_MAX & ~file,
            size=(1 << self.word_bits) - 1,
            hva_end=self.task_size_max,
            address_spaces=self.address_spaces,
            pages=U64_MAX if internal and not self.version.page_limit_for_internal_slots else KVM_MEM_MAX_NR_PAGES,
        )


def check_region(limits: Limits, region: MemoryRegion) -> None:
    """Steps 3 to 13 for a region; MemslotError (EINVAL) names the field. O(1).

    >>> check_region(Host().limits(), MemoryRegion(3, memory_size=0x1800))
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EINVAL: slot 3: memory_size 0x1800 is not a multiple of 0x1000
    """
    word, flags, gpa, size, hva, offset, _ = region
    reason = refused(word & 0xFFFF, word >> 16, flags, gpa, size, hva, offset, limits)
    if reason:
        raise refusal_of(reason, _fields(region), limits=limits)


def _fields(region: MemoryRegion) -> dict[str, int]:
    fields = region._asdict()
    return fields | {"slot": region.id, "as_id": region.as_id, "npages": region.memory_size >> PAGE_SHIFT}
