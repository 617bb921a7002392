"""Two kernels compared: the calls of a log, carried out again here.

Where they differ and the models of both versions say so, the difference is named. Otherwise it is a divergence; the
other kernel is not here to be asked about shorter sequences, so the model of its version stands in, if it gave that
kernel's answers so far.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from ..memslots.checks import Host
from ..memslots.versions import DIFFERENCES, version_of
from .calls import Answer, Call
from .log import LogSide
from .run import Answers, Divergence, Outcome, Side, ask_model, shortest_of

__all__ = ["conform_against"]


def conform_against(host: Host, here: Side, path: Path) -> Outcome:
    """Compare ``here`` with the kernel of a log. TraceError for a file that is none.

    In the result's divergence, ``expected`` are the log's answers.
    """
    log = LogSide(path)
    there = dataclasses.replace(host, version=version_of(log.release))
    outcome = Outcome(f"{here.name}, against {log.name}")
    begun = time.perf_counter()
    for calls, recorded in log.recorded():
        asked = time.perf_counter()
        answered = here.answers(calls, recorded)
        outcome.kernel_seconds += time.perf_counter() - asked
        outcome.calls += len(calls)
        outcome.blocks += 1
        for call, answer in zip(calls, answered, strict=True):
            if answer is not None:
                outcome.seen[call.kind, -min(answer.result, 0)] += 1
        if answered != recorded:
            named = _named(host, there, calls, recorded, answered)
            if not named:
                outcome.divergence = _divergence(there, here, calls, recorded, answered)
                break
            outcome.known[named] += 1
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _named(host: Host, there: Host, calls: Sequence[Call], recorded: Answers, answered: Answers) -> str:
    """The differences between the versions, if both models give the answers of their kernels."""
    if ask_model(host, calls) != answered or ask_model(there, calls) != recorded:
        return ""
    names = [n for n in DIFFERENCES if getattr(host.version, n) != getattr(there.version, n)]
    relevant = []
    for name in names:
        mixed = dataclasses.replace(host.version, **{name: getattr(there.version, name)})
        if ask_model(dataclasses.replace(host, version=mixed), calls) != answered:
            relevant.append(f"{name}: {DIFFERENCES[name]}")
    return "; ".join(relevant) or f"{host.version} against {there.version}"


def _divergence(there: Host, here: Side, calls: Sequence[Call], recorded: Answers, answered: Answers) -> Divergence:
    if ask_model(there, calls) == recorded:

        def ask(tried: Sequence[Call]) -> tuple[Answers, Answers]:
            expected = ask_model(there, tried)
            return expected, here.answers(tried, expected)

        shortest = shortest_of(calls, recorded, answered, ask)
        expected = ask_model(there, shortest)
        return Divergence(tuple(shortest), tuple(expected), tuple(here.answers(shortest, expected)))
    end = 1 + next(i for i, (a, b) in enumerate(zip(recorded, answered, strict=True)) if a != b)
    first: tuple[Answer | None, ...] = tuple(recorded[:end])
    return Divergence(tuple(calls[:end]), first, tuple(answered[:end]))
