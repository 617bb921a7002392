"""The stage-2 tables of a software engine's VM: one per address space, in one pool, with a TLB per vCPU for each.

Zaps count translations. KVM has two ways to zap a slot that goes: its range (arm64; x86 with the quirk
KVM_X86_QUIRK_SLOT_ZAP_ALL off), or everything (x86).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...atomics import peek
from ...compiled import Own, own
from ...entries import flat
from ...errors import UsageError
from ...stage2 import layout
from ...stage2.arm import arm_stage2
from ...stage2.descriptor import Rights
from ...stage2.format import Format
from ...stage2.npt import amd_npt
from ...stage2.pool import Pool
from ...stage2.retry import invalidate_begin, invalidate_end
from ...stage2.rwlock import write_lock, write_unlock
from ...stage2.table import DISCIPLINES, PageTable
from ...stage2.tlb import Tlb
from ...stage2.zap import zap, zap_ranges

__all__ = ["ZAPS", "Stage2"]

ZAPS = ("slot", "all")
"""What goes when a slot goes."""
TABLE_PAGES = 1 << 14
_WHOLE = (1 << 64) - 1
_NPT_DIRTY = 1 << 6

_zap, _zap_ranges = flat(zap), flat(zap_ranges)
_RANGE, _ALL, _WRITES = (int(each) for each in (layout.RANGE_WORDS, layout.TAKES_ALL, layout.TAKES_WRITES))
_AT_A_TIME = 64
"""Ranges that go with one wait, and while faults wait for the table's lock."""


