"""``guestmem explore --litmus``: the standard litmus tests, as published and as the memory models here have them."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UsageError

__all__ = ["litmus_table"]

_PUBLISHED = ("sc", "tso", "rc11")


def litmus_table(names: tuple[str, ...], *, as_json: bool) -> int:
    """Print the table; of tests by name, or of one's own threads: "Wx1 Ry | Wy1 Rx", all ends by memory model."""
    from ..explore.litmus import TESTS, find, outcomes
    from ..explore.task import MEMORIES

    if any("|" in name for name in names):
        if len(names) > 1:
            raise UsageError("--litmus: one test of your own at a time")
        return _own(names[0], as_json=as_json)
    tests = [find(name) for name in names] or list(TESTS)
    rows: list[dict[str, Any]] = []
    for test in tests:
        shows = {memory: any(map(test.shows, outcomes(test.threads, memory))) for memory in MEMORIES}
        rows.append(
            {
                "test": test.name,
                "threads": list(test.threads),
                "outcome": test.condition,
                "published": {name: name in test.allowed for name in _PUBLISHED},
                "shown": shows,
            }
        )
        if not as_json:
            _print(rows[-1], MEMORIES, first=len(rows) == 1)
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def _print(row: dict[str, Any], memories: tuple[str, ...], *, first: bool) -> None:
    if first:
        print(f"{'':15} {'allowed by':>14}   {'shown under':>16}")
        print(f"{'test':15} " + " ".join(f"{name:>4}" for name in _PUBLISHED), end="   ")
        print(" ".join(f"{name:>7}" for name in memories))
    published, shown = row["published"], row["shown"]
    print(f"{row['test']:15} " + " ".join(f"{_yes(published[name]):>4}" for name in _PUBLISHED), end="   ")
    print(" ".join(f"{_yes(shown[memory]):>7}" for memory in memories))
    print(f"    {' | '.join(row['threads'])}: {row['outcome']}")


def _yes(value: object) -> str:
    return "yes" if value else "-"


def _own(text: str, *, as_json: bool) -> int:
    from ..explore.litmus import outcomes
    from ..explore.task import MEMORIES

    threads = tuple(part.strip() for part in text.split("|"))
    found = {memory: sorted(outcomes(threads, memory)) for memory in MEMORIES}
    if as_json:
        print(json.dumps({"threads": threads, "ends": found}, indent=1))
        return 0
    ends = sorted({end for some in found.values() for end in some})
    print("  ".join(f"{memory:>7}" for memory in MEMORIES) + "  seen by each thread; x y z in the end")
    for end in ends:
        marks = "  ".join(f"{_yes(end in found[memory]):>7}" for memory in MEMORIES)
        seen = " | ".join(" ".join(map(str, saw)) or "-" for saw in end[0])
        print(f"{marks}  {seen}; {' '.join(map(str, end[1]))}")
    return 0
