"""The pieces of a model's searches, handed out to a pool of processes or machines, and put together again.

Pieces are disjoint and need nothing of each other but the points (the shared words): all pieces of searches that are
compared must be of the same points, or one schedule would count as two. Who finds new ones reports them, and the
pieces that did not have them are searched again; points only become more, so this ends.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ..errors import UsageError
from .outcome import Budget, Outcome
from .parts import split
from .task import Task, machine, run
from .world import Reshaped, World

__all__ = ["Limits", "Pool", "Searched", "Standing", "cut", "hand_out", "merge", "search_piece", "sources"]

_PARTS = 8
_RUNS = 50
"""Random runs that are worth a piece of their own."""
_POLL_S = 0.2
_GRACE_S = 3.0
"""Pieces that begin late end late; those that wait for a worker are not waited for."""


@dataclass(frozen=True)
class Limits:
    """How far each piece may go, with which sources, and of which search it is: a process keeps the world of one."""

    seconds: float | None = None
    states: int | None = None
    go_on: bool = False
    made_for: str = ""
    search: str = ""


@dataclass(frozen=True)
class Searched:
    """What comes back of a piece: its outcome, the points it ended with, and who searched it."""

    outcome: Outcome
    points: tuple[int, ...] = ()
    who: str = ""


@dataclass(frozen=True)
class Standing:
    """How far a search that was handed out is, for a progress line; ``counts`` are of what is done and what runs."""

    done: int
    pieces: int
    workers: int
    again: int
    counts: Outcome

    def __str__(self) -> str:
        again = f", {self.again} handed out again" if self.again else ""
        counts = self.counts
        return (
            f"{counts.model}: {self.done} of {self.pieces} parts, {self.workers} workers{again}; {counts.runs:,} runs, "
            f"{counts.distinct:,} states, {counts.points:,} points, {counts.pruned:,} pruned, depth {counts.depth}, "
            f"{counts.seconds:.0f} s"
        )


class Pool(Protocol):
    """Where pieces are searched. Keys are numbers that ``hand_out`` gives."""

    @property
    def workers(self) -> int:
        """How many pieces are searched at once."""

    def start(self, key: int, piece: Task, limits: Limits) -> None:
        """Have a piece searched."""

    def done(self, timeout: float) -> list[tuple[int, Searched]]:
        """Pieces that came back; waits for the first, but not for longer than ``timeout`` seconds."""

    def stop(self, keys: Iterable[int]) -> None:
        """Give up pieces: nobody waits for them any more."""

    def standing(self) -> dict[int, Outcome]:
        """How far pieces are that are being searched, as far as known."""

    def again(self, key: int) -> int:
        """How often a piece was handed out again because whoever searched it died."""


def cut(world: World, task: Task, pieces: int) -> list[Task]:
    """A task as tasks that together are the same; those over states stay whole.

    The parts of a DPOR task hold for the points that ``world`` knows: have it searched over states before.
    """
    if task.search in {"random", "pct"}:
        return [replace(task, first=first, stride=pieces) for first in range(pieces)]
    if task.search != "dpor":
        return [task]
    while True:
        try:
            parts = split(machine(world, "sc"), pieces * _PARTS)
        except Reshaped:
            continue
        return [replace(task, part=part, points=tuple(sorted(world.points))) for part in parts]


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a task from those of its pieces."""
    whole = replace(outcomes[0], findings=[], finals=set())
    for name in ("runs", "pruned", "distinct", "points", "code_runs"):
        setattr(whole, name, sum(getattr(outcome, name) for outcome in outcomes))
    for name in ("depth", "shared", "seconds"):
        setattr(whole, name, max(getattr(outcome, name) for outcome in outcomes))
    whole.complete = all(outcome.complete for outcome in outcomes)
    whole.stopped = next((outcome.stopped for outcome in outcomes if outcome.stopped), "")
    notes = [outcome.note for outcome in outcomes if outcome.note]
    whole.note = min(notes, key=lambda note: "no probability" not in note, default="")
    for outcome in outcomes:
        whole.finals |= outcome.finals
        for finding in outcome.findings:
            whole.add(finding)
    if whole.search in {"random", "pct"}:
        whole.distinct = len(whole.finals)
    return whole


