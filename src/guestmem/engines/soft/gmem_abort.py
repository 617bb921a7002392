"""A vCPU's stage-2 fault on memory of a guest_memfd: from a private or shared access to a leaf, or to an exit.

In the order of ``gmem_abort()``, Linux ``arch/arm64/kvm/mmu.c``, and ``kvm_mmu_faultin_pfn_gmem()``,
``arch/x86/kvm/mmu/mmu.c``: table pages before any lock; the invalidation sequence; the page, with its state, under the
file's lock; the table's lock for reading; whether an invalidation ran meanwhile; the leaf. Whoever changes a state
holds the file's lock and an invalidation of the range, so a leaf made from the old state is either zapped or not made.

A shared access goes by an input address of its own, as with the SHARED bit of TDX: both kinds of one frame have leaves
of their own, and a conversion zaps those of the old kind.
"""

from __future__ import annotations

from typing import NamedTuple

from ...atomics import load_relaxed
from ...compiled import U64, Own, Words, compiled, const, u64
from ...gmem.fault import guest_fault
from ...gmem.invalidate_lock import read_lock as gmem_read_lock
from ...gmem.invalidate_lock import read_unlock as gmem_read_unlock
from ...gmem.layout import OK, WRONG_KIND
from ...ranges.lookup import ranges_load
from ...stage2.discipline import reclaim_tables
from ...stage2.layout import EBUSY, ENOMEM, IPA_END, LAST_LEVEL, LOCK_BASE, SHARED, VCPUS, WALKER
from ...stage2.locked import refill
from ...stage2.map import map_range
from ...stage2.retry import invalidate_seq, must_retry
from ...stage2.rwlock import read_lock, read_unlock, write_lock, write_unlock
from ...stage2.words import Table
from ...stage2.zap import zap

__all__ = ["GmemFault", "gmem_abort", "map_page"]

_ZERO, _ONE = const(0), const(1)
_PAGE_SHIFT = const(12)
_HUGE_ORDER = const(9)
_HUGE_PAGES = const(512)
_PRIVATE = const(8)


class GmemFault(NamedTuple):
    """A fault of frame ``gfn``, page ``gfn`` of the file, and what its leaf is to be."""

    gfn: U64
    private: bool
    shared_bit: U64
    """The bit of the input address by which shared accesses go."""
    userspace: U64
    """Where shared memory is, if not in the file (then states are the VM's); 0 else."""
    attributes: U64


@compiled(nogil=True)
def gmem_abort(inode: Words, states: Words, table: Table, fault: GmemFault, out: Own) -> U64:
    """Handle a fault, outside the guest; a status of ``gmem.layout``.

    OK: the leaf is there, or an invalidation ran meanwhile: enter and try again. WRONG_KIND, BARRED: the exit
    KVM_EXIT_MEMORY_FAULT.
    """
    gfn, private, shared_bit, userspace, attributes = fault
    shape, mmu = table.shape, table.mmu
    if refill(table) != OK:
        zap(table, _ZERO, shape[IPA_END], True)
        return OK
    seq = invalidate_seq(mmu)
    status = OK
    if userspace != 0 and not private:
        gmem_read_lock(inode)
        state = ranges_load(states, gfn)
        gmem_read_unlock(inode)
        if state & _PRIVATE != 0:
            return WRONG_KIND
        out[0] = userspace + (gfn << _PAGE_SHIFT)
        out[1] = u64(0)
    else:
        status = guest_fault(inode, states, gfn, private, True, out)
    if status != OK:
        return status
    level = shape[LAST_LEVEL]
    count = _ONE
    first = gfn
    address = out[0]
    if out[1] >= _HUGE_ORDER:
        within = gfn & (_HUGE_PAGES - _ONE)
        if (address - (within << _PAGE_SHIFT)) & ((_HUGE_PAGES << _PAGE_SHIFT) - _ONE) == 0:
            level -= _ONE
            count = _HUGE_PAGES
            first = gfn - within
            address -= within << _PAGE_SHIFT
    ipa = first << _PAGE_SHIFT
    if not private:
        ipa |= shared_bit
    map_page(table, ipa, count << _PAGE_SHIFT, address, attributes, level, seq)
    return OK


@compiled
def map_page(table: Table, ipa: U64, size: U64, address: U64, attributes: U64, level: U64, seq: U64) -> bool:
    """Put a leaf into the table unless an invalidation ran since ``seq``; False if one did."""
    mmu, desk = table.mmu, table.desk
    lock = load_relaxed(mmu, LOCK_BASE)
    read_lock(mmu, lock, desk[WALKER])
    if must_retry(mmu, seq, ipa, ipa + size):
        read_unlock(mmu, lock, desk[WALKER])
        return False
    mapped = map_range(table, ipa, size, address, attributes, level, SHARED)
    read_unlock(mmu, lock, desk[WALKER])
    if mapped == EBUSY:
        write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
        if not must_retry(mmu, seq, ipa, ipa + size):
            mapped = map_range(table, ipa, size, address, attributes, level, _ZERO)
        write_unlock(mmu, lock)
    if mapped == ENOMEM:
        reclaim_tables(table, True)
    return True
