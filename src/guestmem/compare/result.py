"""What a comparison found: plain values, from which ``report`` makes tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..engines import Counts
from ..history import Verdict

__all__ = ["ELSEWHERE", "Comparison", "Row", "Spread"]

ELSEWHERE = {
    "source": "Emanuele Giuseppe Esposito, kvm mailing list, 23 September 2022",
    "what": "time in QEMU's kvm_commit over one boot, average of 100 to 1000 runs, ms",
    "host": "EPYC 7413, Linux 5.19",
    "columns": ("vCPUs", "batch ioctl (RFC)", "stop all vCPUs"),
    "rows": ((1, 2.1, 2.2), (2, 2.5, 3.0), (4, 2.2, 3.1), (8, 2.4, 3.4), (16, 3.6, 12.0), (24, 12.5, 20.0)),
}
"""Figures of the 2022 debate, measured elsewhere: for reference, not to compare with."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, mean and standard deviation of some durations, in ns, and how many there were."""

    median: float
    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of measured values; all zero if there are none."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0)
        ordered = sorted(values)
        middle = len(ordered) // 2
        median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        mean = sum(ordered) / len(ordered)
        return cls(median, mean, math.sqrt(sum((value - mean) ** 2 for value in ordered) / len(ordered)), len(ordered))


@dataclass(slots=True)
class Row:
    """One design at one number of vCPUs."""

    design: str
    vcpus: int
    cores: int
    broken: bool = False
    replays: int = 0
    """Complete replays of the trace; 0 if the row was interrupted in its first."""
    transactions: int = 0
    update_ns: Spread = field(default_factory=lambda: Spread.of(()))
    """Per transaction."""
    trace_ns: Spread = field(default_factory=lambda: Spread.of(()))
    """Per replay of the whole trace, pauses between transactions left out."""
    one_kick_ns: Spread = field(default_factory=lambda: Spread.of(()))
    """One kick of all vCPUs with acknowledgement, between transactions: the floor of every pause."""
    vcpu_stalls: int = 0
    """Times that a vCPU had to wait for an update; how long: the three below, in ns."""
    vcpu_stall_median_ns: float = 0.0
    vcpu_stall_p99_ns: float = 0.0
    vcpu_stall_worst_ns: int = 0
    accesses: int = 0
    inside: int = 0
    """Accesses to memory that should be there, in or across a window."""
    inside_changed: int = 0
    holes: int = 0
    """Data accesses that met a hole (unanswered)."""
    killed: int = 0
    """Fetches that would have killed the guest."""
    answered: int = 0
    lost: int = 0
    """Writes to memory that should be there which are not in it at the end, by counting; negative: more than made."""
    wrong: int = 0
    """Writes that went to memory which the update had taken away, by counting."""
    stale: int = 0
    """Accesses that saw the old memory though they began after the update had returned."""
    torn: int = 0
    """Transactions without one instant: an access that saw old began after one that saw new had ended."""
    instants: int = 0
    """Transactions in which vCPUs saw old and new, so that ``torn`` could be told."""
    witness: dict[str, Any] | None = None
    """Of the first that is torn: its lines in the trace, and the judgement (``history.Judgement``) with the two
    accesses that contradict each other; times in ns or, on the kernel engine, in ticks of the TSC."""
    logged: int = 0
    """With dirty logging: pages that logs named which the caller was handed."""
    handed_back: int = 0
    """Of these, pages that updates handed back, since their pair of frame and host page ended."""
    dropped: int = 0
    """Pages that were dirty in logs when these were freed with their slots: written, and in no log."""
    unlogged: int = 0
    """Pages that differ, when all logs have been taken, from what a caller has who copied what they named."""
    log_ns: Spread = field(default_factory=lambda: Spread.of(()))
    """Per transaction: taking logs, and bringing bits to where they belong; not in ``update_ns``."""
    refused: int = 0
    strange: int = 0
    refaults: int = 0
    """Faults, in or after an update, for memory that was there before and after it."""
    table_pages: int = 0
    """Stage-2 table pages: the most that were in use after an update."""
    counts: Counts = field(default_factory=Counts)
    vcpu_counts: list[dict[str, int]] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    """What the engine cannot measure, so that its zero says nothing: fields of this row, and ``counts.NAME``."""
    refusals: list[str] = field(default_factory=list)
    """Transactions that engine or design refused, in words; they were applied with all vCPUs paused instead."""

    @property
    def oversubscribed(self) -> bool:
        """Whether there are more vCPUs than cores, so that waits also measure the scheduler."""
        return self.vcpus > self.cores

    @property
    def failures(self) -> int:
        """Everything that no design should show."""
        seen = self.holes + self.killed + abs(self.lost) + self.wrong + self.stale + self.refused + self.strange
        return seen + self.dropped + self.unlogged

    @property
    def one_instant(self) -> str:
        """Whether each update had one instant for all that was seen: "pass", "fail", or "could not look".

        To fail, two accesses that contradict each other are enough, or one that saw neither old nor new (a hole), or
        old when the update was over. To pass, in some update one must have seen old and one new.
        """
        if self.torn or self.stale or self.holes or self.killed or self.refused or self.strange:
            verdict = Verdict.FAIL
        else:
            verdict = Verdict.PASS if self.instants else Verdict.UNKNOWN
        return str(verdict.value)

    @property
    def caught(self) -> bool:
        """Whether this row shows its design to be broken."""
        return bool(self.failures or self.torn)

    def measures(self, name: str) -> bool:
        """Whether the engine can measure ``name``, a field of this row or ``counts.NAME``."""
        return name not in self.unmeasured

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, durations in ns; None for what the engine cannot measure."""
        result: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Spread):
                value = asdict(value)
            elif isinstance(value, Counts):
                parts = asdict(value).items()
                value = {part: count if self.measures(f"counts.{part}") else None for part, count in parts}
            result[name] = value if self.measures(name) else None
        told = ("oversubscribed", "failures", "one_instant", "caught")
        return result | {name: getattr(self, name) for name in told}


@dataclass(slots=True)
class Comparison:
    """All rows of one run, and what they were measured with."""

    path: str
    engine: str
    arch: str
    seed: int
    repeat: int
    interval_ms: float
    cores: int
    steps: int
    changes: int
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    slow_vcpu_ms: float = 0.0
    host: str = ""
    """Of an engine that depends on it: kernel, module and settings that the figures come from."""
    notes: list[str] = field(default_factory=list)
    """What was replayed in another way than it was recorded, in words."""
    dirty_log: bool = False
    """Whether slots logged dirty pages."""
    control: str = ""
    """The design that has to be caught: the one broken on purpose, or, where the engine cannot do that, today's."""

    @property
    def broken_rows(self) -> list[Row]:
        """Rows of the design that has to be caught."""
        return [row for row in self.rows if row.broken or row.design == self.control]

    @property
    def strong_enough(self) -> bool:
        """Whether the broken design was caught somewhere: else a row without failures means nothing."""
        return any(row.caught for row in self.broken_rows)

    @property
    def logs_strong_enough(self) -> bool:
        """Whether some design lost a write from the logs: else it means nothing that the others lost none."""
        return any(row.dropped or row.unlogged for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        from .summary import summary  # which stands on this

        result = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "rows"}
        return {
            **result,
            "strong_enough": self.strong_enough,
            "logs_strong_enough": self.logs_strong_enough if self.dirty_log else None,
            "summary": summary(self).as_dict(),
            "rows": [row.as_dict() for row in self.rows],
            "elsewhere": ELSEWHERE,
        }
