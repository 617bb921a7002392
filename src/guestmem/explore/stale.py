"""The memory model in which a load may return any value still allowed: release, acquire and full fences as views.

Each word has its stores in one order. A thread's view says how old a store it may still read of each word. A release
store carries its thread's view; an acquire load takes it over; a relaxed load keeps it for the next fence; a relaxed
store carries the view of its thread's last fence. A full fence exchanges views with all full fences before it. A
read-modify-write reads the newest store and is acquire and release, but no fence: loads after it may still be stale.
Source: the view machine of Kang, Hur, Lahav, Vafeiadis and Dreyer, "A promising semantics for relaxed-memory
concurrency", POPL 2017, without promises.

Not modelled: stores that take effect before earlier loads (load buffering), stores that come in the middle of a word's
order, a failed compare-exchange that reads an old value.
"""

from __future__ import annotations

from typing import Any

from . import operations as op
from .machine import Machine, State
from .tree import Node, Tree

__all__ = ["Stale", "join", "less"]

_View = tuple[int, ...]
_Message = tuple[int, _View]  # value, view it carries


def join(a: _View, b: _View) -> _View:
    """The later of two views, point by point."""
    return a if a == b else tuple(map(max, a, b))


def less(view: _View, oldest: _View) -> _View:
    """A view, counted from the oldest stores that are left."""
    return tuple([max(step - old, 0) for step, old in zip(view, oldest, strict=True)]) if any(view) else view


def _at(view: _View, at: int, step: int) -> _View:
    return (*view[:at], step, *view[at + 1 :])


class Stale(Machine):
    """The view machine.

    A state also has the stores of each point that some thread may still read, the fences' view, and per thread its
    views (now, kept for the next fence, of the last fence).
    Move ``thread + threads * j``: a step that reads the j-th newest store.
    """

    name = "stale"
    fences = True

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self._size = len(tree.points) + 1

    def start(self) -> State:
        """The first state."""
        nothing: _View = (0,) * self._size
        messages = tuple(((value, nothing),) for value in self.tree.start.values)
        return (*super().start(), messages, nothing, *[(nothing, nothing, nothing)] * self.threads)

    def moves(self, state: State) -> list[int]:
        """What can happen."""
        n = self.threads
        messages = state[n + 1]
        moves = []
        for thread in super().moves(state):
            moves.append(thread)
            node: Node = state[thread + 1]
            if 0 <= node.code <= op.LOAD_ACQUIRE:
                older = len(messages[node.at]) - 1 - state[n + 3 + thread][0][node.at]
                moves += [thread + n * j for j in range(1, older + 1)]
        return moves

    def move(self, state: State, move: int) -> State:
        """The state after a move."""
        thread = move % self.threads
        if state[thread + 1].code == op.ASLEEP:
            return super().move(state, thread)
        return self._forget(self.step(state, move))

    def step(self, state: State, move: int) -> list[Any]:
        """The parts of the state after a thread's step, with all stores, also those that nobody can read any more."""
        n = self.threads
        thread, back = move % n, move // n
        node: Node = state[thread + 1]
        parts: list[Any] = list(state)
        messages, fences = state[n + 1], state[n + 2]
        now, kept, last = state[n + 3 + thread]
        code, at = node.code, node.at
        stores: tuple[_Message, ...] = messages[at]
        newest = len(stores) - 1
        if code <= op.LOAD_ACQUIRE:
            value, carried = stores[newest - back]
            now = _at(now, at, newest - back)
            if code == op.LOAD_ACQUIRE:
                now = join(now, carried)
            kept = join(kept, join(now, carried))
            parts[thread + 1] = self.tree.kid(node, value)
        else:
            after, kid, wakes = node.memo.get(state[0]) or self.tree.look(node, state[0])
            assert kid is not None
            if code >= op.FENCE:
                now = join(join(now, kept), fences)
                if code == op.WAIT:
                    now = join(_at(now, at, newest), stores[newest][1])
                parts[n + 2] = kept = last = now
            else:
                now, added = self._store(node, stores, now, last)
                kept = join(kept, now)
                if added is not None:
                    messages = (*messages[:at], (*stores, added), *messages[at + 1 :])
            parts = list(self._put(tuple(parts), thread, node, after, kid, wakes))
            if wakes >= 0:
                for other in range(n):
                    if state[other + 1].code == op.ASLEEP and parts[other + 1].code != op.ASLEEP:
                        parts[n + 3 + other] = tuple(join(view, now) for view in parts[n + 3 + other])
        parts[n + 1] = messages
        parts[n + 3 + thread] = (now, kept, last)
        return parts

    @staticmethod
    def _store(node: Node, stores: tuple[_Message, ...], now: _View, last: _View) -> tuple[_View, _Message | None]:
        """The thread's view after a store or a read-modify-write, and the store; None if nothing was stored."""
        code, at = node.code, node.at
        seen, carried = stores[-1]
        if code > op.UNLOCK:
            now = join(_at(now, at, len(stores) - 1), carried)
            if code == op.COMPARE_EXCHANGE and seen != node.first:
                return now, None
        now = _at(now, at, len(stores))
        value = node.thread + 1 if code == op.LOCK else op.after(code, seen, node.first, node.second)
        return now, (value, _at(last, at, len(stores)) if code == op.STORE_RELAXED else now)

    def _forget(self, parts: list[Any]) -> State:
        """Drop stores that nobody can read any more, so that states which differ only in them are one."""
        n = self.threads
        views = [parts[n + 3 + k][0] for k in range(n) if parts[k + 1].code not in {op.ENDED, op.FAILED}]
        messages = parts[n + 1]
        oldest = [min(steps) for steps in zip(*views, strict=True)] if views else [len(m) - 1 for m in messages]
        if any(oldest):
            old = tuple(oldest)
            parts[n + 1] = tuple(
                [
                    tuple([(value, less(view, old)) for value, view in (stores[gone:] if gone else stores)])
                    for stores, gone in zip(messages, old, strict=True)
                ]
            )
            parts[n + 2] = less(parts[n + 2], old)
            for k in range(n):
                parts[n + 3 + k] = tuple([less(view, old) for view in parts[n + 3 + k]])
        return tuple(parts)

    def shown(self, move: int) -> tuple[int, str, int]:
        """A stale read is written as ``reads`` and how old."""
        thread, back = move % self.threads, move // self.threads
        return (thread, "reads", back) if back else (thread, "", 0)

    def parsed(self, thread: int, what: str, number: int) -> int:
        """The inverse of ``shown``."""
        return thread + self.threads * number if what == "reads" else super().parsed(thread, what, number)
