"""Waits that Ctrl-C can end: compiled code sleeps for a while only, then lets Python look for signals.

A compiled function that gave up returns with the bit GAVE_UP; ``patiently`` calls it again until it does not. Python
runs its signal handlers in between, so a wait that nobody ends can be left with Ctrl-C. Interpreted, there is nothing
to give up: Python looks for signals by itself, and models find a lost wake-up only where no timeout hides it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .clock import now
from .compiled import INTERPRETED, U64, compiled, const, u64

__all__ = ["GAVE_UP", "LOOKS", "PATIENCE_NS", "deadline", "patiently", "time_left"]

GAVE_UP = const(1 << 63)
_FOREVER = const((1 << 64) - 1)
PATIENCE_NS = _FOREVER if INTERPRETED else const(50_000_000)
"""How long compiled code sleeps at most before it lets Python look."""
LOOKS = const(1 if INTERPRETED else 4000)
"""How often a waiter looks before it sleeps: some 10 µs, longer than most answers take; an idle core wakes up in 50.

As a CPU that has sent an interrupt to others spins until they answer (``smp_call_function_many_cond()``, Linux).
"""


@compiled
def deadline() -> U64:
    """When a wait that begins now gives up; 2**64 - 1 for never."""
    if PATIENCE_NS == _FOREVER:
        return _FOREVER
    return now() + PATIENCE_NS


@compiled
def time_left(end: U64) -> U64:
    """Nanoseconds until the deadline ``end``, 0 if it is over, 2**64 - 1 if there is none."""
    if end == _FOREVER:
        return _FOREVER
    time = now()
    if time >= end:
        return u64(0)
    return end - time


def patiently(wait: Callable[..., Any], *arguments: Any) -> int:
    """Call a wait until it has not given up; returns the sum of what it returned (how often it slept).

    >>> answers = [int(GAVE_UP) | 2, 3]
    >>> patiently(lambda: answers.pop(0))
    5
    """
    slept = int(wait(*arguments))
    while slept & int(GAVE_UP):
        slept += int(wait(*arguments)) - int(GAVE_UP)
    return slept
