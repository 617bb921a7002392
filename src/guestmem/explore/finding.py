"""What a search finds: a schedule under which something does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import UsageError
from .machine import Machine, State
from .world import Where, World

__all__ = ["Finding", "follow", "schedule_json", "state_after"]


@dataclass(frozen=True)
class Finding:
    """What does not hold, and the moves that lead there.

    ``kind``: assertion, invariant, final, overflow, deadlock, livelock, or error (any other exception in a thread).
    ``name`` is the property's name, or the exception's. ``moves`` are those of the machine named ``memory``, between
    the ``points``.
    """

    kind: str
    name: str
    message: str
    memory: str
    thread: str = ""
    where: Where | None = None
    moves: tuple[int, ...] = ()
    points: tuple[int, ...] = ()
    found_by: str = ""
    after_runs: int = 0
    minimal: bool = False
    """Whether no schedule with fewer switches shows the same."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells one finding from another: kind, name and line."""
        return self.kind, self.name, str(self.where or "")

    def __str__(self) -> str:
        who = f" in {self.thread}" if self.thread else ""
        line = f" at {self.where}" if self.where and self.where.line else ""
        return f"{self.kind}{who}{line}: {self.name}: {self.message}"

    def with_moves(self, moves: Sequence[int], *, minimal: bool) -> Finding:
        """The same finding by another schedule."""
        return replace(self, moves=tuple(moves), minimal=minimal)


def schedule_json(world: World, machine: Machine, moves: Sequence[int]) -> list[list[Any]]:
    """Moves as JSON: ``[thread, steps]``, or ``[thread, what, number]`` for what memory does.

    >>> # [["updater", 3], ["reader", "flush", 0], ["reader", 1]]
    """
    rows: list[list[Any]] = []
    for move in moves:
        thread, what, number = machine.shown(move)
        name = world.threads[thread].name
        if what:
            rows.append([name, what, number])
        elif rows and len(rows[-1]) == 2 and rows[-1][0] == name:
            rows[-1][1] += 1
        else:
            rows.append([name, 1])
    return rows


def follow(world: World, machine: Machine, rows: Sequence[Sequence[Any]]) -> list[int]:
    """The moves of a schedule in JSON; UsageError if it names what is not there."""
    threads = {thread.name: number for number, thread in enumerate(world.threads)}
    moves: list[int] = []
    for row in rows:
        name, what, number = row if len(row) == 3 else (row[0], "", 0)
        if name not in threads:
            raise UsageError(f"schedule: {name!r} is not one of the threads {', '.join(threads)}")
        move = machine.parsed(threads[name], str(what), int(number))
        if move < 0:
            raise UsageError(f"schedule: {what!r} is no move of memory model {machine.name}")
        moves += [move] * (int(row[1]) if len(row) == 2 else 1)
    return moves


def state_after(machine: Machine, moves: Sequence[int]) -> State:
    """The state that moves lead to."""
    state = machine.start()
    for move in moves:
        state = machine.move(state, move)
    return state
