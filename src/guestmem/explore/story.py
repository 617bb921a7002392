"""A counterexample for people: a column a thread, what each did to which word, and where in the source.

Also as trace events (JSON) for Perfetto and chrome://tracing, one track a thread, one microsecond a step.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import operations as op
from .machine import Machine
from .tree import Memory, Node
from .world import Where

__all__ = ["Columns", "Event", "events", "number_text", "trace_events", "whole_story"]


_LONGEST, _SPINS = 24, 2
"""Steps of a loop that is told once, if it comes more often than that."""


@dataclass(frozen=True)
class Event:
    """One step: ``thread`` did ``what`` to ``place``. ``before`` and ``after``: the word in memory; None: untouched."""

    thread: int
    what: str
    place: str
    before: int | None
    after: int | None
    returned: int | None
    where: Where | None
    remark: str = ""
    code: int = op.FENCE
    at: int = -1
    """The point; -1: none."""
    turn: int = -1
    """Which of its thread's operations on points it is; -1: of what memory does, and of a sleeper that rises, none."""
    value: int = 0
    """Of a store: what it writes, now or from the buffer."""
    wakes: tuple[int, ...] = ()
    """Threads that it wakes."""
    buffered: bool = False
    lands: int = -1
    """Of a store that leaves the buffer: which event put it there."""
    memory: Memory | None = None
    """After it."""

    def lines(self) -> tuple[str, str]:
        """What happened, and where."""
        text = self.place
        if self.before is not None and self.after is not None and self.before != self.after:
            text += f": {number_text(self.before)} → {number_text(self.after)}"
        elif self.returned is not None:
            text += f" = {number_text(self.returned)}"
        head = f"{self.what} {text}".strip() + (f" ({self.remark})" if self.remark else "")
        return head, f"{self.where} {self.where.function}" if self.where else ""


def number_text(value: int) -> str:
    """A number for people: large ones are addresses or flags."""
    return str(value) if value < 4096 else f"{value:#x}"


def events(machine: Machine, moves: Sequence[int]) -> list[Event]:
    """What happens, move by move."""
    tree = machine.tree
    places = [str(tree.world.places[place]) for place in tree.points]
    names = [thread.name for thread in tree.world.threads]
    state = machine.start()
    told: list[Event] = []
    turns = [0] * machine.threads
    waiting: list[list[int]] = [[] for _ in range(machine.threads)]
    for move in moves:
        thread, what, number = machine.shown(move)
        before, nodes = machine.memory(state).values, machine.nodes(state)
        state = machine.move(state, move)
        after, later = machine.memory(state).values, machine.nodes(state)
        node: Node = nodes[thread]
        if what == "flush":
            changed = next((at for at, value in enumerate(after) if value != before[at]), -1)
            was, now = (before[changed], after[changed]) if changed >= 0 else (None, None)
            remark = "overtakes" if number else "leaves the store buffer"
            lands = waiting[thread].pop(number)
            stored = told[lands]
            event = Event(thread, "store reaches memory", stored.place, was, now, None, None, remark)
            told.append(replace(event, at=stored.at, value=stored.value, lands=lands, memory=machine.memory(state)))
            continue
        at = node.at
        place = "" if node.code == op.FENCE else places[at]
        returned = later[thread].value if node.code <= op.LOAD_ACQUIRE or op.OR >= node.code > op.UNLOCK else None
        remarks = []
        if node.code == op.ASLEEP:
            remarks.append("rises: " + ("for no reason" if later[thread].value else "timeout"))
        elif later[thread].code == op.ASLEEP:
            remarks.append("falls asleep")
        elif op.STORE_RELAXED <= node.code <= op.UNLOCK and before is after and machine.name in {"tso", "relaxed"}:
            value = 0 if node.code == op.UNLOCK else node.first
            remarks.append(f"{number_text(value)} waits in the store buffer")
        if what == "reads":
            remarks.append("stale")
        elif returned is not None and node.code <= op.LOAD_ACQUIRE and returned != before[at]:
            remarks.append("from its own store buffer")
        wakes = [k for k, n in enumerate(nodes) if n.code == op.ASLEEP and later[k] is not n and k != thread]
        if wakes:
            remarks.append("wakes " + ", ".join(names[k] for k in wakes))
        name = op.NAMES.get(node.code, "asleep on")
        was, now = (before[at], after[at]) if node.code not in {op.FENCE, op.ASLEEP} else (None, None)
        event = Event(thread, name, place, was, now, returned, node.where, "; ".join(remarks))
        turn = -1 if node.code == op.ASLEEP else turns[thread]
        turns[thread] += node.code != op.ASLEEP
        buffered = machine.name in {"tso", "relaxed"} and op.STORE_RELAXED <= node.code <= op.UNLOCK
        if buffered:
            waiting[thread].append(len(told))
        value = op.after(node.code, before[at], node.first, node.second) if node.code >= op.STORE_RELAXED else 0
        if node.code == op.LOCK:
            value = thread + 1
        event = replace(event, code=node.code, at=-1 if node.code == op.FENCE else at, turn=turn, value=value)
        told.append(replace(event, wakes=tuple(wakes), buffered=buffered, memory=machine.memory(state)))
    return told


