"""Litmus tests: a few operations a thread, and the outcome that tells memory models apart; what each model here shows.

An operation is written ``Wx1`` (a relaxed store), ``Wx1r`` (release), ``Rx`` (a relaxed load), ``Rxa`` (acquire),
``F`` (a full fence) or ``Ux1`` (a fetch-and-add, acquire and release). An outcome is what each thread's loads and
additions saw, in order, and what the words hold at the end. ``1:0=1`` in a condition: the first that thread 1 saw is 1.

Tests, names and verdicts: Alglave, Maranget and Tautschnig, "Herding cats", TOPLAS 2014 (SC, x86's TSO); Sewell and
others, "x86-TSO", CACM 2010; Lahav, Vafeiadis, Kang, Hur and Dreyer, "Repairing sequential
consistency in C/C++11", PLDI 2017 (RC11: what a compiler and any processor may make of these orders).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .near import not_one_of
from .outcome import Budget, Outcome
from .scene import Model, Scene
from .states import States
from .task import MEMORIES, machine
from .world import World

__all__ = ["TESTS", "End", "Litmus", "Operation", "find", "operations", "outcomes"]

WORDS = "xyz"
_OPERATION = re.compile(
    r"W(?P<stored>[xyz])(?P<value>\d)(?P<release>r?)|R(?P<loaded>[xyz])(?P<acquire>a?)"
    r"|(?P<fence>F)|U(?P<added>[xyz])(?P<by>\d)"
)

End = tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]
"""What each thread saw, and what the words hold in the end."""


@dataclass(frozen=True)
class Operation:
    """``kind`` is W, R, U (adds) or F; ``strong``: release of a W, acquire of an R."""

    kind: str
    word: int = 0
    value: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Litmus:
    """A test: its threads, the outcome asked about, and by which published models that may happen."""

    name: str
    threads: tuple[str, ...]
    condition: str
    allowed: frozenset[str]

    def shows(self, end: End) -> bool:
        """Whether an end is the outcome asked about."""
        for part in self.condition.split():
            what, value = part.split("=")
            thread, colon, number = what.partition(":")
            seen = end[0][int(thread)][int(number)] if colon else end[1][WORDS.index(what)]
            if seen != int(value):
                return False
        return True


def _litmus(name: str, threads: str, condition: str, allowed: str = "") -> Litmus:
    return Litmus(name, tuple(part.strip() for part in threads.split("|")), condition, frozenset(allowed.split()))


TESTS = (
    _litmus("SB", "Wx1 Ry | Wy1 Rx", "0:0=0 1:0=0", "tso rc11"),
    _litmus("SB+rel-acq", "Wx1r Rya | Wy1r Rxa", "0:0=0 1:0=0", "tso rc11"),
    _litmus("SB+fences", "Wx1 F Ry | Wy1 F Rx", "0:0=0 1:0=0"),
    _litmus("SB+fence+po", "Wx1 F Ry | Wy1 Rx", "0:0=0 1:0=0", "tso rc11"),
    _litmus("SB+rmws", "Ux1 Rya | Uy1 Rxa", "0:1=0 1:1=0", "rc11"),
    _litmus("SB+forward", "Wx1 Rx Ry | Wy1 Ry Rx", "0:0=1 0:1=0 1:0=1 1:1=0", "tso rc11"),
    _litmus("MP", "Wx1 Wy1 | Ry Rx", "1:0=1 1:1=0", "rc11"),
    _litmus("MP+rel+po", "Wx1 Wy1r | Ry Rx", "1:0=1 1:1=0", "rc11"),
    _litmus("MP+po+acq", "Wx1 Wy1 | Rya Rx", "1:0=1 1:1=0", "rc11"),
    _litmus("MP+rel+acq", "Wx1 Wy1r | Rya Rx", "1:0=1 1:1=0"),
    _litmus("MP+fences", "Wx1 F Wy1 | Ry F Rx", "1:0=1 1:1=0"),
    _litmus("MP+rel+rmw", "Wx1 Wy1r | Uy1 Rx", "1:0=1 1:1=0"),
    _litmus("LB", "Rx Wy1 | Ry Wx1", "0:0=1 1:0=1"),
    _litmus("LB+acq+acq", "Rxa Wy1 | Rya Wx1", "0:0=1 1:0=1"),
    _litmus("S", "Wx2 Wy1 | Ry Wx1", "1:0=1 x=2", "rc11"),
    _litmus("S+rel+acq", "Wx2 Wy1r | Rya Wx1", "1:0=1 x=2"),
    _litmus("R", "Wx1 Wy1 | Wy2 Rx", "1:0=0 y=2", "tso rc11"),
    _litmus("R+fences", "Wx1 F Wy1 | Wy2 F Rx", "1:0=0 y=2"),
    _litmus("2+2W", "Wx1 Wy2 | Wy1 Wx2", "x=1 y=1", "rc11"),
    _litmus("2+2W+rels", "Wx1 Wy2r | Wy1 Wx2r", "x=1 y=1", "rc11"),
    _litmus("2+2W+fences", "Wx1 F Wy2 | Wy1 F Wx2", "x=1 y=1"),
    _litmus("CoRR", "Wx1 | Rx Rx", "1:0=1 1:1=0"),
    _litmus("CoWR", "Wx1 Rx | Wx2", "0:0=2 x=1"),
    _litmus("CoRW", "Rx Wx1 | Wx2", "0:0=2 x=2"),
    _litmus("CoWW", "Wx1 Wx2", "x=1"),
    _litmus("IRIW", "Wx1 | Wy1 | Rx Ry | Ry Rx", "2:0=1 2:1=0 3:0=1 3:1=0", "rc11"),
    _litmus("IRIW+acqs", "Wx1 | Wy1 | Rxa Rya | Rya Rxa", "2:0=1 2:1=0 3:0=1 3:1=0", "rc11"),
    _litmus("IRIW+fences", "Wx1 | Wy1 | Rx F Ry | Ry F Rx", "2:0=1 2:1=0 3:0=1 3:1=0"),
    _litmus("WRC", "Wx1 | Rx Wy1 | Ry Rx", "1:0=1 2:0=1 2:1=0", "rc11"),
    _litmus("WRC+rel+acq", "Wx1 | Rx Wy1r | Rya Rx", "1:0=1 2:0=1 2:1=0"),
    _litmus("RWC", "Wx1 | Rx Ry | Wy1 Rx", "1:0=1 1:1=0 2:0=0", "tso rc11"),
    _litmus("RWC+fences", "Wx1 | Rx F Ry | Wy1 F Rx", "1:0=1 1:1=0 2:0=0"),
    _litmus("ISA2", "Wx1 Wy1 | Ry Wz1 | Rz Rx", "1:0=1 2:0=1 2:1=0", "rc11"),
    _litmus("ISA2+rels+acqs", "Wx1 Wy1r | Rya Wz1r | Rza Rx", "1:0=1 2:0=1 2:1=0"),
    _litmus("rmws", "Ux1 | Ux1", "0:0=0 1:0=0"),
)
"""``allowed`` names published models: tso (x86), rc11. Sequential consistency allows none of these outcomes."""


def find(name: str) -> Litmus:
    """The test of a name; UsageError if there is none."""
    for test in TESTS:
        if test.name == name:
            return test
    raise not_one_of("litmus test", name, (test.name for test in TESTS), "explore --litmus")


def operations(thread: str) -> list[Operation]:
    """A thread's operations; UsageError for one that is none.

    >>> operations("Wx1r F")
    [Operation(kind='W', word=0, value=1, strong=True), Operation(kind='F', word=0, value=0, strong=False)]
    """
    found = []
    for text in thread.split():
        match = _OPERATION.fullmatch(text)
        if match is None:
            raise UsageError(f"operation: {text!r} is not one of Wx1, Wx1r, Rx, Rxa, Ux1, F (words x, y, z)")
        part = match.groupdict()
        if part["fence"]:
            found.append(Operation("F"))
        elif part["stored"]:
            found.append(Operation("W", WORDS.index(part["stored"]), int(part["value"]), part["release"] == "r"))
        elif part["loaded"]:
            found.append(Operation("R", WORDS.index(part["loaded"]), 0, part["acquire"] == "a"))
        else:
            found.append(Operation("U", WORDS.index(part["added"]), int(part["by"]), strong=True))
    return found


def model(threads: tuple[str, ...]) -> Model:
    """The model that searches explore."""
    parsed = [operations(thread) for thread in threads]

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", len(WORDS))

        def body(steps: list[Operation]) -> tuple[int, ...]:
            seen: list[int] = []
            for step in steps:
                if step.kind == "W":
                    (atomics.store_release if step.strong else atomics.store_relaxed)(words, step.word, step.value)
                elif step.kind == "R":
                    seen.append((atomics.load_acquire if step.strong else atomics.load_relaxed)(words, step.word))
                elif step.kind == "U":
                    seen.append(atomics.fetch_add(words, step.word, step.value))
                else:
                    atomics.fence()
            return tuple(seen)

        for number, steps in enumerate(parsed):
            scene.thread(str(number), body, steps)

    return Model("litmus", "nothing", "small", build)


def outcomes(threads: tuple[str, ...], memory: str) -> set[End]:
    """All ends of some threads under one of the memory models that searches know."""
    if memory not in MEMORIES:
        raise UsageError(f"memory: {memory!r} is not one of {', '.join(MEMORIES)}")
    with World(model(threads)) as world:
        world.points.update(range(len(WORDS)))
        its = machine(world, memory)
        search = States(its, Outcome("litmus", "states", memory))
        search.run(Budget(go_on=True))
        ends: set[End] = set()
        for index in range(search.count):
            state = search.state(index)
            if not its.moves(state):
                saw: list[Any] = [node.outcome for node in its.nodes(state)]
                ends.add((tuple(saw), tuple(its.memory(state).values[: len(WORDS)])))
        return ends
