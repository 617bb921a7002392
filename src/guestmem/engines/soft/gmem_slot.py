"""A vCPU's fault in a slot that has a guest_memfd: the page of the file, or of ``userspace_addr``, or an exit.

As ``user_mem_abort.py``, with what ``kvm_mmu_faultin_pfn()``, Linux 6.18, ``arch/x86/kvm/mmu/mmu.c``, does for such
slots: a private access is served by the file; a shared one too, if the slot is gmem-only, else by ``userspace_addr``.
An access of the other kind than the page, a private one without a file, a file that is closed and a page that is
poisoned are KVM_EXIT_MEMORY_FAULT. A private access goes by an input address of its own (as by the C bit of SEV, or
without the shared bit of TDX), so both kinds of a frame have leaves of their own, and a conversion zaps those of the
old kind.

Why no stale leaf stays: who changes a page's state holds the file's lock and zaps meanwhile, so a fault that saw the
old state has read the invalidation sequence before the zap, and maps nothing; who changes a slot has its range in flux
and zapped, and a slot's record is used only inside the SRCU section in which it was found.
"""

from __future__ import annotations

from typing import NamedTuple

from ...atomics import load_acquire, load_relaxed
from ...compiled import U64, Own, Words, compiled, const, u64
from ...gmem.fault import guest_fault
from ...gmem.invalidate_lock import read_lock as gmem_read_lock
from ...gmem.invalidate_lock import read_unlock as gmem_read_unlock
from ...gmem.layout import OK as PAGE_OK
from ...gmem.layout import POISON, WRONG_KIND
from ...memslots.layout import (
    GUEST_MEMFD,
    GUEST_MEMFD_OFFSET,
    KVM_MEMSLOT_INVALID,
    RECORD_SHIFT,
    slot_base_gfn,
    slot_flags,
    slot_npages,
    slot_userspace_addr,
)
from ...memslots.lookup import find
from ...ranges.lookup import ranges_load
from ...rcu.srcu import srcu_enter, srcu_exit
from ...stage2.layout import IPA_END, LAST_LEVEL, OK
from ...stage2.locked import refill
from ...stage2.retry import invalidate_seq
from ...stage2.words import Table
from ...stage2.zap import zap
from ...structure import Structure, name_fields
from . import layout as at
from .flux import flux_touches, in_flux
from .gmem_abort import map_page
from .vcpu import FILLED, HOLE, IN_FLUX, INVALID
from .words import Slots

__all__ = ["FILE_WORDS", "MEMORY_FAULT", "OTHER_FILE", "Gmem", "gmem_slot_fault"]

MEMORY_FAULT, OTHER_FILE = const(6), const(7)
"""What a fault came to, beside those of ``vcpu``: KVM_EXIT_MEMORY_FAULT; the slot's file is not the one at hand."""

FILE = Structure("file", "a guest_memfd as vCPUs know it", size=8)
NUMBER = FILE.word("what a slot says that has it; 0: none")
CLOSED = FILE.word("whether it is closed; written under its lock, before the guest's mappings go")
GMEM_ONLY = FILE.word("whether shared accesses are served from it, too")
BY_VM = FILE.word("whether its pages' states are the VM's attributes, by frame, and not its own")
FILE_WORDS = FILE.size
name_fields(globals())

_ZERO, _ONE = const(0), const(1)
_COUNT = const(255)
_PAGE_SHIFT = const(12)
_HUGE_ORDER, _HUGE_PAGES = const(9), const(512)
_PRIVATE = const(8)
_EFAULT, _EHWPOISON = const(14), const(133)


class Gmem(NamedTuple):
    """The file at hand: its words; its inode's; the states of its pages, or the VM's attributes; room for a page."""

    file: Words
    inode: Words
    states: Words
    attributes: Words
    out: Own


