"""What only shows when two threads meet: tried again until it does, and a visible skip if it never did.

A test fails when something wrong was seen, never because nothing was: a machine that does something else may not have
let the two meet. Whoever can, shows the same by exploration, which does not depend on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

__all__ = ["MINUTES", "until_met"]

T = TypeVar("T")
MINUTES = 2.0
"""How long to try; one more try may begin just before. Below pytest's limit for a test."""


def until_met(attempt: Callable[[int], T | None], what: str, *, minutes: float = MINUTES) -> T:
    """The first result of ``attempt(number)`` that is true; after ``minutes`` the test is skipped and says ``what``."""
    end, number = time.monotonic() + 60 * minutes, 0
    while True:
        if result := attempt(number):
            return result
        number += 1
        if time.monotonic() > end:
            pytest.skip(f"{what}: not once in {number} tries and {minutes:g} minutes on this machine")
