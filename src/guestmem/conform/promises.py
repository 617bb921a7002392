"""What ``conform`` checks of a kernel: promises, one line each, with the place in the kernel that makes it.

Each says by which answers it is checked. A promise of which a run did not meet every case was not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PROMISES", "Case", "Promise", "Seen", "only_promise", "promise_of"]

Seen = tuple[str, int, str]
"""What was answered: the kind of call, the errno (0: success), and the model's words for why, without numbers."""


class Case(NamedTuple):
    """An answer that speaks of a promise: a kind of call, an errno, and what is in the model's words for it."""

    kind: str
    errno: int
    words: str = ""

    def is_in(self, seen: Seen) -> bool:
        """Whether ``seen`` is such an answer."""
        return self[:2] == seen[:2] and self.words in seen[2]


class Promise(NamedTuple):
    """One promise, its source in Linux 6.18, and the cases that speak of it.

    ``absent``: the cases of a kernel that was built without it.
    """

    name: str
    says: str
    source: str
    cases: tuple[Case, ...]
    absent: tuple[Case, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.says} ({self.source})"

    def checks(self, seen: Mapping[Seen, int]) -> int:
        """How many answers spoke of it; 0 if any of its cases was not met."""
        for cases in (self.cases, self.absent):
            met = [sum(count for each, count in seen.items() if case.is_in(each)) for case in cases]
            if met and all(met):
                return sum(met)
        return 0

    def speaks(self, seen: Seen, *, by_words: bool = False) -> bool:
        """Whether ``seen`` is one of its cases; ``by_words``: one that says why."""
        return any(case.is_in(seen) for case in (*self.cases, *self.absent) if case.words or not by_words)


_MAIN = "virt/kvm/kvm_main.c"
_SET = f"{_MAIN}: kvm_set_memory_region()"
_BIND = "virt/kvm/guest_memfd.c: kvm_gmem_bind()"
_LOG = f"{_MAIN}: kvm_get_dirty_log_protect()"
_CLEAR = f"{_MAIN}: kvm_clear_dirty_log_protect()"
_RING = "virt/kvm/dirty_ring.c"
_ENOENT, _ENXIO, _E2BIG, _EBADF, _EFAULT, _EEXIST, _EINVAL, _ENOTTY = 2, 6, 7, 9, 14, 17, 22, 25


def _regions(errno: int, *words: str) -> tuple[Case, ...]:
    return tuple(Case(kind, errno, each) for kind in ("region", "region2") for each in words)


