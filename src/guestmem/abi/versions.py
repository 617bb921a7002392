"""What differs between kernels in KVM's memory ABI: 6.12, 6.18, 7.3 and what is known of 7.4, named one by one.

Source: the three kernels' ``virt/kvm/kvm_main.c``, ``guest_memfd.c`` and ``dirty_ring.c`` compared; each field says
what a kernel does, so a difference is in one place and has a name. 7.4 is 7.3 with what was applied for it by November
2026 (kvm-x86: in-place conversion, dcde2f853ff4 and others; kvmarm: pre-fault, 34cfa9b3af17); no release was seen.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, fields, replace

from ..errors import UsageError
from .trees import MAINLINE

__all__ = [
    "DIFFERENCES",
    "LINUX_6_12",
    "LINUX_6_18",
    "LINUX_6_18_44",
    "LINUX_7_3",
    "LINUX_7_4",
    "MAPPABILITY_V7",
    "SHAREABILITY_RFC2",
    "VERSIONS",
    "KernelVersion",
    "version_of",
    "with_userfault",
]


@dataclass(frozen=True, slots=True)
class KernelVersion:
    """How one kernel answers where kernels differ."""

    name: str
    tree: str
    """Where its numbers are from: see ``trees``."""
    gmem_needs_private_vm: bool
    """KVM_MEM_GUEST_MEMFD only for VM types with private memory, not for every VM."""
    gmem_overlap_errno: int
    """Binding a range of a guest_memfd that another slot has."""
    gmem_flags: int
    """Flags that KVM_CREATE_GUEST_MEMFD knows: MMAP 1, INIT_SHARED 2."""
    page_limit_for_internal_slots: bool
    """Whether 2**31 - 1 pages is also the limit of KVM's own slots."""
    internal_slots_have_flags: bool
    """Whether KVM's own slots may be made with flags (``__kvm_set_memory_region()`` was exported)."""
    ring_reset_is_overflow_safe: bool
    """Whether the reset of a ring entry with a huge offset cannot wrap past the end of its slot."""
    prefault_retries: bool
    """KVM_PRE_FAULT_MEMORY on an INVALID slot retries for ever; later kernels answer EAGAIN."""
    gmem_attributes: bool = False
    """Whether a guest_memfd has attributes of its own: capability 250, KVM_SET_MEMORY_ATTRIBUTES2 on the file."""
    prefault_on_arm64: bool = False
    """Whether arm64 has KVM_PRE_FAULT_MEMORY; before, it is an unknown ioctl of a vCPU: EINVAL."""
    userfault: bool = False
    """Whether a slot may have KVM_MEM_USERFAULT: no kernel of mainline."""
    gmem_series: str = ""
    """The generation of pages' states that a series of 2025 has, which was not merged: mappability, shareability."""
    stable: int = 0
    """The stable release from which on it is so, where that is not the first."""

    def __str__(self) -> str:
        return (
            f"Linux {self.name}"
            + (f".{self.stable}" if self.stable else "")
            + ("" if self.tree == MAINLINE else f" ({self.tree})")
        )


LINUX_6_12 = KernelVersion(
    name="6.12",
    tree=MAINLINE,
    gmem_needs_private_vm=True,
    gmem_overlap_errno=errno.EINVAL,
    gmem_flags=0,
    page_limit_for_internal_slots=True,
    internal_slots_have_flags=True,
    ring_reset_is_overflow_safe=True,
    prefault_retries=True,
)
LINUX_6_18 = KernelVersion(
    name="6.18",
    tree=MAINLINE,
    gmem_needs_private_vm=False,
    gmem_overlap_errno=errno.EINVAL,
    gmem_flags=3,
    page_limit_for_internal_slots=False,
    internal_slots_have_flags=False,
    ring_reset_is_overflow_safe=False,
    prefault_retries=False,
)
LINUX_7_3 = KernelVersion(
    name="7.3",
    tree=MAINLINE,
    gmem_needs_private_vm=False,
    gmem_overlap_errno=errno.EEXIST,
    gmem_flags=3,
    page_limit_for_internal_slots=False,
    internal_slots_have_flags=False,
    ring_reset_is_overflow_safe=True,
    prefault_retries=False,
)
LINUX_6_18_44 = replace(LINUX_6_18, ring_reset_is_overflow_safe=True, stable=44)
"""What took the mend of 7.3 into a stable tree: run on 6.18.44. Which release was the first is not known."""
LINUX_7_4 = replace(LINUX_7_3, name="7.4", gmem_attributes=True, prefault_on_arm64=True)
"""As far as it is known: see above."""
VERSIONS = (LINUX_6_12, LINUX_6_18, LINUX_7_3, LINUX_7_4)


MAPPABILITY_V7 = replace(LINUX_6_18, tree="mappability-v7", gmem_series="mappability")
"""6.18 with "KVM: Restricted mapping of guest_memfd at the host", March 2025; what else it changes is not said."""
SHAREABILITY_RFC2 = replace(LINUX_6_18, tree="shareability-rfc2", gmem_series="shareability")
"""6.18 with "1G page support for guest_memfd" RFC v2, May 2025: two ioctls of the file convert."""


def with_userfault(version: KernelVersion) -> KernelVersion:
    """A version with KVM Userfault, as a vendor's tree carries it."""
    return replace(version, tree="amazon", userfault=True)


DIFFERENCES = {
    "gmem_needs_private_vm": "KVM_MEM_GUEST_MEMFD is refused for ordinary VMs",
    "gmem_overlap_errno": "errno of binding a guest_memfd range that is bound already",
    "gmem_flags": "flags of KVM_CREATE_GUEST_MEMFD",
    "page_limit_for_internal_slots": "the limit of 2**31 - 1 pages is also for KVM's own slots",
    "internal_slots_have_flags": "KVM's own slots may have flags",
    "ring_reset_is_overflow_safe": "a ring entry with a huge offset is dropped at reset",
    "prefault_retries": "KVM_PRE_FAULT_MEMORY retries on an INVALID slot",
    "gmem_attributes": "a guest_memfd has attributes of its own (capability 250)",
    "prefault_on_arm64": "KVM_PRE_FAULT_MEMORY on arm64",
    "userfault": "slots may have KVM_MEM_USERFAULT",
    "gmem_series": "states of a guest_memfd's pages are those of a series that was not merged",
}
"""Each difference in a line."""


def version_of(release: str) -> KernelVersion:
    """The version whose answers a kernel ``release`` gives: the newest that is not newer; UsageError if none is known.

    >>> [str(version_of(release)) for release in ("6.18.15-generic", "6.18.50", "6.14", "9.0")]
    ['Linux 6.18', 'Linux 6.18.44', 'Linux 6.12', 'Linux 7.4']
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if match is None:
        raise UsageError(f"release: {release!r} does not begin with a version, such as 6.18")
    wanted = int(match[1]), int(match[2])
    for version in reversed(VERSIONS):
        major, _, minor = version.name.partition(".")
        if (int(major), int(minor)) < wanted:
            return version
        if (int(major), int(minor)) == wanted:
            late = version is LINUX_6_18 and int(match[3] or 0) >= LINUX_6_18_44.stable
            return LINUX_6_18_44 if late else version
    raise UsageError(f"release: {release!r} is older than what is known: {', '.join(v.name for v in VERSIONS)}")


assert set(DIFFERENCES) == {field.name for field in fields(KernelVersion)} - {"name", "tree", "stable"}
