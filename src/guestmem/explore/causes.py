"""Which steps of a schedule a finding depends on: the orders between threads without which it would not be there.

A thread is a function of what its operations return. So whether a load matters is asked of its code: given, at that
load, what another thread stores to the word earlier or later in this schedule, and at every other word what it gave,
would the thread have come to the same (the failure, the store that somebody reads)? If not, the load matters, with the
store that it read, or with the one that it came before; and for that store the same is asked of the thread that made
it. An order that other steps keep anyway (a reader's section that an updater waited for) is no cause, those steps are.
Operations that this leaves out, and what lies on words that nobody else writes, follow from the rest.

Causes that only together make a difference are not found: then there are none, and the whole schedule is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from . import operations as op
from .finding import Finding
from .judge import Judge
from .machine import Machine, State
from .orders import Schedule, reads
from .record import Operation, instead
from .story import Event
from .world import Reshaped

__all__ = ["Causes", "Edge", "causes"]

_MOST = 400_000
"""Operations that are tried in all: beyond, every load of a word that another thread stores to counts."""
_MORE = 300
"""By how many operations a thread may go on for longer than it did."""


@dataclass(frozen=True)
class Edge:
    """That one step came before another of another thread on the same word: by their places in the schedule.

    ``kind``: read (a load read that store), before (a load came before that store), over (a store came over a store).
    """

    kind: str
    first: int
    then: int


@dataclass
class Causes:
    """The steps that matter, by their places in the schedule, and the orders among them."""

    schedule: Schedule
    steps: list[int] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    alone: bool = False
    """Whether no order between threads is among them: then they are what the thread that failed changed."""
    asleep: dict[int, int] = field(default_factory=dict)
    """Of a deadlock, threads that wait for ever: the step in which each fell asleep; -1 for one that wants a lock."""

    @property
    def events(self) -> list[Event]:
        """All steps of the schedule."""
        return self.schedule.events


@dataclass(frozen=True)
class _Target:
    """What a thread came to: its failure, or an operation (which of its own, from 0)."""

    thread: int
    turn: int
    fails: bool = False
    stuck: bool = False


class _Slicer(Schedule):
    """One slicing."""

    def __init__(self, machine: Machine, moves: Sequence[int], finding: Finding) -> None:
        super().__init__(machine, moves)
        self.finding = finding
        self.tried = 0
        self.relevant: set[int] = set()
        self.edges: set[Edge] = set()
        self.asleep: dict[int, int] = {}

    # What a thread would have done.

    def comes_to(self, target: _Target, step: int, value: int, then: int, until: int) -> bool:
        """Whether a thread comes to a target though it reads ``value`` at a step, and on until step ``until``.

        What it did not read in the schedule it reads as it was after step ``then``.
        """
        thread = target.thread
        life, turn, flipped = self.lives[thread].did, self.events[step].turn, self.events[step].at
        due: dict[int, list[tuple[int, int]]] = {}
        for number in range(turn + 1, len(life)):
            where = self.by_turn.get((thread, number))
            if where is not None:
                event = self.events[where]
                gave = event.returned if reads(event) else event.before
                due.setdefault(event.at, []).append((where, gave if gave is not None else 0))
        for queue in due.values():
            queue.reverse()
        own: dict[int, int] = {}
        memory = self.events[then].memory
        assert memory is not None
        others = {at for at, steps in self.stores.items() if any(self.events[s].thread != thread for s in steps)}

        def seen(operation: Operation, queue: list[tuple[int, int]]) -> int:
            at = operation.at
            if at == flipped and at not in own:
                where = queue[-1][0] if queue else len(self.events)
                if where < until:
                    return value
            if at in others and queue:
                return queue[-1][1]
            return own[at] if at in own else memory.values[at]

        def answer(operation: Operation) -> int | None:
            code, at, first, second = operation
            if code == op.FENCE:
                return 0
            queue = due.get(at, [])
            saw = seen(operation, queue)
            if queue:
                queue.pop()
            if code == op.WAIT:
                return None if op.same_futex(saw, first) else 0
            if code == op.LOCK:
                return None if saw else 0
            if code > op.LOAD_ACQUIRE and code < op.LOCK:
                own[at] = op.after(code, saw, first, second)
            return saw if code <= op.LOAD_ACQUIRE or (code > op.UNLOCK and code < op.LOCK) else 0

        past = [did.answer for did in life[:turn]]
        begun = life[turn]
        if begun.code in {op.COMPARE_EXCHANGE, op.EXCHANGE, op.ADD, op.AND, op.OR}:
            own[flipped] = op.after(begun.code, value, begun.first, begun.second)
        past.append(value)
        most = max(len(life) - turn, 0) + _MORE
        try:
            did, failed, stuck = instead(
                self.world, thread, self.tree.compact, past, answer, fences=self.machine.fences, most=most
            )
        except Reshaped:  # it wakes, or locks, what nobody else does: it came elsewhere
            return False
        self.tried += turn + len(did)
        return self._met(target, turn, did, failed, stuck)

    def _met(
        self, target: _Target, turn: int, did: Sequence[Operation], failed: object, stuck: Operation | None
    ) -> bool:
        life = self.lives[target.thread]
        if target.fails:
            return life.failed is not None and _same(failed, life.failed)
        wanted = life.did[target.turn]
        if target.turn == turn:
            return False
        same = Operation(wanted.code, wanted.at, wanted.first, wanted.second)
        if target.stuck:
            return stuck == same
        due = sum((e.code, e.at, e.first, e.second) == same for e in life.did[turn + 1 : target.turn + 1])
        return sum(each == same for each in did) >= due

    # What matters.

    def ask(self, target: _Target) -> list[_Target]:
        """Take in the loads of a thread without which it would not have come to a target; what is to be asked next."""
        found: list[_Target] = []
        for turn in range(min(target.turn + 1, self.lives[target.thread].answered)):
            step = self.by_turn[target.thread, turn]
            event = self.events[step]
            if reads(event):
                found += self._ask_load(target, step, event)
            elif event.code == op.WAIT and turn < target.turn:
                found += self._ask_wait(step, event)
        return found

    def _ask_load(self, target: _Target, step: int, event: Event) -> list[_Target]:
        saw = event.returned if event.code != op.LOCK else 0
        assert saw is not None
        found = []
        source = self.source(step)
        if source >= 0 and self.events[source].thread != event.thread:
            older = self.older(source, saw)
            if older is not None and self._matters(target, step, older, step, len(self.events) + 1):
                found.append(self._join("read", source, step))
        later = self.later(step, source, event, saw)
        if later >= 0 and not self.ordered(step, later):
            until = later
            if self.events[later].buffered:
                until = next((n for n, e in enumerate(self.events) if e.lands == later), len(self.events) + 1)
            then = max(step, until if until < len(self.events) else later)
            if until < step:  # what was read is older than what memory had
                until = len(self.events) + 1
            if self._matters(target, step, self.events[later].value, then, until):
                found.append(self._join("before", step, later))
        return found

    def _ask_wait(self, step: int, event: Event) -> list[_Target]:
        """A wait that a thread was woken from: it would not have come further."""
        for number in range(step + 1, len(self.events)):
            other = self.events[number]
            if event.thread in other.wakes:
                return [self._join("wakes", number, step)]
            if other.thread == event.thread:
                break
        return []

    def _matters(self, target: _Target, step: int, value: int, then: int, until: int) -> bool:
        return self.tried > _MOST or not self.comes_to(target, step, value, then, until)

    def _join(self, kind: str, first: int, then: int) -> _Target:
        """Take two steps in; the store among them is to be asked for next."""
        store = then if kind == "before" else first
        store = self.issued(store)
        pair = (first, store) if kind == "before" else (store, then)
        self.relevant |= set(pair)
        self.edges.add(Edge(kind, *pair))
        return _Target(self.events[store].thread, self.events[store].turn)

    # Where it begins.

    def targets(self) -> list[_Target]:
        """What a finding consists of."""
        if self.finding.kind in {"invariant", "final"}:
            return self._of_property()
        found = []
        for thread, node in enumerate(self.machine.nodes(self.state)):
            last = self.lives[thread].answered - 1
            if node.code == op.FAILED and self.lives[thread].failed is not None:
                found.append(_Target(thread, last, fails=True))
            elif self.finding.kind == "deadlock" and node.code in {op.ASLEEP, op.LOCK}:
                found.append(_Target(thread, len(self.lives[thread].did) - 1, stuck=True))
                last = self.by_turn.get((thread, found[-1].turn), -1)
                self.relevant |= {last} - {-1}
                self.asleep[thread] = last
                found += self._who_wrote(node.at, thread)
        return found

    def _who_wrote(self, at: int, thread: int) -> list[_Target]:
        """The last store of others to a word, and wakes of those that sleep on it."""
        found: list[_Target] = []
        for number in range(len(self.events) - 1, -1, -1):
            event = self.events[number]
            if event.at != at or event.thread == thread:
                continue
            if event.code == op.WAKE or number in self.stores.get(at, []):
                store = self.issued(number)
                self.relevant.add(store)
                found.append(_Target(event.thread, self.events[store].turn))
                if event.code != op.WAKE:
                    break
        return found

    def _of_property(self) -> list[_Target]:
        """The last store to each word without which the property would hold; and what the threads that it asks did."""
        judge = Judge(self.machine)
        verdict: Callable[[State], Finding | None]
        verdict = judge.arrived if self.finding.kind == "invariant" else judge.ended
        found: list[_Target] = []
        values = self.machine.memory(self.state).values
        for at, steps in self.stores.items():
            last = steps[-1]
            older = self.older(last, values[at])
            if older is None:
                continue
            other = self.tree.memory((*values[:at], older, *values[at + 1 :]))
            shown = verdict((other, *self.state[1:]))
            if shown is None or shown.key != self.finding.key or shown.message != self.finding.message:
                found.append(self._take(last))
        for thread in sorted(judge.asked(self.finding, self.state)):
            last_turn = self.lives[thread].answered - 1
            if last_turn >= 0:
                found.append(self._take(self.by_turn[thread, last_turn]))
        return found

    def _take(self, step: int) -> _Target:
        step = self.issued(step)
        self.relevant.add(step)
        return _Target(self.events[step].thread, self.events[step].turn)

    def run(self) -> Causes:
        """All that a finding depends on."""
        todo = self.targets()
        asked: set[_Target] = set()
        while todo:
            target = todo.pop()
            if target not in asked and target.turn >= 0:
                asked.add(target)
                todo += self.ask(target)
        self._over()
        edges = sorted(self.edges, key=lambda edge: (edge.then, edge.first))
        alone = not self.relevant
        if alone:
            self.relevant = self._alone()
        return Causes(self, sorted(self.relevant), edges, alone, self.asleep)

    def _alone(self) -> set[int]:
        """What a thread that failed by itself changed, and what it did last."""
        names = [thread.name for thread in self.world.threads]
        if self.finding.thread not in names or self.finding.kind == "livelock":
            return set()
        its = [n for n, e in enumerate(self.events) if e.thread == names.index(self.finding.thread) and e.turn >= 0]
        return {n for n in its if self.events[n].code >= op.STORE_RELAXED and self._changes(n)} | set(its[-1:])

    def _changes(self, step: int) -> bool:
        event = self.events[step]
        return event.buffered or event.before != event.after

    def _over(self) -> None:
        """A store of one thread that comes over another's, both of which matter."""
        for steps in self.stores.values():
            kept = [self.issued(number) for number in steps if self.issued(number) in self.relevant]
            for one, two in pairwise(kept):
                if self.events[one].thread != self.events[two].thread:
                    self.edges.add(Edge("over", one, two))


def _same(one: object, other: object) -> bool:
    """Whether two failures are the same, whatever numbers are in their messages."""
    return one is not None and (one[0], one[2]) == (other[0], other[2])  # type: ignore[index]


def causes(machine: Machine, moves: Sequence[int], finding: Finding) -> Causes:
    """The steps that a finding depends on: none if that is not known, and the whole schedule is to be told.

    O(loads of words that others store to, times the length of their threads) runs of code.
    """
    its = _Slicer(machine, moves, finding)
    with machine.tree.world.aside():
        return its.run()
