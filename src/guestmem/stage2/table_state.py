"""What is behind a stage-2 table in Python: its words, its lock, its pages, its errors.

``PageTable`` puts the operations on top. Idea: ``struct kvm_pgtable`` and ``struct kvm_s2_mmu``, Linux.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..atomics import peek, poke
from ..compiled import Own, Words, own, words
from ..entries import flat
from ..errors import (
    DestroyedError,
    LevelError,
    LockedError,
    MappedError,
    OutOfRangeError,
    OwnedError,
    Stage2Error,
    TablePagesError,
    UnalignedError,
    UnmappedError,
    UsageError,
)
from ..rcu import deferred_words, srcu_words
from ..units import U64_MAX
from . import layout
from .destroy import root_pages
from .discipline import reclaim_tables
from .edges import split_edges
from .format import Format
from .free_list import cache_topup
from .invariants import held_pages
from .locked import refill
from .pool import Pool
from .rwlock import read_lock, read_unlock, rwlock_words, write_lock, write_unlock
from .tlb_layout import hub_words
from .words import Table

__all__ = ["DISCIPLINES", "TableState"]

DISCIPLINES = {
    "rcu": int(layout.RCU),
    "lock_subtree": int(layout.LOCK_SUBTREE),
    "rwlock": int(layout.RWLOCK),
    "walk_refs": int(layout.WALK_REFS),
}
"""Who frees what, when: see ``discipline``."""

_OK, _EAGAIN, _ENOMEM, _EBUSY = (int(word) for word in (layout.OK, layout.EAGAIN, layout.ENOMEM, layout.EBUSY))
TLB_RING = 256
"""Records in the log of invalidations."""
_tables: weakref.WeakKeyDictionary[Pool, weakref.WeakSet[TableState]] = weakref.WeakKeyDictionary()


_ERRORS: dict[int, tuple[type[Stage2Error], str]] = {
    errno.EPERM: (OwnedError, "an owner's mark is there"),
    errno.ENOMEM: (TablePagesError, "{used} of {limit} table pages are used"),
    errno.EBUSY: (LockedError, "a table must go, which discipline {discipline} does exclusively"),
    errno.ERANGE: (OutOfRangeError, "outside {bits} bits of input"),
    errno.EINVAL: (UnalignedError, "not in whole pages"),
}

_reclaim_tables, _refill, _split_edges = flat(reclaim_tables), flat(refill), flat(split_edges, alone=True)


class TableState:
    """A table's words in its pool, and how operations on them are run. See ``table.PageTable``."""

    def __init__(
        self,
        format_: Format,
        pool: Pool,
        *,
        walkers: int = 1,
        discipline: str = "rcu",
        cache: int = 64,
        queue: int = 1024,
    ) -> None:
        geometry = format_.geometry
        if discipline not in DISCIPLINES:
            raise UsageError(f"discipline: {discipline!r} is not one of {', '.join(DISCIPLINES)}")
        if walkers < 1:
            raise UsageError(f"walkers: {walkers} is not at least 1")
        if cache < geometry.levels - 1:
            raise UsageError(f"cache: {cache} pages are not at least {geometry.levels - 1}, those of one walk")
        if queue < 1 or queue & (queue - 1):
            raise UsageError(f"queue: {queue} is not a power of two")
        if geometry.page_shift != pool.page_shift:
            raise UsageError(f"page_shift: {geometry.page_shift} is not the pool's {pool.page_shift}")
        self.format, self.pool, self.walkers, self.discipline = format_, pool, walkers, discipline
        self.shape = format_.shape(pool.base)
        self._root_pages = int(root_pages(self.shape))
        lock = int(layout.MMU_FIXED)
        srcu = lock + rwlock_words(walkers)
        queues = srcu + srcu_words(walkers)
        queue_words = -(-deferred_words(queue) // 8) * 8
        self.tlb_hub = queues + walkers * queue_words
        """Where the TLBs' hub starts once one is attached."""
        self.mmu = words(self.tlb_hub + hub_words(walkers, TLB_RING))
        self.desks = [self._new_desk(walker, cache) for walker in range(walkers)]
        self.root = pool.alloc(self._root_pages)
        """Address of the root."""
        root = pool.page_of(self.root)
        for page in range(root, root + self._root_pages):
            line = int(layout.PAGES) + 8 * page
            poke(pool.pages, line + int(layout.COUNT), 1)
            poke(pool.pages, line + int(layout.HELD), 1)
            poke(pool.pages, line + int(layout.STATE), int(layout.LINKED))
            poke(pool.pages, line + int(layout.ENTRY_LEVEL), (geometry.start_level - 1) & U64_MAX)
        for word, value in (
            (layout.DISCIPLINE, DISCIPLINES[discipline]),
            (layout.VCPUS, walkers),
            (layout.QUEUE_CAPACITY, queue),
            (layout.SRCU_BASE, srcu),
            (layout.QUEUE_BASE, queues),
            (layout.QUEUE_WORDS, queue_words),
            (layout.LOCK_BASE, lock),
            (layout.TLB_RING, TLB_RING),
            (layout.ROOT, root + 1),
        ):
            poke(self.mmu, int(word), value)
        poke(self.mmu, srcu, 1)  # epochs start at 1
        _tables.setdefault(pool, weakref.WeakSet()).add(self)

    @staticmethod
    def _new_desk(walker: int, cache: int) -> Own:
        desk = own(int(layout.CACHE) + cache)
        desk[int(layout.WALKER)] = walker
        desk[int(layout.CACHE_CAPACITY)] = cache
        return desk

    @property
    def words(self) -> tuple[Own, Words, Words, Words]:
        """The table's part of ``Table``: shape, pool, pages, mmu. The fifth is a desk."""
        return self.shape, self.pool.words, self.pool.pages, self.mmu

    def at(self, walker: int) -> Table:
        """The table with a walker's desk: what most compiled operations take first."""
        return Table(*self.words, self.desks[walker])

    @property
    def destroyed(self) -> bool:
        """Whether ``destroy()`` was called."""
        return peek(self.mmu, int(layout.ROOT)) == 0

    # --- what surrounds them ---------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self, walker: int, *, shared: bool) -> Iterator[None]:
        base = int(layout.MMU_FIXED)
        if shared:
            read_lock(self.mmu, base, walker)
        else:
            write_lock(self.mmu, base, self.walkers)
        try:
            yield
        finally:
            if shared:
                read_unlock(self.mmu, base, walker)
            else:
                write_unlock(self.mmu, base)

    def _check_range(self, ipa: int, size: int, what: str = "range") -> None:
        if self.destroyed:
            raise self._error(errno.EINVAL, what, ipa)
        self.format.geometry.check_range(ipa, size)

    def _check_level(self, level: int | None) -> int:
        first, last = int(self.shape[int(layout.MIN_BLOCK_LEVEL)]), int(self.shape[int(layout.LAST_LEVEL)])
        if level is None:
            return first
        if not first <= level <= last:
            raise LevelError(errno.EINVAL, f"level: {level} allows no leaf in {self.format.name}: {first} to {last} do")
        return level

    def _range(
        self, what: str, ipa: int, size: int, walker: int, call: Callable[[Own], int], *, exact: bool = False
    ) -> int:
        """Run an exclusive operation on a range; ``exact``: once no block reaches over its bounds any more."""
        self._check_range(ipa, size, what)
        desk = self.desks[walker]
        tried = False
        while True:
            with self._lock(walker, shared=False):
                status = int(_split_edges(*self.words, desk, ipa, size)) if exact else _OK
                if status == _OK:
                    status = int(call(desk))
            if status == _OK:
                return int(desk[int(layout.RESULT)])
            if status != _ENOMEM or tried:
                raise self._error(status, what, ipa, desk)
            needed = int(desk[int(layout.RESULT)])
            if int(cache_topup(*self.words[:3], desk, needed)) != _OK:
                _reclaim_tables(*self.words, desk, True)
                cache_topup(*self.words[:3], desk, needed)
                tried = True

    def _one(self, what: str, ipa: int, call: Callable[[Own], int], walker: int, shared: bool) -> None:
        page = self.format.geometry.page_size
        self._check_range(ipa // page * page, page, what)
        with self._lock(walker, shared=shared):
            status = int(call(self.desks[walker]))
        if status != _OK:
            raise self._error(status, what, ipa, self.desks[walker])

    def _steps(
        self,
        what: str,
        ipa: int,
        step: Callable[[int, bool], int],
        *,
        walker: int,
        shared: bool = False,
        again: bool = False,
    ) -> int:
        """Run an operation that may stop for pages, or for the exclusive lock, until its range is done."""
        desk = self.desks[walker]
        done, start, stuck = 0, ipa, -1
        while True:
            enough = int(_refill(*self.words, desk)) == _OK
            with self._lock(walker, shared=shared):
                status = step(start, shared)
            done += int(desk[int(layout.RESULT)])
            if status == _OK:
                return done
            here = int(desk[int(layout.PROGRESS)])
            if status == _ENOMEM and (enough or here > stuck):
                _reclaim_tables(*self.words, desk, True)
                if here == stuck and not int(desk[int(layout.CACHE_COUNT)]):
                    raise self._error(status, what, here, desk)
                stuck = here
            elif status == _EBUSY and shared:
                shared = False
            elif not (status == _EAGAIN and again):
                raise self._error(status, what, here, desk)
            start = here

    def _error(self, status: int, what: str, ipa: int, desk: Own | None = None) -> Stage2Error:
        """The error for a status; ``desk``: of the walk, which tells what it met."""
        if self.destroyed:
            return DestroyedError(errno.EINVAL, f"{what}: {ipa:#x}: the table was destroyed")
        if status == errno.EAGAIN:
            kind, why = self._met(what, 0 if desk is None else int(desk[int(layout.OLD)]))
            return kind(status, f"{what}: {ipa:#x}: {why}")
        kind, why = _ERRORS.get(status, (Stage2Error, "unknown status"))
        values = {
            "used": self.pool.used,
            "limit": self.pool.limit,
            "bits": self.format.geometry.ipa_bits,
            "discipline": self.discipline,
        }
        return kind(status, f"{what}: {ipa:#x}: {why.format(**values)}")

    def _met(self, what: str, old: int) -> tuple[type[Stage2Error], str]:
        """What EAGAIN means, by the descriptor that the walk saw."""
        if old == self.format.locked:
            return LockedError, "a walker is between break and make there"
        if old & int(self.shape[int(layout.VALID)]) and what == "map":
            return MappedError, f"mapped already, by {old:#x}"
        if old & int(self.shape[int(layout.VALID)]) or what in {"map", "collapse"}:
            return LockedError, "another walker was faster"
        return UnmappedError, "nothing is mapped there"

    # --- check -----------------------------------------------------------------------------------------------------

    def check(self, others: Iterable[int] = ()) -> None:
        """Raise InvariantError unless this table and its pool are sound. Only while no walker is inside. O(pool).

        Counts are exact, nothing is reached twice or after it was freed, no entry is LOCKED, and every page of the pool
        is free or held once by one of the pool's tables, their caches and queues, or is in ``others`` (addresses).
        """
        held = list(others)
        for table in _tables.get(self.pool, ()):
            held += held_pages(table)
        self.pool.check(held)
