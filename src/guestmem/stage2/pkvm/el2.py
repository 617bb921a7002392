"""A machine under pKVM in Python: the host, the hypervisor, guests; who owns which page, and what each may do about it.

Idea: ``arch/arm64/kvm/hyp/nvhe/{mem_protect,pkvm}.c``, Linux. CPUs call the compiled functions of the modules beside
this one, with ``Pkvm.words`` and a desk of their own. How it works, and what differs from Linux: ``docs/pkvm.md``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

from ...atomics import peek, poke
from ...compiled import Own, Words, own, words
from ...errors import InvariantError, Stage2Error, UsageError
from ..descriptor import Memory, Rights
from ..format import Annotations, Format
from ..pool import Pool
from ..table import PageTable
from . import guest, hyp, invariants, layout, reclaim, transitions
from .host import host_fault
from .join import join_range
from .ownership import page_word
from .states import Ownership, PageState

__all__ = ["Pkvm", "ProtectedVm"]

_OK, _EAGAIN = 0, errno.EAGAIN
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


class Pkvm:
    """A machine whose ``memory`` is regions (start, size), bytes in whole pages; all of it is the host's at first.

    ``cpus`` threads may call methods, each with its number; ``discipline``: rwlock or walk_refs, since EL2 has no RCU.
    ``join``: put blocks together as soon as all their pages are back (False: mainline). ``max_shares``: how often one
    page may be shared with guests. All tables lie in ``pool``. Addresses: ``phys`` is the host's, ``ipa`` a guest's.

    Refusals raise Stage2Error with the kernel's errno, and change nothing: EPERM where states do not allow it, EINVAL
    (no memory, unaligned, wrong phase of the VM's life), ERANGE (outside the input), ENOENT, E2BIG, EBUSY, EHWPOISON,
    ENOMEM.

    >>> from guestmem.stage2.arm import arm_stage2
    >>> pkvm = Pkvm(arm_stage2(0x1000, 40), [(0x40000000, 0x40000000)])
    >>> pkvm.host_fault(0x40001000), pkvm.host.lookup(0x40001000).level
    (True, 1)
    >>> vm = pkvm.create_vm()
    >>> pkvm.host_donate_guest(vm, 0x40001000, 0)
    >>> pkvm.host.lookup(0x40001000), pkvm.host.lookup(0x40002000).level, pkvm.host.lookup(0x50000000).level
    (None, 3, 2)
    >>> pkvm.ownership(0x40001000).host.name, pkvm.ownership(0x40001000).guest
    ('NOPAGE', 1)
    >>> pkvm.teardown(vm), pkvm.host.lookup(0x40001000).level
    (1, 1)
    >>> pkvm.check()
    """

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
        """The first four arguments of the compiled functions: shape, pool, pages, and the host's words."""
        return self.host.words

    # --- the host's map --------------------------------------------------------------------------------------------

    def host_fault(self, ipa: int, *, cpu: int = 0) -> bool:
        """The host touches ``ipa`` (any byte): map the largest block that fits there. Stage2Error EPERM: not its page.

        False: it was mapped already, or another CPU is at it: try again, as the hardware would.
        """
        if not 0 <= ipa < 1 << self.format.geometry.ipa_bits:
            raise Stage2Error(
                errno.ERANGE, f"host_fault: {ipa:#x} is outside {self.format.geometry.ipa_bits} bits of input"
            )
        status = int(host_fault(*self.words, self.host.desks[cpu], self.el2, ipa))
        if status not in {_OK, errno.EEXIST, _EAGAIN}:
            raise self._error(status, "host_fault", ipa)
        return status == _OK

    def join(self, phys: int, size: int, *, cpu: int = 0) -> int:
        """Join the tables in a range to blocks where the host owns all; returns how many went."""
        page, end = self._range(phys, size)
        return int(join_range(*self.words, self.host.desks[cpu], self.el2, page, end))

    # --- the hypervisor --------------------------------------------------------------------------------------------

    def host_share_hyp(self, phys: int, size: int) -> None:
        """Let the hypervisor use pages of the host."""
        page, end = self._range(phys, size)
        shape, _, _, host = self.words
        self._done(int(hyp.host_share_hyp(shape, host, self.el2, page, end - page)), "host_share_hyp", phys)

    def host_unshare_hyp(self, phys: int, size: int) -> None:
        """End that; EBUSY while one of them is pinned."""
        page, end = self._range(phys, size)
        shape, _, _, host = self.words
        self._done(int(hyp.host_unshare_hyp(shape, host, self.el2, page, end - page)), "host_unshare_hyp", phys)

    def hyp_pin(self, phys: int) -> None:
        """Pin a page that the hypervisor borrows: it cannot be unshared."""
        self._pin(phys, pin=True)

    def hyp_unpin(self, phys: int) -> None:
        """Drop one pin; EPERM if there is none."""
        self._pin(phys, pin=False)

    def host_donate_hyp(self, phys: int, size: int, *, cpu: int = 0) -> None:
        """Give pages, up to a table's, to the hypervisor. Blocks they lie in are broken, their other pages stay."""
        page, end = self._range(phys, size)
        desk = self.host.desks[cpu]
        self._done(int(hyp.host_donate_hyp(*self.words, desk, self.el2, page, end - page)), "host_donate_hyp", phys)

    def hyp_donate_host(self, phys: int, size: int, *, cpu: int = 0) -> None:
        """Give them back."""
        page, end = self._range(phys, size)
        desk = self.host.desks[cpu]
        self._done(int(hyp.hyp_donate_host(*self.words, desk, self.el2, page, end - page)), "hyp_donate_host", phys)

    # --- guests ----------------------------------------------------------------------------------------------------

    def create_vm(self) -> ProtectedVm:
        """A guest with an empty table; ENOMEM if there are max_vms, or no pages for its root."""
        host = self.words[3]
        for handle in range(1, self.max_vms + 1):
            if guest.set_vm_state(host, self.el2, handle, layout.VM_NONE, layout.VM_LIVE):
                break
        else:
            raise Stage2Error(errno.ENOMEM, f"create_vm: all {self.max_vms} handles are taken")
        least = max(1, self.format.geometry.levels - 1)
        try:
            table = PageTable(
                self.format, self.pool, walkers=self.cpus, discipline=self.discipline, cache=least, queue=1
            )
        except Stage2Error:
            guest.set_vm_state(host, self.el2, handle, layout.VM_LIVE, layout.VM_NONE)
            raise
        self.vms[handle] = vm = ProtectedVm(handle, table)
        return vm

    def host_donate_guest(self, vm: ProtectedVm, phys: int, ipa: int, *, cpu: int = 0) -> None:
        """Give a page to a guest, at ``ipa``; the host loses it."""
        page, gfn = self._page("phys", phys), self._page("ipa", ipa)
        self._guest("host_donate_guest", transitions.host_donate_guest, vm, phys, cpu, page, gfn)

    def host_share_guest(self, vm: ProtectedVm, phys: int, ipa: int, size: int | None = None, *, cpu: int = 0) -> None:
        """Let a guest use a page, or an aligned block of them, at ``ipa``."""
        page, gfn, count = self._page("phys", phys), self._page("ipa", ipa), self._count(size)
        self._guest("host_share_guest", transitions.host_share_guest, vm, phys, cpu, page, gfn, count)

    def host_unshare_guest(self, vm: ProtectedVm, ipa: int, size: int | None = None, *, cpu: int = 0) -> None:
        """End that."""
        gfn, count = self._page("ipa", ipa), self._count(size)
        self._guest("host_unshare_guest", transitions.host_unshare_guest, vm, ipa, cpu, gfn, count)

    def guest_share_host(self, vm: ProtectedVm, ipa: int, *, cpu: int = 0) -> None:
        """A guest lets the host use a page of its own."""
        self._guest("guest_share_host", transitions.guest_share_host, vm, ipa, cpu, self._page("ipa", ipa))

    def guest_unshare_host(self, vm: ProtectedVm, ipa: int, *, cpu: int = 0) -> None:
        """It ends that."""
        self._guest("guest_unshare_host", transitions.guest_unshare_host, vm, ipa, cpu, self._page("ipa", ipa))

    def force_reclaim(self, phys: int, *, cpu: int = 0) -> None:
        """Take a page from the live guest that has it, which then meets EHWPOISON; EPERM if none has it alone."""
        page = self._memory_page(phys)
        shape, pool, _, host = self.words
        owner = int(reclaim.page_owner(shape, pool, host, self.host.desks[cpu], page))
        vm = self.vms.get(owner >> 3 & 0xFFFF)
        if owner & 7 != int(layout.OWNER_GUEST):
            raise self._error(errno.EPERM, "force_reclaim", phys)
        if vm is None:
            raise self._error(_EAGAIN, "force_reclaim", phys)
        self._guest("force_reclaim", reclaim.force_reclaim, vm, phys, cpu, page)

    # --- a guest's end ---------------------------------------------------------------------------------------------

    def start_teardown(self, vm: ProtectedVm) -> None:
        """The VM is dying: nothing is given to it any more. ENOENT: no such VM; EINVAL: dying already."""
        if self.vms.get(vm.handle) is not vm:
            raise self._error(errno.ENOENT, "start_teardown", vm.handle)
        if not guest.set_vm_state(self.words[3], self.el2, vm.handle, layout.VM_LIVE, layout.VM_DYING):
            raise self._error(errno.EINVAL, "start_teardown", vm.handle)

    def host_reclaim_guest(self, vm: ProtectedVm, ipa: int, *, cpu: int = 0) -> None:
        """Take back one page that a dying VM owns; EINVAL: it is not dying."""
        self._guest("host_reclaim_guest", reclaim.host_reclaim_guest, vm, ipa, cpu, self._page("ipa", ipa))

    def finalize_teardown(self, vm: ProtectedVm) -> None:
        """Free the VM's table and handle. ENOENT: no such VM; EBUSY: not dying, or it has pages."""
        if self.vms.get(vm.handle) is not vm:
            raise self._error(errno.ENOENT, "finalize_teardown", vm.handle)
        owned, borrowed = self.vm_pages(vm)
        dying = peek(self.el2, self._vm_word(vm)) == int(layout.VM_DYING)
        if not dying or owned or borrowed:
            why = f"dying: {dying}, owns {owned} pages, borrows {borrowed}"
            raise Stage2Error(errno.EBUSY, f"finalize_teardown: VM {vm.handle}: {why}")
        del self.vms[vm.handle]
        vm.table.destroy()
        guest.set_vm_state(self.words[3], self.el2, vm.handle, layout.VM_DYING, layout.VM_NONE)

    def teardown(self, vm: ProtectedVm, *, cpu: int = 0, budget: int = 512) -> int:
        """All of that: every page returns, and blocks are joined; returns how many pages the VM owned.

        ``budget``: leaves that one compiled call gives back; locks are taken for each leaf.
        """
        self.start_teardown(vm)
        owned = self.vm_pages(vm)[0]
        start, end = 0, 1 << self.format.geometry.ipa_bits
        shape, pool, pages, host = self.words
        desk = self.host.desks[cpu]
        while start < end:
            start = int(
                reclaim.teardown_guest(shape, pool, pages, host, vm.table.mmu, desk, self.el2, vm.handle, start, budget)
            )
        self.finalize_teardown(vm)
        return owned

    # --- what is ---------------------------------------------------------------------------------------------------

    def ownership(self, phys: int) -> Ownership:
        """Who has a page of memory. EINVAL: it is none."""
        page = self._memory_page(phys)
        word = int(peek(self.el2, int(page_word(self.el2, page))))
        shape, pool, _, host = self.words
        owner = int(reclaim.page_owner(shape, pool, host, self.host.desks[0], page))
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
        shape, pool, pages, host = self.words
        desk, first = self.host.desks[0], int(peek(self.el2, int(layout.FIRST_PAGE)))
        seen = own(1 + int(peek(self.el2, int(layout.LAST_PAGE))) - first)
        for vm in self.vms.values():
            found = invariants.check_guest(shape, pool, pages, host, vm.table.mmu, desk, self.el2, seen, vm.handle)
            self._sound(int(found), f"VM {vm.handle}", int(seen[0]))
        seen_host = own(1)
        found = invariants.check_host(shape, pool, pages, host, desk, self.el2, seen_host)
        self._sound(int(found), "host", int(seen_host[0]))
        self._sound(int(invariants.check_pages(shape, pool, host, desk, self.el2, seen)), "pages", int(seen[0]))

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

    def _pin(self, phys: int, *, pin: bool) -> None:
        shape, _, _, host = self.words
        what = "hyp_pin" if pin else "hyp_unpin"
        self._done(int(hyp.hyp_pin(shape, host, self.el2, self._page("phys", phys), pin)), what, phys)

    def _guest(
        self, what: str, transition: Callable[..., int], vm: ProtectedVm, where: int, cpu: int, *rest: int
    ) -> None:
        if self.vms.get(vm.handle) is not vm:
            raise self._error(errno.ENOENT, what, where)
        shape, pool, pages, host = self.words
        desk = self.host.desks[cpu]
        arrays = (shape, pool, pages, host, vm.table.mmu, desk, self.el2)
        self._done(int(transition(*arrays, vm.handle, *rest)), what, where)

    def _done(self, status: int, what: str, where: int) -> None:
        if status:
            raise self._error(status, what, where)

    def _error(self, status: int, what: str, where: int) -> Stage2Error:
        why = _WHY.get(status, f"outside {self.format.geometry.ipa_bits} bits of input")
        return Stage2Error(status, f"{what}: {where:#x}: {why}")
