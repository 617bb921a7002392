"""A stage-2 table in Python: every operation with its lock, its pages and its errors; and ``check()``.

Idea: ``struct kvm_pgtable`` and ``kvm_pgtable_stage2_*()``, Linux ``arch/arm64/kvm/hyp/pgtable.c``. vCPUs call the
compiled functions of the modules beside this one, with ``PageTable.words`` and a desk of their own.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..atomics import peek, poke
from ..compiled import Own, Words, own, words
from ..errors import Stage2Error, UsageError
from ..rcu import deferred_words, srcu_words
from ..units import U64_MAX
from . import layout
from .annotate import annotate_range
from .collapse import collapse_range
from .descriptor import Memory, Rights
from .destroy import destroy_table, root_pages
from .discipline import reclaim_tables
from .flush import flush_range
from .format import Format
from .free_list import cache_drain
from .invalidate import invalidate_range
from .invariants import held_pages
from .locked import refill
from .map import map_range
from .pool import Pool
from .protect import relax_permissions, write_protect_range
from .rwlock import read_lock, read_unlock, rwlock_words, write_lock, write_unlock
from .split import split_range
from .tlb_layout import hub_words
from .unmap import unmap_range
from .walk import lookup_shared
from .young import mark_young, young_range

__all__ = ["DISCIPLINES", "PageTable", "Translation"]

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
_tables: weakref.WeakKeyDictionary[Pool, weakref.WeakSet[PageTable]] = weakref.WeakKeyDictionary()


class Translation(NamedTuple):
    """What a lookup found: output address of the byte asked for, and the leaf it comes from."""

    address: int
    level: int
    descriptor: int


class PageTable:
    """One table in ``pool``, for ``walkers`` threads (number 0 is, by habit, the Python thread).

    ``discipline``: one of DISCIPLINES. ``cache``: table pages that each walker keeps; ``queue``: tables that each may
    have put aside, a power of two. Addresses and sizes are bytes in whole pages. Methods that may run ``shared`` take
    the lock for reading, and may lose to another walker: Stage2Error EAGAIN. All raise Stage2Error: EINVAL for what
    is unaligned and after ``destroy()``, ERANGE outside the input, ENOMEM when the pool is empty (what was done stays).

    >>> from guestmem.stage2.arm import arm_stage2
    >>> table = PageTable(arm_stage2(0x1000, 40), Pool(64))
    >>> table.map(0x200000, 0x201000, 0x40000000, Rights.RW)  # a block and a page
    2
    >>> table.lookup(0x400123).level, hex(table.lookup(0x200123).address)
    (3, '0x40000123')
    >>> table.split(0x200000, 0x200000), table.unmap(0x200000, 0x1000)
    (1, 1)
    >>> table.lookup(0x200000) is None
    True
    >>> table.check()
    """

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
        """The first four arguments of the compiled operations: shape, pool, pages, mmu. The fifth is a desk."""
        return self.shape, self.pool.words, self.pool.pages, self.mmu

    # --- operations ----------------------------------------------------------------------------------------------

    def map(
        self,
        ipa: int,
        size: int,
        address: int,
        rights: Rights,
        *,
        memory: Memory = Memory.NORMAL,
        software: int = 0,
        level: int | None = None,
        shared: bool = False,
        over_owner: bool = False,
        ignore_eagain: bool = False,
        walker: int = 0,
    ) -> int:
        """Map ``[ipa, ipa + size)`` to ``address`` on, by the largest leaves that fit; returns how many were written.

        ``level``: the lowest level number at which a leaf may stand (3: pages only, as under dirty logging).
        EAGAIN: mapped already, with whatever rights (``ignore_eagain``: passed over); EPERM: an owner's mark is there.
        A table in the way of a block is collapsed; what a block in the way mapped beside the range is gone.
        """
        attributes = self.format.attributes(rights, memory, software=software)
        self._check_range(ipa, size)
        self.format.check_address("address", address, self.format.geometry.page_size)
        if address + size > 1 << self.format.pa_bits:
            raise Stage2Error(errno.ERANGE, f"address: {address:#x} + {size:#x} is outside {self.format.pa_bits} bits")
        level = self._check_level(level)
        flags = int(layout.OVER_OWNER) * over_owner | int(layout.IGNORE_EAGAIN) * ignore_eagain

        def step(start: int, shared: bool) -> int:
            here = address + start - ipa
            kind = flags | int(layout.SHARED) * shared
            desk = self.desks[walker]
            return int(map_range(*self.words, desk, start, ipa + size - start, here, attributes, level, kind))

        return self._steps("map", ipa, step, walker=walker, shared=shared)

    def unmap(self, ipa: int, size: int, *, defer: bool = False, walker: int = 0) -> int:
        """Unmap a range, whole blocks where it touches them, and owners' marks; returns the number of entries removed.

        ``defer``: one invalidation of all leaves, by range, at the end.
        """
        flags = int(layout.DEFER_INVALIDATE) * defer
        return self._range("unmap", ipa, size, walker, lambda desk: unmap_range(*self.words, desk, ipa, size, flags))

    def write_protect(self, ipa: int, size: int, *, walker: int = 0) -> int:
        """Take the right to write from a range, and invalidate it; returns the number of leaves changed."""

        def protect(desk: Own) -> int:
            status = int(write_protect_range(*self.words, desk, ipa, size))
            if status == _OK and desk[int(layout.RESULT)]:
                invalidate_range(self.mmu, ipa, size)
            return status

        return self._range("write_protect", ipa, size, walker, protect)

    def relax(self, ipa: int, rights: Rights, *, shared: bool = False, walker: int = 0) -> None:
        """Add rights to the leaf for ``ipa``; EAGAIN if there is none."""
        wanted = (rights & 3) | (4 if rights & Rights.X else 0)
        flags = int(layout.SHARED) * shared
        self._one("relax", ipa, lambda desk: relax_permissions(*self.words, desk, ipa, wanted, flags), walker, shared)

    def mark_young(self, ipa: int, *, shared: bool = False, walker: int = 0) -> None:
        """Set the access flag of the leaf for ``ipa``; EAGAIN if there is none."""
        flags = int(layout.SHARED) * shared
        self._one("mark_young", ipa, lambda desk: mark_young(*self.words, desk, ipa, flags), walker, shared)

    def young(self, ipa: int, size: int, *, clear: bool = False, walker: int = 0) -> int:
        """How many leaves in a range have the access flag; ``clear`` it, and invalidate the range if any had it."""

        def test(desk: Own) -> int:
            status = int(young_range(*self.words, desk, ipa, size, clear))
            if status == _OK and clear and desk[int(layout.RESULT)]:
                invalidate_range(self.mmu, ipa, size)
            return status

        return self._range("young", ipa, size, walker, test)

    def flush(self, ipa: int, size: int, *, walker: int = 0) -> int:
        """Clean data caches for a range (the hook counts); returns the number of leaves."""
        return self._range("flush", ipa, size, walker, lambda desk: flush_range(*self.words, desk, ipa, size))

    def split(self, ipa: int, size: int, *, level: int | None = None, chunk: int = 1 << 30, walker: int = 0) -> int:
        """Split blocks into leaves of ``level`` (default: pages); returns how many blocks were split.

        ``chunk``: blocks that are split before the lock is dropped and taken again.
        """
        self._check_range(ipa, size)
        level = int(self.shape[int(layout.LAST_LEVEL)]) if level is None else self._check_level(level)
        if chunk < 1:
            raise UsageError(f"chunk: {chunk} blocks are not at least 1")

        def step(start: int, shared: bool) -> int:
            del shared
            return int(split_range(*self.words, self.desks[walker], start, ipa + size - start, level, chunk))

        return self._steps("split", ipa, step, walker=walker, again=True)

    def collapse(
        self, ipa: int, size: int, *, level: int | None = None, shared: bool = False, bbm: int = 0, walker: int = 0
    ) -> int:
        """Collapse tables in a range into blocks, up to ``level``, where they map one run alike; returns how many.

        ``bbm``: what FEAT_BBM spares; 0: break, then make; 1: by way of a block with nT; 2: the block at once.
        """
        self._check_range(ipa, size)
        if bbm not in {0, 1, 2}:
            raise UsageError(f"bbm: {bbm} is not 0, 1 or 2")
        level = self._check_level(level)

        def step(start: int, shared: bool) -> int:
            flags = int(layout.SHARED) * shared | (0, int(layout.BBM_1), int(layout.BBM_2))[bbm]
            return int(collapse_range(*self.words, self.desks[walker], start, ipa + size - start, level, flags))

        return self._steps("collapse", ipa, step, walker=walker, shared=shared)

    def annotate(self, ipa: int, size: int, mark: int, *, walker: int = 0) -> int:
        """Replace what a range maps by an owner's mark (``Format.owned``), in pages; returns how many were written."""
        self._check_range(ipa, size)
        if mark & 1 or mark in {0, self.format.locked}:
            raise Stage2Error(
                errno.EINVAL, f"mark: {mark:#x} is not an invalid entry beside 0 and {self.format.locked:#x}"
            )

        def step(start: int, shared: bool) -> int:
            del shared
            return int(annotate_range(*self.words, self.desks[walker], start, ipa + size - start, mark))

        return self._steps("annotate", ipa, step, walker=walker)

    def lookup(self, ipa: int, *, walker: int = 0) -> Translation | None:
        """The leaf for ``ipa`` (any byte), or None; ERANGE outside the input."""
        desk = self.desks[walker]
        with self._lock(walker, shared=True):
            status = int(lookup_shared(*self.words, desk, ipa)) if 0 <= ipa <= U64_MAX else errno.ERANGE
        if status in {errno.ENOENT, _EAGAIN}:
            return None
        if status != _OK:
            raise self._error(status, "lookup", ipa)
        found, level, address = (int(desk[int(layout.FIND) + at]) for at in range(3))
        return Translation(address, level, found)

    def reclaim(self, *, wait: bool = True) -> int:
        """Free what walkers put aside and whose grace period is over (``wait``: after waiting for it); page count."""
        return sum(int(reclaim_tables(*self.words, desk, wait)) for desk in self.desks)

    def destroy(self) -> int:
        """Give every page back; returns how many. Once only: EINVAL. No walker may be inside."""
        if self.destroyed:
            raise self._error(errno.EINVAL, "destroy", 0)
        freed = self.reclaim()
        for desk in self.desks:
            cache_drain(self.pool.pages, desk)
        return freed + int(destroy_table(*self.words))

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

    def _check_range(self, ipa: int, size: int) -> None:
        if self.destroyed:
            raise self._error(errno.EINVAL, "range", ipa)
        self.format.geometry.check_range(ipa, size)

    def _check_level(self, level: int | None) -> int:
        first, last = int(self.shape[int(layout.MIN_BLOCK_LEVEL)]), int(self.shape[int(layout.LAST_LEVEL)])
        if level is None:
            return first
        if not first <= level <= last:
            raise Stage2Error(
                errno.EINVAL, f"level: {level} allows no leaf in {self.format.name}: {first} to {last} do"
            )
        return level

    def _range(self, what: str, ipa: int, size: int, walker: int, call: Callable[[Own], int]) -> int:
        self._check_range(ipa, size)
        desk = self.desks[walker]
        with self._lock(walker, shared=False):
            status = int(call(desk))
        if status != _OK:
            raise self._error(status, what, ipa)
        return int(desk[int(layout.RESULT)])

    def _one(self, what: str, ipa: int, call: Callable[[Own], int], walker: int, shared: bool) -> None:
        page = self.format.geometry.page_size
        self._check_range(ipa // page * page, page)
        with self._lock(walker, shared=shared):
            status = int(call(self.desks[walker]))
        if status != _OK:
            raise self._error(status, what, ipa)

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
            enough = int(refill(*self.words, desk)) == _OK
            with self._lock(walker, shared=shared):
                status = step(start, shared)
            done += int(desk[int(layout.RESULT)])
            if status == _OK:
                return done
            here = int(desk[int(layout.PROGRESS)])
            if status == _ENOMEM and (enough or here > stuck):
                reclaim_tables(*self.words, desk, True)
                if here == stuck and not int(desk[int(layout.CACHE_COUNT)]):
                    raise self._error(status, what, here)
                stuck = here
            elif status == _EBUSY and shared:
                shared = False
            elif not (status == _EAGAIN and again):
                raise self._error(status, what, here)
            start = here

    def _error(self, status: int, what: str, ipa: int) -> Stage2Error:
        if self.destroyed:
            return Stage2Error(errno.EINVAL, f"{what}: the table was destroyed")
        why = {
            errno.EPERM: "an owner's mark is there",
            errno.EAGAIN: "no leaf, mapped already, or another walker was faster",
            errno.ENOMEM: f"{self.pool.used} of {self.pool.limit} table pages are used",
            errno.EBUSY: f"a table must go, which discipline {self.discipline} does exclusively",
            errno.ERANGE: f"outside {self.format.geometry.ipa_bits} bits of input",
            errno.EINVAL: "not in whole pages",
        }.get(status, "unknown status")
        return Stage2Error(status, f"{what}: {ipa:#x}: {why}")

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
