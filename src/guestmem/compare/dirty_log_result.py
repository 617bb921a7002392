"""What a comparison of ways of dirty logging found: plain values, from which ``report`` makes tables and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .result import Spread

__all__ = ["PHASES", "DirtyLogComparison", "DirtyLogRow", "Work"]

PHASES = ("populate", "before", "enable", "dirty", "get", "clear", "live", "disable", "rebuild", "after")
"""In the order in which they happen; ``live`` is a get and a clear while vCPUs write, ``rebuild`` the first write to
each 2 MiB after logging."""


def _nothing() -> Spread:
    return Spread.of(())


@dataclass(slots=True)
class Work:
    """What went on in a phase, over all repeats."""

    invalidations: int = 0
    """Translations or ranges invalidated on all vCPUs."""
    faults: int = 0

    def add(self, invalidations: int, faults: int) -> None:
        """Count some more."""
        self.invalidations += invalidations
        self.faults += faults


@dataclass(slots=True)
class DirtyLogRow:
    """One way of logging at one number of vCPUs."""

    design: str
    vcpus: int
    cores: int
    broken: bool = False
    repeats: int = 0
    times: dict[str, Spread] = field(default_factory=lambda: {phase: _nothing() for phase in PHASES})
    """By phase, in ns. The phases of an iteration: of all iterations."""
    work: dict[str, Work] = field(default_factory=lambda: {phase: Work() for phase in PHASES})
    table_pages: dict[str, int] = field(default_factory=dict)
    """Stage-2 table pages at the end of a phase: the most of all repeats."""
    marked: int = 0
    """Marks that faults made, over all repeats."""
    named: int = 0
    """Pages that logs named."""
    written: int = 0
    """Pages whose contents changed while logging was on, between two logs, by comparing them."""
    lost: int = 0
    """Of these, pages that no log named after their last change: what a migration would not have copied."""
    live_writes: int = 0
    """Writes that vCPUs made while logs were taken beside them."""
    live_logs: int = 0

    @property
    def oversubscribed(self) -> bool:
        """Whether there are more vCPUs than cores, so that times also measure the scheduler."""
        return self.vcpus > self.cores

    @property
    def caught(self) -> bool:
        """Whether this row shows its design to be broken."""
        return self.lost > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, durations in ns."""
        result: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("times", "work"):
            result[name] = {
                phase: {part: getattr(value, part) for part in value.__dataclass_fields__}
                for phase, value in result[name].items()
            }
        return result | {"oversubscribed": self.oversubscribed, "caught": self.caught}


@dataclass(slots=True)
class DirtyLogComparison:
    """All rows of one run, and what they were measured with."""

    arch: str
    memory: int
    iterations: int
    repeat: int
    seed: int
    cores: int
    control: str
    """The design that has to be caught."""
    designs: dict[str, str] = field(default_factory=dict)
    """What each design does, by name."""
    rows: list[DirtyLogRow] = field(default_factory=list)
    interrupted: bool = False

    @property
    def broken_rows(self) -> list[DirtyLogRow]:
        """Rows of the design that has to be caught."""
        return [row for row in self.rows if row.broken]

    @property
    def strong_enough(self) -> bool:
        """Whether the broken design was caught somewhere: else a row without losses means nothing."""
        return any(row.caught for row in self.broken_rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rows"}
        return {
            "scenario": "dirty-log",
            **result,
            "strong_enough": self.strong_enough,
            "rows": [row.as_dict() for row in self.rows],
        }
