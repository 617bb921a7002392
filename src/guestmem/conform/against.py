"""Two kernels compared: the calls of a log, carried out again here.

Where they differ and the models of both versions say so, the difference is named. Otherwise it is a divergence; the
other kernel is not here to be asked about shorter sequences, so the model of its version stands in, if it gave that
kernel's answers so far.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..abi.checks import Host
from ..abi.versions import DIFFERENCES
from .calls import Answer, Call
from .log import LogSide
from .run import Answers, Divergence, Outcome, Side, ask_model, ask_why, explained, shortest_of

__all__ = ["conform_against"]

_LOG = "the kernel of the log"
_HOST_FIELDS = [field.name for field in dataclasses.fields(Host) if field.name != "version"]


def conform_against(host: Host, here: Side, path: Path, pressed: Callable[[], bool] = lambda: False) -> Outcome:
    """Compare ``here`` with the kernel of a log. TraceError for a file that is none.

    In the result's divergence, ``expected`` are the log's answers.
    """
    log = LogSide(path)
    there = log.host(host)
    outcome = Outcome(f"{here.name}, against {log.name}")
    begun = time.perf_counter()
    try:
        for calls, recorded in log.recorded():
            _block(host, there, here, outcome, calls, recorded, pressed)
            if outcome.divergence is not None:
                break
            if pressed():
                raise KeyboardInterrupt  # noqa: TRY301 - it ends as Ctrl-C does
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _block(
    host: Host,
    there: Host,
    here: Side,
    outcome: Outcome,
    calls: list[Call],
    recorded: Answers,
    pressed: Callable[[], bool],
) -> None:
    asked = time.perf_counter()
    answered = here.answers(calls, recorded)
    outcome.kernel_seconds += time.perf_counter() - asked
    begun = time.thread_time()
    words = ask_why(host, calls)[1]
    outcome.model_seconds += time.thread_time() - begun
    outcome.count(calls, answered, words)
    if answered != recorded:
        named = _named(host, there, calls, recorded, answered)
        outcome.known.update(named)
        if not named:
            try:
                outcome.divergence = _divergence(there, here, calls, recorded, answered, pressed)
            except KeyboardInterrupt:  # the second Ctrl-C: the kernel is not asked any more
                outcome.divergence = _as_it_was(calls, recorded, answered)
            outcome.interrupted = outcome.divergence.interrupted


def _named(host: Host, there: Host, calls: Sequence[Call], recorded: Answers, answered: Answers) -> list[str]:
    """What differs between the two machines, if models of both give these answers, known differences included."""
    sides = []
    for side, answers in ((host, answered), (there, recorded)):
        if ask_model(side, calls) == answers:
            sides.append(side)
        else:
            named, other = explained(side, calls, answers)
            if not named:
                return []
            sides.append(other)
    here, away = sides
    found = []
    for field in (*DIFFERENCES, *_HOST_FIELDS):
        mine, theirs = (getattr(side.version if field in DIFFERENCES else side, field) for side in (here, away))
        if mine == theirs:
            continue
        if field in DIFFERENCES:
            mixed = dataclasses.replace(here, version=dataclasses.replace(here.version, **{field: theirs}))
            said = DIFFERENCES[field]
        else:
            mixed, said = dataclasses.replace(here, **{field: theirs}), f"{mine} here, {theirs} in the log"
        if ask_model(mixed, calls) != answered:
            found.append(f"{field}: {said}")
    return found or [f"{here.version} against {away.version}"]


def _as_it_was(calls: Sequence[Call], recorded: Answers, answered: Answers) -> Divergence:
    end = 1 + next(i for i, (a, b) in enumerate(zip(recorded, answered, strict=True)) if a != b)
    made = tuple(calls[:end]), tuple(recorded[:end]), tuple(answered[:end])
    return Divergence(*made, other=_LOG, interrupted=True)


def _divergence(
    there: Host,
    here: Side,
    calls: Sequence[Call],
    recorded: Answers,
    answered: Answers,
    pressed: Callable[[], bool],
) -> Divergence:
    modelled, words = ask_why(there, calls)
    end = 1 + next(i for i, (a, b) in enumerate(zip(recorded, answered, strict=True)) if a != b)
    if modelled == recorded:

        def ask(tried: Sequence[Call]) -> tuple[Answers, Answers]:
            expected = ask_model(there, tried)
            return expected, here.answers(tried, expected)

        shortest = shortest_of(calls, recorded, answered, ask, pressed)
        expected, words = ask_why(there, shortest)
        again = here.answers(shortest, expected)
        if again != expected:
            at = next(i for i, (a, b) in enumerate(zip(expected, again, strict=True)) if a != b)
            made = tuple(shortest), tuple(expected), tuple(again), words[at]
            return Divergence(*made, other=_LOG, interrupted=pressed())
    why = words[end - 1] if modelled[end - 1] == recorded[end - 1] else ""
    again = here.answers(calls[:end], recorded[:end])
    repeats = again[-1] != recorded[end - 1]
    first: tuple[Answer | None, ...] = tuple(recorded[:end])
    return Divergence(tuple(calls[:end]), first, tuple(answered[:end]), why, other=_LOG, repeats=repeats)
