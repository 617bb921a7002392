"""The bug of a finding in three lines, as a litmus test has it: who stores, who loads, and which order is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import operations as op
from .causes import Causes, Edge
from .story import Event

__all__ = ["kernel"]

Name = Callable[[int], str]
"""How a step is called: by its number among those that are told."""


def kernel(
    causes: Causes,
    names: Sequence[str],
    place: Callable[[Event], str],
    value: Callable[[Event, int], str],
    number: Name,
) -> list[str]:
    """Three lines; none if what the finding depends on has no such form. ``value`` says what a step's value means."""
    its = _Kernel(causes, names, place, value, number)
    if causes.asleep:
        return its.lost_wake()
    return its.old_value() or its.late_store() or its.between() or its.seen()


class _Kernel:
    def __init__(
        self,
        causes: Causes,
        names: Sequence[str],
        place: Callable[[Event], str],
        value: Callable[[Event, int], str],
        number: Name,
    ) -> None:
        self.causes, self.events, self.edges = causes, causes.events, causes.edges
        self.names, self.place, self.value, self.number = names, place, value, number

    def did(self, step: int) -> str:
        """Who did what, as in "vCPU 0 loads w[0] = 1 (3)"."""
        event = self.events[step]
        who, place = self.names[event.thread], self.place(event)
        if event.code == op.WAKE:
            what = f"wakes {place}"
        elif event.code in {op.WAIT, op.LOCK, op.UNLOCK}:
            what = f"{op.NAMES[event.code]}s {place}"
        elif event.code <= op.LOAD_ACQUIRE:
            what = f"loads {place} = {self.value(event, event.returned or 0)}"
        elif event.code <= op.STORE_RELEASE or event.before == event.after:
            what = f"stores {place} = {self.value(event, event.value)}"
        else:
            what = f"changes {place} to {self.value(event, event.value)}"
        return f"{who} {what} ({self.number(step)})"

    def lost_wake(self) -> list[str]:
        """Who sleeps for ever, and whom the wakes reached."""
        lines, waits = [], []
        for thread, step in self.causes.asleep.items():
            waits.append(self.names[thread])
            what = f"sleeps on {self.place(self.events[step])} ({self.number(step)})" if step >= 0 else "wants a lock"
            lines.append(f"{self.names[thread]} {what}")
        for number in self.causes.steps:
            event = self.events[number]
            if event.code == op.WAKE:
                whom = ", ".join(self.names[each] for each in event.wakes) or "nobody"
                lines.append(f"{self.did(number)}: {whom} was asleep there and rose")
        return [*lines, f"missing: a wake for {', '.join(waits)}, or a look that sees what was stored"]

    def old_value(self) -> list[str]:
        """A load that returned an old value although its thread knew of a newer store."""
        for edge in self.edges:
            load, store = self.events[edge.first], self.events[edge.then]
            if edge.kind == "before" and edge.then < edge.first and not store.buffered and load.turn >= 0:
                earlier = [
                    e
                    for e in self.edges
                    if e.kind == "read" and self.events[e.then].thread == load.thread and e.then < edge.first
                ]
                lines = [self.did(edge.then), f"{self.did(edge.first)}, an old value"]
                if not earlier:
                    return [*lines, "missing: an order by which the load must see the store"]
                known = earlier[-1].then
                loads = f"{self.names[load.thread]}'s loads {self.number(known)} and {self.number(edge.first)}"
                return [
                    f"{lines[0]}; {self.did(known)}, which came after that",
                    lines[1],
                    f"missing: the order of {loads} (acquire), or of the stores that they see (release)",
                ]
        return []

    def late_store(self) -> list[str]:
        """A store that was in a store buffer while its thread went on, and that somebody did not see."""
        landed = {event.lands: number for number, event in enumerate(self.events) if event.lands >= 0}
        for edge in self.edges:
            store = self.events[edge.then]
            if edge.kind != "before" or not store.buffered or edge.first < edge.then:
                continue
            end = landed.get(edge.then, len(self.events))
            past = [
                step
                for step in self.causes.steps
                if self.events[step].thread == store.thread
                and self.events[step].turn > store.turn
                and landed.get(step, step) < end
            ]
            if not past:
                continue
            what = "load" if self.events[past[0]].code <= op.LOAD_ACQUIRE else "store"
            order = "a full fence" if what == "load" else "a release"
            first, then = self.number(edge.then), self.number(past[0])
            return [
                f"{self.did(edge.then)}: it waits in the store buffer while {self.did(past[0])}",
                f"{self.did(edge.first)}, for the store of {first} has not reached memory",
                f"missing: {order} that keeps {self.names[store.thread]}'s {what} {then} behind its store {first}",
            ]
        return []

    def seen(self) -> list[str]:
        """What another thread left behind, and was not to be seen."""
        read = [edge for edge in self.edges if edge.kind == "read"]
        if not read:
            return []
        into = max(read, key=lambda edge: (edge.then, edge.first))
        mine, theirs = self.names[self.events[into.then].thread], self.names[self.events[into.first].thread]
        left = f"what {theirs} left at {self.number(into.first)}, before it goes on"
        return [
            self.did(into.first),
            self.did(into.then),
            f"missing: nothing keeps {mine}'s {self.number(into.then)} from {left}",
        ]

    def between(self) -> list[str]:
        """Steps of one thread that come between two of another."""
        best: tuple[int, int, int, int, Edge, Edge] | None = None
        for into in self.edges:
            for out in self.edges:
                a, x, y, b = out.first, out.then, into.first, into.then
                one, other = self.events[a].thread, self.events[x].thread
                fits = self.events[b].thread == one and self.events[y].thread == other and one != other
                if fits and a < b and x <= y and "wakes" not in {out.kind, into.kind}:
                    key = (b, into.kind == "read", a, x)
                    if best is None or key > best[:4]:
                        best = (*key, out, into)
        if best is None:
            return []
        out, into = best[4:]
        mine, theirs = self.names[self.events[out.first].thread], self.names[self.events[out.then].thread]
        come = {"before": "before {} stores there", "read": "which {} reads", "over": "which {} stores over"}
        steps = [self.number(out.then), *([self.number(into.first)] if out.then != into.first else [])]
        pair = f"{mine}'s {self.number(out.first)} and {self.number(into.then)}"
        return [
            f"{self.did(out.first)}, {come[out.kind].format(theirs)} ({self.number(out.then)})",
            f"{self.did(into.first)}, {come[into.kind].format(mine)} ({self.number(into.then)})",
            f"missing: nothing keeps {theirs}'s {' and '.join(steps)} from coming between {pair}",
        ]
