"""The shortest sequence of calls that still diverges: first fewer calls, then simpler numbers.

Delta debugging (Zeller and Hildebrandt, 2002), down to where no single call can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .calls import ARENA, Call

__all__ = ["shrink"]

_SIMPLE = (0, 1, 0x1000, ARENA)
_SIMPLER: dict[str, tuple[tuple[int, ...], ...]] = {"write": ((), (1,)), "get_log": ((0, 1), (0,), ())}
"""What each argument of a call may become; all of the above where it is not said. A write stays a write of pages."""


def shrink(calls: Sequence[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    """The shortest subsequence of ``calls`` for which ``diverges``, with the simplest numbers. O(n log n) tries or so.

    >>> calls = [Call("mmu_pages", (n,)) for n in range(9)]
    >>> [str(call) for call in shrink(calls, lambda tried: Call("mmu_pages", (7,)) in tried)]
    ['mmu_pages(count=0x7)']
    """
    found = list(calls)
    size = max(len(found) // 2, 1)
    while True:
        at = 0
        shorter = False
        while at < len(found) > 1:
            tried = found[:at] + found[at + size :]
            if tried and diverges(tried):
                found, shorter = tried, True
            else:
                at += size
        if size == 1 and not shorter:
            return _simplify(found, diverges)
        size = max(size // 2, 1)


def _simplify(found: list[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    for index in range(len(found)):
        for place in range(len(found[index].args)):
            kind, args = found[index]
            for simple in _SIMPLER[kind][place] if kind in _SIMPLER else _SIMPLE:
                if simple >= args[place]:
                    continue
                tried = list(found)
                tried[index] = Call(kind, (*args[:place], simple, *args[place + 1 :]))
                if diverges(tried):
                    found = tried
                    break
    return found
