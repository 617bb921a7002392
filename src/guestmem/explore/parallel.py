"""A search in several processes of this machine: each of its searches, DPOR in parts, random runs in strides.

A search over states stays in one process; where there are more jobs than searches, in several threads
(``abreast_states.py``).

Also many small pieces of work that need nothing of each other (``pooled``): trials of mutants, traces of models.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import GuestmemError
from .handout import Limits, Searched, Standing, cut, hand_out, merge, search_piece
from .outcome import Outcome
from .scene import Model
from .search import Report, add_counterexamples, tasks
from .task import Task
from .twin import Mutation
from .world import World

__all__ = ["cut", "explore_in", "merge", "pooled"]

Piece = TypeVar("Piece")
Made = TypeVar("Made")
_stop: Any = None
"""In a process of the pool: the event that says that nobody waits for its pieces any more."""


def _begin(stop: Any) -> None:
    global _stop  # noqa: PLW0603 - an event reaches a process only when it begins
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once the one that hands out is gone: one that is killed tells nobody to stop."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(piece: Task, limits: Limits) -> Searched:
    return search_piece(piece, limits, stopped=_stop.is_set)


def _killed() -> GuestmemError:
    return GuestmemError("--jobs: a process was killed, perhaps for want of memory: take fewer")


def _piece(work: Callable[[Any, Callable[[], bool]], Any], piece: Any) -> Any:
    return None if _stop.is_set() else work(piece, _stop.is_set)


def pooled(
    jobs: int,
    work: Callable[[Piece, Callable[[], bool]], Made],
    pieces: Iterable[Piece],
    *,
    ordered: bool = True,
    stopped: Callable[[], bool] | None = None,
) -> Iterator[Made]:
    """What ``work(piece, stopped)`` makes of each piece, in ``jobs`` processes; ``ordered``: in the order of pieces.

    Ends early when ``stopped()``: pieces that are at work are told, and what they come to is dropped. Work and pieces
    must pickle.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (stop,))
    try:
        futures = [pool.submit(_piece, work, piece) for piece in pieces]
        left = set(futures)
        while left:
            due = [next(each for each in futures if each in left)] if ordered else left
            done, _ = concurrent.futures.wait(due, 0.2, concurrent.futures.FIRST_COMPLETED)
            if stopped is not None and stopped():
                return
            for future in done:
                left.remove(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise _killed() from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Processes:
    """A pool of processes: see ``handout.Pool``."""

    def __init__(self, jobs: int) -> None:
        self.workers = jobs
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (self._stop,))
        self._running: dict[concurrent.futures.Future[Searched], int] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def start(self, key: int, piece: Task, limits: Limits) -> None:
        self._running[self._pool.submit(_work, piece, limits)] = key

    def done(self, timeout: float) -> list[tuple[int, Searched]]:
        done, _ = concurrent.futures.wait(self._running, timeout, concurrent.futures.FIRST_COMPLETED)
        try:
            return [(self._running.pop(future), future.result()) for future in done]
        except BrokenProcessPool:
            raise _killed() from None

    def stop(self, keys: Iterable[int]) -> None:
        given_up = set(keys)
        for future, key in list(self._running.items()):
            if key in given_up:
                future.cancel()
                del self._running[future]

    def standing(self) -> dict[int, Outcome]:
        return {}

    def again(self, key: int) -> int:
        del key
        return 0


def explore_in(
    jobs: int,
    model: Model,
    *,
    seconds: float | None = None,
    states: int | None = None,
    go_on: bool = False,
    shrink_s: float = 20.0,
    mutations: Iterable[Mutation | tuple[str, str, str]] = (),
    stopped: Callable[[], bool] | None = None,
    progress: Callable[[Standing], object] | None = None,
    **options: Any,
) -> Report:
    """As ``explore``, in ``jobs`` processes; ``options`` are those of ``tasks``. The model must be one that pickles."""
    mutations = tuple(Mutation(*each) for each in mutations)
    report = Report(model)
    with World(model, mutations) as world:
        whole = tasks(model, mutations=mutations, **options)
        # Of all searches together no more than cores: they would wait for each other at every level's end.
        threads = max(1, min(jobs, len(os.sched_getaffinity(0))) // len(whole))
        whole = [replace(task, threads=threads) for task in whole]
        limits = Limits(seconds, states, go_on)
        with _Processes(jobs) as pool:
            report.outcomes += hand_out(
                world, whole, pool, limits=limits, pieces=jobs, stopped=stopped, progress=progress
            )
        add_counterexamples(report, world, shrink_s)
    return report
