"""The shortest sequence of calls that still diverges: fewer calls, then simpler numbers, and again.

Delta debugging (Zeller and Hildebrandt, 2002), down to where no single call can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .calls import ARENA, Call, argument_names

__all__ = ["shrink"]

_SIMPLE = (0, 1, 0x1000, ARENA)
_TOUCHED: tuple[tuple[int, ...], ...] = ((0, 0x1000), (1, 2, 3, 8, 40))
_SIMPLER = {"write": _TOUCHED, "read": _TOUCHED, "get_log": ((0, 1), (0,), ())}
"""What each argument of a call may become; all of the above where it is not said. A write stays a write of pages."""


def shrink(calls: Sequence[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    """The shortest subsequence of ``calls`` for which ``diverges``, with the simplest numbers. O(n log n) tries or so.

    >>> calls = [Call("mmu_pages", (n,)) for n in range(9)]
    >>> [str(call) for call in shrink(calls, lambda tried: Call("mmu_pages", (7,)) in tried)]
    ['mmu_pages(count=0x7)']
    """
    found = _fewer(list(calls), diverges)
    while True:  # simpler numbers may make calls superfluous
        before = found
        found = _fewer(_simplify(_alike(_everywhere(found, diverges), diverges), diverges), diverges)
        if found == before:
            return found


def _fewer(found: list[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
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
            return found
        size = max(size // 2, 1)


def _candidates(call: Call, place: int) -> tuple[int, ...]:
    simple = _SIMPLER[call.kind][place] if call.kind in _SIMPLER else _SIMPLE
    return tuple(value for value in simple if value < call.args[place])


def _with(call: Call, place: int, value: int) -> Call:
    return Call(call.kind, (*call.args[:place], value, *call.args[place + 1 :]))


def _everywhere(found: list[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    """One value of one argument, such as a slot id, made simpler in all calls at once."""
    done: set[tuple[str, int]] = set()
    for index in range(len(found)):
        for place, name in enumerate(argument_names(found[index].kind)):
            value = found[index].args[place]
            if (name, value) in done:
                continue
            done.add((name, value))
            for simple in _candidates(found[index], place):
                tried = [
                    Call(
                        call.kind,
                        tuple(
                            simple if (each, was) == (name, value) else was
                            for each, was in zip(argument_names(call.kind), call.args, strict=True)
                        ),
                    )
                    for call in found
                ]
                if diverges(tried):
                    found = tried
                    break
    return found


def _alike(found: list[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    """A call becomes one of those that are there and are simpler."""
    for index in range(len(found)):
        for other in found:
            if other.kind == found[index].kind and sum(other.args) < sum(found[index].args):
                tried = [*found[:index], other, *found[index + 1 :]]
                if diverges(tried):
                    found = tried
    return found


def _simplify(found: list[Call], diverges: Callable[[Sequence[Call]], bool]) -> list[Call]:
    for index in range(len(found)):
        for place in range(len(found[index].args)):
            for simple in _candidates(found[index], place):
                tried = [*found[:index], _with(found[index], place, simple), *found[index + 1 :]]
                if diverges(tried):
                    found = tried
                    break
    return found
