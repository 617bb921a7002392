"""Who takes which call, and what the others answer: by kernel, tree and architecture, each with its evidence.

One table for what users of libkrun, Firecracker and OpenVMM ask of guest_memfd and memslots. A fact was *run*, where
``conform`` compares this model with a running kernel (the promise that it checks is named), or it was read (*by
source*: file, commit or series). What differs between kernels in the model itself is in ``versions``; a test holds both
together. "7.4" is what was applied for it by November 2026; no release of it was seen.
"""

from __future__ import annotations

from ..errors import UsageError
from .fact import ARCHITECTURES, CALLS, KERNELS, TREES, Fact
from .trees import MAINLINE

__all__ = ["ARCHITECTURES", "CALLS", "FACTS", "KERNELS", "TREES", "Fact", "call_of", "facts_of"]

_ALL = KERNELS
_FROM_6_18 = KERNELS[1:]
_FROM_7_3 = KERNELS[2:]
_ARM = ("arm64", "pkvm")
_GMEM = "virt/kvm/guest_memfd.c"
_MAIN = "virt/kvm/kvm_main.c"

_BESIDE = {
    "CLEAR_DIRTY_LOG": "KVM_GET_DIRTY_LOG",
    "GMEM_CONVERT_PRIVATE": "KVM_GMEM_CONVERT_SHARED",
    "FTRUNCATE": "read, write",
}
"""Calls that are answered beside another."""

_CREATE, _SET1, _SET2 = "KVM_CREATE_GUEST_MEMFD", "KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"
_VM_ATTRIBUTES, _FILE_ATTRIBUTES = "KVM_SET_MEMORY_ATTRIBUTES", "KVM_SET_MEMORY_ATTRIBUTES2"
_PRE_FAULT, _LOG, _EXIT = "KVM_PRE_FAULT_MEMORY", "KVM_GET_DIRTY_LOG", "KVM_EXIT_MEMORY_FAULT"
_X86, _ARM64, _PKVM, _S390 = ("x86-64",), ("arm64",), ("pkvm",), ("s390",)
_KVM_CREATE, _KVM_BIND = f"{_GMEM}: kvm_gmem_create()", f"{_GMEM}: kvm_gmem_bind()"
_REGION = f"{_MAIN}: kvm_set_memory_region()"
_CONVERSION = 'series "guest_memfd: In-place conversion support", applied to kvm-x86 in September 2026'
_PKVM_DOC = "Documentation/virt/kvm/arm/pkvm.rst, 7.1"
_ARM_PRE_FAULT = "commit 34cfa9b3af17, kvmarm, September 2026"
_USERFAULT = '"KVM Userfault" v3, June 2025; carried by Amazon\'s tree'

