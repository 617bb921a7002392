"""A vCPU of ``/dev/kvm`` behind the front door: code to run, registers, exits by kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engines.kvm.guests import identity_tables, real_mode, user_mode
from ..errors import CapabilityError, UsageError
from .accesses import Access
from .exits import Exit, Io, Mmio
from .memory import Memory

if TYPE_CHECKING:
    from ..engines.kvm.vcpu import KvmVcpu

__all__ = ["KvmGuestVcpu"]

_FLAGS = 2


class KvmGuestVcpu:
    """vCPU ``index`` of a VM on the kernel. ``vcpu`` is the engine's: registers, rings, state."""

    def __init__(self, vcpu: KvmVcpu, memory: Memory) -> None:
        self.vcpu, self._memory, self.index = vcpu, memory, vcpu.index

    def load(self, accesses: Iterable[Access]) -> None:
        """CapabilityError: a real vCPU runs code; see ``load_code``."""
        raise CapabilityError(f"engine kvm: it runs code, not {len(list(accesses))} accesses (use load_code)")

    def load_code(
        self, code: bytes | Iterable[int], gpa: int, *, mode: str = "real", tables: int | None = None
    ) -> None:
        """Write ``code`` to ``gpa`` and have the vCPU start there.

        ``mode`` "real": 16-bit, ``gpa`` below 64 KiB. "long": 64-bit user mode; ``tables`` is where page tables for the
        first 64 MiB may lie (35 pages in a slot).
        """
        flat = bytes(code)
        self._memory.write(gpa, flat)
        state = self.vcpu.sregs()
        if mode == "real":
            if gpa >= 1 << 16:
                raise UsageError(f"gpa: {gpa:#x} is not below 64 KiB, as real mode needs")
            self.vcpu.set_sregs(real_mode(state))
        elif mode == "long":
            if tables is None:
                raise UsageError("tables: long mode needs a place for page tables")
            self._memory.write(tables, identity_tables(tables, 64 << 20))
            self.vcpu.set_sregs(user_mode(state, tables))
        else:
            raise UsageError(f"mode: {mode!r} is not 'real' or 'long'")
        self.vcpu.set_registers(rip=gpa, rflags=_FLAGS)

    def run(self) -> Exit:
        """Run until an exit. GuestmemError with errno if KVM_RUN fails."""
        return self.vcpu.run()

    def answer(self, exit_: Mmio | Io, content: bytes) -> None:
        """Answer a read that exited, before the next ``run``."""
        self.vcpu.answer(exit_, content)

    def __repr__(self) -> str:
        return f"KvmGuestVcpu({self.index})"
