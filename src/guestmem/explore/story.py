"""A counterexample for people: a column a thread, what each did to which word, and where in the source.

Also as trace events (JSON) for Perfetto and chrome://tracing, one track a thread, one microsecond a step.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import operations as op
from .machine import Machine
from .tree import Node
from .world import Where

__all__ = ["Event", "events", "story", "trace_events"]


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

    def lines(self) -> tuple[str, str]:
        """What happened, and where."""
        text = self.place
        if self.before is not None and self.after is not None and self.before != self.after:
            text += f": {_number(self.before)} → {_number(self.after)}"
        elif self.returned is not None:
            text += f" = {_number(self.returned)}"
        head = f"{self.what} {text}".strip() + (f" ({self.remark})" if self.remark else "")
        return head, f"{self.where} {self.where.function}" if self.where else ""


def _number(value: int) -> str:
    return str(value) if value < 4096 else f"{value:#x}"


def events(machine: Machine, moves: Sequence[int]) -> list[Event]:
    """What happens, move by move."""
    tree = machine.tree
    places = [str(tree.world.places[place]) for place in tree.points]
    names = [thread.name for thread in tree.world.threads]
    state = machine.start()
    told = []
    for move in moves:
        thread, what, number = machine.shown(move)
        before, nodes = machine.memory(state).values, machine.nodes(state)
        state = machine.move(state, move)
        after, later = machine.memory(state).values, machine.nodes(state)
        node: Node = nodes[thread]
        if what == "flush":
            changed = next((at for at, value in enumerate(after) if value != before[at]), -1)
            place = places[changed] if changed >= 0 else ""
            was, now = (before[changed], after[changed]) if changed >= 0 else (None, None)
            remark = "overtakes" if number else "leaves the store buffer"
            told.append(Event(thread, "store reaches memory", place, was, now, None, None, remark))
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
            remarks.append(f"{_number(value)} waits in the store buffer")
        if what == "reads":
            remarks.append("stale")
        elif returned is not None and node.code <= op.LOAD_ACQUIRE and returned != before[at]:
            remarks.append("from its own store buffer")
        woken = [names[k] for k, n in enumerate(nodes) if n.code == op.ASLEEP and later[k] is not n and k != thread]
        if woken:
            remarks.append("wakes " + ", ".join(woken))
        name = op.NAMES.get(node.code, "asleep on")
        was, now = (before[at], after[at]) if node.code not in {op.FENCE, op.ASLEEP} else (None, None)
        told.append(Event(thread, name, place, was, now, returned, node.where, "; ".join(remarks)))
    return told


def story(machine: Machine, moves: Sequence[int], *, width: int = 120) -> str:
    """The events in columns, one a thread, in the order in which they happen."""
    names = [thread.name for thread in machine.tree.world.threads]
    column = max(24, (width - 5) // len(names))
    lines = ["     " + "".join(name.ljust(column) for name in names).rstrip()]
    lines.append("     " + "".join(("─" * min(len(name), column - 2)).ljust(column) for name in names).rstrip())
    last = -1
    for number, event in enumerate(events(machine, moves), 1):
        if last not in {-1, event.thread}:
            lines.append("")
        last = event.thread
        head, where = event.lines()
        cell = textwrap.wrap(head, column - 2, subsequent_indent="  ") or [""]
        if where:
            cell += textwrap.wrap(where, column - 2, initial_indent="    ", subsequent_indent="      ")
        for index, text in enumerate(cell):
            lines.append(f"{number if not index else '':>4} " + " " * (column * event.thread) + text)
    return "\n".join(lines)


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
