"""What a vCPU of the software engine does, one access after another: it has no instructions, only their effects."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Access", "Fetch", "Read", "Write"]


@dataclass(frozen=True, slots=True)
class Read:
    """Read ``size`` bytes; what was read is appended to ``SoftVcpu.values``."""

    gpa: int
    size: int = 8
    private: bool = False
    """A private access: of a guest_memfd's private pages."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write ``content``."""

    gpa: int
    content: bytes
    private: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch an instruction: from where there is no memory, the vCPU cannot go on."""

    gpa: int
    private: bool = False


Access = Read | Write | Fetch
