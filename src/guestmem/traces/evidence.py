"""What a reader tells about vCPUs: the events that it saw, what each of them proves, and what it knows to be missing.

A reader calls ``RunStateRecorder`` (``recorder``) for each event; ``whereabouts`` makes stretches of the events,
``check.verdict`` a verdict of the stretches. This file says what the kinds of record are and which exits prove what.

Sources: Linux ``include/uapi/linux/kvm.h`` (KVM_EXIT_*), ``arch/x86/include/uapi/asm/vmx.h`` and ``svm.h`` (names that
kvm_exit prints), ``arch/arm64/kvm/trace_arm.h``; what an exit can continue: ``complete_userspace_io`` in
``arch/x86/kvm/x86.c`` (``complete_emulated_mmio``, ``complete_emulated_pio``, ``complete_fast_pio_*``).
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "KVM_EXIT",
    "Cause",
    "Event",
    "ExitMeaning",
    "Irqchip",
    "Loss",
    "Stretch",
    "Where",
    "exit_meaning",
    "may_continue",
    "userspace_exit_meaning",
]


class Event(enum.IntEnum):
    """The kinds of record about a vCPU, and what each says by itself.

    ENTRY: KVM is about to enter the guest (kvm_entry). EXIT: the guest was left (kvm_exit); what follows is KVM's work
    for the vCPU. USER_EXIT: KVM returned to user space (kvm_userspace_exit). RUN_BEGIN: the KVM_RUN call had not begun
    yet at this stamp. RUN_END: KVM_RUN had returned at this stamp. ELSEWHERE: the thread did something in user space
    (another system call, say), so it was not in KVM_RUN. FORGOTTEN: events around this stamp were not kept, since no
    change is near.
    """

    ENTRY = 1
    EXIT = 2
    USER_EXIT = 3
    RUN_BEGIN = 4
    RUN_END = 5
    ELSEWHERE = 6
    FORGOTTEN = 7


class Where(enum.Enum):
    """Where a vCPU is during a stretch of time, as far as is known.

    GUEST: in guest mode, by a real entry/exit record. RUN: somewhere in KVM_RUN, in the guest, served, halted or
    waiting for SIPI. KVM: left the guest and is being served; KVM may look at memslots for it. USER: not in KVM_RUN, or
    after an exit for which KVM looks at no memory: neither the guest nor KVM for it sees memory. UNKNOWN: not known.
    """

    GUEST = "guest"
    RUN = "kvm_run"
    KVM = "kvm"
    USER = "user"
    UNKNOWN = "unknown"


class Stretch(NamedTuple):
    """The vCPU was ``where`` during ``[start, end)``, in seconds; the ends may be infinite."""

    start: float
    end: float
    where: Where


class Irqchip(enum.Enum):
    """Whether interrupt controllers are in the kernel: then a halted vCPU, or one that waits for SIPI, is in KVM_RUN.

    USER is said only if the trace has the VM from KVM_CREATE_VM on, and nothing that could have made one: neither
    KVM_CREATE_IRQCHIP, KVM_CREATE_DEVICE nor a KVM_ENABLE_CAP of which the capability is not shown.
    """

    UNKNOWN = "unknown"
    KERNEL = "kernel"
    USER = "user"


class Cause(enum.Enum):
    """Who caused an exit. GUEST: only guest code can. OUTSIDE: an interrupt, a signal. UNKNOWN: either."""

    GUEST = "guest"
    OUTSIDE = "outside"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Loss:
    """The recorder dropped events of ``cpu`` (None: of any) somewhere in ``(after, before)``, in seconds.

    ``after`` is the stamp of the last event on that CPU before the marker, ``before`` that of the first one after it;
    infinite where there is none.
    """

    cpu: int | None
    after: float
    before: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class ExitMeaning:
    """What an exit proves.

    ``cause`` says who caused it. ``looks_at_memory`` is False if KVM looks at no guest memory to serve it. ``fatal``:
    the vCPU cannot go on (KVM_EXIT_INTERNAL_ERROR, SHUTDOWN, FAIL_ENTRY). ``number`` is the KVM_EXIT_* number, or None.
    """

    name: str
    cause: Cause
    looks_at_memory: bool = True
    fatal: bool = False
    number: int | None = None


KVM_EXIT = {
    "UNKNOWN": 0, "EXCEPTION": 1, "IO": 2, "HYPERCALL": 3, "DEBUG": 4, "HLT": 5, "MMIO": 6, "IRQ_WINDOW_OPEN": 7,
    "SHUTDOWN": 8, "FAIL_ENTRY": 9, "INTR": 10, "SET_TPR": 11, "TPR_ACCESS": 12, "S390_SIEIC": 13, "S390_RESET": 14,
    "DCR": 15, "NMI": 16, "INTERNAL_ERROR": 17, "OSI": 18, "PAPR_HCALL": 19, "S390_UCONTROL": 20, "WATCHDOG": 21,
    "S390_TSCH": 22, "EPR": 23, "SYSTEM_EVENT": 24, "S390_STSI": 25, "IOAPIC_EOI": 26, "HYPERV": 27, "ARM_NISV": 28,
    "X86_RDMSR": 29, "X86_WRMSR": 30, "DIRTY_RING_FULL": 31, "AP_RESET_HOLD": 32, "X86_BUS_LOCK": 33, "XEN": 34,
    "RISCV_SBI": 35, "RISCV_CSR": 36, "NOTIFY": 37, "LOONGARCH_IOCSR": 38, "MEMORY_FAULT": 39, "TDX": 40,
}  # fmt: skip
"""Number of each KVM_EXIT_*, by its name without that prefix (Linux 6.18)."""

_GUEST_USER_EXITS = frozenset(
    KVM_EXIT[name]
    for name in (
        "IO", "HYPERCALL", "MMIO", "HLT", "DCR", "OSI", "PAPR_HCALL", "SYSTEM_EVENT", "HYPERV", "ARM_NISV",
        "X86_RDMSR", "X86_WRMSR", "XEN", "RISCV_SBI", "RISCV_CSR", "LOONGARCH_IOCSR", "INTERNAL_ERROR", "S390_TSCH",
        "S390_STSI",
    )
)  # fmt: skip
"""Exits that an instruction of the guest caused. Not DEBUG (single-step is user space's wish), TPR_ACCESS,
DIRTY_RING_FULL (checked before entry), NOTIFY, EXCEPTION, nor SHUTDOWN (user space may make a triple fault pending) or
MEMORY_FAULT (KVM may fault a page in by itself). INTERNAL_ERROR is there: KVM could not emulate what the guest does."""

_FATAL = frozenset(KVM_EXIT[name] for name in ("SHUTDOWN", "FAIL_ENTRY", "INTERNAL_ERROR"))

_OUTSIDE_EXITS = frozenset(
    (
        "EXTERNAL_INTERRUPT", "PENDING_INTERRUPT", "INTERRUPT_WINDOW", "NMI_WINDOW", "PREEMPTION_TIMER",  # vmx.h
        "INTR", "INTERRUPT", "VINTR", "NMI", "SMI", "IRQ",  # svm.h; arm64
    )
)  # fmt: skip
"""kvm_exit's reasons that come from outside, for which KVM looks at no guest memory."""

_GUEST_EXITS = {
    # vmx.h
    "HLT": False, "CPUID": False, "PAUSE_INSTRUCTION": False, "RDTSC": False, "RDTSCP": False, "RDPMC": False,
    "INVD": False, "WBINVD": False, "RDRAND": False, "RDSEED": False, "MWAIT_INSTRUCTION": False,
    "MONITOR_INSTRUCTION": False, "IO_INSTRUCTION": True, "VMCALL": True, "MSR_READ": True, "MSR_WRITE": True,
    "CR_ACCESS": True, "DR_ACCESS": True, "INVLPG": True, "INVPCID": True, "XSETBV": True, "GDTR_IDTR": True,
    "LDTR_TR": True, "EPT_MISCONFIG": True, "APIC_ACCESS": True, "APIC_WRITE": True,
    # svm.h
    "IO": True, "MSR": True, "VMMCALL": True, "PAUSE": False, "MWAIT": False, "MONITOR": False,
}  # fmt: skip
"""kvm_exit's reasons that an instruction of the guest causes, and whether KVM may look at guest memory to serve it.

EPT_VIOLATION and NPF are there too, but may come from the delivery of an event through tables in the hole: see
``exit_meaning``."""

_BY_ACCESS = frozenset(("EPT_VIOLATION", "NPF", "TRAP", "PAGE_FAULT"))
"""Exits by an access of the vCPU, whether of an instruction or of an event's delivery: either was in the guest."""


@functools.lru_cache(maxsize=256)
def exit_meaning(reason: str) -> ExitMeaning:
    """What a kvm_exit with ``reason`` proves, as the tracepoint prints it (Intel's, AMD's or arm64's word).

    >>> exit_meaning("EPT_VIOLATION").cause, exit_meaning("EXTERNAL_INTERRUPT").looks_at_memory
    (<Cause.GUEST: 'guest'>, False)
    """
    word = reason.strip().upper().removeprefix("EXIT_").removeprefix("SVM_EXIT_").removeprefix("EXIT_REASON_")
    if word in _OUTSIDE_EXITS:
        return ExitMeaning(word, Cause.OUTSIDE, looks_at_memory=False)
    if word in _GUEST_EXITS:
        return ExitMeaning(word, Cause.GUEST, looks_at_memory=_GUEST_EXITS[word])
    if word in _BY_ACCESS:
        return ExitMeaning(word, Cause.GUEST)
    return ExitMeaning(word, Cause.UNKNOWN)


@functools.lru_cache(maxsize=256)
def userspace_exit_meaning(reason: str | int | None, errno: str | int | None = None) -> ExitMeaning:
    """What a return to user space proves: ``reason`` is a KVM_EXIT_* name or number, ``errno`` how KVM_RUN failed.

    None for what the trace does not tell: then nothing is known but that KVM_RUN returned.

    >>> userspace_exit_meaning("KVM_EXIT_IO").cause, userspace_exit_meaning(17).fatal, userspace_exit_meaning(None).name
    (<Cause.GUEST: 'guest'>, True, '')
    """
    if errno:
        return ExitMeaning(str(errno), Cause.OUTSIDE, looks_at_memory=False, fatal=errno in ("EFAULT", 14))
    if reason is None:
        return ExitMeaning("", Cause.UNKNOWN, looks_at_memory=False)
    number = reason if isinstance(reason, int) else KVM_EXIT.get(reason.strip().upper().removeprefix("KVM_EXIT_"))
    if number is None:
        return ExitMeaning(str(reason), Cause.UNKNOWN, looks_at_memory=False)
    name = "KVM_EXIT_" + next((name for name, value in KVM_EXIT.items() if value == number), str(number))
    cause = Cause.GUEST if number in _GUEST_USER_EXITS else Cause.UNKNOWN
    return ExitMeaning(name, cause, looks_at_memory=False, fatal=number in _FATAL, number=number)


def may_continue(before: int | None, after: int | None) -> bool:
    """Whether an exit of KVM_EXIT_* number ``after`` can continue the exit ``before``, with no guest code in between.

    KVM finishes an instruction when KVM_RUN is called again: a further fragment of an MMIO, the next element of a
    string instruction, whose other operand may be memory or a port, or that KVM cannot emulate the rest; the next part
    of a hypercall on a range (SNP, TDX).
    What came before is unknown: it can.

    >>> may_continue(KVM_EXIT["IO"], KVM_EXIT["MMIO"]), may_continue(KVM_EXIT["HLT"], KVM_EXIT["MMIO"])
    (True, False)
    """
    if before is None or after is None:
        return True
    return any(before in group and after in group for group in _CONTINUED)


_CONTINUED = (
    frozenset((KVM_EXIT["IO"], KVM_EXIT["MMIO"], KVM_EXIT["INTERNAL_ERROR"])),
    frozenset((KVM_EXIT["HYPERCALL"],)),
)