FACTS: tuple[Fact, ...] = (
    Fact(_CREATE, "size 0, negative or not of whole pages: EINVAL", _KVM_CREATE, promise="guest-memfd-create"),
    Fact(_CREATE, "any flag: EINVAL", _KVM_CREATE, ("6.12",)),
    Fact(
        _CREATE,
        "flags are of MMAP 1, INIT_SHARED 2 (as KVM_CAP_GUEST_MEMFD_FLAGS says), else EINVAL; before the size",
        _KVM_CREATE,
        _FROM_6_18,
        promise="guest-memfd-create",
    ),
    Fact(_CREATE, "reserved words are not looked at", _KVM_CREATE),
    Fact(
        _CREATE,
        "INIT_SHARED with private memory: EINVAL up to 7.3, and where the VM has the attributes",
        "arch/x86/kvm/x86.c: kvm_arch_supports_gmem_init_shared(); series for in-place conversion",
        _FROM_6_18,
        _X86,
    ),
    Fact(
        _CREATE,
        "MTE and guest_memfd exclude each other: EINVAL for the second",
        "commit 679d7201c1f0",
        _FROM_7_3,
        _ARM64,
    ),
    Fact(
        _CREATE,
        "flags NO_DIRECT_MAP 4 and WRITE 8, too (Firecracker's secret_free)",
        "series v12 of April 2026, shipped in Amazon's tree",
        tree="amazon",
    ),
    Fact(_SET1, "KVM_MEM_GUEST_MEMFD: EINVAL; it needs the second form", _REGION, promise="unknown-flags"),
    Fact(
        _SET1, "READONLY is EINVAL, and so is logging: no read-only slots, no dirty logs", _PKVM_DOC, _FROM_7_3, _PKVM
    ),
    Fact(_SET1, "once the VM has run, a move or a delete is EPERM", _PKVM_DOC, _FROM_7_3, _PKVM),
    Fact(
        _SET1,
        "memory must be anonymous or a memory file, and is pinned as it is mapped (RLIMIT_MEMLOCK or CAP_IPC_LOCK)",
        _PKVM_DOC,
        _FROM_7_3,
        _PKVM,
    ),
    Fact(_SET2, "GUEST_MEMFD with LOG_DIRTY_PAGES or READONLY: EINVAL", _REGION, promise="unknown-flags"),
    Fact(_SET2, "GUEST_MEMFD for a VM type without private memory: EINVAL", _REGION, ("6.12",), _X86),
    Fact(_SET2, "GUEST_MEMFD for every VM type", _REGION, _FROM_6_18, _X86, promise="guest-memfd-bind"),
    Fact(_SET2, "a file without MMAP: EINVAL", "commit 32e200bd6e44; libkrun issue 478", _FROM_6_18, _ARM64),
    Fact(_SET2, "a file that is not open: EBADF", _KVM_BIND, promise="guest-memfd-bind"),
    Fact(
        _SET2,
        "no guest_memfd, one of another VM, an offset that is unaligned or with the size past its end: EINVAL",
        _KVM_BIND,
        promise="guest-memfd-bind",
    ),
    Fact(
        _SET2,
        "offset + size is signed: from 2**63 on it passes, and is bound, past the file's end",
        _KVM_BIND,
        _FROM_6_18[:2],
        promise="guest-memfd-signed-end",
    ),
    Fact(_SET2, "a range of the file that another slot has: EINVAL", _KVM_BIND, _ALL[:2], promise="guest-memfd-bind"),
    Fact(_SET2, "a range of the file that another slot has: EEXIST", _KVM_BIND, _FROM_7_3),
    Fact(_SET2, "frames that another slot has: EEXIST, before the file is looked at", _REGION, promise="overlap"),
    Fact(
        _SET2,
        "an existing slot with a guest_memfd can only be deleted: EINVAL for a move, other flags, or the same again",
        _REGION,
        promise="guest-memfd-fixed",
    ),
    Fact(
        _SET2,
        "toggling GUEST_MEMFD off on a live slot was accepted, and a use after free (mended December 2025: EINVAL)",
        "commit 9935df5333aa",
        ("6.12",),
    ),
    Fact(_SET2, "padding is not looked at", f"{_MAIN}: kvm_vm_ioctl()", promise="padding"),
    Fact(
        _SET2,
        "a slot whose file has MMAP is gmem-only: shared faults come from the file, KVM's own accesses do not",
        f"{_GMEM}: kvm_gmem_bind()",
        _FROM_6_18[:2],
    ),
    Fact(_SET2, "with in-place conversion, every slot with a file is gmem-only", "commit 2e646bcfcf90", ("7.4",), _X86),
    Fact(
        _SET2,
        "a private file's slot that is deleted loses the guest's bytes (TDX: Secure-EPT)",
        "qemu-devel, 24 May 2022",
        _ALL,
        _X86,
    ),
    Fact(
        _VM_ATTRIBUTES,
        "flags, attributes other than PRIVATE 8, size 0, a range that wraps or is unaligned: EINVAL",
        f"{_MAIN}: kvm_vm_ioctl_set_mem_attributes()",
        _ALL[:3],
        _X86,
    ),
    Fact(
        _VM_ATTRIBUTES,
        "asked on a VM, the capability is what this VM has: 0 without private memory; on the device, what KVM knows",
        f"{_MAIN}: kvm_supported_mem_attributes()",
        _ALL[:3],
        _X86,
        promise="capabilities",
    ),
    Fact(_VM_ATTRIBUTES, "PRIVATE on a VM without private memory: EINVAL", _MAIN, _ALL[:3], _X86),
    Fact(_VM_ATTRIBUTES, "needs no slot; stores an entry a page, so it takes time in pages", _MAIN, _ALL[:3], _X86),
    Fact(_VM_ATTRIBUTES, "not built: ENOTTY", "commit 32e200bd6e44; libkrun issue 478", _FROM_6_18, _ARM64),
    Fact(
        _VM_ATTRIBUTES,
        "ENOTTY where it is not built (CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES), as without any confidential VM type",
        f"{_MAIN}: kvm_vm_ioctl()",
        _ALL[:3],
        _X86,
        promise="memory-attributes",
    ),
    Fact(
        _VM_ATTRIBUTES,
        "built if asked for (CONFIG_KVM_VM_MEMORY_ATTRIBUTES), deprecated; else ENOTTY; where files have attributes "
        "(gmem_in_place_conversion), the VM has none: PRIVATE is EINVAL, and the capability 0",
        f"{_CONVERSION}: kvm_supported_vm_mem_attributes()",
        ("7.4",),
        _X86,
    ),
    Fact(_FILE_ATTRIBUTES, "there is no such ioctl: ENOTTY", _GMEM, _ALL[:3], promise="guest-memfd-attributes"),
    Fact(
        _FILE_ATTRIBUTES,
        "with gmem_in_place_conversion: flags, reserved words, a VM type without private memory, other attributes, "
        "ranges that are empty, wrap, are unaligned or pass the end: EINVAL, in this order; else ENOTTY",
        _CONVERSION,
        ("7.4",),
        _X86,
    ),
    Fact(
        _FILE_ATTRIBUTES,
        "to private: EAGAIN and error_offset if a page of the range is in use, and nothing is converted",
        _CONVERSION,
        ("7.4",),
        _X86,
    ),
    Fact(_FILE_ATTRIBUTES, "nothing to change: 0, pins or not; a hole keeps its state", _CONVERSION, ("7.4",), _X86),
    Fact(
        "KVM_GMEM_CONVERT_SHARED",
        "not upstream in any release; replaced by KVM_SET_MEMORY_ATTRIBUTES2",
        "linux-mm, RFC v2, May 2025",
    ),
    Fact("KVM_LINK_GUEST_MEMFD", "not upstream in any release", "kvm, RFC v2, May 2025"),
    Fact(
        _PRE_FAULT,
        "unaligned, empty, wrapping, or flags: EINVAL; no slot: ENOENT",
        "Documentation/virt/kvm/api.rst",
        _ALL,
        _X86,
    ),
    Fact(
        _PRE_FAULT,
        "shadow paging, or the vCPU runs a nested guest: EOPNOTSUPP, whatever the capability says",
        "Documentation/virt/kvm/api.rst",
        _ALL,
        _X86,
    ),
    Fact(
        _PRE_FAULT,
        "a slot that is INVALID just now: it tries again for ever, inside the read-side section",
        _MAIN,
        ("6.12",),
        _X86,
    ),
    Fact(_PRE_FAULT, "a slot that is INVALID just now: EAGAIN", _MAIN, _FROM_6_18, _X86),
    Fact(
        _PRE_FAULT,
        "EINTR only if nothing was done; else 0, and gpa and size say what is left",
        "Documentation/virt/kvm/api.rst",
        _ALL,
        _X86,
    ),
    Fact(
        _PRE_FAULT, "a poisoned page: EHWPOISON", "Documentation/virt/kvm/api.rst, 2026", ("7.4",), ("x86-64", "arm64")
    ),
    Fact(_PRE_FAULT, "not built: EINVAL, as any ioctl that a vCPU has not", _ARM_PRE_FAULT, _ALL[:3], _ARM),
    Fact(
        _PRE_FAULT,
        "a vCPU that is not initialised: ENOEXEC; a slot that is INVALID: EAGAIN at once",
        _ARM_PRE_FAULT,
        ("7.4",),
        _ARM64,
    ),
    Fact(
        _PRE_FAULT,
        "EOPNOTSUPP: the hypervisor does not support it (so posted for protected VMs, with the capability filtered; "
        "as applied, refused on all hosts with pKVM)",
        f"linux-arm-kernel, 12 June 2026, KVM: arm64: Add pre_fault_memory; {_ARM_PRE_FAULT}",
        ("7.4",),
        _PKVM,
    ),
    Fact(_PRE_FAULT, "a UCONTROL VM: EINVAL", "Documentation/virt/kvm/api.rst, 2026", ("7.4",), _S390),
    Fact(
        _LOG,
        "a log says which pages a guest wrote since it was taken",
        f"{_MAIN}: kvm_get_dirty_log_protect()",
        promise="get-log",
    ),
    Fact(_LOG, "a slot with a guest_memfd has none", _REGION, promise="unknown-flags"),
    Fact(_LOG, "no slot can log", _PKVM_DOC, _FROM_7_3, _PKVM),
    Fact(
        _EXIT,
        "KVM_RUN is -1 with EFAULT or EHWPOISON: flags PRIVATE 8, gpa, size; with any other errno the reason is stale",
        "Documentation/virt/kvm/api.rst, 8.44",
        _ALL,
        _X86,
    ),
    Fact(_EXIT, "an access of the wrong kind, or a private one without a slot that has a file", _MAIN, _ALL, _X86),
    Fact("KVM_MEM_USERFAULT", "EINVAL: an unknown flag", _REGION, promise="unknown-flags"),
    Fact(
        "KVM_MEM_USERFAULT",
        "userfault_bitmap at offset 48: a bit set has the vCPU exit with KVM_EXIT_MEMORY_FAULT, flag USERFAULT 16",
        _USERFAULT,
        tree="amazon",
    ),
    Fact(
        "fallocate",
        "without KEEP_SIZE, or with a mode other than PUNCH_HOLE: EOPNOTSUPP",
        f"{_GMEM}: kvm_gmem_fallocate()",
        promise="guest-memfd-fallocate",
    ),
    Fact(
        "fallocate",
        "unaligned: EINVAL; memory past the end: EINVAL; a hole past the end: 0",
        f"{_GMEM}: kvm_gmem_fallocate()",
        promise="guest-memfd-fallocate",
    ),
    Fact(
        "fallocate",
        "what was punched reads as zero",
        f"{_GMEM}: kvm_gmem_punch_hole()",
        _FROM_6_18,
        promise="guest-memfd-hole",
    ),
    Fact("mmap", "ENODEV", _GMEM, ("6.12",)),
    Fact(
        "mmap",
        "without the flag MMAP: ENODEV; MAP_PRIVATE: EINVAL; offset and size are not looked at",
        f"{_GMEM}: kvm_gmem_mmap()",
        _FROM_6_18,
        promise="guest-memfd-mmap",
    ),
    Fact(
        "mmap",
        "a touch past the end, or of a file without INIT_SHARED: SIGBUS (EFAULT for a system call)",
        f"{_GMEM}: kvm_gmem_fault_user_mapping()",
        _FROM_6_18[:2],
        promise="guest-memfd-sigbus",
    ),
    Fact("mmap", "a touch of a private page: SIGBUS, page by page", _CONVERSION, ("7.4",), _X86),
    Fact(
        "read, write",
        "read(2), write(2) and ftruncate(2) of the file: EINVAL",
        f"{_GMEM}: kvm_gmem_fops, kvm_gmem_setattr()",
        promise="guest-memfd-no-io",
    ),
    Fact("mbind", "no policy", _GMEM, _ALL[:2]),
    Fact(
        "mbind", "a policy by page, for pages that are allocated from then on (6.19)", "merge 236831743ced", _FROM_7_3
    ),
    Fact(
        "userfaultfd",
        "MISSING and MINOR, if the file has INIT_SHARED; in -mm since spring 2026, which release has it is not known",
        "linux-mm, 20260306171815.3160826-14",
        tree="mm",
    ),
    Fact("capabilities", "245 is ARM_SEA_TO_USER", "include/uapi/linux/kvm.h", _FROM_7_3),
    Fact("capabilities", "245 is USERFAULT", _USERFAULT, tree="amazon"),
    Fact("capabilities", "250 is GUEST_MEMFD_MEMORY_ATTRIBUTES", _CONVERSION, ("7.4",)),
    Fact(
        "capabilities",
        "502 is ARM_HW_DIRTY_STATE_TRACK",
        "openEuler's HDBSS series",
        tree="openeuler",
        architectures=_ARM64,
    ),
)


