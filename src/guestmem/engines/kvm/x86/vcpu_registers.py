"""The registers of a vCPU, by its ioctls, and where its ``struct kvm_run`` says which instruction was met."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from mmap import mmap

from ....errors import UsageError
from .instruction_bytes import BEHIND
from .instruction_bytes import REGS as REGS_PLACE
from .registers import EVENTS_BYTES, REG_NAMES, REGS, SREGS_BYTES, XCRS, X86Ioctl

__all__ = ["Registers", "instruction_met"]

_IS_WRITE = 52
_MOST_BYTES = 15


class Registers:
    """What a vCPU's registers are and become; the ioctl is the vCPU's, which sees that it is out of KVM_RUN."""

    def _ioctl(self, request: X86Ioctl, argument: bytearray) -> None:
        raise NotImplementedError

    def registers(self) -> dict[str, int]:
        """General registers, rip and rflags by name."""
        buffer = bytearray(REGS.size)
        self._ioctl(X86Ioctl.GET_REGS, buffer)
        return dict(zip(REG_NAMES, REGS.unpack(buffer), strict=True))

    def set_registers(self, values: Mapping[str, int] | None = None, /, **registers: int) -> None:
        """Set the named ones; the others stay. UsageError for an unknown name."""
        given = {**(values or {}), **registers}
        if unknown := given.keys() - set(REG_NAMES):
            raise UsageError(f"registers: {', '.join(sorted(unknown))}; known are {', '.join(REG_NAMES)}")
        now = self.registers() | given
        try:
            packed = REGS.pack(*(now[name] for name in REG_NAMES))
        except struct.error:
            raise UsageError(f"registers: {given} are not all numbers of 64 bits") from None
        self._ioctl(X86Ioctl.SET_REGS, bytearray(packed))

    def sregs(self) -> bytes:
        """``struct kvm_sregs`` as it is; ``guests`` makes new ones of it."""
        buffer = bytearray(SREGS_BYTES)
        self._ioctl(X86Ioctl.GET_SREGS, buffer)
        return bytes(buffer)

    def set_sregs(self, sregs: bytes) -> None:
        """Set segments, tables, control registers and EFER."""
        if len(sregs) != SREGS_BYTES:
            raise UsageError(f"sregs: {len(sregs)} bytes; struct kvm_sregs has {SREGS_BYTES}")
        self._ioctl(X86Ioctl.SET_SREGS, bytearray(sregs))

    def events(self) -> bytes:
        """``struct kvm_vcpu_events``: what is pending."""
        buffer = bytearray(EVENTS_BYTES)
        self._ioctl(X86Ioctl.GET_VCPU_EVENTS, buffer)
        return bytes(buffer)

    def set_xcr0(self, value: int) -> None:
        """Which state XSAVE and vector instructions may use: 7 for AVX."""
        self._ioctl(X86Ioctl.SET_XCRS, bytearray(XCRS.pack(1, 0, 0, 0, value)))


def instruction_met(run: mmap) -> str:
    """The instruction whose exit was refused, as bytes: x86 code cannot be read backwards."""
    behind, rip = int(BEHIND), int(REGS_PLACE) + 8 * REG_NAMES.index("rip")
    (at_rip,) = struct.unpack_from("<Q", run, rip)
    if run[_IS_WRITE]:
        before = run[behind - _MOST_BYTES : behind].hex(" ")
        return f"a store by the one before rip {at_rip:#x}, where the bytes are {before}"
    after = run[behind : behind + _MOST_BYTES].hex(" ")
    return f"a load by the one at rip {at_rip:#x}, where the bytes are {after}"
