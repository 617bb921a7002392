"""What ``conform`` checks of a kernel: promises, one line each, with the place in the kernel that makes it.

Which calls they come from is in ``counted``: a promise about which no call of a run said anything was not checked.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PROMISES", "Promise"]


class Promise(NamedTuple):
    """One promise, its source in Linux 6.18, and the (call, errno) pairs that speak of it (0: success)."""

    name: str
    says: str
    source: str
    seen_in: tuple[tuple[str, int], ...]


_MAIN = "virt/kvm/kvm_main.c"
_REGION_OK = (("region", 0), ("region2", 0))
_EINVAL = (("region", 22), ("region2", 22))
_SET = f"{_MAIN}: kvm_set_memory_region()"

PROMISES = (
    Promise(
        "unknown-flags",
        "a flag that is not legal here is EINVAL, before anything else",
        f"{_MAIN}: check_memory_region_flags()",
        _EINVAL,
    ),
    Promise(
        "alignment",
        "size, guest and host address are multiples of the page size, or EINVAL; for a delete, too",
        _SET,
        _EINVAL,
    ),
    Promise(
        "host-range",
        "a host range past the end of user addresses is EINVAL; it need not be mapped",
        f"{_SET}, access_ok()",
        _EINVAL,
    ),
    Promise(
        "guest-range",
        "a guest range that wraps, or passes the last frame of the host, is EINVAL",
        f"{_SET}; arch/x86/kvm/x86.c: kvm_arch_prepare_memory_region()",
        _EINVAL,
    ),
    Promise(
        "slot-ids",
        "slot ids from KVM_CAP_NR_MEMSLOTS on, and address spaces that are not there, are EINVAL",
        f"{_MAIN}: kvm_vm_ioctl_set_memory_region()",
        _EINVAL,
    ),
    Promise("too-large", "a slot of 2**31 pages or more is EINVAL", _SET, _EINVAL),
    Promise("delete", "size 0 deletes; only the slot id matters; without such a slot it is EINVAL", _SET, _REGION_OK),
    Promise("no-resize", "size, host address and read-only of an existing slot cannot change: EINVAL", _SET, _EINVAL),
    Promise(
        "move",
        "an existing slot can be moved, also over where it was, and logging changed in the same call",
        _SET,
        _REGION_OK,
    ),
    Promise("nothing", "setting a slot to what it is does nothing and succeeds", _SET, _REGION_OK),
    Promise(
        "overlap",
        "frames of another slot of the address space are EEXIST; host memory may be shared",
        f"{_MAIN}: kvm_check_memslot_overlap()",
        (("region", 17), ("region2", 17)),
    ),
    Promise(
        "padding", "padding of the second structure is not looked at", f"{_MAIN}: kvm_vm_ioctl()", (("region2", 0),)
    ),
    Promise(
        "guest-memfd-bind",
        "a file that is not open is EBADF; none of this VM, a range outside it or bound already is EINVAL",
        "virt/kvm/guest_memfd.c: kvm_gmem_bind()",
        (("region2", 9), ("region2", 22)),
    ),
    Promise("guest-memfd-fixed", "a slot with a guest_memfd can only be deleted", _SET, (("region2", 22),)),
    Promise(
        "guest-memfd-create",
        "sizes are positive multiples of the page size, flags are known ones",
        "virt/kvm/guest_memfd.c: kvm_gmem_create()",
        (("guest_memfd", 0), ("guest_memfd", 22)),
    ),
    Promise(
        "bad-pointer", "an argument that is not mapped is EFAULT", f"{_MAIN}: kvm_vm_ioctl()", (("bad_pointer", 14),)
    ),
    Promise(
        "get-log",
        "a log says exactly which pages a guest wrote since it was last taken",
        f"{_MAIN}: kvm_get_dirty_log_protect()",
        (("get_log", 0),),
    ),
    Promise(
        "get-log-refused",
        "no slot or no log is ENOENT, a bad id EINVAL, rings instead ENXIO",
        f"{_MAIN}: kvm_get_dirty_log_protect()",
        (("get_log", 2), ("get_log", 22), ("get_log", 6)),
    ),
    Promise(
        "get-log-efault",
        "a log that cannot be copied out is EFAULT, and lost unless protection is manual",
        f"{_MAIN}: kvm_get_dirty_log_protect()",
        (("get_log", 14),),
    ),
    Promise(
        "clear-log",
        "exactly the bits given are cleared; ranges begin at a multiple of 64 and end so, or at the slot's end",
        f"{_MAIN}: kvm_clear_dirty_log_protect()",
        (("clear_log", 0), ("clear_log", 22)),
    ),
    Promise(
        "log-kept",
        "a log survives a move and a change of flags, and begins all ones with INITIALLY_SET",
        f"{_MAIN}: kvm_prepare_memory_region()",
        (("get_log", 0),),
    ),
    Promise(
        "manual-protect",
        "0, 1 and 3 are all that manual protection can be set to",
        f"{_MAIN}: kvm_vm_ioctl_enable_cap_generic()",
        (("cap", 0), ("cap", 22)),
    ),
    Promise(
        "ring-enable",
        "rings: a power of two, at least a page, at most 1 MiB (E2BIG), once, before any vCPU",
        f"{_MAIN}: kvm_vm_ioctl_enable_dirty_log_ring()",
        (("cap", 22), ("cap", 7)),
    ),
    Promise(
        "ring-entries",
        "each page written since it was last protected is in its vCPU's ring, by slot and offset",
        "virt/kvm/dirty_ring.c: kvm_dirty_ring_push()",
        (("harvest", 0),),
    ),
    Promise(
        "ring-reset",
        "a reset gives back as many entries as were harvested; EINVAL without rings",
        "virt/kvm/dirty_ring.c: kvm_dirty_ring_reset()",
        (("reset", 0), ("reset", 22)),
    ),
    Promise(
        "ring-full",
        "a vCPU whose ring is soft full exits and does not enter",
        "virt/kvm/dirty_ring.c: kvm_dirty_ring_check_request()",
        (("write", 0),),
    ),
    Promise(
        "mmio",
        "a write where no slot is, or to a read-only one, is an MMIO exit; the rest goes to memory",
        "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault()",
        (("write", 0),),
    ),
    Promise(
        "no-host-memory",
        "a write to a slot whose host memory is not mapped fails KVM_RUN with EFAULT",
        "arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn()",
        (("write", 14),),
    ),
    Promise(
        "mmu-pages",
        "fewer than 64 MMU pages are EINVAL",
        "arch/x86/kvm/x86.c: kvm_vm_ioctl_set_nr_mmu_pages()",
        (("mmu_pages", 0), ("mmu_pages", 22)),
    ),
    Promise(
        "vcpu-ids",
        "a vCPU id that is taken is EEXIST, one past the limit EINVAL",
        f"{_MAIN}: kvm_vm_ioctl_create_vcpu()",
        (("vcpu", 17), ("vcpu", 22)),
    ),
    Promise(
        "capabilities",
        "values of the capabilities that concern memory",
        f"{_MAIN}: kvm_vm_ioctl_check_extension_generic()",
        (("extension", 0),),
    ),
    Promise(
        "unknown-ioctl",
        "a request that there is not is ENOTTY",
        "arch/x86/kvm/x86.c: kvm_arch_vm_ioctl()",
        (("unknown", 25),),
    ),
)
"""Errnos in numbers: 2 ENOENT, 6 ENXIO, 7 E2BIG, 9 EBADF, 14 EFAULT, 17 EEXIST, 22 EINVAL, 25 ENOTTY."""
