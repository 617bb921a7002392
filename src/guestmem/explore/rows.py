"""The parts of states as numbers, for the compiled search: what is shared, and of each thread what is its own.

What is *shared*: the memory; under ``stale`` with it the stores that may still be read and the fences' view. A thread's
*own*: its node; under store buffers with it the stores that wait, under ``stale`` its views. A move of a thread is a
function of these two: under ``stale`` given by the machine itself, on a state in which all other threads have ended;
else by the own part's actions (``unfold.py``), which are as ``Machine`` and ``Buffers`` have them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ..units import U64_MAX
from . import asking as ask
from . import operations as op
from .judge import Judge
from .machine import Buffers, Machine, State
from .stale import Stale, join, less
from .tree import Memory, Node
from .unfold import NO_ACTION

__all__ = ["Move", "Rows"]

Move = tuple[int, int, int]
"""Shared part and own part after it, and whom it wakes: (1 + point) << 5 | how many, 0 for nobody."""

Action = tuple[int, int, int, int, int]
"""What it is (``SEE``, ``PUT``, ``LAST``), the point, the value's number, the own part after it, whom it wakes."""

_FIRST = 2
"""The first number of an own part: 0 and 1 stand for what is not known, or not there."""


class Rows:
    """The numbers of one machine's parts, and what moves make of them. All methods are O(size of a part)."""

    first = _FIRST

    def __init__(self, machine: Machine, judge: Judge) -> None:
        self.machine, self.judge, self.tree = machine, judge, machine.tree
        self.stale, self.buffers = isinstance(machine, Stale), isinstance(machine, Buffers)
        self.watched = bool(judge.invariants)
        self._threads = machine.threads
        self._spurious = self.tree.world.model.spurious
        self._room = self.tree.world.model.buffer
        self._overtake = isinstance(machine, Buffers) and machine.overtake
        self._stubs = [self._stub(thread) for thread in range(machine.threads)]
        self.shareds: list[Any] = [] if self.stale else self.tree.by_number
        """By number; of plain memory and of store buffers the Memory alone."""
        self._shared_numbers: dict[Any, int] = {}
        self.locals: list[tuple[Node, Any]] = [(self._stubs[0], None)] * _FIRST
        self._local_numbers: dict[tuple[Node, Any], int] = {}
        # Columns by own part, for the compiled loop.
        self.kinds: list[int] = [0] * _FIRST
        self.points_of: list[int] = [0] * _FIRST
        self.looks: list[int] = [0] * _FIRST
        self.views: list[int] = [0] * _FIRST
        self._views: list[tuple[int, ...]] = [(), (0,) * (len(self.tree.points) + 1)]
        self._view_numbers: dict[tuple[int, ...], int] = {self._views[1]: 1}
        self._look_numbers: dict[Any, int] = {}
        self._noted: list[Node] = [self._stubs[0]]
        self._pairs: list[tuple[int, int]] = [(0, 0), (0, 0)]
        self._pair_numbers: dict[tuple[int, int], int] = {}
        self._tries: dict[int, Any] = {}
        self.actions: list[Action] = [(0, 0, 0, 0, 0)] * (int(NO_ACTION) + 1)
        self._actors: list[tuple[Node, Any]] = [self.locals[0]] * len(self.actions)
        self.effects: list[tuple[int, int]] = [(0, 0)]
        self.values: list[int] = [0]
        """By number, from 1 on."""
        self._value_numbers: dict[int, int] = {}

    def _stub(self, thread: int) -> Node:
        node = Node(thread, None, 0, -1)
        node.code = op.ENDED
        return node

    # Numbers.

    def shared(self, part: Any) -> int:
        """The number of a shared part."""
        if not self.stale:
            return int(part.number)
        number = self._shared_numbers.setdefault(part, len(self.shareds))
        if number == len(self.shareds):
            self.shareds.append(part)
        return number

    def local(self, node: Node, extra: Any) -> int:
        """The number of a thread's own part."""
        key = (node, extra)
        number = self._local_numbers.get(key)
        if number is None:
            number = self._local_numbers[key] = len(self.locals)
            self.locals.append(key)
            self.kinds.append(self._kind(node, extra))
            self.points_of.append(node.at)
            self.looks.append(self._look(node) if self.watched else 0)
            over = node.code in {op.ENDED, op.FAILED}
            self.views.append(self._view(extra[0]) if self.stale and not over else 0)
        return number

    def _kind(self, node: Node, extra: Any) -> int:
        code = node.code
        kind = 0
        if code >= 0 or (self.buffers and extra):
            kind = ask.RUNS
        elif code == op.ASLEEP:
            kind = ask.ASLEEP
            if node.second != U64_MAX:
                kind |= ask.TIMED
            if node.spurious < self._spurious:
                kind |= ask.MAY_RISE
        if code == op.FAILED:
            kind |= ask.FAILED
        return int(kind)

    def _view(self, view: tuple[int, ...]) -> int:
        number = self._view_numbers.setdefault(view, len(self._views))
        if number == len(self._views):
            self._views.append(view)
        return number

    def _look(self, node: Node) -> int:
        """What properties see of a thread: its notes, and whether and how it has ended."""
        key: Any = (id(node.notes), node.number if node.code == op.ENDED else -1)
        number = self._look_numbers.get(key)
        if number is None:
            notes = tuple(sorted((name, repr(value)) for name, value in node.notes.items()))
            same = ("notes", notes, key[1])
            number = self._look_numbers.get(same)
            if number is None:
                number = self._look_numbers[same] = len(self._noted)
                self._noted.append(node)
            self._look_numbers[key] = number
            self._kept = [*getattr(self, "_kept", ()), node.notes]  # so that its id is nobody else's
        return number

    # States.

    def encode(self, state: State) -> list[int]:
        """A state of the machine as numbers."""
        n = self._threads
        if self.stale:
            shared: Any = (state[0], state[n + 1], state[n + 2])
            extras = state[n + 3 :]
        else:
            shared, extras = state[0], state[n + 1 :] if self.buffers else (None,) * n
        return [self.shared(shared), *map(self.local, state[1 : n + 1], extras)]

    def decode(self, row: Any) -> State:
        """Numbers as a state of the machine."""
        shared = self.shareds[int(row[0])]
        owns = [self.locals[int(number)] for number in row[1 : self._threads + 1]]
        nodes = [node for node, _ in owns]
        if self.stale:
            return (shared[0], *nodes, shared[1], shared[2], *[extra for _, extra in owns])
        return (shared, *nodes, *[extra for _, extra in owns]) if self.buffers else (shared, *nodes)

    # What the compiled loop asks.

    def value(self, value: int) -> int:
        """The number of a value of a word."""
        number = self._value_numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def first_action(self, own: int) -> int:
        """The number of the first action of an own part, ``NO_ACTION`` if there is none; they follow each other."""
        node, extra = self.locals[own]
        found = self._actions(node, extra or ())
        if not found:
            return int(NO_ACTION)
        first = len(self.actions)
        found[-1] = (found[-1][0] | int(ask.LAST), *found[-1][1:])
        self.actions += found
        self._actors += [(node, extra)] * len(found)
        return first

    def _actions(self, node: Node, buffer: Any) -> list[Action]:
        """As ``Machine`` has the moves of one thread, or ``Buffers``."""
        code, at, tree = node.code, node.at, self.tree
        extra = buffer if self.buffers else None
        found: list[Action] = []
        mine = [value for place, value, _ in buffer if place == at]
        if code < 0 or (code > op.UNLOCK and buffer):
            pass  # over, asleep, or it waits until its stores are in memory
        elif code <= op.LOAD_ACQUIRE and mine:
            found.append((0, 0, 0, self.local(tree.kid(node, mine[-1]), extra), 0))
        elif code <= op.LOAD_ACQUIRE or op.UNLOCK < code <= op.LOCK or code == op.WAIT:
            found.append((int(ask.SEE), at, 0, 0, 0))
        elif code > op.LOCK:
            found.append((0, 0, 0, self.local(tree.kid(node, 0), extra), self._wakes(node) << 1))
        else:
            value = op.after(code, 0, node.first, 0)
            if not self.buffers:
                found.append((int(ask.PUT), at, self.value(value), self.local(tree.kid(node, 0), None), 0))
            elif len(buffer) < self._room:
                store = (at, value, code != op.STORE_RELAXED)
                found.append((0, 0, 0, self.local(tree.kid(node, 0), (*buffer, store)), 0))
        over: set[int] = set()  # what stores that are overtaken are to
        for i, (place, value, release) in enumerate(buffer):
            if not i or (self._overtake and not release and place not in over):
                after = self.local(node, buffer[:i] + buffer[i + 1 :])
                found.append((int(ask.PUT), place, self.value(value), after, 0))
            over.add(place)
        return found

    def effect(self, action: int, value: int) -> int:
        """The number of what an action does when it sees a value: the one that it writes or 0, the own part or 0."""
        node, extra = self._actors[action]
        code, seen, tree = node.code, self.values[value], self.tree
        puts, kid = 0, None
        if code <= op.LOAD_ACQUIRE:
            kid = tree.kid(node, seen)
        elif code <= op.OR:
            puts, kid = self.value(op.after(code, seen, node.first, node.second)), tree.kid(node, seen)
        elif code == op.WAIT:
            kid = tree.asleep(node) if op.same_futex(seen, node.first) else tree.kid(node, 0)
        elif not seen:  # a lock that is free
            puts, kid = self.value(node.thread + 1), tree.kid(node, 0)
        self.effects.append((puts, 0 if kid is None else self.local(kid, extra)))
        return len(self.effects) - 1

    def moves(self, own: int, shared: int) -> list[Move]:
        """What a thread can do under ``stale``, sleepers that rise not counted."""
        assert isinstance(self.machine, Stale)
        node, views = self.locals[own]
        part = self.shareds[shared]
        n, thread = self._threads, node.thread
        nothing = self._views[1]
        parts: list[Any] = [part[0], *self._stubs, part[1], part[2], *[(nothing, nothing, nothing)] * n]
        parts[thread + 1], parts[n + 3 + thread] = node, views
        state = tuple(parts)
        found = []
        for move in self.machine.moves(state):
            after = self.machine.step(state, move)
            shares = self.shared((after[0], after[n + 1], after[n + 2]))
            found.append((shares, self.local(after[thread + 1], after[n + 3 + thread]), self._wakes(node)))
        return found

    def _wakes(self, node: Node) -> int:
        return (node.at + 1) << 5 | min(node.first, self._threads) if node.code == op.WAKE and node.first else 0

    def alone(self, own: int) -> int:
        """The own part after a step that can be searched alone (``Machine.unseen``), 1 if there is none."""
        node, extra = self.locals[own]
        n, thread = self._threads, node.thread
        parts: list[Any] = [self.tree.start, *self._stubs, *[()] * n]
        parts[thread + 1], parts[thread + 1 + n] = node, extra
        state = tuple(parts)
        if self.machine.unseen(state, watched=self.watched) < 0:
            return 1
        after = self.machine.move(state, thread)
        return self.local(after[thread + 1], after[thread + 1 + n])

    def rise(self, own: int) -> int:
        """A sleeper that wakes for no reason, if it still may, else by its timeout."""
        bed, extra = self.locals[own]
        return self.local(self.tree.awake(bed, spuriously=bed.spurious < self._spurious), extra)

    def wake(self, own: int, waker: int) -> int:
        """A sleeper that was woken."""
        bed, extra = self.locals[own]
        if self.stale:
            now = self.locals[waker][1][0]
            extra = tuple(join(view, now) for view in extra)
        return self.local(self.tree.awake(bed), extra)

    def oldest(self, a: int, b: int) -> int:
        """How old a store two views may both still read; of no view (0), of the shared part ``b`` the newest."""
        if a:
            return self._view(tuple(map(min, self._views[a], self._views[b])))
        return self._view(tuple(len(stores) - 1 for stores in self.shareds[b][1]))

    def forget_shared(self, oldest: int, shared: int) -> int:
        """A shared part without the stores that nobody can read any more."""
        memory, messages, fences = self.shareds[shared]
        old = self._views[oldest]
        stores = tuple(
            tuple((value, less(view, old)) for value, view in (each[gone:] if gone else each))
            for each, gone in zip(messages, old, strict=True)
        )
        return self.shared((memory, stores, less(fences, old)))

    def forget_own(self, oldest: int, own: int) -> int:
        """A thread's own part, its views counted from the oldest store that is left."""
        node, views = self.locals[own]
        old = self._views[oldest]
        return self.local(node, tuple(less(view, old) for view in views))

    def look(self, before: int, look: int) -> int:
        """The number of what properties see of the threads so far, and of the next one. 1: of none so far."""
        key = (before, look)
        number = self._pair_numbers.setdefault(key, len(self._pairs))
        if number == len(self._pairs):
            self._pairs.append(key)
        return number

    def seen(self, looks: int) -> list[Node]:
        """Of each thread a node with what properties see."""
        nodes: list[Node] = []
        while looks != 1:
            looks, look = self._pairs[looks]
            nodes.append(self._noted[look])
        return nodes[::-1]

    def verdict(self, looks: int, shared: int) -> int:
        """Whether all invariants hold. They are run once for each combination of what they look at."""
        memory: Memory = self.shareds[shared][0] if self.stale else self.shareds[shared]
        at = self._tries.get(looks)
        while at is not None and at.__class__ is tuple:
            where, answers = at
            at = answers.get(memory.values[where])
        if at is None:
            at = self._judged(looks, memory)
        return int(at)

    def _judged(self, looks: int, memory: Memory) -> int:
        reads, broken = self.judge.invariants_of(memory, self.seen(looks))
        at = int(ask.BROKEN if broken else ask.HOLDS)
        if not reads:
            self._tries[looks] = at
            return at
        if looks not in self._tries:
            self._tries[looks] = (reads[0], {})
        branch = self._tries[looks][1]
        for here, then in pairwise(reads):
            branch = branch.setdefault(memory.values[here], (then, {}))[1]
        branch[memory.values[reads[-1]]] = at
        return at

    def answer(self, kind: int, a: int, b: int) -> int:
        """What the compiled loop asks of one or two numbers."""
        return _ANSWERS[kind](self, a, b)


_ANSWERS: dict[int, Callable[[Rows, int, int], int]] = {
    int(ask.SHARED): Rows.forget_shared,
    int(ask.WAKE): Rows.wake,
    int(ask.OLDEST): Rows.oldest,
    int(ask.FORGET): Rows.forget_own,
    int(ask.LOOK): Rows.look,
    int(ask.VERDICT): Rows.verdict,
    int(ask.SEEN): Rows.effect,
    int(ask.ALONE): lambda rows, own, _: rows.alone(own),
    int(ask.ACTIONS): lambda rows, own, _: rows.first_action(own),
    int(ask.RISE): lambda rows, own, _: rows.rise(own),
}