PROMISES = (
    Promise(
        "unknown-flags",
        "a flag that is not legal here is EINVAL, before anything else",
        f"{_MAIN}: check_memory_region_flags()",
        _regions(_EINVAL, ": flags # are not of"),
    ),
    Promise(
        "alignment",
        "size, guest and host address are multiples of the page size, or EINVAL; for a delete, too",
        _SET,
        _regions(_EINVAL, *(f"{name} # is not a multiple" for name in ("size", "phys_addr", "userspace_addr"))),
    ),
    Promise(
        "host-range",
        "a host range past the end of user addresses is EINVAL; it need not be mapped",
        f"{_SET}, access_ok()",
        _regions(_EINVAL, "userspace_addr # with size # passes"),
    ),
    Promise(
        "guest-range",
        "a guest range that wraps, or passes the last frame of the host, is EINVAL",
        f"{_SET}; arch/x86/kvm/x86.c: kvm_arch_prepare_memory_region()",
        _regions(_EINVAL, "guest_phys_addr # with size # passes", "its last frame is past"),
    ),
    Promise(
        "slot-ids",
        "slot ids from KVM_CAP_NR_MEMSLOTS on, and address spaces that are not there, are EINVAL",
        f"{_MAIN}: kvm_vm_ioctl_set_memory_region()",
        _regions(_EINVAL, "slot: # is not in", "as_id: # is not in"),
    ),
    Promise("too-large", "a slot of 2**31 pages or more is EINVAL", _SET, _regions(_EINVAL, "is more than # pages")),
    Promise(
        "delete",
        "size 0 deletes; only the slot id matters; without such a slot it is EINVAL",
        _SET,
        (*_regions(0, "delete"), *_regions(_EINVAL, "no such slot")),
    ),
    Promise(
        "no-resize",
        "size, host address and read-only of an existing slot cannot change: EINVAL",
        _SET,
        _regions(_EINVAL, *(f"{name} # differs from" for name in ("npages", "userspace_addr", "flags"))),
    ),
    Promise(
        "move",
        "an existing slot can be moved, also over where it was, and logging changed in the same call",
        _SET,
        _regions(0, "move", "move, logging changed"),
    ),
    Promise("flags", "logging of an existing slot can be switched on and off", _SET, _regions(0, "flags")),
    Promise("nothing", "setting a slot to what it is does nothing and succeeds", _SET, _regions(0, "nothing")),
    Promise(
        "overlap",
        "frames of another slot of the address space are EEXIST; host memory may be shared",
        f"{_MAIN}: kvm_check_memslot_overlap()",
        _regions(_EEXIST, "overlaps"),
    ),
    Promise(
        "padding",
        "padding of the second structure is not looked at",
        f"{_MAIN}: kvm_vm_ioctl()",
        (Case("region2", 0, "padding"),),
    ),
    Promise(
        "guest-memfd-bind",
        "a file that is not open is EBADF; none of this VM, a range outside it or bound already is EINVAL",
        _BIND,
        (
            Case("region2", 0, "create, bound"),
            Case("region2", _EBADF, "is not open"),
            Case("region2", _EINVAL, "is no guest_memfd"),
            Case("region2", _EINVAL, "is not in a file"),
            Case("region2", _EINVAL, "is unaligned, or wraps"),
        ),
    ),
    Promise(
        "guest-memfd-signed-end",
        "offset + size is a signed sum: one that reaches 2**63 is negative, passes, and is bound, past the file's end",
        _BIND,
        (Case("region2", 0, "create, bound past 2**63"),),
    ),
    Promise(
        "guest-memfd-fixed",
        "a slot with a guest_memfd can only be deleted",
        _SET,
        (Case("region2", _EINVAL, "can only be deleted"),),
    ),
    Promise(
        "guest-memfd-create",
        "sizes are positive multiples of the page size, flags are known ones",
        "virt/kvm/guest_memfd.c: kvm_gmem_create()",
        (
            Case("guest_memfd", 0),
            Case("guest_memfd", _EINVAL, "size # is not"),
            Case("guest_memfd", _EINVAL, "flags # are not of"),
        ),
    ),
    Promise(
        "guest-memfd-attributes",
        "a guest_memfd has no attributes of its own: ENOTTY; nor has the VM's file, nor one that is not open (EBADF)",
        "virt/kvm/guest_memfd.c: kvm_gmem_fops",
        (Case("file_attributes", _ENOTTY), Case("file_attributes", _EBADF)),
    ),
    Promise(
        "memory-attributes",
        "flags, bits that the VM cannot have, a range that is empty, wraps or is unaligned: EINVAL; not built: ENOTTY",
        f"{_MAIN}: kvm_vm_ioctl_set_mem_attributes()",
        (
            Case("attributes", 0),
            *(Case("attributes", _EINVAL, words) for words in ("flags # are not", "attributes # are not of", "wraps")),
            Case("attributes", _EINVAL, "are not page aligned"),
        ),
        absent=(Case("attributes", _ENOTTY),),
    ),
    Promise(
        "bad-pointer",
        "an argument that is not mapped is EFAULT",
        f"{_MAIN}: kvm_vm_ioctl()",
        (Case("bad_pointer", _EFAULT),),
    ),
    Promise(
        "get-log",
        "a log says exactly which pages a guest wrote since it was last taken",
        _LOG,
        (Case("get_log", 0), Case("write", 0, "some memory")),
    ),
    Promise(
        "get-log-of-several",
        "a log has the pages of all vCPUs that wrote; so has one that is taken between their writes",
        _LOG,
        (Case("get_log", 0, "of two writers"), Case("write2", 0, "some memory")),
    ),
    Promise(
        "get-log-refused",
        "no slot or no log is ENOENT, a bad id EINVAL, rings instead ENXIO",
        _LOG,
        (Case("get_log", _ENOENT), Case("get_log", _EINVAL), Case("get_log", _ENXIO)),
    ),
    Promise(
        "get-log-efault",
        "a log that cannot be copied out is EFAULT, and lost unless protection is manual",
        _LOG,
        (Case("get_log", _EFAULT),),
    ),
    Promise(
        "clear-log",
        "exactly the bits given are cleared, of pages that the slot has",
        _CLEAR,
        (Case("clear_log", 0, "bits were given"), Case("clear_log", _EINVAL, "are past its")),
    ),
    Promise(
        "clear-log-range",
        "ranges begin at a multiple of 64 and end so, or at the slot's end; all else is EINVAL",
        _CLEAR,
        (
            Case("clear_log", _EINVAL, "first_page # is not a multiple"),
            Case("clear_log", _EINVAL, "num_pages # is not a multiple"),
        ),
    ),
    Promise(
        "clear-log-refused",
        "no slot or no log is ENOENT, a bad id EINVAL, rings instead ENXIO, bits that cannot be read EFAULT",
        _CLEAR,
        (
            Case("clear_log", _ENOENT),
            Case("clear_log", _EINVAL, "no slot id"),
            Case("clear_log", _ENXIO),
            Case("clear_log", _EFAULT),
        ),
    ),
    Promise(
        "log-kept",
        "a log survives a move and a change of flags, and begins all ones with INITIALLY_SET",
        f"{_MAIN}: kvm_prepare_memory_region()",
        (Case("get_log", 0, "a log that was moved"), Case("region", 0, "create, all dirty")),
    ),
    Promise(
        "manual-protect",
        "0, 1 and 3 are all that manual protection can be set to",
        f"{_MAIN}: kvm_vm_ioctl_enable_cap_generic()",
        (Case("cap", 0), Case("cap", _EINVAL, "manual dirty log")),
    ),
    Promise(
        "ring-enable",
        "rings: a power of two, at least a page, at most 1 MiB (E2BIG), once, before any vCPU",
        f"{_MAIN}: kvm_vm_ioctl_enable_dirty_log_ring()",
        (
            Case("cap", 0),
            *(Case("cap", _EINVAL, words) for words in ("power of two", "are less than", "enabled already")),
            Case("cap", _E2BIG),
        ),
    ),
    Promise(
        "ring-entries",
        "each page written since it was last protected is in its vCPU's ring, by slot and offset",
        f"{_RING}: kvm_dirty_ring_push()",
        (Case("harvest", 0, "entries"),),
    ),
    Promise(
        "ring-reset",
        "a reset gives back as many entries as were harvested; EINVAL without rings",
        f"{_RING}: kvm_dirty_ring_reset()",
        (Case("reset", 0, "given back"), Case("reset", _EINVAL)),
    ),
    Promise(
        "ring-of-each",
        "each vCPU has a ring; a page is in that of who wrote it first; one reset gives back those of all",
        f"{_RING}: kvm_dirty_ring_push(); {_MAIN}: kvm_vm_ioctl_reset_dirty_pages()",
        (
            Case("harvest2", 0, "entries"),
            Case("harvest2", 0, "no entries"),
            Case("reset", 0, "given back, of two rings"),
            Case("write2", 0, "dirty ring full"),
        ),
    ),
    Promise(
        "ring-full",
        "a vCPU whose ring is soft full exits and does not enter",
        f"{_RING}: kvm_dirty_ring_check_request()",
        (Case("write", 0, "dirty ring full"),),
    ),
    Promise(
        "mmio",
        "where no slot is, an access is an MMIO exit; a write to a read-only slot, too; the rest goes to memory",
        "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault()",
        (
            Case("write", 0, "mmio"),
            Case("write", 0, "some memory"),
            Case("write", 0, "read-only, mmio"),
            Case("read", 0, "mmio"),
            Case("read", 0, "some memory, read-only"),
        ),
    ),
    Promise(
        "no-host-memory",
        "an access to a slot whose host memory is not mapped fails KVM_RUN with EFAULT",
        "arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn()",
        (Case("write", _EFAULT), Case("read", _EFAULT)),
    ),
    Promise(
        "mmu-pages",
        "fewer than 64 MMU pages are EINVAL",
        "arch/x86/kvm/x86.c: kvm_vm_ioctl_set_nr_mmu_pages()",
        (Case("mmu_pages", 0), Case("mmu_pages", _EINVAL)),
    ),
    Promise(
        "vcpu-ids",
        "a vCPU id that is taken is EEXIST, one past the limit EINVAL",
        f"{_MAIN}: kvm_vm_ioctl_create_vcpu()",
        (Case("vcpu", 0), Case("vcpu", _EEXIST), Case("vcpu", _EINVAL)),
    ),
    Promise(
        "capabilities",
        "values of the capabilities that concern memory",
        f"{_MAIN}: kvm_vm_ioctl_check_extension_generic()",
        (Case("extension", 0),),
    ),
    Promise(
        "unknown-ioctl",
        "a request that there is not is ENOTTY",
        "arch/x86/kvm/x86.c: kvm_arch_vm_ioctl()",
        (Case("unknown", _ENOTTY),),
    ),
)


def promise_of(seen: Seen) -> str:
    """Names of the promises that an answer speaks of, with what they say; "" if there are none."""
    spoken = [each for each in PROMISES if each.speaks(seen, by_words=True)]
    return "; ".join(map(str, spoken or [each for each in PROMISES if each.speaks(seen)]))


def only_promise(kind: str, errno: int) -> str:
    """The promise that alone speaks of an errno of a kind of call; "" if there are several, or none."""
    found = [each for each in PROMISES if any(case[:2] == (kind, errno) for case in (*each.cases, *each.absent))]
    return str(found[0]) if errno and len(found) == 1 else ""
