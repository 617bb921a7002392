"""What ``guestmem explain`` prints: the facts of a call, each with where it holds and what stands behind it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ..abi.facts import CALLS, FACTS, KERNELS, Fact
from ..abi.trees import MAINLINE

__all__ = ["call_lines", "facts_lines", "where"]

WIDTH = 80


def where(fact: Fact) -> str:
    """Kernels, architectures and tree of a fact, in words.

    >>> where(Fact("mmap", "", "", kernels=("6.18", "7.3"), architectures=("x86-64",)))
    '6.18 and 7.3; x86-64'
    """
    kernels = (
        f"{fact.kernels[0]} to {fact.kernels[-1]}"
        if len(fact.kernels) > 2 and "".join(fact.kernels) in "".join(KERNELS)
        else " and ".join(fact.kernels)
    )
    tree = "" if fact.tree == MAINLINE else f"{fact.tree}'s tree; "
    return f"{tree}{kernels}; {', '.join(fact.architectures)}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def facts_lines(call: str, facts: Sequence[Fact], asked: str) -> list[str]:
    """The facts of ``call``; ``asked`` is what else was asked for, in words."""
    lines = [*textwrap.wrap(f"{call}: {CALLS[call]}", WIDTH, subsequent_indent="    "), ""]
    for fact in facts:
        lines += [where(fact), *_wrapped(fact.answer, "    "), *_wrapped(fact.evidence, "        ")]
    if not facts:
        lines.append(f"unknown: the table says nothing of it{asked}")
    run = sum(bool(fact.promise) for fact in facts)
    return [*lines, "", f"{len(facts)} answers: {run} run on a kernel, {len(facts) - run} by source"]


def call_lines() -> list[str]:
    """All calls, with how many answers there are of each."""
    lines = []
    for call, place in CALLS.items():
        facts = [fact for fact in FACTS if fact.call == call]
        run = sum(bool(fact.promise) for fact in facts)
        lines += textwrap.wrap(
            f"{call}: {len(facts)} answers, {run} of them run; {place}", WIDTH, subsequent_indent="    "
        )
    run = sum(bool(fact.promise) for fact in FACTS)
    return [*lines, "", f"{len(FACTS)} answers: {run} run on a kernel, {len(FACTS) - run} by source"]
