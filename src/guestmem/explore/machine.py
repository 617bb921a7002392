"""Machines: which moves a state allows, and what they lead to, under one memory model each.

A state is a tuple: the memory, then each thread's node, then what the memory model adds. A move is a number: thread
``move % threads`` takes a step, or (for larger numbers) the memory does something on its behalf. What is modelled:

- ``sc``: operations take effect at once, in the order of the schedule.
- ``tso``: x86. Each thread's stores wait in a buffer, in order; the thread itself sees them, others do not yet.
  Read-modify-writes of points, fences, waits and wakes need an empty buffer (futexes have full barriers,
  ``kernel/futex/``). One of a word that only its thread touches is no point, and empties nothing: weaker than x86.
- ``relaxed``: as ``tso``, but a relaxed store may leave the buffer before earlier stores to other words.
- ``stale`` (``stale.py``): loads may return old values.

A wait falls asleep if the low 32 bits are as expected, and is woken by a wake. Timeouts fire only when nothing else can
happen: time is slow. Sleepers may wake for no reason as often as the model says (``Model.spurious``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..units import U64_MAX
from . import operations as op
from .tree import Memory, Node, Tree

__all__ = ["Buffers", "Machine", "State"]

State = tuple[Any, ...]


class Machine:
    """Sequentially consistent: every operation takes effect at once."""

    name = "sc"
    fences = False

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.threads = len(tree.roots)
        self._spurious = tree.world.model.spurious

    def start(self) -> State:
        """The first state."""
        return (self.tree.start, *self.tree.roots)

    def nodes(self, state: State) -> Sequence[Node]:
        """The threads of a state."""
        return state[1 : 1 + self.threads]

    def memory(self, state: State) -> Memory:
        """The words of a state, as they are in memory."""
        memory: Memory = state[0]
        return memory

    def moves(self, state: State) -> list[int]:
        """What can happen, sleepers that wake for no reason not counted; if nothing else can, timeouts."""
        values = state[0].values
        moves = []
        for thread in range(self.threads):
            node = state[thread + 1]
            if node.code >= 0 and (node.code != op.LOCK or values[node.at] == 0):
                moves.append(thread)
        return moves or self._timeouts(state)

    def whims(self, state: State) -> list[int]:
        """Sleepers that may wake for no reason."""
        if not self._spurious:
            return []
        return [
            thread
            for thread, node in enumerate(self.nodes(state))
            if node.code == op.ASLEEP and node.spurious < self._spurious
        ]

    def unseen(self, state: State, *, watched: bool) -> int:
        """A move that commutes with all that can happen and that no property can see, -1 if there is none.

        Searched alone, it loses no end and no finding. ``watched``: properties look at states on the way.
        """
        del state, watched
        return -1

    def _timeouts(self, state: State) -> list[int]:
        return [
            thread for thread, node in enumerate(self.nodes(state)) if node.code == op.ASLEEP and node.second != U64_MAX
        ]

    def move(self, state: State, move: int) -> State:
        """The state after a move."""
        node: Node = state[move + 1]
        if node.code == op.ASLEEP:
            return self._rise(state, move)
        memory = state[0]
        after, kid, wakes = node.memo.get(memory) or self.tree.look(node, memory)
        assert kid is not None
        return self._put(state, move, node, after, kid, wakes)

    def _rise(self, state: State, thread: int) -> State:
        """A sleeper wakes for no reason, if it still may, else by its timeout."""
        bed: Node = state[thread + 1]
        kid = self.tree.awake(bed, spuriously=bed.spurious < self._spurious)
        return (*state[: thread + 1], kid, *state[thread + 2 :])

    def _put(self, state: State, thread: int, node: Node, memory: Memory, kid: Node, wakes: int) -> State:
        parts = list(state)
        parts[0] = memory
        parts[thread + 1] = kid
        if wakes >= 0:
            nodes = parts[1 : 1 + self.threads]
            self.tree.wake(nodes, node)
            parts[1 : 1 + self.threads] = nodes
        return tuple(parts)

    def shown(self, move: int) -> tuple[int, str, int]:
        """A move as a schedule writes it: thread, what (empty: a step), and a number."""
        return move % self.threads, "", 0

    def parsed(self, thread: int, what: str, number: int) -> int:
        """The inverse of ``shown``; -1 if this machine has no such move."""
        return thread if not what and not number else -1


class Buffers(Machine):
    """Store buffers: in order (``tso``), or with relaxed stores that overtake (``relaxed``).

    A state also has, per thread, the stores that wait: (point, value, whether it is a release). ``Model.buffer`` of
    them at most. Move ``thread + threads * (i + 1)``: the i-th of them reaches memory.
    """

    fences = True

    def __init__(self, tree: Tree, *, overtake: bool) -> None:
        super().__init__(tree)
        self.overtake = overtake
        self.name = "relaxed" if overtake else "tso"
        self._room = tree.world.model.buffer

    def start(self) -> State:
        """The first state."""
        return (*super().start(), *[()] * self.threads)

    def moves(self, state: State) -> list[int]:
        """What can happen."""
        values = state[0].values
        moves = []
        for thread in range(self.threads):
            node = state[thread + 1]
            buffer = state[thread + 1 + self.threads]
            code = node.code
            if code >= 0:
                if code <= op.LOAD_ACQUIRE or not buffer:
                    if code != op.LOCK or values[node.at] == 0:
                        moves.append(thread)
                elif code <= op.UNLOCK and len(buffer) < self._room:
                    moves.append(thread)
            if buffer:
                moves.append(thread + self.threads)
                if self.overtake:
                    moves += [
                        thread + self.threads * (1 + i)
                        for i in range(1, len(buffer))
                        if not buffer[i][2] and all(buffer[i][0] != earlier[0] for earlier in buffer[:i])
                    ]
        return moves or self._timeouts(state)

    def unseen(self, state: State, *, watched: bool) -> int:
        """A store into a buffer that has room, or a fence behind an empty one: see ``Machine.unseen``."""
        for thread in range(self.threads):
            node = state[thread + 1]
            buffer = state[thread + 1 + self.threads]
            if (op.STORE_RELAXED <= node.code <= op.UNLOCK and len(buffer) < self._room) or (
                node.code == op.FENCE and not buffer
            ):
                kid = self.tree.kid(node, 0)
                if kid.code != op.FAILED and not (watched and (kid.code < 0 or kid.notes != node.notes)):
                    return thread
        return -1

    def move(self, state: State, move: int) -> State:
        """The state after a move."""
        thread = move % self.threads
        where = thread + 1 + self.threads
        buffer = state[where]
        parts = list(state)
        if move >= self.threads:
            i = move // self.threads - 1
            at, value, _ = buffer[i]
            parts[0] = self.tree.written(state[0], at, value)
            parts[where] = buffer[:i] + buffer[i + 1 :]
            return tuple(parts)
        node: Node = state[thread + 1]
        code = node.code
        if op.STORE_RELAXED <= code <= op.UNLOCK:
            value = 0 if code == op.UNLOCK else node.first
            parts[where] = (*buffer, (node.at, value, code != op.STORE_RELAXED))
            parts[thread + 1] = self.tree.kid(node, 0)
            return tuple(parts)
        if buffer and 0 <= code <= op.LOAD_ACQUIRE:
            for at, value, _ in reversed(buffer):
                if at == node.at:
                    parts[thread + 1] = self.tree.kid(node, value)
                    return tuple(parts)
        return super().move(state, move)

    def shown(self, move: int) -> tuple[int, str, int]:
        """A flush is written as ``flush`` and how many stores it overtakes."""
        if move < self.threads:
            return move, "", 0
        return move % self.threads, "flush", move // self.threads - 1

    def parsed(self, thread: int, what: str, number: int) -> int:
        """The inverse of ``shown``."""
        return thread + self.threads * (number + 1) if what == "flush" else super().parsed(thread, what, number)
