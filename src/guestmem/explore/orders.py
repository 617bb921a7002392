"""A schedule's orders: who stored what a load read, which store came next, and what comes before what by that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from . import operations as op
from .machine import Machine, State
from .record import Lived, relive
from .story import Event, events

__all__ = ["Schedule", "lands", "reads"]


def lands(event: Event) -> bool:
    """Whether memory has another value of this step's, or the same once more."""
    if event.lands >= 0:
        return True
    if event.buffered or not (op.STORE_RELAXED <= event.code <= op.LOCK):
        return False
    return event.code != op.COMPARE_EXCHANGE or event.before != event.after


def reads(event: Event) -> bool:
    """Whether it is a thread's operation that returns what is in a word, or depends on it (a lock)."""
    return event.turn >= 0 and (event.code <= op.LOAD_ACQUIRE or op.UNLOCK < event.code <= op.LOCK)


class Schedule:
    """The events of a schedule, and the life of each of its threads."""

    def __init__(self, machine: Machine, moves: Sequence[int]) -> None:
        self.machine, self.tree = machine, machine.tree
        self.world = machine.tree.world
        self.events = events(machine, moves)
        self.state: State = machine.start()
        for move in moves:
            self.state = machine.move(self.state, move)
        nodes = machine.nodes(self.state)
        self.lives = [self._relive(thread, node.history()) for thread, node in enumerate(nodes)]
        self.by_turn = {(e.thread, e.turn): number for number, e in enumerate(self.events) if e.turn >= 0}

    def _relive(self, thread: int, answers: list[int]) -> Lived:
        return relive(self.world, thread, self.tree.compact, answers, fences=self.machine.fences)

    @cached_property
    def stores(self) -> dict[int, list[int]]:
        """By point the steps in which a store reaches memory, or never does, in the order in which they count."""
        found: dict[int, list[int]] = {}
        landed = {event.lands for event in self.events if event.lands >= 0}
        never = [n for n, event in enumerate(self.events) if event.buffered and n not in landed]
        for number in [n for n, event in enumerate(self.events) if lands(event)] + never:
            found.setdefault(self.events[number].at, []).append(number)
        return found

    def issued(self, step: int) -> int:
        """The step in which a thread made a store, of one in which it left its buffer."""
        put = self.events[step].lands
        return put if put >= 0 else step

    @cached_property
    def clocks(self) -> list[tuple[int, ...]]:
        """Of each step, how many steps of each thread come before it, by program order and by what was read."""
        threads = self.machine.threads
        now = [(0,) * threads for _ in range(threads)]
        clocks: list[tuple[int, ...]] = []
        for number, event in enumerate(self.events):
            clock = now[event.thread]
            if event.lands >= 0:
                clocks.append(clocks[event.lands])
                continue
            if reads(event):
                source = self.source(number)
                if source >= 0:
                    clock = tuple(map(max, clock, clocks[source]))
            if event.turn >= 0:
                clock = tuple(event.turn + 1 if t == event.thread else c for t, c in enumerate(clock))
            clocks.append(clock)
            now[event.thread] = clock
            for woken in event.wakes:
                now[woken] = tuple(map(max, now[woken], clock))
        return clocks

    def ordered(self, first: int, then: int) -> bool:
        """Whether a step comes before another by program order and by what was read."""
        event = self.events[first]
        return self.clocks[then][event.thread] > event.turn

    def source(self, step: int) -> int:
        """Which step stored what a load read, -1 for what was there at first."""
        event = self.events[step]
        saw = 0 if event.code == op.LOCK else event.returned
        for earlier in range(step - 1, -1, -1):
            other = self.events[earlier]
            if other.at == event.at and other.at >= 0 and lands(other) and other.value == saw:
                return earlier
            if other.buffered and (other.thread, other.at, other.value) == (event.thread, event.at, saw):
                return earlier
        return -1

    def older(self, source: int, saw: int) -> int | None:
        """What was in a word before a store: another value than was seen."""
        event = self.events[source]
        for number in reversed(self.stores.get(event.at, [])):
            if number < source and self.events[number].value != saw:
                return self.events[number].value
        first = self.tree.start.values[event.at]
        return first if first != saw else None

    def later(self, step: int, source: int, event: Event, saw: int) -> int:
        """The step in which another thread makes the next store of another value to a load's word; -1 for none."""
        stale = self.machine.name == "stale"
        for number in self.stores.get(event.at, []):
            other = self.events[number]
            behind = number > (source if stale else step) or (other.buffered and number > source)
            if other.thread != event.thread and other.value != saw and behind and number != step:
                return self.issued(number)
        return -1
