"""What an engine's vCPUs say after a load, and what each of them counted."""

from __future__ import annotations

__all__ = ["LoadReport", "VcpuCounts"]


class LoadReport(tuple[int, int]):
    """Start of the last access that saw old, end of the first that saw new; in ns, 0 and 2**64-1 if there is none."""

    __slots__ = ()


class VcpuCounts(dict[str, int]):
    """What one vCPU counted, by the names that its engine has for them, and its ``histogram`` of stalls."""

    histogram: list[int]
