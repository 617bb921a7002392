"""A stage-2 table in Python: every operation with its lock, its pages and its errors; and ``check()``.

Idea: ``struct kvm_pgtable`` and ``kvm_pgtable_stage2_*()``, Linux ``arch/arm64/kvm/hyp/pgtable.c``. vCPUs call the
compiled functions of the modules beside this one, with ``PageTable.at``: its words and a desk of their own.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ..atomics import peek
from ..compiled import Own
from ..entries import flat
from ..errors import OutOfRangeError, Stage2Error, UsageError
from ..units import U64_MAX
from . import layout
from .annotate import annotate_range
from .collapse import collapse_range
from .descriptor import Memory, Rights
from .destroy import destroy_table
from .discipline import reclaim_tables
from .flush import flush_range
from .free_list import cache_drain
from .invalidate import invalidate_range
from .map import map_range
from .protect import relax_permissions, write_protect_range
from .split import split_blocks
from .table_state import DISCIPLINES, TableState
from .unmap import unmap_range
from .walk import lookup_shared
from .young import mark_young, young_range

__all__ = ["DISCIPLINES", "PageTable", "Translation"]

_annotate_range = flat(annotate_range, alone=True)
_collapse_range = flat(collapse_range, alone=True)
_flush_range = flat(flush_range, alone=True)
_map_range = flat(map_range)
_write_protect_range = flat(write_protect_range, alone=True)
_relax_permissions = flat(relax_permissions)
_split_blocks = flat(split_blocks, alone=True)
_unmap_range = flat(unmap_range, alone=True)
_lookup_shared = flat(lookup_shared)
_mark_young = flat(mark_young, alone=True)
_young_range = flat(young_range, alone=True)
_reclaim_tables = flat(reclaim_tables)

_OK, _EAGAIN = int(layout.OK), int(layout.EAGAIN)


class Translation(NamedTuple):
    """What a lookup found: output address of the byte asked for, and the leaf it comes from."""

    address: int
    level: int
    descriptor: int


class PageTable(TableState):
    """One table in ``pool``, for ``walkers`` threads (number 0 is, by habit, the Python thread).

    ``discipline``: one of DISCIPLINES. ``cache``: table pages that each walker keeps; ``queue``: tables that each may
    have put aside, a power of two. Addresses and sizes are bytes in whole pages. Methods that may run ``shared`` take
    the lock for reading, and may lose to another walker: LockedError. All raise a Stage2Error of its own kind, with the
    kernel's errno: UnalignedError, OutOfRangeError, LevelError, DestroyedError, OwnedError, MappedError, UnmappedError,
    TablePagesError (the pool is empty; what was done stays).

    ``exact`` (the default): a block that reaches over a bound of the range is split, and nothing changes outside; if
    there are no pages for that, nothing has changed. With ``exact=False`` the block goes, or changes, as a
    whole, and the guest's next faults bring back what was lost: what Linux does.

    >>> from guestmem.stage2 import Pool, arm_stage2
    >>> table = PageTable(arm_stage2(0x1000, 40), Pool(64))
    >>> table.map(0x200000, 0x201000, 0x40000000, Rights.RW)  # a block and a page
    2
    >>> table.lookup(0x400123).level, hex(table.lookup(0x200123).address)
    (3, '0x40000123')
    >>> table.unmap(0x200000, 0x1000)  # the rest of the block stays, in pages
    1
    >>> table.lookup(0x200000) is None, table.lookup(0x201000).level
    (True, 3)
    >>> table.check()
    """

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
        exact: bool = True,
        walker: int = 0,
    ) -> int:
        """Map ``[ipa, ipa + size)`` to ``address`` on, by the largest leaves that fit; returns how many were written.

        ``level``: the lowest level number at which a leaf may stand (3: pages only, as under dirty logging).
        MappedError: with whatever rights (``ignore_eagain``: passed over); OwnedError: an owner's mark is there.
        A table in the way of a block is collapsed. TablePagesError: all before the address it names is mapped.
        """
        attributes = self.format.attributes(rights, memory, software=software)
        self._check_range(ipa, size, "map")
        self.format.check_address("address", address, self.format.geometry.page_size)
        if address + size > 1 << self.format.pa_bits:
            raise OutOfRangeError(
                errno.ERANGE, f"address: {address:#x} + {size:#x} is outside {self.format.pa_bits} bits"
            )
        level = self._check_level(level)
        flags = int(layout.OVER_OWNER) * over_owner | int(layout.IGNORE_EAGAIN) * ignore_eagain
        flags |= int(layout.KEEP_REST) * exact

        def step(start: int, shared: bool) -> int:
            here = address + start - ipa
            kind = flags | int(layout.SHARED) * shared
            desk = self.desks[walker]
            return int(_map_range(*self.words, desk, start, ipa + size - start, here, attributes, level, kind))

        return self._steps("map", ipa, step, walker=walker, shared=shared)

    def unmap(self, ipa: int, size: int, *, defer: bool = False, exact: bool = True, walker: int = 0) -> int:
        """Unmap a range, and owners' marks in it; returns the number of entries removed.

        ``defer``: one invalidation of all leaves, by range, at the end.
        """
        flags = int(layout.DEFER_INVALIDATE) * defer

        def unmap(desk: Own) -> int:
            return int(_unmap_range(*self.words, desk, ipa, size, flags))

        return self._range("unmap", ipa, size, walker, unmap, exact=exact)

    def write_protect(self, ipa: int, size: int, *, exact: bool = True, walker: int = 0) -> int:
        """Take the right to write from a range, and invalidate it; returns the number of leaves changed."""

        def protect(desk: Own) -> int:
            status = int(_write_protect_range(*self.words, desk, ipa, size))
            if status == _OK and desk[int(layout.RESULT)]:
                invalidate_range(self.mmu, ipa, size)
            return status

        return self._range("write_protect", ipa, size, walker, protect, exact=exact)

    def relax(self, ipa: int, rights: Rights, *, shared: bool = False, walker: int = 0) -> None:
        """Add rights to the leaf for ``ipa``, all of it; UnmappedError if there is none."""
        wanted = (rights & 3) | (4 if rights & Rights.X else 0)
        flags = int(layout.SHARED) * shared
        self._one("relax", ipa, lambda desk: _relax_permissions(*self.words, desk, ipa, wanted, flags), walker, shared)

    def mark_young(self, ipa: int, *, shared: bool = False, walker: int = 0) -> None:
        """Set the access flag of the leaf for ``ipa``; UnmappedError if there is none."""
        flags = int(layout.SHARED) * shared
        self._one("mark_young", ipa, lambda desk: _mark_young(*self.words, desk, ipa, flags), walker, shared)

    def young(self, ipa: int, size: int, *, clear: bool = False, walker: int = 0) -> int:
        """How many leaves in a range have the access flag; ``clear`` it, and invalidate the range if any had it.

        A leaf has one flag: of a block that the range touches it is cleared, and no block is split for that.
        """

        def test(desk: Own) -> int:
            status = int(_young_range(*self.words, desk, ipa, size, clear))
            if status == _OK and clear and desk[int(layout.RESULT)]:
                invalidate_range(self.mmu, ipa, size)
            return status

        return self._range("young", ipa, size, walker, test)

    def flush(self, ipa: int, size: int, *, walker: int = 0) -> int:
        """Clean data caches for a range (the hook counts); returns the number of leaves."""
        return self._range("flush", ipa, size, walker, lambda desk: _flush_range(*self.words, desk, ipa, size))

    def split(
        self, ipa: int, size: int, *, level: int | None = None, chunk: int = 1 << 30, bbm: int = 0, walker: int = 0
    ) -> int:
        """Split blocks into leaves of ``level`` (default: pages); returns how many blocks were split.

        ``chunk``: blocks that are split before the lock is dropped and taken again. ``bbm``: as of ``collapse``.
        """
        self._check_range(ipa, size, "split")
        level = int(self.shape[int(layout.LAST_LEVEL)]) if level is None else self._check_level(level)
        if chunk < 1:
            raise UsageError(f"chunk: {chunk} blocks are not at least 1")
        flags = self._bbm(bbm)

        def step(start: int, shared: bool) -> int:
            del shared
            desk, length = self.desks[walker], ipa + size - start
            return int(_split_blocks(*self.words, desk, start, length, level, chunk, flags))

        return self._steps("split", ipa, step, walker=walker, again=True)

    def collapse(
        self, ipa: int, size: int, *, level: int | None = None, shared: bool = False, bbm: int = 0, walker: int = 0
    ) -> int:
        """Collapse tables in a range into blocks, up to ``level``, where they map one run alike; returns how many.

        ``bbm``: what FEAT_BBM spares; 0: break, then make; 1: by way of a block with nT; 2: the block at once.
        """
        self._check_range(ipa, size, "collapse")
        wanted = self._bbm(bbm)
        level = self._check_level(level)

        def step(start: int, shared: bool) -> int:
            flags = int(layout.SHARED) * shared | wanted
            return int(_collapse_range(*self.words, self.desks[walker], start, ipa + size - start, level, flags))

        return self._steps("collapse", ipa, step, walker=walker, shared=shared)

    @staticmethod
    def _bbm(level: int) -> int:
        if level not in {0, 1, 2}:
            raise UsageError(f"bbm: {level} is not 0, 1 or 2")
        return (0, int(layout.BBM_1), int(layout.BBM_2))[level]

    def annotate(self, ipa: int, size: int, mark: int, *, exact: bool = True, walker: int = 0) -> int:
        """Replace what a range maps by an owner's mark (``Format.owned``), in pages; returns how many were written."""
        self._check_range(ipa, size, "annotate")
        if mark & 1 or mark in {0, self.format.locked}:
            raise Stage2Error(
                errno.EINVAL, f"mark: {mark:#x} is not an invalid entry beside 0 and {self.format.locked:#x}"
            )

        def step(start: int, shared: bool) -> int:
            del shared
            desk, length = self.desks[walker], ipa + size - start
            return int(_annotate_range(*self.words, desk, start, length, mark, int(layout.KEEP_REST) * exact))

        return self._steps("annotate", ipa, step, walker=walker)

    def lookup(self, ipa: int, *, walker: int = 0) -> Translation | None:
        """The leaf for ``ipa`` (any byte), or None; OutOfRangeError, DestroyedError."""
        desk = self.desks[walker]
        with self._lock(walker, shared=True):
            status = int(_lookup_shared(*self.words, desk, ipa)) if 0 <= ipa <= U64_MAX else errno.ERANGE
        if status in {errno.ENOENT, _EAGAIN}:
            return None
        if status != _OK:
            raise self._error(status, "lookup", ipa)
        found, level, address = (int(desk[int(layout.FIND) + at]) for at in range(3))
        return Translation(address, level, found)

    @property
    def replacements(self) -> dict[str, int]:
        """How often splits and collapses replaced an entry by each way that FEAT_BBM knows: break, nT, at once."""
        words = layout.REPLACED_BY_BREAK, layout.REPLACED_BY_NT, layout.REPLACED_DIRECTLY
        return {name: peek(self.mmu, int(word)) for name, word in zip(("break", "nt", "direct"), words, strict=True)}

    def reclaim(self, *, wait: bool = True) -> int:
        """Free what walkers put aside and whose grace period is over (``wait``: after waiting for it); page count."""
        return sum(int(_reclaim_tables(*self.words, desk, wait)) for desk in self.desks)

    def destroy(self) -> int:
        """Give every page back; returns how many. Once only: DestroyedError. No walker may be inside."""
        if self.destroyed:
            raise self._error(errno.EINVAL, "destroy", 0)
        freed = self.reclaim()
        for desk in self.desks:
            cache_drain(self.pool.pages, desk)
        return freed + int(destroy_table(*self.words))