def sources(world: World) -> str:
    """What a search depends on: the model's rooms, this room, and the Python that hashes ends."""
    digest = hashlib.sha256(repr((sys.version_info[:2], hash((1, 2)))).encode())
    for path in sorted({*world.sources(), *Path(__file__).parent.glob("*.py")}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


_kept: dict[str, World] = {}
"""The world of the search that this process last worked for: it takes longer to make than many a piece to search."""


def _world(piece: Task, limits: Limits) -> World:
    world = _kept.get(limits.search)
    if world is None:
        while _kept:
            _kept.popitem()[1].close()
        world = World(piece.model, piece.mutations)
        if limits.made_for and sources(world) != limits.made_for:
            world.close()
            where = f"process {os.getpid()} on {platform.node()}"
            raise UsageError(f"{where}: its guestmem or its Python is another one: install the same version everywhere")
        _kept[limits.search] = world
    return world


def search_piece(
    piece: Task,
    limits: Limits,
    *,
    progress: Callable[[Outcome], object] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Searched:
    """What a worker does, one piece at a time. UsageError if its sources are not those that the search is made for."""
    world = _world(piece, limits)
    budget = Budget(
        seconds=limits.seconds, states=limits.states, go_on=limits.go_on, progress=progress, stopped=stopped
    )
    outcome = run(piece, budget, world=world)
    return Searched(outcome, tuple(sorted(world.points)), f"{platform.node()} {os.getpid()}")


@dataclass
class _Job:
    """A task and its pieces. ``points``: what it was cut for. Jobs of one ``group`` must end with the same points."""

    task: Task
    group: int
    points: frozenset[int] = frozenset()
    running: dict[int, Task] = field(default_factory=dict)
    pieces: dict[int, Task] = field(default_factory=dict)
    back: dict[int, Searched] = field(default_factory=dict)
    ended: list[Outcome] = field(default_factory=list)
    """Of pieces that were given up: how far they were."""

    def outcome(self, pool: Pool) -> Outcome:
        """What the pieces came to, and who searched them."""
        whole = merge([searched.outcome for searched in self.back.values()] + self.ended)
        who = len({searched.who for searched in self.back.values()})
        again = sum(pool.again(key) for key in self.pieces)
        if len(self.pieces) > 1 or again:
            note = f"{len(self.back)} of {len(self.pieces)} parts, by {who} process{'es' * (who != 1)}"
            note += f"; {again} handed out again, their worker died" if again else ""
            whole.note = f"{whole.note}; {note}" if whole.note else note
        return whole


class _HandOut:
    """One search that is handed out."""

    def __init__(self, world: World, whole: Sequence[Task], pool: Pool, limits: Limits, pieces: int) -> None:
        self.world, self.pool, self.limits, self.cut_in = world, pool, limits, pieces
        self.begun = time.monotonic()
        self.owner: dict[int, _Job] = {}
        # The two exhaustive searches are compared; other tasks stand alone.
        self.jobs = [
            _Job(task, 0 if task.memory == "sc" and task.search in {"states", "dpor"} else number)
            for number, task in enumerate(whole, 1)
        ]
        self.points = {job.group: frozenset(world.points) for job in self.jobs}

    @property
    def running(self) -> list[int]:
        return [key for job in self.jobs for key in job.running]

    def left(self) -> float | None:
        """Seconds that are left."""
        seconds = self.limits.seconds
        return None if seconds is None else max(self.begun + seconds - time.monotonic(), 0.01)

    def begin(self, job: _Job) -> None:
        """Cut a task for the points that its group knows, and hand out the pieces. What there was of it is dropped."""
        self.pool.stop(list(job.running))
        pieces = self.cut_in
        if job.task.search == "dpor":
            self.world.points |= self.points[job.group]
        elif job.task.last is not None:
            pieces = max(1, min(pieces, job.task.last // _RUNS))
        tasks = cut(self.world, job.task, pieces)
        if job.task.search == "dpor":
            self.points[job.group] |= self.world.points
        job.points = self.points[job.group]
        job.running, job.pieces, job.back = {}, {}, {}
        for task in tasks:
            self.start(job, len(self.owner), replace(task, points=tuple(sorted(job.points))))

    def start(self, job: _Job, key: int, piece: Task) -> None:
        self.owner[key] = job
        job.running[key] = job.pieces[key] = piece
        self.pool.start(key, piece, replace(self.limits, seconds=self.left()))

    def take(self, key: int, searched: Searched) -> None:
        """A piece came back."""
        job = self.owner[key]
        if job.running.pop(key, None) is None:
            return  # given up before
        job.back[key] = searched
        self.points[job.group] |= set(searched.points)
        if searched.outcome.stopped == "reshaped":
            self.begin(job)
        group = [each for each in self.jobs if each.group == job.group]
        if not any(each.running for each in group):
            self.settle(group)

    def settle(self, group: list[_Job]) -> None:
        """All of a group are back: search those again that did not have all the points."""
        for job in group:
            points = self.points[job.group]
            behind = [key for key, searched in job.back.items() if set(searched.points) != points]
            if not behind or any(searched.outcome.stopped for searched in job.back.values()):
                continue
            if job.task.search == "dpor":
                self.begin(job)
                continue
            job.points = points
            for key in behind:
                piece = replace(job.pieces.pop(key), points=tuple(sorted(points)))
                del job.back[key]
                self.start(job, len(self.owner), piece)

    def end(self, why: str) -> None:
        """Give up what still runs."""
        standing = self.pool.standing()
        for job in self.jobs:
            for key in job.running:
                empty = Outcome(job.task.model.name, job.task.search, job.task.memory, job.task.bound)
                job.ended.append(replace(standing.get(key, empty), complete=False, stopped=why))
        self.pool.stop(self.running)
        for job in self.jobs:
            job.running = {}

    def standing(self) -> Standing:
        """How far it is."""
        running = self.pool.standing()
        parts = [searched.outcome for job in self.jobs for searched in job.back.values()]
        alive = [running[key] for key in self.running if key in running]
        empty = Outcome(self.world.model.name, "", "")
        counts = replace(merge([empty, *parts, *alive]), seconds=time.monotonic() - self.begun)
        pieces = sum(len(job.pieces) for job in self.jobs)
        again = sum(self.pool.again(key) for key in self.owner)
        return Standing(len(parts), pieces, self.pool.workers, again, counts)


def hand_out(
    world: World,
    whole: Sequence[Task],
    pool: Pool,
    *,
    limits: Limits,
    pieces: int,
    stopped: Callable[[], bool] | None = None,
    progress: Callable[[Standing], object] | None = None,
) -> list[Outcome]:
    """Search tasks of one model in a pool, each but those over states in some ``pieces``; their outcomes, in order."""
    if any(task.search == "dpor" for task in whole):  # parts hold for all the points there are
        run(replace(whole[0], search="random", last=200), Budget(seconds=5, go_on=True), world=world)
    search = _HandOut(world, whole, pool, limits, pieces)
    for job in search.jobs:
        search.begin(job)
    while search.running:
        for key, searched in pool.done(_POLL_S):
            search.take(key, searched)
        if progress is not None:
            progress(search.standing())
        if stopped is not None and stopped():
            search.end("interrupted")
        elif not limits.go_on and any(s.outcome.findings for job in search.jobs for s in job.back.values()):
            search.end("finding")
        elif limits.seconds is not None and time.monotonic() > search.begun + limits.seconds + _GRACE_S:
            search.end("time")
    return [job.outcome(pool) for job in search.jobs]
