"""The kinds of remark on a trace: why each matters, and who was bitten by it. ``lint`` finds them."""

from __future__ import annotations

from dataclasses import dataclass

from ..memslots.slot import KVM_MEM_SLOTS_NUM

__all__ = ["LINTS", "Lint"]


@dataclass(frozen=True, slots=True)
class Lint:
    """A kind of remark: why it matters, and who was bitten by it."""

    name: str
    what: str
    why: str
    bitten: str


LINTS = {
    each.name: each
    for each in (
        Lint(
            "add-without-delete",
            "memory is added where memory still is",
            "KVM refuses the slot with EEXIST, and QEMU aborts; a device that is told twice keeps both mappings",
            "QEMU with vfio-user devices, at reboot and migration (oracle/qemu#9, nutanix/libvfio-user#439)",
        ),
        Lint(
            "ids-only-grow",
            "slot numbers are never used again",
            f"KVM takes numbers below KVM_CAP_NR_MEMSLOTS ({KVM_MEM_SLOTS_NUM} on x86), vhost far fewer slots",
            "cloud-hypervisor, at the device that went past it (cloud-hypervisor#6842)",
        ),
        Lint(
            "slots-leaked",
            "each step leaves more slots than it found",
            "slots that nobody deletes run out, and keep host memory and guest addresses taken",
            "cloud-hypervisor, with each device that was plugged (cloud-hypervisor#6842)",
        ),
        Lint(
            "split-buffer",
            "neighbours in guest memory are not neighbours in host memory",
            "a buffer of the guest's may lie across the border: a device that takes it as one range fails or overruns",
            "cloud-hypervisor's virtio-blk after memory hot-plug: I/O errors in the guest (cloud-hypervisor#8242)",
        ),
        Lint(
            "guest-memfd-deleted",
            "a slot with a guest_memfd is deleted",
            "the pages stay in the file, but KVM removes them from the guest: a TDX guest's private memory is lost",
            "no public report is known; it follows from how TDX removes pages (arch/x86/kvm/vmx/tdx.c)",
        ),
        Lint(
            "guest-memfd-bound-twice",
            "one range of a guest_memfd is bound to two slots",
            "KVM refuses the second binding (EINVAL); in an ordinary file both slots would be the same memory",
            "cloud-hypervisor, whose boot and hot-plugged memory shared a file (cloud-hypervisor#1031)",
        ),
        Lint(
            "guest-memfd-elsewhere",
            "a guest_memfd is bound under another userspace_addr than the rest of it",
            "from Linux 6.18 on a file with mmap serves all faults: under another address the VMM reads other memory",
            "no public report is known; it follows from virt/kvm/guest_memfd.c (GUEST_MEMFD_FLAG_MMAP)",
        ),
        Lint(
            "dirty-log-lost",
            "a slot is deleted while its dirty log is on",
            "what was not read by KVM_GET_DIRTY_LOG just before is lost: pages that a migration does not send",
            "QEMU, whose kvm_set_phys_mem() reads the log first and admits that writes in between are lost",
        ),
        Lint(
            "toggle-by-delete",
            "only flags differ, yet the slot was deleted and created",
            "logging can be switched in place, without a hole; READONLY cannot, so the hole is KVM's doing",
            "guests of QEMU whose firmware ran from the slot (Red Hat bug 1979276)",
        ),
        Lint(
            "many-updates",
            "hundreds of updates in one boot",
            "each waits for a grace period of SRCU, and on x86 a delete drops every shadow page",
            "a Hyper-V VSM prototype: 100 000 changes a boot, up to 30 minutes (Alexander Graf, kvm list, 24 Oct 2022)",
        ),
    )
}
"""The kinds of remark, by name."""