def whole_story(machine: Machine, moves: Sequence[int], *, width: int = 79) -> str:
    """All events in columns, one a thread, in the order in which they happen."""
    names = [thread.name for thread in machine.tree.world.threads]
    columns = Columns(names, width)
    lines = columns.head()
    last = -1
    told = events(machine, moves)
    number = 0
    while number < len(told):
        size, times = _spin(told, number)
        for event in told[number : number + size]:
            number += 1
            if last not in {-1, event.thread}:
                lines.append("")
            last = event.thread
            head, where = event.lines()
            lines += columns.cell(event.thread, str(number), [head, *([where] if where else [])])
        if times > 1:
            lines.append(f"     {f'the last {size} steps' if size > 1 else 'the last step'}, {times - 1} more times")
            number += size * (times - 1)
    return "\n".join(lines)


def _spin(told: Sequence[Event], begin: int) -> tuple[int, int]:
    """How many steps from one on come again and again, and how often: 1, 1 if none does."""
    for size in range(1, _LONGEST + 1):
        times = 1
        while _alike(told[begin : begin + size], told[begin + size * times : begin + size * (times + 1)]):
            times += 1
        if times > _SPINS:
            return size, times
    return 1, 1


def _alike(some: Sequence[Event], others: Sequence[Event]) -> bool:
    return len(some) == len(others) and all(
        (a.thread, a.code, a.at, a.before, a.after, a.returned, a.where, a.lands < 0)
        == (b.thread, b.code, b.at, b.before, b.after, b.returned, b.where, b.lands < 0)
        for a, b in zip(some, others, strict=True)
    )


class Columns:
    """A column a thread, as long as these are wide enough; else one for all, in which each step names its thread."""

    _NARROWEST = 24

    def __init__(self, names: Sequence[str], width: int) -> None:
        self.names = names
        self.wide = (width - 5) // len(names)
        self.one = self.wide < self._NARROWEST
        if self.one:
            self.wide = width - 5

    def head(self) -> list[str]:
        """The threads' names, underlined."""
        if self.one:
            return []
        names = "".join(name[: self.wide - 2].ljust(self.wide) for name in self.names)
        lines = "".join(("─" * min(len(name), self.wide - 2)).ljust(self.wide) for name in self.names)
        return ["     " + names.rstrip(), "     " + lines.rstrip()]

    def cell(self, thread: int, number: str, paragraphs: Sequence[str]) -> list[str]:
        """The lines of a step: paragraphs, the first of which goes with the number, the others a bit to the right."""
        left = 0 if self.one else self.wide * thread
        lines: list[str] = []
        for paragraph, text in enumerate(paragraphs):
            words = f"{self.names[thread]}: {text}" if self.one and not paragraph else text
            first, rest = ("", "  ") if not paragraph else ("  ", "    ")
            for line in textwrap.wrap(
                words, self.wide - 2, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
            ):
                lines.append(f"{'' if lines else number:>4} {' ' * left}{line}")
        return lines or [f"{number:>4}"]


def trace_events(machine: Machine, moves: Sequence[int]) -> dict[str, Any]:
    """The events as a trace-event file (a JSON object)."""
    rows: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": each.name}}
        for thread, each in enumerate(machine.tree.world.threads)
    ]
    for number, event in enumerate(events(machine, moves)):
        head, where = event.lines()
        rows.append(
            {
                "name": head,
                "cat": event.what,
                "ph": "X",
                "pid": 1,
                "tid": event.thread,
                "ts": number,
                "dur": 1,
                "args": {"where": where, "before": event.before, "after": event.after, "returned": event.returned},
            }
        )
    return {"traceEvents": rows, "displayTimeUnit": "ns"}
