"""A guest that shares and takes back ranges of its memory while vCPUs, the host and its devices go on accessing it.

By length of the range: how many conversions a second, how long each took (which is how long a fault in the range may
have to wait), how many were refused because a page was pinned, huge folios split and joined, memory. Each run carries
variants that are wrong on purpose, whose meeting is certain, and which must be caught.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..engines.soft.gmem_vm import PRIVATE_WRITE, SHARED_READ, GmemVm
from ..errors import GuestMemfdError, UsageError
from ..gmem.generations import GENERATIONS
from ..ranges import RangeMap
from ..units import PAGE_SIZE, format_size

__all__ = ["LENGTHS", "STRUCTURES", "Conversions", "Row", "run_conversions"]

LENGTHS = (4 << 10, 64 << 10, 2 << 20, 64 << 20, 1 << 30)
STRUCTURES = ("ranges", "pages")
_TARGETS = 512
_clock = time.perf_counter_ns


class _Pages(RangeMap):
    """The same map, with a store for each page, as the kernel's attributes of the VM have an entry a page."""

    def store(self, start: int, end: int, value: int, *, reserved: bool = False) -> None:
        """Store page by page."""
        import numpy as np

        del reserved
        pages = np.arange(start, end, dtype=np.uint64)
        self.store_arrays(pages, pages, np.full(end - start, value, np.uint64))


@dataclass(frozen=True, slots=True)
class Row:
    """Conversions of one length. Times in ns; memory in bytes."""

    length: int
    conversions: int
    refused: int
    seconds: float
    median: int
    worst: int
    splits: int
    joins: int
    ranges: int
    """Ranges of states at the end."""
    resident: int
    """Of the file, at the end."""

    @property
    def per_second(self) -> float:
        """Conversions carried out a second."""
        return self.conversions / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Conversions:
    """A run: its rows, what all threads counted, and which broken variants were caught."""

    generation: str
    structure: str
    vcpus: int
    hosts: int
    cores: int
    size: int
    folio_size: int
    joins: bool
    pins: int
    seed: int
    rows: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    caught: dict[str, bool] = field(default_factory=dict)
    """By broken variant."""

    @property
    def seen(self) -> int:
        """Private words that the host, or a shared access of a vCPU, saw: none, if all is right."""
        return self.counts["vcpu_saw_private"] + self.counts["host_saw_private"]

    @property
    def ok(self) -> bool:
        """Whether nothing private was seen, and every broken variant was caught."""
        return self.seen == 0 and all(self.caught.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "rows": [asdict(row) | {"per_second": row.per_second} for row in self.rows],
            "seen": self.seen,
            "ok": self.ok,
        }


def _stale_guest(states: str, *, zaps: bool) -> int:
    """A conversion that leaves the guest's mappings (unless ``zaps``): private words that a shared access sees then."""
    with GmemVm(16 * PAGE_SIZE, vcpus=1, targets=[3], states=states, zaps=zaps) as vm:
        vm.access(SHARED_READ, 3)
        vm.convert(0, 15, private=True)
        vm.access(PRIVATE_WRITE, 3)
        if vm.userspace is not None and not zaps:  # shared memory is elsewhere: look at it through the stale mapping
            vm.convert(0, 15, private=False)
            return int(vm.access(PRIVATE_WRITE, 3))
        vm.access(SHARED_READ, 3)
        return vm.counts()["vcpu_saw_private"]


def _stale_host(states: str, *, unmaps: bool) -> int:
    """A conversion that leaves the host's mappings (unless ``unmaps``): private words that the host sees then."""
    with GmemVm(16 * PAGE_SIZE, vcpus=1, targets=[3], states=states) as vm:
        vm.host_access(SHARED_READ, 3)
        if unmaps:
            vm.convert(0, 15, private=True)
        else:
            vm.inode.states.store(0, 16, vm.inode.generation.HOST_BARS)
        if vm.kinds:
            vm.access(PRIVATE_WRITE, 3)
        else:
            vm.write_private(3)
        vm.host_access(SHARED_READ, 3)
        return vm.counts()["host_saw_private"]