def call_of(name: str) -> str:
    """The call that ``name`` means: any case, with or without KVM_, or the beginning of just one; UsageError.

    >>> call_of("create_guest_memfd"), call_of("Fallocate"), call_of("kvm_pre"), call_of("write")
    ('KVM_CREATE_GUEST_MEMFD', 'fallocate', 'KVM_PRE_FAULT_MEMORY', 'read, write')
    >>> call_of("clear_dirty_log")
    'KVM_GET_DIRTY_LOG'
    """
    wanted = name.upper().removeprefix("KVM_")
    short = {part.upper().removeprefix("KVM_"): call for call in CALLS for part in (call, *call.split(", "))}
    short |= _BESIDE
    if wanted in short:
        return short[wanted]
    found = [call for key, call in short.items() if wanted and key.startswith(wanted)]
    if len(set(found)) == 1:
        return found[0]
    raise UsageError(f"call: {name!r} is not one of {', '.join(dict.fromkeys(found) or CALLS)}")


def facts_of(
    call: str, *, kernel: str | None = None, architecture: str | None = None, tree: str | None = None
) -> list[Fact]:
    """The facts of a call, in the table's order; of one kernel, architecture, tree. UsageError for none of these.

    A vendor's tree has mainline's facts, too, and its own. Without facts nothing is known, which is not "no".

    >>> [fact.answer for fact in facts_of("mmap", kernel="6.12")]
    ['ENODEV']
    """
    for name, value, known in (
        ("kernel", kernel, KERNELS),
        ("architecture", architecture, ARCHITECTURES),
        ("tree", tree, TREES),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{name}: {value!r} is not one of {', '.join(known)}")
    return [
        fact
        for fact in FACTS
        if fact.call == call_of(call)
        and kernel in {None, *fact.kernels}
        and (architecture in {None, *fact.architectures} or (architecture == "pkvm" and "arm64" in fact.architectures))
        and tree in {None, fact.tree, *((tree,) if fact.tree == MAINLINE else ())}
    ]
