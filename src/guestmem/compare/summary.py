"""What a comparison comes to: with which designs nothing went wrong, and which of these was cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..history import Verdict
from .result import Comparison, Row

__all__ = ["Summary", "summary"]


class Summary(NamedTuple):
    """``clean``: designs in none of whose rows anything was seen to go wrong: no proof that nothing can.

    Each of their updates that was seen from both sides had one instant, and there were some. ``unjudged``: the same,
    but no update was seen from both sides. ``wrong``: by design, what went wrong, in words. ``cheapest``: by number of
    vCPUs, of clean and unjudged ones the design whose updates took least in the median, and the one that kept vCPUs
    waiting least in all (waits times their median).
    """

    clean: tuple[str, ...]
    unjudged: tuple[str, ...]
    wrong: dict[str, str]
    cheapest: dict[int, tuple[str, str]]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "clean": list(self.clean),
            "unjudged": list(self.unjudged),
            "wrong": self.wrong,
            "cheapest": {
                str(vcpus): {"update": update, "vcpu_stalls": stalls}
                for vcpus, (update, stalls) in self.cheapest.items()
            },
        }


def summary(comparison: Comparison) -> Summary:
    """Sum up complete rows; a design that is broken on purpose is not among them. O(rows)."""
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if not row.broken and row.replays:
            rows.setdefault(row.design, []).append(row)
    wrong = {design: _what_went_wrong(each) for design, each in rows.items() if any(row.caught for row in each)}
    refused = {design for design, each in rows.items() if any(row.refusals for row in each)}
    wrong |= {design: "transactions that it refused" for design in rows if design in refused and design not in wrong}
    fine = {design: each for design, each in rows.items() if design not in wrong}
    unjudged = tuple(
        design for design, each in fine.items() if all(row.one_instant != Verdict.PASS.value for row in each)
    )
    cheapest = {}
    for vcpus in sorted({row.vcpus for row in comparison.rows}):
        here = [row for each in fine.values() for row in each if row.vcpus == vcpus and row.transactions]
        if here:
            quickest = min(here, key=lambda row: row.update_ns.median)
            calmest = min(here, key=lambda row: row.vcpu_stalls * row.vcpu_stall_median_ns / row.transactions)
            cheapest[vcpus] = quickest.design, calmest.design
    return Summary(tuple(design for design in fine if design not in unjudged), unjudged, wrong, cheapest)


def _what_went_wrong(rows: Sequence[Row]) -> str:
    """In words, over all rows of a design."""
    parts = (
        ("data accesses in a hole", sum(row.holes for row in rows)),
        ("guests killed", sum(row.killed for row in rows)),
        ("writes lost", sum(abs(row.lost) for row in rows)),
        ("writes to the wrong memory", sum(row.wrong for row in rows)),
        ("stale accesses", sum(row.stale + row.refused + row.strange for row in rows)),
        ("updates without one instant", sum(row.torn for row in rows)),
        ("pages written and in no log", sum(row.dropped + row.unlogged for row in rows)),
    )
    return ", ".join(f"{count} {what}" for what, count in parts if count)
