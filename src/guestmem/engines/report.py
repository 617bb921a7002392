"""What an engine's vCPUs say after a load, and what each of them counted.

How a vCPU knows which side of an update it saw is the engine's: the software engine's by the host address that it
reached, the kernel's by a byte of the value that it read (``load_words.TARGET_FLAGS``).
"""

from __future__ import annotations

from typing import NamedTuple

from ..units import U64_MAX

__all__ = ["LoadReport", "VcpuCounts"]


class LoadReport(NamedTuple):
    """Of the accesses in an update that could tell old from new: the last that saw old, the first that saw new.

    ``last_old`` is the start of the one, ``first_new`` the end of the other, on a clock that all vCPUs of the engine
    share (ns of the host, or the guests' TSC); 0 and 2**64 - 1 if there was none. The addresses are what they accessed.
    """

    last_old: int = 0
    last_old_gpa: int = 0
    first_new: int = U64_MAX
    first_new_gpa: int = 0


class VcpuCounts(dict[str, int]):
    """What one vCPU counted, by the names that its engine has for them, and its ``histogram`` of stalls."""

    histogram: list[int]
