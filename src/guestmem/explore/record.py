"""What a thread did, operation by operation, with its calls: its code runs once more, for answers that it was given.

Trees keep of a thread where it stopped; a story also wants the calls that it was in, the operations on words that
nobody else touches, and what it wrote to words of its own (a TLB). And what it would have done, had it read another
value: the same code, for other answers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

from ..compiled import Words
from . import operations as op
from .strand import Where, is_seen, where_of
from .world import Failure, World

__all__ = ["Call", "Did", "Lived", "Operation", "instead", "relive"]


class Call(NamedTuple):
    """A call that a thread is in: where it is in it; ``number`` tells calls of one function apart."""

    where: Where
    number: int


@dataclass(frozen=True)
class Did:
    """An operation on a point, with the calls it was made from, outermost first; ``private``: see ``Lived.told``."""

    code: int
    at: int
    first: int
    second: int
    answer: int
    calls: tuple[Call, ...]
    private: tuple[str, ...] = ()


@dataclass
class Lived:
    """A thread's life: operations on points, the last of which it may be stopped at; then its end, if any."""

    did: list[Did] = field(default_factory=list)
    answered: int = 0
    """How many of them were carried out."""
    after: tuple[str, ...] = ()
    """What changed in words of its own after the last of them."""
    failed: Failure | None = None


class Operation(NamedTuple):
    """What a thread is about to do: an operation of ``operations``, on a point."""

    code: int
    at: int
    first: int
    second: int


class _Recorder:
    """In the scheduler's place while a thread runs once more."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: list[tuple[Call, ...]] = []
        self.private: list[tuple[str, ...]] = []
        self._frames: dict[int, tuple[FrameType, int]] = {}
        self._before: dict[int, bytes] = {}

    def note(self, key: str, value: object) -> None:
        self.world.note(key, value)

    def step(self, operation: str, words: Words | None, index: int, first: int, second: int) -> int:
        strand = self.world.strand
        at = -2
        if getattr(strand, "own", None) is not None:
            at = self.world.point(strand, operation, words, index)
        if at == -2:
            return self.world.step(operation, words, index, first, second)
        self.calls.append(self._stack(sys._getframe(1)))  # noqa: SLF001 - who called is what is recorded
        self.private.append(self.told(strand))
        return self.world.step(operation, words, index, first, second)

    def _stack(self, frame: FrameType | None) -> tuple[Call, ...]:
        calls: list[Call] = []
        while frame is not None:
            if is_seen(frame):
                _, number = self._frames.setdefault(id(frame), (frame, len(self._frames)))
                calls.append(Call(where_of(frame), number))
            frame = frame.f_back
        return tuple(reversed(calls))

    def told(self, strand: Any) -> tuple[str, ...]:
        """What changed in the thread's own words since the last time, as far as the scene has words for it."""
        lines: list[str] = []
        for number, tell in self.world.tellers.get(strand.thread, {}).items():
            own = strand.own[number]
            now = own.tobytes()
            before = self._before.setdefault(number, bytes(self.world.threads[strand.thread].arguments[number]))
            if now != before:
                lines += tell(memoryview(before).cast("Q"), own)
                self._before[number] = now
        return tuple(lines)


@contextmanager
def _recording(world: World) -> Iterator[_Recorder]:
    recorder = _Recorder(world)
    before = world.scene.scheduler
    world.scene.scheduler = recorder  # of a model's own locks, and notes
    try:
        with world.atomics.schedule(recorder):
            yield recorder
    finally:
        world.scene.scheduler = before


def relive(world: World, thread: int, compact: dict[int, int], answers: Sequence[int], *, fences: bool) -> Lived:
    """Run a thread's code for these answers, and say what it did until the last of them, and whether it failed then."""
    lived = Lived()
    with _recording(world) as recorder:
        strand = world.start(thread, compact, (), fences=fences)
        for number, answer in enumerate((*answers, 0)):
            if strand.pending[0] < 0:
                lived.after = recorder.told(strand)
                break
            lived.did.append(Did(*strand.pending, answer, recorder.calls[number], recorder.private[number]))
            if number < len(answers):
                lived.answered += 1
                world.go_on(strand, answer)
        if strand.pending[0] == op.FAILED:
            lived.failed = strand.outcome
    return lived


def instead(
    world: World,
    thread: int,
    compact: dict[int, int],
    past: Sequence[int],
    answer: Callable[[Operation], int | None],
    *,
    fences: bool,
    most: int,
) -> tuple[list[Operation], Failure | None, Operation | None]:
    """What a thread does after ``past``, given the answers of a function; at most ``most`` operations.

    The operations, how it failed, and what it is stuck at (the function had no answer, or it was too much).
    """
    strand = world.start(thread, compact, past, fences=fences)
    did: list[Operation] = []
    while strand.pending[0] >= 0:
        pending = Operation(*strand.pending)
        value = answer(pending) if len(did) < most else None
        if value is None:
            return did, None, pending
        did.append(pending)
        world.go_on(strand, value)
    return did, strand.outcome if strand.pending[0] == op.FAILED else None, None
