"""Holes of the software engine that last until a vCPU has fallen into them: what is known to go wrong is made to."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change

__all__ = ["count", "in_the_hole", "wait_until"]

ENOUGH = 1_000_000
"""Accesses among which what a test waits for is certain to be, if it can be at all."""


def count(engine: SoftEngine, name: str) -> int:
    return sum(counts[name] for counts in engine.vcpu_counts())


def wait_until(engine: SoftEngine, true: Callable[[], bool], what: str) -> None:
    """Until ``true``: it fails once vCPUs have made so many accesses without; if they hardly run, it is skipped."""
    end, most = time.monotonic() + 60, count(engine, "accesses") + ENOUGH
    while True:
        made = count(engine, "accesses")  # before the look: this thread may lose its core behind it, for any time
        if true():
            return
        assert made < most, f"{what}: not in {ENOUGH} accesses"
        if time.monotonic() > end:
            pytest.skip(f"{what}: vCPUs made too few accesses in a minute on this machine")
        time.sleep(2e-4)


def in_the_hole(engine: SoftEngine, seen: Callable[[], bool], what: str) -> None:
    """From now on each delete waits until ``seen``: what falls into the hole is certain to fall."""
    real = engine.set_memory_region

    def slowly(change: Change) -> object:
        done = real(change)
        if change.deletes:
            wait_until(engine, seen, what)
        return done

    engine.set_memory_region = slowly  # type: ignore[method-assign, assignment]
