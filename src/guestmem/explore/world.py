"""A model's scene, set up in a twin, and its threads as greenlets that stop at each point where another may go on.

The world is the twin's scheduler. A thread runs until an operation on a *point*: a word that two threads share and one
writes. Operations on all other words (constants, and what only one thread touches) commute with everything, so they
are carried out at once, for this thread alone. Which words are points is found out, not declared: when a thread
touches a word that has become shared, the word is added and the search begins again (``Reshaped``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import greenlet

from ..compiled import Words
from ..errors import UsageError
from ..units import U64_MAX
from . import operations as op
from .continuation import Keys, reachable
from .probes import Branch, Probe
from .scene import Model, Scene
from .strand import (
    Failure,
    GivenUp,
    Livelock,
    Place,
    Reshaped,
    Strand,
    Undetermined,
    Where,
    closed_over,
    failure_of,
    where_is,
)
from .twin import Mutation, load

__all__ = ["Failure", "Livelock", "Place", "Reshaped", "Strand", "Undetermined", "Where", "World"]

_ALONE = 200_000
"""Operations in a row, without a point, after which a thread counts as caught in a loop."""


def _probed(model: Model, probe: Probe) -> Model:
    """A model of the user's own from its file once more, with calls in it that say which branches are taken."""
    if not model.source:
        return model
    from .own import again

    return again(model.source, model.name, model.edits, probe)


