"""What a vCPU of a ``Vm`` is on either engine, as far as both can do it; what one cannot raises CapabilityError."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ..engines.kvm.exits import Exit
from .accesses import Access

__all__ = ["Vcpu"]


class Vcpu(Protocol):
    """One vCPU: it is given accesses or code, and run until it exits.

    ``load`` and ``values`` are the software engine's, ``load_code`` and registers the kernel's: see ``SoftVcpu`` and
    ``KvmGuestVcpu``.
    """

    index: int
    smm: bool
    """Whether it is in system management mode (address space 1)."""

    @property
    def values(self) -> list[bytes]:
        """What its accesses read."""

    def load(self, accesses: Iterable[Access]) -> None:
        """What to do next: accesses, one after another."""

    def load_code(
        self,
        code: bytes | bytearray | memoryview | Sequence[int],
        gpa: int,
        *,
        mode: str = "real",
        tables: int | None = None,
    ) -> None:
        """What to do next: machine code, put at ``gpa``."""

    def registers(self) -> dict[str, int]:
        """General registers by name."""

    def set_registers(self, values: Mapping[str, int] | None = None, /, **registers: int) -> None:
        """Set the named ones; the others stay."""

    def run(self) -> Exit:
        """Run until an exit."""

    def answer(self, exit_: Exit, content: bytes) -> None:
        """Answer a read that exited, before the next ``run``."""