class Stage2:
    """Tables and TLBs for ``vcpus`` vCPUs; walker 0 of each table is the updater, 1 + v is vCPU v.

    ``discipline``: one of stage2.table.DISCIPLINES. ``huge``: largest leaf, as a level number (2: 2 MiB).
    ``bbm``: level of FEAT_BBM that the vCPUs have.
    """

    def __init__(
        self,
        arch: str,
        vcpus: int,
        address_spaces: int,
        *,
        discipline: str,
        zaps: str,
        strict: bool,
        huge: int = 2,
        bbm: int = 0,
    ) -> None:
        if zaps not in ZAPS:
            raise UsageError(f"zaps: {zaps!r} is not one of {', '.join(ZAPS)}")
        if discipline not in DISCIPLINES:
            raise UsageError(f"discipline: {discipline!r} is not one of {', '.join(DISCIPLINES)}")
        self.zaps_all = zaps == "all"
        self.format: Format = amd_npt() if arch == "x86" else arm_stage2(0x1000, 48)
        self.pool = Pool(TABLE_PAGES)
        self.tables = [
            PageTable(self.format, self.pool, walkers=1 + vcpus, discipline=discipline) for _ in range(address_spaces)
        ]
        self.tlbs = [
            [Tlb(table, 1 + vcpu, strict=strict, identity=True, bbm=bbm) for vcpu in range(vcpus)]
            for table in self.tables
        ]
        self.read_attributes = self.format.attributes(Rights.READ | Rights.X)
        self.write_attributes = self.format.attributes(Rights.RWX) | (_NPT_DIRTY if arch == "x86" else 0)
        self.read_nx_attributes = self.format.attributes(Rights.READ)
        self.write_nx_attributes = self.format.attributes(Rights.READ | Rights.WRITE) | (
            _NPT_DIRTY if arch == "x86" else 0
        )
        self.block_level = huge
        self.private_gfn = 0
        """Private accesses to frame f go by frame f + this, from the first guest_memfd on; 0: there are none yet."""
        self.private_zaps = 0
        """Translations of private pages that went with slots."""
        self._spare: list[Own] = []
        """Words for ranges that nobody uses: who calls ``take`` holds no lock."""

    def zap(self, as_id: int, ranges: Iterable[tuple[int, int]], *, wait: bool = True) -> int:
        """Zap ranges of frames, by whatever kind of access they were mapped; returns how many translations went."""
        return self.take(as_id, [(start, end, _ALL) for start, end in ranges], wait=wait)

    def protect(self, as_id: int, ranges: Iterable[tuple[int, int]], *, wait: bool = True) -> int:
        """Take the right to write from ranges of frames; returns how many translations lost it."""
        return self.take(as_id, [(start, end, _WRITES) for start, end in ranges], wait=wait)

    def take(self, as_id: int, ranges: Sequence[tuple[int, int, int]], *, wait: bool = True) -> int:
        """From ranges (first frame, end, TAKES_ALL or TAKES_WRITES) take what they lose, with one wait for 64 of them.

        Private frames go with the others, but keep the right to write: what takes it does not concern them. Returns
        how many translations went or lost the right.
        """
        private = 0
        if self.private_gfn and (gone := [(start, end) for start, end, what in ranges if what == _ALL]):
            private = self.zap_kind(as_id, self.private(gone), wait=wait)
            self.private_zaps += private
        return private + self._take(as_id, ranges, wait=wait)

    def _take(self, as_id: int, ranges: Sequence[tuple[int, int, int]], *, wait: bool) -> int:
        table, taken = self.tables[as_id], 0
        words = self._words()
        for first in range(0, len(ranges), _AT_A_TIME):
            some = ranges[first : first + _AT_A_TIME]
            for place, word in enumerate(word for each in some for word in each):
                words[place] = word
            taken += int(_zap_ranges(*table.words, table.desks[0], words, len(some), wait))
        self._spare.append(words)
        return taken

    def _words(self) -> Own:
        try:
            return self._spare.pop()
        except IndexError:
            return own(_RANGE * _AT_A_TIME)

    def private(self, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """By which frames private accesses to ``ranges`` go."""
        bit = self.private_gfn
        return [(start + bit, min(end, bit) + bit) for start, end in ranges if start < bit]

    def zap_kind(self, as_id: int, ranges: Iterable[tuple[int, int]], *, wait: bool = True) -> int:
        """Zap ranges of input frames as they are given."""
        return self._take(as_id, [(start, end, _ALL) for start, end in ranges], wait=wait)

    def zap_all(self, *, wait: bool = True) -> int:
        """Zap everything, in all address spaces."""
        if self.private_gfn:
            whole = [(self.private_gfn, 2 * self.private_gfn)]
            private = sum(self.zap_kind(as_id, whole, wait=wait) for as_id in range(len(self.tables)))
            self.private_zaps += private
            return private + sum(
                self.zap_kind(as_id, [(0, self.private_gfn)], wait=wait) for as_id in range(len(self.tables))
            )
        return sum(int(_zap(*table.words, table.desks[0], 0, _WHOLE, wait)) for table in self.tables)

    def begin(self, as_id: int, start_gfn: int, end_gfn: int) -> None:
        """Host memory of a range is about to change: faults in it map nothing until ``end``."""
        table = self.tables[as_id]
        write_lock(table.mmu, int(layout.MMU_FIXED), table.walkers)
        invalidate_begin(table.mmu, start_gfn << 12, (end_gfn + self.private_gfn) << 12)  # and all between the kinds
        write_unlock(table.mmu, int(layout.MMU_FIXED))

    def end(self, as_id: int) -> None:
        """The change that ``begin`` announced is over."""
        table = self.tables[as_id]
        write_lock(table.mmu, int(layout.MMU_FIXED), table.walkers)
        invalidate_end(table.mmu)
        write_unlock(table.mmu, int(layout.MMU_FIXED))

    @property
    def table_pages(self) -> int:
        """Table pages in use, those in caches left out."""
        cached = sum(int(desk[int(layout.CACHE_COUNT)]) for table in self.tables for desk in table.desks)
        return max(0, self.pool.used - cached)

    def tlb_misses(self, vcpu: int) -> int:
        """Translations of a vCPU that its combined cache did not have."""
        counts = [tlbs[vcpu].counts for tlbs in self.tlbs]
        return sum(each["leaf_hits"] + each["walks"] for each in counts)

    @property
    def invalidations(self) -> int:
        """Invalidations so far, of all kinds that disturb other vCPUs."""
        kinds = (0, 2, 3)
        return sum(peek(table.mmu, int(layout.TLB) + kind) for table in self.tables for kind in kinds)

    @property
    def findings(self) -> int:
        """Uses of stale entries that the strict mode saw."""
        return sum(tlb.counts["findings"] for tlbs in self.tlbs for tlb in tlbs)

    def check(self) -> None:
        """Tables are sound, and TLBs say what they say. Only while no vCPU runs."""
        for table, tlbs in zip(self.tables, self.tlbs, strict=True):
            table.reclaim()
            for tlb in tlbs:
                tlb.enter()
                tlb.check()
                tlb.leave()
        self.tables[0].check()