@compiled(nogil=True)
def gmem_slot_fault(slots: Slots, table: Table, gmem: Gmem, gfn: U64, private: bool, writes: bool) -> U64:
    """Handle a fault at ``gfn``, outside the guest; returns what it came to. FILLED: enter again and try again.

    OTHER_FILE: the caller gets file ``own[FILE]`` and tries again. MEMORY_FAULT: own[EXIT_FLAGS], [EXIT_GPA] and
    [EXIT_ERRNO] say which; its size is a page.
    """
    vm, memslots, srcu, own = slots
    shape, mmu = table.shape, table.mmu
    own[at.STAGE2_FAULTS] += _ONE
    own[at.EXIT_FLAGS] = _PRIVATE if private else u64(0)
    own[at.EXIT_GPA] = gfn << _PAGE_SHIFT
    own[at.EXIT_ERRNO] = _EFAULT
    if gfn << _PAGE_SHIFT >= shape[IPA_END] >> _ONE:
        return MEMORY_FAULT if private else HOLE
    if refill(table) != OK:
        own[at.OUT_OF_TABLES] += _ONE
        zap(table, _ZERO, shape[IPA_END], True)
        return FILLED
    seq = invalidate_seq(mmu)
    flux = load_acquire(vm, at.FLUX)
    if flux & _COUNT != 0 and in_flux(vm, flux, gfn, writes):
        own[at.STALL_FLUX] = flux
        return IN_FLUX
    reader = own[at.READER]
    srcu_enter(srcu, _ZERO, reader)
    record = find(memslots, own[at.AS_ID], gfn)
    number = u64(0)
    outcome = HOLE
    if record != 0:
        number = load_relaxed(memslots, (record << RECORD_SHIFT) + GUEST_MEMFD)
        outcome = FILLED  # without a file, a shared access is an ordinary fault's
        if slot_flags(memslots, record) & KVM_MEMSLOT_INVALID != 0:
            outcome = INVALID
        elif number != 0 and number != load_relaxed(gmem.file, NUMBER):
            own[at.FILE] = number
            outcome = OTHER_FILE
        elif number != 0:
            outcome = _page(slots, table, gmem, gfn, record, private, seq, flux)
    if private and number == 0 and outcome != INVALID:
        outcome = MEMORY_FAULT
    exits = outcome == HOLE
    if outcome == MEMORY_FAULT:
        exits = True
    if exits and load_acquire(vm, at.FLUX) != flux:
        outcome = FILLED  # as in stage2_fault
    srcu_exit(srcu, _ZERO, reader)
    return outcome


@compiled
def _page(slots: Slots, table: Table, gmem: Gmem, gfn: U64, record: U64, private: bool, seq: U64, flux: U64) -> U64:
    """The page and its leaf, for a frame of a slot that has the file at hand."""
    vm, memslots, _srcu, own = slots
    shape = table.shape
    base = slot_base_gfn(memslots, record)
    page = (load_relaxed(memslots, (record << RECORD_SHIFT) + GUEST_MEMFD_OFFSET) >> _PAGE_SHIFT) + gfn - base
    by_vm = load_relaxed(gmem.file, BY_VM) != 0
    served = private or load_relaxed(gmem.file, GMEM_ONLY) != 0
    out = gmem.out
    out[0] = slot_userspace_addr(memslots, record) + ((gfn - base) << _PAGE_SHIFT)
    out[1] = u64(0)
    status = PAGE_OK
    if by_vm or not served:
        gmem_read_lock(gmem.inode)
        state = ranges_load(gmem.attributes, gfn if by_vm else page)
        gmem_read_unlock(gmem.inode)
        if private != (state & _PRIVATE != 0):
            status = WRONG_KIND
    if served and status == PAGE_OK:
        status = guest_fault(gmem.inode, gmem.states, page, private, True, out)
        if load_acquire(gmem.file, CLOSED) != 0:
            return MEMORY_FAULT
    if status != PAGE_OK:
        if status == POISON:
            own[at.EXIT_ERRNO] = _EHWPOISON
        return MEMORY_FAULT
    level = shape[LAST_LEVEL]
    count = _ONE
    first = gfn
    address = out[0]
    if out[1] >= _HUGE_ORDER:
        start = gfn & ~(_HUGE_PAGES - _ONE)
        block = address - ((gfn - start) << _PAGE_SHIFT)
        inside = start >= base and start + _HUGE_PAGES <= base + slot_npages(memslots, record)
        quiet = flux & _COUNT == 0 or not flux_touches(vm, flux, start, start + _HUGE_PAGES)
        if inside and quiet and block & ((_HUGE_PAGES << _PAGE_SHIFT) - _ONE) == 0:
            level -= _ONE
            count = _HUGE_PAGES
            first = start
            address = block
    ipa = first << _PAGE_SHIFT
    if private:
        ipa |= shape[IPA_END] >> _ONE
    size = count << _PAGE_SHIFT
    if not map_page(table, ipa, size, address, own[at.WRITE_ATTRIBUTES], level, seq):
        own[at.FAULT_RETRIES] += _ONE
    return FILLED