class World:
    """A model in a twin of its own, with ``mutations``; a context manager that takes the twin down again.

    ``points`` are the places (numbers of shared words over all regions) where threads stop; they grow while a search
    finds words shared. ``traced``: ``taken`` is to say which branches threads take.
    """

    def __init__(
        self, model: Model, mutations: Iterable[Mutation | tuple[str, str, str]] = (), *, traced: bool = False
    ) -> None:
        self.taken: list[tuple[Sequence[Branch], set[int], set[int]]] = []
        """Of each module that is traced its branches, and the numbers of those taken in threads, and outside them."""
        self.strand: Any = None
        """The Strand that runs; None outside threads."""
        probe = self._probe if traced else None
        self.model = model if probe is None else _probed(model, probe)
        self.mutations = tuple(Mutation(*each) for each in mutations)
        self._stack = ExitStack()
        twin = self._stack.enter_context(load((*model.geometry, *self.mutations), probe=probe))
        try:
            # Before any room takes them: real time is no function of a history.
            vars(twin.room("clock")).update(now=self._now, stopwatch=lambda: 0)
            self.atomics = twin.room("atomics")
            self.scene = Scene(twin)
            self.scene.scheduler = self
            self._build()
            self._stack.enter_context(self.atomics.schedule(self))
        except BaseException:
            self._stack.close()
            raise
        # Words of one thread as bytes: a property that calls a room's face may write to those that the face has, too.
        self.threads = [
            each._replace(arguments=tuple(a.tobytes() if isinstance(a, memoryview) else a for a in each.arguments))
            for each in self.scene.threads
        ]
        self.tellers = self._tellers()
        """By thread and argument: what says in words how a thread's own words changed."""
        if not self.threads:
            self._stack.close()
            raise UsageError(f"model {model.name}: it has no threads")
        self.places = [Place(region, i) for region in self.scene.regions for i in range(len(region.words.cells))]
        self.initial = [place.region.words.cells[place.index] for place in self.places]
        self._words: type = self.scene.room("compiled").Words
        self._bases: dict[Any, tuple[int, int]] = {
            region.words: (region.base, len(region.words.cells)) for region in self.scene.regions
        }
        self._readers = [0] * len(self.places)
        self._writers = [0] * len(self.places)
        self.points: set[int] = set()
        self.stale = False
        self._closed = [closed_over(thread.body) for thread in self.threads]
        self.known = self._known()
        """What was there before threads ran: see ``continuation.Keys``."""
        self.dirty: set[int] = set()
        """Places that a view wrote final values to."""
        self._stopped: set[Strand] = set()
        """Runs that are stopped: a greenlet that is not ended is never collected, nor is what it reaches."""

    def _tellers(self) -> dict[int, dict[int, Any]]:
        found: dict[int, dict[int, Any]] = {}
        for number, thread in enumerate(self.scene.threads):
            for place, argument in enumerate(thread.arguments):
                for own, tell in self.scene.tellers:
                    if own is argument:
                        found.setdefault(number, {})[place] = tell
        return found

    def point(self, strand: Strand, operation: str, words: Words | None, index: int) -> int:
        """The point that an operation of a run is on; -1 for a fence that is one; -2 if it is on none."""
        if operation == "fence":
            return -1 if strand.fences else -2
        try:
            return strand.compact.get(self._place(words, index), -2)
        except LookupError:  # which the step will tell
            return -2

    def _probe(self, branches: Sequence[Branch]) -> Callable[[int], None]:
        taken: set[int] = set()
        outside: set[int] = set()
        self.taken.append((branches, taken, outside))

        def called(number: int) -> None:
            if type(self.strand) is Strand:
                taken.add(number)
            elif self.strand is None:
                outside.add(number)

        return called

    def _known(self) -> list[object]:
        """What a thread can come by that was there before it ran: of the scene, and of the twin's modules."""
        scene = self.scene
        kept = (value for module in scene.modules() for name, value in vars(module).items() if name[:2] != "__")
        return reachable([scene, self.threads, *kept], beside=[self])

    def _build(self) -> None:
        """Set the scene up; a mistake in a model of the user's own is told by its line."""
        try:
            self.model.build(self.scene)
        except Exception as error:
            if not self.model.source or isinstance(error, UsageError):
                raise
            failure = failure_of(error)
            where, what = failure.where, f"{failure.error}: {failure.message}"
            raise UsageError(f"model {self.model.name}: {where} ({where.function}): {what}") from None

    def close(self) -> None:
        """End runs, forget the twin and what was there before threads ran: among it may be the world before this."""
        for strand in [*self._stopped]:
            self.give_up(strand)
        self._stack.close()
        self.known = []
        if "keys" in vars(self):
            self.keys.forget()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def sources(self) -> list[Path]:
        """The files that the model's twin was loaded from so far."""
        own = [Path(self.model.source)] if self.model.source else []
        return [Path(file) for file in self.scene.files()] + own

    def number(self, region: str, index: int) -> int:
        """The number of word ``index`` of a region."""
        for each in self.scene.regions:
            if each.name == region and 0 <= index < len(each.words.cells):
                return each.base + index
        raise UsageError(f"{region}[{index}]: model {self.model.name} has no such word")

    @cached_property
    def keys(self) -> Keys:
        """Keys of what threads can still do, and of what they returned."""
        return Keys(self.known, self._words, self.base)

    def base(self, words: object) -> int | None:
        """The number of the first of some words that are shared; None of anything else."""
        return self._bases[words][0] if words in self._bases else None

    def share(self, place: int) -> None:
        """Make a word a point from the next search on."""
        self.points.add(place)
        self.stale = True

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For runs that are no part of a search: words that these find shared are no points afterwards."""
        before = list(self._readers), list(self._writers), set(self.points)
        try:
            yield
        finally:
            self._readers, self._writers, self.points = before
            self.stale = False

    # Running a thread.

    def start(
        self,
        thread: int,
        compact: dict[int, int],
        past: Sequence[int],
        due: Sequence[tuple[int, int, int, int]] = (),
        *,
        fences: bool,
    ) -> Strand:
        """Start a run of a thread and let it come to its first point after ``past``, the answers it gets until then.

        ``due``: the operations that it did for these answers before, and the one it stopped at. Raises Undetermined if
        it does others now.
        """
        strand = Strand(thread, compact, past, due, fences=fences)
        _, body, arguments = self.threads[thread]
        fresh = [memoryview(bytearray(a)).cast("Q") if type(a) is bytes else a for a in arguments]

        def run() -> None:
            try:
                strand.outcome = body(*fresh)
                strand.pending = (op.ENDED, 0, 0, 0)
            except Exception as error:  # noqa: BLE001 - whatever model code raises is a finding
                strand.outcome = failure_of(error)
                strand.pending = (op.FAILED, 0, 0, 0)
            finally:
                if isinstance(self.strand, GivenUp):
                    self.strand = self.strand.instead_of

        strand.own = fresh
        strand.greenlet = greenlet.greenlet(run)
        self.strand = strand
        try:
            strand.greenlet.switch()
        finally:
            self.strand = None
            if not strand.greenlet.dead:
                self._stopped.add(strand)
        if due and (strand.fed < len(past) or strand.pending != due[-1]):
            raise self._undetermined(strand)
        return strand

    def go_on(self, strand: Strand, value: int) -> None:
        """Answer the operation that a run stopped at, and let it come to its next point."""
        self.strand = strand
        try:
            strand.greenlet.switch(value)
        finally:
            self.strand = None
            if strand.greenlet.dead:
                self._stopped.discard(strand)

    def give_up(self, strand: Strand) -> None:
        """End a run, if it is stopped somewhere: nobody is to let it go on."""
        if strand in self._stopped:
            self._stopped.remove(strand)
            strand.greenlet.throw()

    # What the twin's atomics and the model call.

    def note(self, key: str, value: object) -> None:
        """See ``Scene.note``."""
        if self.strand is not None:
            self.strand.notes = {**self.strand.notes, key: value}

    def _now(self) -> int:
        """The clock of a thread: it ticks when it is looked at, so that time, too, is a function of the history."""
        if self.strand is None:
            return 1
        ticks: int = self.strand.ticks + 1
        self.strand.ticks = ticks
        return ticks

    def step(self, operation: str, words: Words | None, index: int, first: int, second: int) -> int:
        """See ``atomics.Scheduler``."""
        strand = self.strand
        if strand is None:
            return self._directly(operation, words, index, first, second)
        code = op.CODES[operation]
        strand.count += 1
        if code == op.FENCE:
            if not strand.fences:
                return 0
            at = 0
        else:
            if first >> 64 or (second >> 64 and code == op.COMPARE_EXCHANGE):
                raise OverflowError(f"{first:#x} leaves an unsigned 64-bit word")
            place = self._place(words, index)
            at = strand.compact.get(place, -1)
            if at < 0:
                return self._alone(strand, code, place, first, second)
        if strand.fed < len(strand.past):
            if strand.due and strand.due[strand.fed] != (code, at, first, second):
                strand.where = where_is(sys._getframe(1))  # noqa: SLF001 - as below
                raise self._undetermined(strand)
            strand.fed += 1
            answer: int = strand.past[strand.fed - 1]
            return answer
        strand.pending = (code, at, first, second)
        strand.where = where_is(sys._getframe(1))  # noqa: SLF001 - the caller's line is what a story tells
        try:
            answer = self._hub(strand).switch()
        except greenlet.GreenletExit:
            self.strand = GivenUp(self.strand)
            raise
        return answer

    def _undetermined(self, strand: Strand) -> Undetermined:
        name = self.threads[strand.thread].name
        where = f" at {strand.where}" if strand.where else ""
        return Undetermined(
            f"model {self.model.name}: thread {name!r} is no function of what its atomics return: given the same "
            f"answers again, it did something else{where}; what it closes over, or takes from outside, must not change"
        )

    def check(self) -> None:
        """See that no thread changed a variable that it closes over, or a global one. Raises Undetermined."""
        for thread, before in zip(self.threads, self._closed, strict=True):
            for name, value in closed_over(thread.body).items():
                if before.get(name) != value:
                    raise Undetermined(
                        f"model {self.model.name}: thread {thread.name!r} uses {name!r}, which changed while threads "
                        f"ran: what threads share must be words of the scene, through atomics"
                    )

    @staticmethod
    def frames(strand: Strand) -> list[FrameType]:
        """The frames of a run that is stopped, innermost first, without those of the explorer."""
        frames = []
        frame = strand.greenlet.gr_frame
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        return frames[1:-1]

    @staticmethod
    def _hub(strand: Strand) -> Any:
        return strand.greenlet.parent

    def _place(self, words: Words | None, index: int) -> int:
        if words is None:
            for address, region in self.scene.hosts:
                offset = index - address
                if 0 <= offset < 8 * len(region.words.cells):
                    if offset & 7:
                        raise IndexError(f"host address {index:#x} is not aligned to 8 bytes")
                    return region.base + offset // 8
            raise IndexError(f"host address {index:#x} is in none of the model's host memory")
        try:
            base, size = self._bases[words]
        except KeyError:
            raise LookupError("an operation on words that the scene does not name: Scene.words()") from None
        if not 0 <= index < size:
            raise IndexError(f"word {index} is not one of {size}")
        return base + index

    def _alone(self, strand: Strand, code: int, place: int, first: int, second: int) -> int:
        """An operation on a word that is no point: carried out for this thread, and noted."""
        if strand.count > _ALONE:
            raise Livelock(f"{_ALONE} operations in a row on words that nobody else touches")
        me = 1 << strand.thread
        if code >= op.LOCK or code == op.UNLOCK:  # others wake and wait: always points
            self.share(place)
            raise Reshaped
        reads = code <= op.LOAD_ACQUIRE
        if reads:
            self._readers[place] |= me
        else:
            self._writers[place] |= me
        if (self._writers[place] | (0 if reads else self._readers[place])) & ~me:
            self.share(place)
        seen = strand.overlay.get(place, self.initial[place])
        if not reads:
            strand.overlay[place] = op.after(code, seen, first, second)
        return seen if reads or code >= op.COMPARE_EXCHANGE else 0

    def _directly(self, operation: str, words: Words | None, index: int, first: int, second: int) -> int:
        """Outside threads (final properties): at once, on the words themselves."""
        code = op.CODES[operation]
        if code in {op.FENCE, op.WAKE}:
            return 0
        if words is None or code == op.WAIT:
            raise LookupError(f"{operation}: only a model's threads may do this")
        if first >> 64 or first < 0:
            raise OverflowError(f"{first:#x} leaves an unsigned 64-bit word")
        seen: int = words.cells[index]
        if code > op.LOAD_ACQUIRE:
            words.cells[index] = op.after(code, seen, first, second & U64_MAX)
        return seen
