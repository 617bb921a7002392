"""A machine under pKVM in Python: the host, the hypervisor, guests; who owns which page, and what each may do about it.

Idea: ``arch/arm64/kvm/hyp/nvhe/{mem_protect,pkvm}.c``, Linux. CPUs call the compiled functions of the modules beside
this one, with ``Pkvm.words`` and a desk of their own. How it works, and what differs from Linux: ``docs/pkvm.md``.
"""

from __future__ import annotations

import errno

from ...atomics import peek
from ...entries import flat
from ...errors import Stage2Error
from ..table import PageTable
from . import guest, hyp, layout, reclaim, transitions
from .host import host_fault
from .join import join_range
from .machine import Machine, ProtectedVm

__all__ = ["Pkvm", "ProtectedVm"]

_OK, _EAGAIN = 0, errno.EAGAIN


class Pkvm(Machine):
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

    # --- the host's map --------------------------------------------------------------------------------------------

    def host_fault(self, ipa: int, *, cpu: int = 0) -> bool:
        """The host touches ``ipa`` (any byte): map the largest block that fits there. Stage2Error EPERM: not its page.

        False: it was mapped already, or another CPU is at it: try again, as the hardware would.
        """
        if not 0 <= ipa < 1 << self.format.geometry.ipa_bits:
            raise Stage2Error(
                errno.ERANGE, f"host_fault: {ipa:#x} is outside {self.format.geometry.ipa_bits} bits of input"
            )
        status = int(flat(host_fault)(*self.words, self.host.desks[cpu], self.el2, ipa))
        if status not in {_OK, errno.EEXIST, _EAGAIN}:
            raise self._error(status, "host_fault", ipa)
        return status == _OK

    def join(self, phys: int, size: int, *, cpu: int = 0) -> int:
        """Join the tables in a range to blocks where the host owns all; returns how many went."""
        page, end = self._range(phys, size)
        return int(flat(join_range)(*self.words, self.host.desks[cpu], self.el2, page, end))

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

    def _pin(self, phys: int, *, pin: bool) -> None:
        shape, _, _, host = self.words
        what = "hyp_pin" if pin else "hyp_unpin"
        self._done(int(hyp.hyp_pin(shape, host, self.el2, self._page("phys", phys), pin)), what, phys)

    def host_donate_hyp(self, phys: int, size: int, *, cpu: int = 0) -> None:
        """Give pages, up to a table's, to the hypervisor. Blocks they lie in are broken, their other pages stay."""
        page, end = self._range(phys, size)
        desk = self.host.desks[cpu]
        self._done(
            int(flat(hyp.host_donate_hyp)(*self.words, desk, self.el2, page, end - page)), "host_donate_hyp", phys
        )

    def hyp_donate_host(self, phys: int, size: int, *, cpu: int = 0) -> None:
        """Give them back."""
        page, end = self._range(phys, size)
        desk = self.host.desks[cpu]
        self._done(
            int(flat(hyp.hyp_donate_host)(*self.words, desk, self.el2, page, end - page)), "hyp_donate_host", phys
        )

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
        owner = int(flat(reclaim.page_owner)(*self.words, self.host.desks[cpu], page))
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
        words = *self.words, self.host.desks[cpu], self.el2, vm.table.mmu, vm.handle
        while start < end:
            start = int(flat(reclaim.teardown_guest)(*words, start, budget))
        self.finalize_teardown(vm)
        return owned
