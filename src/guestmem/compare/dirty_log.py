"""Dirty logging, way by way: what switching it on, writing under it, taking logs and switching it off cost.

The shape of ``dirty_log_perf_test.c`` (Linux selftests): populate, switch logging on, let every vCPU write every page
and take the log, a few times, switch it off, and write once more, since some ways leave the work to that. Beside it a
migration: what logs name is copied, also while vCPUs write, and in the end the copy must be the guest's memory.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..engines import Access, HostMemory, Load, Target
from ..engines.soft import SoftEngine
from ..engines.soft.dirty_log import DirtyLogging
from ..engines.soft.write_pass import counter_offset, write_pass
from ..errors import UsageError
from ..memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from ..units import PAGE_SHIFT, format_size
from .dirty_log_result import PHASES, DirtyLogComparison, DirtyLogRow
from .result import Spread

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DESIGNS", "Way", "check_dirty_log", "compare_dirty_log", "find_ways"]

DEFAULT_MEMORY = 256 << 20
_SMALLEST, _LARGEST = 4 << 20, 16 << 30
_BLOCK = 2 << 20
_HVA = 0x7F00_0000_0000
LIVE_PAGES, LIVE_LOGS, LIVE_PAUSE_S = 128, 10, 0.001
"""Pages that vCPUs write to while logs are taken beside them, how many logs, and the pause between two."""
_clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Way:
    """One way of logging: how it begins, how it ends. ``broken``: wrong on purpose, to be caught."""

    name: str
    summary: str
    logging: DirtyLogging
    broken: bool = False


_BEGINS = {
    "demand": "write faults split what is large, page by page",
    "split": "large leaves are split when logging begins",
}
_ENDS = {
    "lazy": "when it ends, nothing; faults bring large leaves back",
    "unmap": "when it ends, the slot is unmapped, and built again by faults",
    "eager": "when it ends, tables become blocks, by break-before-make",
    "bbm2": "when it ends, tables become blocks at once, as FEAT_BBM level 2 allows",
}
DESIGNS = (
    *(
        Way(f"{begin}+{end}", f"{begins}; {ends}", DirtyLogging(begin, end))
        for begin, begins in _BEGINS.items()
        for end, ends in _ENDS.items()
    ),
    Way(
        "unflushed",
        "demand+lazy, and a log is taken without waiting for vCPUs that may still write",
        DirtyLogging(flush=False),
        broken=True,
    ),
)
"""In the order in which tables show them."""


def find_ways(names: Sequence[str]) -> list[Way]:
    """The designs of these names, or of these halves of names, in order; all without any. UsageError lists them.

    >>> [way.name for way in find_ways(["bbm2"])]
    ['demand+bbm2', 'split+bbm2']
    """
    known = ", ".join(way.name for way in DESIGNS)
    for name in names:
        if not any(name in {way.name, *way.name.split("+")} for way in DESIGNS):
            raise UsageError(f"design: {name!r} is not one of {known}, nor half of one")
    return [
        way
        for way in DESIGNS
        if (not names and not way.broken) or any(name in {way.name, *way.name.split("+")} for name in names)
    ]


class _Guest:
    """The guest's memory, on host memory that large pages fit; all rows use it."""

    def __init__(self, size: int) -> None:
        import numpy as np

        self.npages = size >> PAGE_SHIFT
        self.memory = HostMemory([(_HVA, _HVA + size + _BLOCK)])
        self.base = -(-self.memory.translate(_HVA) // _BLOCK) * _BLOCK
        pages = np.arange(self.npages)
        self._at = (pages << PAGE_SHIFT >> 3) + ((pages ^ pages >> 9) % 512)
        self._words = _as_words(self.base, size)
        self._words[self._at] = 0  # committed, so that no row pays for it

    def counters(self) -> npt.NDArray[np.uint64]:
        """The counter of every page, in an array of its own."""
        counters: npt.NDArray[np.uint64] = self._words[self._at]
        return counters

    def parts(self, vcpus: int) -> list[tuple[int, int]]:
        """Frames, split between vCPUs."""
        edges = [self.npages * vcpu // vcpus for vcpu in range(vcpus + 1)]
        return list(pairwise(edges))

    def targets(self, gfns: Sequence[int]) -> list[Target]:
        """These pages' counters."""
        offsets = [(gfn << PAGE_SHIFT) + counter_offset(gfn) for gfn in gfns]
        return [Target(offset, self.base + offset, self.base + offset) for offset in offsets]

    def close(self) -> None:
        """Give the memory back."""
        del self._words
        self.memory.close()


def _as_words(address: int, size: int) -> Any:
    import ctypes

    import numpy as np

    return np.ctypeslib.as_array((ctypes.c_uint64 * (size // 8)).from_address(address))


class _Migration:
    """The copy that is made by the log, and what was lost on the way."""

    def __init__(self, guest: _Guest, engine: SoftEngine, row: DirtyLogRow) -> None:
        self._guest, self._engine, self._row = guest, engine, row
        self._copy = guest.counters()
        self._seen = self._copy.copy()

    def get(self) -> bytes:
        """KVM_GET_DIRTY_LOG with manual protection."""
        return self._engine.dirty.copy(0)

    def clear(self, log: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG of all that it named."""
        self._engine.dirty.clear(0, 0, self._guest.npages, log)

    def copy(self, log: bytes) -> None:
        """Copy the pages that the log named; what changed was seen by comparing, not by the log."""
        import numpy as np

        named = np.unpackbits(np.frombuffer(log, np.uint8), bitorder="little")[: self._guest.npages].view(np.bool_)
        now = self._guest.counters()
        self._row.named += int(named.sum())
        self._row.written += int((now != self._seen).sum())
        self._seen = now
        self._copy[named] = now[named]

    def end(self) -> None:
        """The guest has stopped and its last log was copied: what differs is lost."""
        self._row.lost += int((self._copy != self._guest.counters()).sum())


class _Run:
    """One repeat of a row: a fresh engine on the guest's memory."""

    def __init__(self, guest: _Guest, way: Way, row: DirtyLogRow, arch: str, seed: int) -> None:
        self._guest, self._row, self._rng = guest, row, random.Random(seed)  # noqa: S311 - not for secrets
        self._parts = guest.parts(row.vcpus)
        self.engine = SoftEngine(row.vcpus, cores=row.cores, arch=arch, seed=seed, logging=way.logging)
        self.engine.set_access(Access(writes=1.0, fetches=0.0))
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def _total(self, name: str) -> int:
        return sum(counts[name] for counts in self.engine.vcpu_counts())

    @contextmanager
    def _phase(self, name: str, *, timed: bool = True) -> Iterator[None]:
        """Count, and time, what goes on inside."""
        stage2 = self.engine.stage2
        invalidations, faults = stage2.invalidations, self._total("stage2_faults")
        begun = _clock()
        yield
        if timed:
            self.times[name].append(_clock() - begun)
        self._row.work[name].add(stage2.invalidations - invalidations, self._total("stage2_faults") - faults)
        for table in stage2.tables:
            table.reclaim()  # what a grace period would have freed by now
        pages = self._row.table_pages
        pages[name] = max(pages.get(name, 0), self.engine.table_pages)

    def _pass(self, phase: str, step: int = 1) -> None:
        with self._phase(phase, timed=False):
            self.times[phase].append(write_pass(self.engine, self._parts, step))

    def _region(self, flags: int) -> None:
        self.engine.set_memory_region(Change(0, 0, self._guest.npages, self._guest.base, flags))

    def go(self, iterations: int) -> None:
        """All phases."""
        self._region(0)
        self._pass("populate")
        self._pass("before")
        with self._phase("enable"):
            self._region(KVM_MEM_LOG_DIRTY_PAGES)
        migration = _Migration(self._guest, self.engine, self._row)
        for _ in range(iterations):
            self._pass("dirty")
            with self._phase("get"):
                log = migration.get()
            with self._phase("clear"):
                migration.clear(log)
            migration.copy(log)
        self._live(migration)
        migration.end()
        self._row.marked += self._total("dirty_marks")
        with self._phase("disable"):
            self._region(0)
        self._pass("rebuild", _BLOCK >> PAGE_SHIFT)
        self._pass("after")

    def _live(self, migration: _Migration) -> None:
        """Take logs while vCPUs write, then the last one, when they have stopped."""
        before = self._total("writes")
        npages = self._guest.npages
        gfns = self._rng.sample(range(npages), min(LIVE_PAGES, npages))
        self.engine.set_load(Load(self._guest.targets(gfns)))
        self.engine.start()
        try:
            for _ in range(LIVE_LOGS):
                time.sleep(LIVE_PAUSE_S)
                with self._phase("live"):
                    log = migration.get()
                    migration.clear(log)
                migration.copy(log)
        finally:
            self.engine.stop()
        log = migration.get()
        migration.clear(log)
        migration.copy(log)
        self._row.live_logs += LIVE_LOGS + 1
        self._row.live_writes += self._total("writes") - before


def check_dirty_log(*, vcpus: Sequence[int], memory: int, iterations: int, repeat: int) -> None:
    """UsageError for arguments of ``compare_dirty_log`` that cannot be meant, before anything is made or announced."""
    for count in vcpus:
        if not 1 <= count <= 256:
            raise UsageError(f"vcpus: {count} is not in 1..256")
    if not _SMALLEST <= memory <= _LARGEST or memory % _BLOCK:
        raise UsageError(
            f"memory: {memory:#x} is not a multiple of {format_size(_BLOCK)} in "
            f"{format_size(_SMALLEST)}..{format_size(_LARGEST)}"
        )
    if memory > _available() // 2:
        raise UsageError(f"memory: {format_size(memory)} is more than half of the {_available() >> 20} MiB available")
    for name, value in (("iterations", iterations), ("repeat", repeat)):
        if value < 1:
            raise UsageError(f"{name}: {value} is not at least 1")


def compare_dirty_log(
    *,
    vcpus: Sequence[int] = (1, 2, 4, 8),
    memory: int = DEFAULT_MEMORY,
    iterations: int = 2,
    repeat: int = 3,
    designs: Sequence[str] = (),
    seed: int = 1,
    arch: str = "x86",
    cores: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    advanced: Callable[[str], object] = lambda _row: None,
) -> DirtyLogComparison:
    """Run each of ``designs`` (all unless named) at each number of ``vcpus``, ``repeat`` times, on ``memory`` bytes.

    vCPUs share the memory out between them. The broken design is always among them: a comparison that does not catch it
    (``strong_enough``) shows nothing. ``stopped`` is asked between repeats; then what was measured so far is returned.
    UsageError for arguments that cannot be meant. O(pages) per phase; the memory is committed.
    """
    check_dirty_log(vcpus=vcpus, memory=memory, iterations=iterations, repeat=repeat)
    ways = find_ways(designs)
    ways += [way for way in DESIGNS if way.broken and way not in ways]
    cores = cores or len(os.sched_getaffinity(0))
    result = DirtyLogComparison(arch, memory, iterations, repeat, seed, cores, DESIGNS[-1].name)
    result.designs = {way.name: way.summary for way in ways}
    warm = _Guest(_SMALLEST)
    guest = _Guest(memory)
    try:
        for way in ways:  # what is compiled on first use is not measured
            if not stopped():
                _Run(warm, way, DirtyLogRow(way.name, 1, cores), arch, seed).go(1)
        for way in ways:
            for count in vcpus:
                if stopped():
                    break
                result.rows.append(
                    _row(guest, way, DirtyLogRow(way.name, count, cores, way.broken), result, stopped, advanced)
                )
    finally:
        warm.close()
        guest.close()
    result.interrupted = stopped()
    return result


def _row(
    guest: _Guest,
    way: Way,
    row: DirtyLogRow,
    run: DirtyLogComparison,
    stopped: Callable[[], bool],
    advanced: Callable[[str], object],
) -> DirtyLogRow:
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for turn in range(run.repeat):
        if stopped():
            break
        one = _Run(guest, way, row, run.arch, run.seed + turn)
        one.go(run.iterations)
        for phase, values in one.times.items():
            times[phase] += values
        row.repeats += 1
        advanced(f"{way.name}, {row.vcpus} vCPU{'s' * (row.vcpus > 1)}")
    row.times = {phase: Spread.of(values) for phase, values in times.items()}
    return row


def _available() -> int:
    """Bytes of memory that programs can still have; sys.maxsize where that is not told."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62
