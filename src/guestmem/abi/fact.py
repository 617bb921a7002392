"""One answer of a kernel, with its evidence; the calls, kernels, architectures and trees that there are answers of."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .trees import MAINLINE
from .trees import TREES as _TREES

__all__ = ["ARCHITECTURES", "CALLS", "KERNELS", "TREES", "Fact"]

KERNELS = ("6.12", "6.18", "7.3", "7.4")
ARCHITECTURES = ("x86-64", "arm64", "pkvm", "s390")
"""pkvm: arm64 with kvm-arm.mode=protected."""
TREES = tuple(sorted({*_TREES, "mm"}))


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer. ``kernels``, ``architectures`` and ``tree`` say where; ``promise``: of ``conform``, if it was run."""

    call: str
    answer: str
    source: str
    kernels: tuple[str, ...] = KERNELS
    architectures: tuple[str, ...] = ("x86-64", "arm64")
    tree: str = MAINLINE
    promise: str = ""

    @property
    def evidence(self) -> str:
        """What stands behind it: "run on …" or "by source …"."""
        if self.promise:
            return f"run on Linux 6.18 x86-64, default VM (conform: {self.promise}); source {self.source}"
        return f"by source {self.source}"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"evidence": self.evidence, "run": bool(self.promise)}


CALLS: dict[str, str] = {
    "KVM_CREATE_GUEST_MEMFD": "VM ioctl 0xC040AED4, KVM_CAP_GUEST_MEMFD 234, KVM_CAP_GUEST_MEMFD_FLAGS 244",
    "KVM_SET_USER_MEMORY_REGION": "VM ioctl 0x4020AE46, KVM_CAP_USER_MEMORY 3",
    "KVM_SET_USER_MEMORY_REGION2": "VM ioctl 0x40A0AE49, KVM_CAP_USER_MEMORY2 231",
    "KVM_SET_MEMORY_ATTRIBUTES": "VM ioctl 0x4020AED2, KVM_CAP_MEMORY_ATTRIBUTES 233",
    "KVM_SET_MEMORY_ATTRIBUTES2": "ioctl on the guest_memfd, 0xC080AED2, KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES 250",
    "KVM_GMEM_CONVERT_SHARED": "ioctl on the guest_memfd, RFC of May 2025; with KVM_GMEM_CONVERT_PRIVATE",
    "KVM_LINK_GUEST_MEMFD": "VM ioctl, RFC v2 of May 2025",
    "KVM_PRE_FAULT_MEMORY": "vCPU ioctl 0xC040AED5, KVM_CAP_PRE_FAULT_MEMORY 236",
    "KVM_GET_DIRTY_LOG": "VM ioctl 0x4010AE42; with KVM_CLEAR_DIRTY_LOG 0xC018AEC0",
    "KVM_EXIT_MEMORY_FAULT": "exit reason 39, KVM_CAP_MEMORY_FAULT_INFO 232",
    "KVM_MEM_USERFAULT": "flag 8 of KVM_SET_USER_MEMORY_REGION2, KVM Userfault v3 of June 2025",
    "fallocate": "system call on a guest_memfd",
    "mmap": "system call on a guest_memfd",
    "read, write": "system calls on a guest_memfd; with ftruncate",
    "mbind": "system call on a mapping of a guest_memfd",
    "userfaultfd": "registering a mapping of a guest_memfd",
    "capabilities": "numbers that are not one thing in every tree",
}
"""Every call that there are facts of, and where it is found."""
