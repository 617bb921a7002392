"""A vCPU's TLB in Python: attached to a table, driven step by step, and checked against it.

vCPU threads call the compiled functions of ``tlb_walk`` with ``Tlb.words``; tests and teaching use this face. What it
models: Arm DDI 0487, D8; KVM's primitives are in ``invalidate``.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

from ..atomics import peek, poke
from ..compiled import Own, Words, own
from ..errors import InvariantError, UsageError
from . import layout, tlb_layout
from .npt import NptFormat
from .table import PageTable
from .tlb_walk import tlb_apply, tlb_enter, tlb_leave, tlb_miss, tlb_prefetch, tlb_speculate

__all__ = ["FAULTS", "Finding", "Tlb"]

FAULTS = ("ok", "translation", "access flag", "permission", "conflict")
"""What ``translate`` may say."""
_KINDS = ("", "combined entry", "leaf", "cached table", "two sizes at once")
_NT, _DBM, _DIRTY = 1 << 16, 1 << 51, 1 << 6
_attached: weakref.WeakKeyDictionary[PageTable, weakref.WeakValueDictionary[int, Tlb]] = weakref.WeakKeyDictionary()


class Finding(NamedTuple):
    """The first use of something that should have been gone."""

    kind: str
    ipa: int
    level: int
    walker: int
    record: int
    """Number of the invalidation that should have ended it; for two sizes at once, of records applied."""


class Tlb:
    """The TLB of walker ``walker`` of ``table``, outside the guest at first.

    ``combined``, ``leaves``, ``walks``: entries of the three caches, powers of two. ``strict``: see ``tlb_strict``.
    ``bbm``: level of FEAT_BBM. ``sets_flags``: hardware sets access and dirty flags (None: on x86 both, as it cannot
    otherwise; on Arm the access flag, as KVM has it); True on Arm also uses the dirty-bit-modifier. ``identity``: every
    address is its own virtual address.

    >>> from guestmem.stage2 import Pool, Rights, arm_stage2
    >>> table = PageTable(arm_stage2(0x1000, 40), Pool(64), walkers=2)
    >>> tlb = Tlb(table, 1, strict=True)
    >>> tlb.enter()
    >>> tlb.translate(0x5008)
    ('translation', 0, 1)
    >>> table.map(0x5000, 0x1000, 0x40000000, Rights.RW)
    1
    >>> fault, address, level = tlb.translate(0x5008)
    >>> fault, hex(address), level
    ('ok', '0x40000008', 3)
    >>> tlb.leave()
    """

    def __init__(
        self,
        table: PageTable,
        walker: int,
        *,
        combined: int = 256,
        leaves: int = 64,
        walks: int = 16,
        strict: bool = False,
        bbm: int = 0,
        sets_flags: bool | None = None,
        identity: bool = False,
    ) -> None:
        for name, entries in (("combined", combined), ("leaves", leaves), ("walks", walks)):
            if entries < 1 or entries & (entries - 1):
                raise UsageError(f"{name}: {entries} entries are not a power of two")
        if not 0 <= walker < table.walkers:
            raise UsageError(f"walker: {walker} is not in 0..{table.walkers - 1}")
        if bbm not in {0, 1, 2}:
            raise UsageError(f"bbm: {bbm} is not 0, 1 or 2")
        self.table, self.walker = table, walker
        self.words = self._new_words(combined, leaves, walks)
        x86 = isinstance(table.format, NptFormat)
        for word, value in (
            (tlb_layout.STRICT, int(strict)),
            (tlb_layout.BBM, bbm),
            (tlb_layout.SETS_ACCESSED, int(sets_flags is not False)),
            (tlb_layout.SETS_DIRTY, _DIRTY if x86 and sets_flags is not False else 0),
            (tlb_layout.DBM, _DBM if not x86 and sets_flags else 0),
            (tlb_layout.TLB_NT, _NT if not x86 and bbm and 1 << table.format.geometry.shift(2) > _NT else 0),
            (tlb_layout.FORGETS, int(x86)),
            (tlb_layout.IDENTITY, int(identity)),
            (tlb_layout.SEEN, peek(table.mmu, table.tlb_hub + int(tlb_layout.SEQUENCE))),
        ):
            self.words[int(word)] = value
        poke(table.mmu, int(layout.TLB_BASE), table.tlb_hub)
        _attached.setdefault(table, weakref.WeakValueDictionary())[walker] = self

    def _new_words(self, combined: int, leaves: int, walks: int) -> Own:
        made = own(tlb_layout.tlb_words(combined, leaves, walks))
        base = tlb_layout.HEADER
        for mask, where, entries in (
            (tlb_layout.COMBINED_MASK, tlb_layout.COMBINED_BASE, combined),
            (tlb_layout.LEAF_MASK, tlb_layout.LEAF_BASE, leaves),
            (tlb_layout.WALK_MASK, tlb_layout.WALK_BASE, walks),
        ):
            made[int(mask)], made[int(where)] = entries - 1, base
            base += int(tlb_layout.ENTRY_WORDS) * entries
        made[int(tlb_layout.TLB_WALKER)] = self.walker
        return made

    @property
    def _hardware(self) -> tuple[Own, Words, Words, Own]:
        return self.table.shape, self.table.pool.words, self.table.mmu, self.words

    def enter(self) -> None:
        """Enter the guest: invalidations wait for this vCPU from now on."""
        tlb_enter(*self._hardware)

    def leave(self) -> None:
        """Leave it."""
        tlb_leave(self.table.mmu, self.words)

    def apply(self) -> None:
        """Apply what was logged, as a vCPU in the guest does between two instructions."""
        tlb_apply(*self._hardware, peek(self.table.mmu, int(layout.TLB_RING)))

    def translate(
        self, ipa: int, *, write: bool = False, fetch: bool = False, va: int | None = None
    ) -> tuple[str, int, int]:
        """One access to ``ipa`` by way of virtual address ``va`` (the same unless given): fault, address, level."""
        need = int(tlb_layout.WRITE if write else tlb_layout.FETCH if fetch else tlb_layout.READ)
        status = int(tlb_miss(*self._hardware, ipa if va is None else va, ipa, need))
        address = int(self.words[int(tlb_layout.HOST_ADDRESS)]) if not status else 0
        return FAULTS[status], address, int(self.words[int(tlb_layout.FOUND_LEVEL)])

    def speculate(self, ipa: int, *, between: bool = False, walk: bool = False) -> None:
        """Fill what hardware might at any time; ``between``: from now on also after each record that is applied.

        ``walk``: by a walk of the table, though a leaf is cached.
        """
        if walk:
            tlb_prefetch(*self._hardware, ipa)
            return
        self.words[int(tlb_layout.SPECULATES)] = ipa + 1 if between else 0
        tlb_speculate(*self._hardware, ipa)

    @property
    def counts(self) -> dict[str, int]:
        """The counters, by the names of ``tlb_layout.COUNTER_NAMES``."""
        first = int(tlb_layout.COUNTERS)
        return {name: int(self.words[first + at]) for at, name in enumerate(tlb_layout.COUNTER_NAMES)}

    @property
    def finding(self) -> Finding | None:
        """The strict mode's first finding."""
        if not self.counts["findings"]:
            return None
        kind, ipa, level, record = (
            int(self.words[int(word)])
            for word in (
                tlb_layout.FIRST_KIND,
                tlb_layout.FIRST_IPA,
                tlb_layout.FIRST_LEVEL,
                tlb_layout.FIRST_RECORD,
            )
        )
        return Finding(_KINDS[kind], ipa, level, self.walker, record)

    def _entries(self, mask: object, base: object) -> list[tuple[int, int, int]]:
        first = int(self.words[int(base)])  # type: ignore[call-overload]
        count = int(self.words[int(mask)]) + 1  # type: ignore[call-overload]
        places = range(first, first + int(tlb_layout.ENTRY_WORDS) * count, int(tlb_layout.ENTRY_WORDS))
        return [
            (int(self.words[at]) - 1, int(self.words[at + 1]), int(self.words[at + 2]))
            for at in places
            if self.words[at]
        ]

    def check(self) -> None:
        """Raise InvariantError unless all that is cached is what the table says now, or stricter.

        Only when no operation is under way and everything was applied: finds an invalidation that was never asked for.
        O(entries * levels).
        """
        geometry = self.table.format.geometry
        for tag, target, _ in self._entries(tlb_layout.LEAF_MASK, tlb_layout.LEAF_BASE):
            level = tag & 3
            ipa = tag >> 2 << geometry.shift(level)
            found = self.table.lookup(ipa, walker=self.walker)
            if found is None or (found.level, found.address) != (level, target):
                raise InvariantError(f"TLB {self.walker}: leaf {ipa:#x} at level {level}: the table says {found}")
        page = geometry.page_size
        for tag, target, about in self._entries(tlb_layout.COMBINED_MASK, tlb_layout.COMBINED_BASE):
            ipa = about // page * page
            found = self.table.lookup(ipa, walker=self.walker)
            if found is None or (found.level, found.address) != (target & 3, target // page * page):
                raise InvariantError(f"TLB {self.walker}: va {tag * page:#x} to {ipa:#x}: the table says {found}")
        for tag, target, _ in self._entries(tlb_layout.WALK_MASK, tlb_layout.WALK_BASE):
            level = tag & 3
            ipa = tag >> 2 << geometry.shift(level)
            if (word := self._table_below(ipa, level)) != target:
                raise InvariantError(
                    f"TLB {self.walker}: table for {ipa:#x} below level {level}: it is word {word} now"
                )

    def _table_below(self, ipa: int, wanted: int) -> int | None:
        """Word of the pool at which the table below the entry at level ``wanted`` starts; None if there is none."""
        geometry, pool = self.table.format.geometry, self.table.pool
        word = (self.table.root - pool.base) // 8
        level = geometry.start_level
        while True:
            index = ipa >> geometry.shift(level)
            if level > geometry.start_level:
                index &= (1 << geometry.stride) - 1
            descriptor = peek(pool.words, word + index)
            shape = self.table.shape
            if descriptor & int(shape[int(layout.TABLE_MASK)]) != int(shape[int(layout.TABLE_KIND)]):
                return None
            word = ((descriptor & int(shape[int(layout.ADDRESS_MASK)])) - pool.base) // 8
            if level == wanted:
                return word
            level += 1
