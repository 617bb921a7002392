"""What a vCPU that is out of KVM_RUN says of itself, as far as ``exit_retry`` depends on it.

Source: ``arch/x86/include/uapi/asm/kvm.h``, ``kvm_para.h`` and ``hyperv-tlfs.h``, Linux 6.18; Intel SDM volume 3.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .registers import EVENTS_BYTES, REGS, SEGMENT, SREGS_BYTES, X86Ioctl

__all__ = ["Segment", "Sregs", "VcpuState", "read_msrs", "read_state", "translate"]

_GET_MSRS, _GET_DEBUGREGS, _TRANSLATE = 0xC008AE88, 0x8080AEA1, 0xC018AE85
_TRANSLATION = struct.Struct("<QQBBB5x")
_PE, _PG, _AM = 1, 1 << 31, 1 << 18
_LA57, _VMXE = 1 << 12, 1 << 13
_LMA, _SVME = 1 << 10, 1 << 12
_TF, _IF, _AC = 1 << 8, 1 << 9, 1 << 18
_BREAKPOINTS = 0xFF
_CS, _SS, _TR, _LDT = 0, 5, 6, 7
_PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class Segment:
    """What matters here of a ``struct kvm_segment``."""

    base: int
    limit: int
    dpl: int
    is_64_bit: bool
    unusable: bool


class Sregs:
    """``struct kvm_sregs``, by the names of the SDM."""

    def __init__(self, raw: bytes) -> None:
        self.cs, self.ss, self.tr, self.ldt = (self._segment(raw, place) for place in (_CS, _SS, _TR, _LDT))
        (self.gdt_base, self.gdt_limit), (self.idt_base, self.idt_limit) = (
            struct.unpack_from("<QH", raw, place) for place in (192, 208)
        )
        self.cr0, _, self.cr3, self.cr4, _, self.efer, self.apic_base = struct.unpack_from("<7Q", raw, 224)

    @staticmethod
    def _segment(raw: bytes, place: int) -> Segment:
        base, limit, _, _, present, dpl, _, _, long, _, _, unusable, _ = SEGMENT.unpack_from(raw, SEGMENT.size * place)
        return Segment(base, limit, dpl, bool(long), bool(unusable) or not present)

    @property
    def mode(self) -> str:
        """What the vCPU runs, in words; "" for the one mode that is native everywhere: 64-bit user code."""
        if not self.cr0 & _PE or not self.cr0 & _PG:
            return "in real mode or without paging"
        if not self.efer & _LMA:
            return "in 32-bit or 16-bit protected mode"
        if self.cs.dpl != 3 or self.ss.dpl != 3:
            return f"in kernel mode (CPL {self.ss.dpl})"
        if not self.cs.is_64_bit:
            return "in compatibility mode (32-bit or 16-bit code)"
        return ""

    @property
    def levels(self) -> int:
        """Levels of page tables, in long mode."""
        return 5 if self.cr4 & _LA57 else 4

    @property
    def ways(self) -> tuple[int, ...]:
        """All that says where its descriptor tables and its TSS are: two vCPUs with the same share them."""
        places = (self.idt_base, self.idt_limit, self.gdt_base, self.gdt_limit)
        segments = (self.tr.base, self.tr.limit, self.ldt.base, self.ldt.limit, int(self.ldt.unusable))
        return self.cr0, self.cr3, self.cr4, self.efer, *places, *segments

    @property
    def is_hypervisor(self) -> bool:
        """Whether it may run nested guests."""
        return bool(self.cr4 & _VMXE or self.efer & _SVME)

    @property
    def checks_alignment(self) -> bool:
        """CR0.AM."""
        return bool(self.cr0 & _AM)


@dataclass(frozen=True, slots=True)
class VcpuState:
    """One vCPU, out of KVM_RUN."""

    sregs: Sregs
    rip: int
    rflags: int
    smm: bool
    event: str
    """Which event is about to be delivered, "" for none."""
    breakpoints: bool

    @property
    def why_not_native(self) -> Iterator[str]:
        """Each reason for which it does not run, or not only, plain instructions natively."""
        if self.sregs.mode:
            yield f"is {self.sregs.mode}"
        if self.smm:
            yield "is in system management mode"
        if self.event:
            yield f"has {self.event} to be delivered"
        if self.rflags & _TF:
            yield "is single-stepped (RFLAGS.TF): each instruction ends with an event"
        if self.rflags & _AC and self.sregs.checks_alignment:
            yield "checks alignment (RFLAGS.AC), which an emulated access does not"
        if self.breakpoints:
            yield "has breakpoints in DR7, which an emulated access does not meet"
        if self.sregs.is_hypervisor:
            yield "may run nested guests (CR4.VMXE, EFER.SVME), whose tables are not looked at"

    @property
    def interruptible(self) -> bool:
        """RFLAGS.IF."""
        return bool(self.rflags & _IF)


def read_state(vcpu_fd: int) -> VcpuState:
    """Read it; OSError if the kernel refuses. Some microseconds."""

    def get(request: int, size: int) -> bytes:
        buffer = bytearray(size)
        fcntl.ioctl(vcpu_fd, request, buffer)
        return bytes(buffer)

    sregs = get(X86Ioctl.GET_SREGS, SREGS_BYTES)
    rip, rflags = struct.unpack_from("<2Q", get(X86Ioctl.GET_REGS, REGS.size), 128)
    events = get(X86Ioctl.GET_VCPU_EVENTS, EVENTS_BYTES)
    (dr7,) = struct.unpack_from("<Q", get(_GET_DEBUGREGS, 128), 40)
    named = (
        ("an exception", events[0] or events[3]),
        ("an interrupt", events[8]),
        ("an NMI", events[12] or events[13]),
        ("an SMI", events[25]),
    )
    event = next((name for name, pending in named if pending), "")
    return VcpuState(Sregs(sregs), rip, rflags, bool(events[24]), event, bool(dr7 & _BREAKPOINTS))


_unknown: set[int] = set()
"""MSRs that this kernel does not know."""


def read_msrs(vcpu_fd: int, numbers: tuple[int, ...]) -> dict[int, int]:
    """The values of those MSRs that this KVM knows: one ioctl, once it is known which."""
    while True:
        asked = [number for number in numbers if number not in _unknown]
        buffer = bytearray(struct.pack("<II", len(asked), 0) + b"".join(struct.pack("<IIQ", n, 0, 0) for n in asked))
        try:
            known = fcntl.ioctl(vcpu_fd, _GET_MSRS, buffer)
        except OSError:
            known = 0
        if known == len(asked):
            return {number: struct.unpack_from("<Q", buffer, 16 + 16 * n)[0] for n, number in enumerate(asked)}
        _unknown.add(asked[known])  # where it stopped


def translate(vcpu_fd: int) -> Callable[[int], int | None]:
    """A function that gives the guest-physical address of a linear one (KVM_TRANSLATE); None where none is mapped."""

    def look(linear: int) -> int | None:
        buffer = bytearray(_TRANSLATION.pack(linear, 0, 0, 0, 0))
        try:
            fcntl.ioctl(vcpu_fd, _TRANSLATE, buffer)
        except OSError:
            return None
        _, physical, valid, _, _ = _TRANSLATION.unpack(buffer)
        return int(physical) if valid else None

    return look
