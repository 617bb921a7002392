"""A search on an existing Dask cluster: pieces go to its workers, what they find comes back to one place.

The scheduler hands a piece out again when its worker died, up to as often as it allows (its own setting
``distributed.scheduler.allowed-failures``, 3 unless told); then the piece is given up, and the outcome says so.
Source of that rule: Dask.distributed's documentation, "Resilience".
"""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import GuestmemError, UsageError
from .handout import Limits, Searched, Standing, hand_out, search_piece, sources
from .outcome import Outcome
from .scene import Model
from .search import Report, add_counterexamples, tasks
from .task import Task
from .twin import Mutation
from .world import World

__all__ = ["explore_on"]

CONNECT_S = 5.0
EMPTY_S = 60.0
"""How long a cluster may be without any worker."""
TRIES = 3
"""How often a piece is handed out whose worker raised an error, such as MemoryError, or whose result was lost."""
_RESULT_S = 30.0
"""How long a result may take to come from the worker that has it."""
_SHOW_S = 1.0
_LOOK_S = 2.0

_one = threading.Lock()
"""Worlds share ``sys.modules`` and the interpreter lock: of a worker's threads one searches, whatever there are."""


def _work(key: str, topic: str, piece: Task, limits: Limits) -> Searched:
    """What runs on a worker. It tells how far it is, and ends when nobody waits for the piece any more."""
    from distributed import get_worker

    worker: Any = get_worker()
    shown = [0.0]

    def progress(outcome: Outcome) -> None:
        if time.monotonic() - shown[0] > _SHOW_S:
            shown[0] = time.monotonic()
            worker.log_event(topic, {"key": key, "counts": outcome.as_dict()})

    def stopped() -> bool:
        known = worker.state.tasks.get(key)  # the scheduler takes it back when the client cancels, or is gone
        return known is None or known.state in {"cancelled", "resumed"}

    with _one:
        worker.log_event(topic, {"key": key})
        return search_piece(piece, limits, progress=progress, stopped=stopped)


class _Cluster:
    """A pool of Dask workers: see ``handout.Pool``."""

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError("--dask: the package distributed is not installed: pip install 'guestmem[dask]'") from None
        self.address = address
        # It logs tracebacks when the scheduler goes; that is an error of ours then, in one line.
        self._log = logging.getLogger("distributed.client")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)
        self._killed: type[Exception] = distributed.KilledWorker
        self._client: Any = distributed.Client.__new__(distributed.Client)
        try:
            self._client.__init__(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            self._client.status = "closed"  # else it waits in __del__ for the answer that it did not get, and fails
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(
                f"--dask {address}: no Dask scheduler answers there in {CONNECT_S:.0f} s: {said}"
            ) from None
        self._name = f"guestmem-{uuid.uuid4().hex}"
        self._back: queue.Queue[tuple[int, Any]] = queue.Queue()
        self._futures: dict[int, Any] = {}
        self._pieces: dict[int, tuple[Task, Limits]] = {}
        self._tries: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._counts: dict[int, Outcome] = {}
        self._client.subscribe_topic(self._name, self._event)
        self._looked = self._manned = time.monotonic()
        self.workers = 0
        self._look()

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop(list(self._futures))
        self._client.close(timeout=CONNECT_S)
        self._log.setLevel(self._level)

    def _look(self) -> None:
        """Count the workers."""
        now = time.monotonic()
        self._looked = now
        try:
            self.workers = len(self._client.nthreads())
        except (OSError, TimeoutError, RuntimeError, ValueError):
            raise GuestmemError(f"--dask {self.address}: the scheduler is gone") from None
        if self.workers:
            self._manned = now
        elif now - self._manned > EMPTY_S:
            raise GuestmemError(f"--dask {self.address}: has had no worker for {EMPTY_S:.0f} s")

    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        """A worker tells something. Called in the client's own thread."""
        message = event[1]
        key = int(message["key"].rpartition("-")[2])
        if "counts" in message:
            self._counts[key] = Outcome(**message["counts"])
        else:
            self._begun[key] = self._begun.get(key, 0) + 1

    def start(self, key: int, piece: Task, limits: Limits) -> None:
        self._pieces[key] = (piece, limits)
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        name = f"{self._name}-{tries}-{key}"
        future = self._client.submit(_work, name, self._name, piece, limits, key=name, pure=False)
        self._futures[key] = future
        future.add_done_callback(lambda done: self._back.put((key, done)))

    def done(self, timeout: float) -> list[tuple[int, Searched]]:
        found: list[tuple[int, Searched]] = []
        try:
            key, future = self._back.get(timeout=timeout)
            while True:
                searched = self._result(key, future) if self._futures.get(key) is future else None
                if searched is not None:
                    del self._futures[key]
                    found.append((key, searched))
                key, future = self._back.get_nowait()
        except queue.Empty:
            pass
        if time.monotonic() - self._looked > _LOOK_S:
            self._look()
        return found

    def _result(self, key: int, future: Any) -> Searched | None:
        """What a piece came to; None if it was handed out again."""
        if future.status == "finished":
            try:
                result: Searched = future.result(timeout=_RESULT_S)
            except (TimeoutError, concurrent.futures.CancelledError):
                pass
            else:
                return result
        again = True
        if future.status != "error":  # the worker died that still had what it came to; or else all are lost
            if self._client.status != "running":
                raise GuestmemError(f"--dask {self.address}: the connection to the scheduler is lost")
            self._look()
            said = "what it came to was lost with the worker that had it"
        else:
            error = future.exception()
            if isinstance(error, GuestmemError):
                raise error
            if isinstance(error, ImportError):
                raise UsageError(f"--dask {self.address}: a worker cannot load guestmem: {error}")
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if isinstance(error, self._killed):
                said, again = "every worker that had it died", False
        if again and self._tries[key] < TRIES:
            self.start(key, *self._pieces[key])
            return None
        piece = self._pieces[key][0]
        lost = Outcome(piece.model.name, piece.search, piece.memory, piece.bound, stopped="lost")
        tries = max(self._tries[key], self._begun.get(key, 0))
        lost.note = f"a part was given up after {tries} tries: {said}"
        return Searched(lost, piece.points)

    def stop(self, keys: Iterable[int]) -> None:
        given_up = [self._futures.pop(key) for key in keys if key in self._futures]
        if given_up:
            self._client.cancel(given_up)

    def standing(self) -> dict[int, Outcome]:
        return {key: self._counts[key] for key in list(self._futures) if key in self._counts}

    def again(self, key: int) -> int:
        return max(self._begun.get(key, 0) - 1, 0)


def explore_on(
    address: str,
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
    """As ``explore``, on the Dask cluster whose scheduler is at ``address``; ``options`` are those of ``tasks``.

    The model must be one that pickles, and the workers must have the very same guestmem. UsageError if ``distributed``
    is not installed, nobody answers at the address, or a worker has other sources; GuestmemError if the scheduler goes
    away, or all workers do.
    """
    mutations = tuple(Mutation(*each) for each in mutations)
    report = Report(model)
    with World(model, mutations) as world:
        limits = Limits(seconds, states, go_on, sources(world), uuid.uuid4().hex)
        whole = tasks(model, mutations=mutations, **options)
        with _Cluster(address) as pool:
            pieces = 4 * max(pool.workers, 1)
            report.outcomes += hand_out(
                world, whole, pool, limits=limits, pieces=pieces, stopped=stopped, progress=progress
            )
        add_counterexamples(report, world, shrink_s)
    return report
