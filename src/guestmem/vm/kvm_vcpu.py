"""A vCPU of ``/dev/kvm`` behind the front door: code to run, registers, exits by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..abi.arguments import content_of, whole
from ..engines.kvm.x86 import identity_tables, real_mode, user_mode
from ..errors import CapabilityError, UsageError
from ..units import PAGE_SIZE
from .exits import Exit, Io, Mmio
from .memory import Memory

if TYPE_CHECKING:
    from ..engines.kvm.vcpu import KvmVcpu

__all__ = ["KvmGuestVcpu"]

_FLAGS = 2
_REAL_END = 1 << 16
_LONG_END = 64 << 20


class KvmGuestVcpu:
    """vCPU ``index`` of a VM on the kernel. ``vcpu`` is the engine's: rings, special registers, state."""

    def __init__(self, vcpu: KvmVcpu, memory: Memory) -> None:
        self.vcpu, self._memory, self.index = vcpu, memory, vcpu.index
        self._asked: Mmio | Io | None = None
        """The read that exited last."""
        self._answered = False
        self._unfinished = False
        """The last exit was in the midst of an instruction, which the next run ends."""

    @property
    def values(self) -> list[bytes]:
        """CapabilityError: see ``load``."""
        raise CapabilityError("engine kvm: its vCPUs run code (load_code) and keep no list of what they read")

    @property
    def smm(self) -> bool:
        """CapabilityError: the guest's code decides."""
        raise CapabilityError("engine kvm: whether its vCPUs are in system management mode is the guest's business")

    @smm.setter
    def smm(self, _on: bool) -> None:
        raise CapabilityError("engine kvm: whether its vCPUs are in system management mode is the guest's business")

    def load(self, accesses: Any) -> None:
        """CapabilityError: a real vCPU runs code; see ``load_code``."""
        del accesses
        raise CapabilityError("engine kvm: it runs code, not accesses (use load_code)")

    def load_code(self, code: Any, gpa: int, *, mode: str = "real", tables: int | None = None) -> None:
        """Write ``code`` (a buffer, or numbers of bytes) to ``gpa`` and have the vCPU start there.

        ``mode`` "real": 16-bit, code below 64 KiB. "long": 64-bit user mode; ``tables`` is where page tables for the
        first 64 MiB may lie (35 pages in a slot). UsageError for what cannot run so, MemslotError (EFAULT) where there
        is no slot; then nothing is written. General registers keep what they have.
        """
        flat, gpa = _code(code), whole("gpa", gpa)
        if mode not in ("real", "long"):
            raise UsageError(f"mode: {mode!r} is not 'real' or 'long'")
        end = gpa + len(flat)
        if mode == "real" and end > _REAL_END:
            raise UsageError(f"gpa: {len(flat)} bytes of code at {gpa:#x} are not below 64 KiB, as real mode needs")
        written = {gpa: flat}
        if mode == "long":
            if tables is None:
                raise UsageError("tables: long mode needs a place for page tables")
            tables = whole("tables", tables)
            if tables % PAGE_SIZE:
                raise UsageError(f"tables: {tables:#x} is not a multiple of {PAGE_SIZE:#x}")
            if end > _LONG_END:
                raise UsageError(f"gpa: {len(flat)} bytes of code at {gpa:#x} are not in the first 64 MiB")
            made = identity_tables(tables, _LONG_END)
            if tables < end and gpa < tables + len(made):
                raise UsageError(f"tables: [{tables:#x}, {tables + len(made):#x}) overlaps the code at {gpa:#x}")
            written[tables] = made
        for at, content in written.items():
            self._memory.parts(at, len(content))
        state = self.vcpu.sregs()
        self._finish()
        for at, content in written.items():
            self._memory.write(at, content)
        self.vcpu.set_sregs(real_mode(state) if tables is None or mode == "real" else user_mode(state, tables))
        self.vcpu.set_registers(rip=gpa, rflags=_FLAGS)

    def registers(self) -> dict[str, int]:
        """General registers, rip and rflags by name. GuestmemError while another thread runs the vCPU."""
        return self.vcpu.registers()

    def set_registers(self, values: Mapping[str, int] | None = None, /, **registers: int) -> None:
        """Set the named ones; the others stay. UsageError for an unknown name, or for what is no number of 64 bits.

        An instruction that an exit has cut short is ended first (a read that nobody answered reads what it reads): its
        end would overwrite registers.
        """
        given = {name: whole(name, value) for name, value in {**(values or {}), **registers}.items()}
        self.vcpu.registers()  # may we?
        self._finish()
        self.vcpu.set_registers(given)

    def _finish(self) -> None:
        if self._unfinished or self.vcpu.has_untaken:
            self.vcpu.end_instruction()
        self._unfinished, self._asked = False, None

    def run(self) -> Exit:
        """Run until an exit. GuestmemError with errno if KVM_RUN fails, or if another thread runs the vCPU.

        UsageError if a read that exited was not answered. Ctrl-C ends it, and no exit is lost: the next call gives it.
        """
        self._memory.memslots  # noqa: B018 - EBADF if the VM is closed
        if self._asked is not None and not self._answered and not self.vcpu.has_untaken:
            raise UsageError(f"vCPU {self.index}: the read of {_size(self._asked)} bytes was not answered")
        exit_ = self.vcpu.next_exit()
        self._answered, self._asked = False, None
        self._unfinished = isinstance(exit_, Mmio | Io)
        if isinstance(exit_, Mmio | Io) and not exit_.is_write:
            self._asked = exit_
        self.vcpu.taken()
        return exit_

    def answer(self, exit_: Exit, content: Any) -> None:
        """Answer a read that exited, before the next ``run``."""
        self._memory.memslots  # noqa: B018 - EBADF if the VM is closed
        if not isinstance(exit_, Mmio | Io) or exit_ != self._asked:
            raise UsageError(f"vCPU {self.index}: {exit_} is not the read that waits for an answer")
        flat = content_of("content", content)
        if len(flat) != _size(exit_):
            raise UsageError(f"content: {len(flat)} bytes; the exit asks for {_size(exit_)}")
        self.vcpu.answer(exit_, flat)
        self._answered = True

    def __repr__(self) -> str:
        return f"KvmGuestVcpu({self.index})"


def _size(exit_: Mmio | Io) -> int:
    return exit_.size * (exit_.count if isinstance(exit_, Io) else 1)


def _code(code: Any) -> bytes:
    if isinstance(code, str | int):
        raise UsageError(f"code: {code!r} is neither a buffer nor numbers of bytes")
    try:
        flat = bytes(code)
    except (TypeError, ValueError, BufferError):
        raise UsageError(f"code: {type(code).__name__} is neither a buffer nor numbers in 0..255") from None
    if not flat:
        raise UsageError("code: no bytes")
    return flat