def _broken(states: str) -> dict[str, bool]:
    """Which wrong variants were caught; each is run beside the right one, which sees nothing."""
    caught = {}
    if states != "mappability":  # whose accesses have no kind, and so no stale one
        caught["guest mappings left"] = _stale_guest(states, zaps=False) > 0 and _stale_guest(states, zaps=True) == 0
    if states != "vm-attributes":  # whose file the host has not mapped at all
        caught["host mappings left"] = _stale_host(states, unmaps=False) > 0 and _stale_host(states, unmaps=True) == 0
    return caught


def run_conversions(
    *,
    vcpus: int = 2,
    hosts: int = 1,
    generation: str = "attributes",
    structure: str = "ranges",
    size: int = 2 << 30,
    lengths: Sequence[int] = LENGTHS,
    seconds: float = 1.0,
    folio_size: int = PAGE_SIZE,
    joins: bool = True,
    pins: int = 1,
    seed: int = 1,
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Conversions:
    """Convert ranges of each of ``lengths`` for ``seconds`` each, aligned to their length, to what they are not.

    vCPUs and the host access 512 pages spread over the file; ``pins``: of 1024 accesses of the host, how many pin a
    page. ``progress`` is told what is done now, and which share of the lengths is. UsageError for what cannot be meant.
    """
    for name, value, known in (("model", generation, tuple(GENERATIONS)), ("structure", structure, STRUCTURES)):
        if value not in known:
            raise UsageError(f"{name}: {value!r} is not one of {', '.join(known)}")
    if size <= 0 or size % PAGE_SIZE:
        raise UsageError(f"size: {size:#x} is not a positive multiple of {PAGE_SIZE:#x}")
    chosen = [length for length in lengths if length <= size]
    if not chosen:
        raise UsageError(f"size: {format_size(size)} is less than every length")
    result = Conversions(generation, structure, vcpus, hosts, 0, size, folio_size, joins, pins, seed)
    progress("compiling what is not yet, and conversions that are wrong on purpose", 0.0)
    result.caught = _broken(generation)
    pages = size // PAGE_SIZE
    rng = random.Random(seed)  # noqa: S311 - no secret
    targets = sorted(rng.sample(range(pages), min(_TARGETS, pages)))
    with GmemVm(
        size,
        vcpus=vcpus,
        hosts=hosts,
        targets=targets,
        states=generation,
        folio_size=folio_size,
        joins=joins,
        pins=pins,
        seed=seed,
    ) as vm:
        result.cores = vm.cores
        if folio_size > PAGE_SIZE:
            vm.convert(0, pages - 1, private=True)
            vm.file.fallocate(1, 0, size)
        if structure == "pages":
            _store_pages(vm)
        for private in (True, False) * 2:  # compiled here, not where it is measured
            vm.convert(0, 0, private=private)
        vm.start()
        try:
            for done, length in enumerate(chosen):
                progress(f"ranges of {format_size(length)}", done / len(chosen))
                result.rows.append(_row(vm, length, seconds, rng))
        finally:
            vm.stop()
        result.counts = vm.counts()
        vm.inode.unmapped_if_unused()
        vm.file.check()
    return result


def _store_pages(vm: GmemVm) -> None:
    """From now on, states are stored page by page."""
    ranges = vm.inode.states if vm.attributes is None else vm.attributes.ranges
    ranges.__class__ = _Pages


def _row(vm: GmemVm, length: int, seconds: float, rng: random.Random) -> Row:
    took: list[int] = []
    pages, refused = length // PAGE_SIZE, 0
    before = {name: vm.inode.count(name) for name in ("splits", "joins")}
    begun = _clock()
    end = begun + int(seconds * 1e9)
    while not took or _clock() < end:
        first = rng.randrange(vm.inode.npages // pages) * pages
        start = _clock()
        try:
            vm.convert(first, first + pages - 1, private=not vm.state_private(first))
        except GuestMemfdError as error:
            if error.errno != errno.EAGAIN:
                raise
            refused += 1
            if _clock() >= end:
                break
            continue
        took.append(_clock() - start)
    spent = (_clock() - begun) / 1e9
    took.sort()
    splits, joins = (vm.inode.count(name) - before[name] for name in ("splits", "joins"))
    ranges = vm.inode.states if vm.attributes is None else vm.attributes.ranges
    return Row(
        length,
        len(took),
        refused,
        spent,
        took[len(took) // 2] if took else 0,
        took[-1] if took else 0,
        splits,
        joins,
        len(ranges),
        vm.inode.backing.resident,
    )
