"""What is behind a machine under pKVM in Python: its words, its regions of memory, what is in them, its errors.

``Pkvm`` puts the transitions on top. Idea: ``arch/arm64/kvm/hyp/nvhe/{mem_protect,setup}.c``, Linux.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

from ...atomics import peek, poke
from ...compiled import Own, Words, own, words
from ...entries import flat
from ...errors import InvariantError, Stage2Error, UsageError
from ..descriptor import Memory, Rights
from ..format import Annotations, Format
from ..pool import Pool
from ..table import PageTable
from . import invariants, layout, reclaim
from .ownership import page_word
from .states import Ownership, PageState
from .words import Hyp

__all__ = ["Machine", "ProtectedVm"]

_WHY = {
    errno.EPERM: "states do not allow it",
    errno.EBUSY: "pinned, or shared too often",
    errno.EINVAL: "no memory, no page or block, or the VM is not, or should not be, dying",
    errno.ENOENT: "no such VM, or nothing is mapped there",
    errno.E2BIG: "the guest's leaf has another size",
    int(layout.EHWPOISON):  # not in Python 3.11's errno
    "the page was taken from the guest",
    errno.ENOMEM: "no table pages are left",
    errno.EAGAIN: "another CPU was faster, or its guest is gone",
}


class ProtectedVm(NamedTuple):
    """A guest: its handle, 1 and up, and its table."""

    handle: int
    table: PageTable


class Machine:
    """Words of EL2, the host's table, the guests; what they say, and whether it agrees. See ``el2.Pkvm``."""

    def __init__(
        self,
        format_: Format,
        memory: Iterable[tuple[int, int]],
        *,
        pool: Pool | None = None,
        cpus: int = 1,
        discipline: str = "rwlock",
        join: bool = True,
        max_vms: int = 64,
        max_shares: int = 255,
        cache: int = 32,
    ) -> None:
        geometry = format_.geometry
        regions = self._checked_regions(format_, memory)
        if discipline not in {"rwlock", "walk_refs"}:
            raise UsageError(f"discipline: {discipline!r} is not rwlock or walk_refs: EL2 has no RCU")
        if format_.annotations is not Annotations.LINUX_7_1:
            raise UsageError(f"annotations: those of Linux {format_.annotations.value} have no room for a VM's handle")
        for name, value, most in (("max_vms", max_vms, 0xFFFF), ("max_shares", max_shares, int(layout.SHARE_MASK))):
            if not 1 <= value <= most:
                raise UsageError(f"{name}: {value} is not in 1..{most}")
        least = 2 * (geometry.levels - 1)
        if cache < least:
            raise UsageError(f"cache: {cache} pages are not at least {least}, those of one donation")
        self.format, self.regions, self.cpus, self.discipline, self.max_vms = (
            format_,
            regions,
            cpus,
            discipline,
            max_vms,
        )
        self.pool = Pool(4096, geometry.page_shift) if pool is None else pool
        self.host = PageTable(format_, self.pool, walkers=cpus, discipline=discipline, cache=cache, queue=1)
        """The host's identity map."""
        self.vms: dict[int, ProtectedVm] = {}
        """Guests that live or die, by handle."""
        self.el2 = self._new_el2(regions, join=join, max_shares=max_shares)

    @staticmethod
    def _checked_regions(format_: Format, memory: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        regions = sorted((start, start + size) for start, size in memory)
        if not regions:
            raise UsageError("memory: no region")
        for start, end in regions:
            format_.geometry.check_range(start, end - start)
        for (_, end), (start, _) in pairwise(regions):
            if start <= end:
                raise UsageError(f"memory: the region at {start:#x} does not start after {end:#x}, apart from the last")
        return regions

    def _new_el2(self, regions: list[tuple[int, int]], *, join: bool, max_shares: int) -> Words:
        geometry = self.format.geometry
        first, last = regions[0][0] >> geometry.page_shift, regions[-1][1] >> geometry.page_shift
        vms = int(layout.EL2_FIXED) + 2 * len(regions)
        pages = vms + 8 * (self.max_vms + 1)
        aways, end = {}, pages + last - first
        for level in (2, 1):
            aways[level] = end
            shift = geometry.stride * (3 - level)
            end += ((last - 1) >> shift) - (first >> shift) + 1
        made = words(end)
        attributes = self.format.attributes
        kind = Memory.AS_S1
        for word, value in (
            (layout.FIRST_PAGE, first),
            (layout.LAST_PAGE, last),
            (layout.REGIONS, len(regions)),
            (layout.REGION_BASE, int(layout.EL2_FIXED)),
            (layout.VMS, self.max_vms),
            (layout.VM_BASE, vms),
            (layout.PAGE_BASE, pages),
            *((int(layout.AWAY_BASE) + level, at) for level, at in aways.items()),
            (layout.MAX_SHARES, max_shares),
            (layout.JOIN, int(join)),
            (layout.HOST_MEMORY, attributes(Rights.RWX, kind)),
            (layout.HOST_MMIO, attributes(Rights.RW, kind)),
            (layout.HOST_BORROWED, attributes(Rights.RWX, kind, software=PageState.SHARED_BORROWED)),
            (layout.GUEST_OWNED, attributes(Rights.RWX)),
            (layout.GUEST_SHARED, attributes(Rights.RWX, software=PageState.SHARED_OWNED)),
            (layout.GUEST_BORROWED, attributes(Rights.RWX, software=PageState.SHARED_BORROWED)),
            *enumerate((at for region in regions for at in region), int(layout.EL2_FIXED)),
        ):
            poke(made, int(word), value)
        return made

    @property
    def words(self) -> tuple[Own, Words, Words, Words]:
        """The host's part of ``Hyp``: shape, pool, pages, and the host's words."""
        return self.host.words

    def at(self, cpu: int) -> Hyp:
        """What a CPU's compiled functions take first."""
        return Hyp(*self.words, self.host.desks[cpu], self.el2)

    # --- what is ---------------------------------------------------------------------------------------------------

    def ownership(self, phys: int) -> Ownership:
        """Who has a page of memory. EINVAL: it is none."""
        page = self._memory_page(phys)
        word = int(peek(self.el2, int(page_word(self.el2, page))))
        owner = int(flat(reclaim.page_owner)(*self.words, self.host.desks[0], page))
        guests = owner & 7 == int(layout.OWNER_GUEST)
        return Ownership(
            PageState(word & 3),
            PageState(word >> int(layout.HYP_SHIFT) & 3 ^ 3),
            word >> int(layout.SHARE_SHIFT) & int(layout.SHARE_MASK),
            word >> int(layout.PIN_SHIFT) & int(layout.PIN_MASK),
            owner >> 3 & 0xFFFF if guests else 0,
            owner >> 19 if guests else 0,
        )

    def vm_pages(self, vm: ProtectedVm) -> tuple[int, int]:
        """How many pages a VM owns, and how many it borrows."""
        at = self._vm_word(vm)
        owned, borrowed = int(layout.OWNED_PAGES), int(layout.BORROWED_PAGES)
        return int(peek(self.el2, at + owned)), int(peek(self.el2, at + borrowed))

    def counters(self) -> dict[str, int]:
        """How often things happened: host faults, blocks broken and joined, pages wiped, room made."""
        names = ("FAULTS", "BLOCKS_BROKEN", "BLOCKS_JOINED", "WIPED", "MMIO_UNMAPPED")
        return {name.lower(): int(peek(self.el2, int(getattr(layout, name)))) for name in names}

    def check(self) -> None:
        """Raise InvariantError unless tables, states and counters agree. While no CPU is inside. O(pages + pool).

        Every page of memory has exactly one owner; who borrows does so from one who shares; nobody can reach a page
        that it has not, now or by a fault; the host maps itself only; tables and pool are sound.
        """
        self.host.check()
        at, first = self.at(0), int(peek(self.el2, int(layout.FIRST_PAGE)))
        seen = own(1 + int(peek(self.el2, int(layout.LAST_PAGE))) - first)
        for vm in self.vms.values():
            found = invariants.check_guest(at, vm.table.mmu, seen, vm.handle)
            self._sound(int(found), f"VM {vm.handle}", int(seen[0]))
        seen_host = own(1)
        found = invariants.check_host(at, seen_host)
        self._sound(int(found), "host", int(seen_host[0]))
        self._sound(int(invariants.check_pages(at, seen)), "pages", int(seen[0]))

    @staticmethod
    def _sound(found: int, who: str, where: int) -> None:
        if found:
            raise InvariantError(f"pkvm: {who}: {where:#x}: {invariants.BROKEN[found]}")

    # --- what surrounds them ---------------------------------------------------------------------------------------

    def _vm_word(self, vm: ProtectedVm) -> int:
        return int(peek(self.el2, int(layout.VM_BASE))) + 8 * vm.handle

    def _page(self, name: str, address: int) -> int:
        size = self.format.geometry.page_size
        if address % size or address < 0:
            raise Stage2Error(errno.EINVAL, f"{name}: {address:#x} is not a multiple of {size:#x}")
        if address >= 1 << self.format.geometry.ipa_bits:
            raise Stage2Error(errno.ERANGE, f"{name}: {address:#x} is outside {self.format.geometry.ipa_bits} bits")
        return address // size

    def _memory_page(self, phys: int) -> int:
        page = self._page("phys", phys)
        if not any(start <= phys < end for start, end in self.regions):
            raise Stage2Error(errno.EINVAL, f"phys: {phys:#x} is in no region of memory")
        return page

    def _range(self, phys: int, size: int) -> tuple[int, int]:
        self.format.geometry.check_range(phys, size)
        shift = self.format.geometry.page_shift
        return phys >> shift, phys + size >> shift

    def _count(self, size: int | None) -> int:
        return 1 if size is None else self._page("size", size)

    def _guest(
        self, what: str, transition: Callable[..., int], vm: ProtectedVm, where: int, cpu: int, *rest: int
    ) -> None:
        if self.vms.get(vm.handle) is not vm:
            raise self._error(errno.ENOENT, what, where)
        words = *self.words, self.host.desks[cpu], self.el2, vm.table.mmu, vm.handle
        self._done(int(flat(transition)(*words, *rest)), what, where)

    def _done(self, status: int, what: str, where: int) -> None:
        if status:
            raise self._error(status, what, where)

    def _error(self, status: int, what: str, where: int) -> Stage2Error:
        why = _WHY.get(status, f"outside {self.format.geometry.ipa_bits} bits of input")
        return Stage2Error(status, f"{what}: {where:#x}: {why}")
