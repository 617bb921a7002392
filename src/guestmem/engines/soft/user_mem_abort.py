"""A vCPU's stage-2 fault: from a frame without translation, or without the right to write, to a leaf in the table.

In the order of ``user_mem_abort()``, Linux ``arch/arm64/kvm/mmu.c``, and ``kvm_tdp_page_fault()``,
``arch/x86/kvm/mmu/mmu.c``: table pages before any lock; the invalidation sequence; the slot, in an SRCU section that
lasts until the leaf is in place (so that who publishes a set and waits for readers finds every leaf made from the old
one); rights; host page and size; the lock for reading; whether an invalidation ran meanwhile; the leaf.
"""

from __future__ import annotations

from typing import NamedTuple

from ...atomics import load_acquire, load_relaxed
from ...compiled import U64, Own, Words, compiled, const
from ...dirty.bitmap import bitmap_mark
from ...memslots.layout import (
    DIRTY_BITMAP,
    KVM_MEMSLOT_INVALID,
    RECORD_SHIFT,
    slot_base_gfn,
    slot_flags,
    slot_npages,
    slot_userspace_addr,
)
from ...memslots.lookup import find
from ...rcu.srcu import srcu_enter, srcu_exit
from ...stage2.discipline import reclaim_tables
from ...stage2.entry import level_shift
from ...stage2.layout import (
    EBUSY,
    ENOMEM,
    FIND,
    IPA_END,
    LAST_LEVEL,
    LOCK_BASE,
    OK,
    SHARED,
    VCPUS,
    WALKER,
)
from ...stage2.locked import refill
from ...stage2.map import map_range
from ...stage2.protect import relax_permissions
from ...stage2.retry import invalidate_seq, must_retry
from ...stage2.rwlock import read_lock, read_unlock, write_lock, write_unlock
from ...stage2.tlb_layout import FOUND_LEVEL
from ...stage2.walk import lookup_shared
from ...stage2.words import Table
from ...stage2.zap import zap
from . import layout as at
from .above import CHANGED, NR, NW, NX, find_above
from .flux import flux_touches, in_flux
from .gmem_abort import map_page
from .vcpu import FILLED, HOLE, IN_FILE, IN_FLUX, INVALID, READONLY
from .words import Slots

__all__ = ["stage2_fault"]

_ZERO, _ONE, _TWO = const(0), const(1), const(2)
_LOGGED, _FILE = const(1), const(4)
_HIDDEN = const(17)
"""By how much KVM_MEMSLOT_NR and NX are above NR and NX."""
_COUNT = const(255)
_PAGE_SHIFT = const(12)


class Leaf(NamedTuple):
    """What a leaf is made of: frame and slot, what was read before, whether it is logged, writable, was there; NX."""

    gfn: U64
    record: U64
    seq: U64
    flux: U64
    logged: bool
    writable: bool
    protected: bool
    executable: bool


@compiled(nogil=True)
def stage2_fault(slots: Slots, table: Table, tlb: Own, gfn: U64, writes: bool, protected: bool) -> U64:
    """Handle a fault at ``gfn``, outside the guest; returns what it came to. FILLED: enter again and try again.

    IN_FILE: the slot has a guest_memfd, and the fault is ``gmem_slot_fault``'s. READONLY: the access, of whatever kind
    (own[FETCHES_NOW] tells a fetch), has no right. ``protected``: a leaf was there and did not let it through.
    tlb[FOUND_LEVEL] is the level of the fault. FLUX is looked at after the sequence and before the slots: what was
    marked after that is zapped after that, which ends this attempt when it is about to map.
    """
    vm, memslots, srcu, own = slots
    shape, mmu = table.shape, table.mmu
    own[at.STAGE2_FAULTS] += _ONE
    if gfn << 12 >= shape[IPA_END]:
        return HOLE
    if refill(table) != OK:
        own[at.OUT_OF_TABLES] += _ONE
        zap(table, _ZERO, shape[IPA_END], True)
        return FILLED
    seq = invalidate_seq(mmu)
    flux = load_acquire(vm, at.FLUX)
    stalls_writes = False
    if flux & _COUNT != 0:
        if in_flux(vm, flux, gfn, writes):
            own[at.STALL_FLUX] = flux
            return IN_FLUX
        stalls_writes = not writes and in_flux(vm, flux, gfn, True)
    above = load_acquire(vm, at.ABOVE)
    denied = _ZERO
    if above & _COUNT != 0:
        what = find_above(vm, above, own[at.AS_ID], gfn)
        if what == CHANGED:
            return FILLED
        if what > CHANGED:
            attributes = own[at.WRITE_ATTRIBUTES]
            if not map_page(table, gfn << 12, _ONE << 12, what, attributes, shape[LAST_LEVEL], seq):
                own[at.FAULT_RETRIES] += _ONE
            return FILLED
        denied = what
    reader = own[at.READER]
    srcu_enter(srcu, _ZERO, reader)
    record = find(memslots, own[at.AS_ID], gfn)
    outcome = HOLE
    if record != 0:
        flags = slot_flags(memslots, record)
        denied |= flags & NW | flags >> _HIDDEN & (NR | NX)  # KVM_MEM_READONLY has the value of NW
        asked = NR
        if writes:
            asked = NW
        elif own[at.FETCHES_NOW] != 0:
            asked = NX
        if flags & KVM_MEMSLOT_INVALID != 0:
            outcome = INVALID
        elif flags & _FILE != 0:
            # A page of a file is mapped with all rights or not at all.
            outcome = IN_FILE if denied == 0 else READONLY
        elif denied & asked != 0:
            outcome = READONLY
        else:
            logged = flags & _LOGGED != 0
            writable = denied & NW == 0 and not stalls_writes and (writes or not logged)
            leaf = Leaf(gfn, record, seq, flux, logged, writable, protected, denied & NX == 0)
            outcome = _make(slots, table, tlb, leaf)
    exits = outcome == HOLE
    if outcome == READONLY:
        exits = True
    if exits and load_acquire(vm, at.FLUX) != flux:
        # An update began meanwhile, and nothing ends this attempt as a zap ends one that maps. What was found may be of
        # an address space that is published before the instant of them all: look again, and wait for it.
        outcome = FILLED
    srcu_exit(srcu, _ZERO, reader)
    return outcome


@compiled
def _make(slots: Slots, table: Table, tlb: Own, leaf: Leaf) -> U64:
    """Choose the leaf's size and put it into the table, unless an invalidation ran since ``seq``; always FILLED."""
    vm, memslots, _srcu, own = slots
    shape, _pool, _pages, mmu, desk = table
    gfn, record, seq, flux, logged, writable, protected, executable = leaf
    base = slot_base_gfn(memslots, record)
    end = base + slot_npages(memslots, record)
    host = slot_userspace_addr(memslots, record) + ((gfn - base) << 12)
    last = shape[LAST_LEVEL]
    level = own[at.BLOCK_LEVEL]
    if logged or load_relaxed(vm, at.ABOVE) & _COUNT != 0:
        level = last
    frames = _ONE
    first = gfn
    while level < last:
        # The largest leaf that lies in the slot, is aligned in both, and maps nothing again that is in flux.
        frames = _ONE << (level_shift(shape, level) - _PAGE_SHIFT)
        first = gfn & ~(frames - _ONE)
        aligned = (host - ((gfn - first) << 12)) & ((frames << 12) - _ONE) == 0
        if aligned and first >= base and first + frames <= end:
            quiet = flux & _COUNT == 0 or not flux_touches(vm, flux, first, first + frames)
            if quiet:
                break
        level += _ONE
    if level == last:
        frames = _ONE
        first = gfn
    output = host - ((gfn - first) << 12)
    attributes = own[at.WRITE_ATTRIBUTES] if writable else own[at.READ_ATTRIBUTES]
    if not executable:
        attributes = own[at.WRITE_NX_ATTRIBUTES] if writable else own[at.READ_NX_ATTRIBUTES]
    ipa = first << 12
    size = frames << 12
    lock = load_relaxed(mmu, LOCK_BASE)
    walker = desk[WALKER]
    read_lock(mmu, lock, walker)
    if must_retry(mmu, seq, ipa, ipa + size):
        read_unlock(mmu, lock, walker)
        own[at.FAULT_RETRIES] += _ONE
        return FILLED
    if logged and writable:
        # mark_page_dirty_in_slot(): under the lock, before the entry; see _mark. No slot that logs gets to EBUSY below.
        _mark(memslots, own, record, gfn - base)
    lifted = _TWO
    lifts = writable
    if own[at.FETCHES_NOW] != 0:
        lifted = NX  # the bit of the right itself, in ``relax_permissions``
        lifts = executable
    if protected and lifts and tlb[FOUND_LEVEL] == level and (not logged or _is_page(table, gfn)):
        status = relax_permissions(table, gfn << 12, lifted, SHARED)
        own[at.RELAXED] += _ONE
    else:
        status = map_range(table, ipa, size, output, attributes, level, SHARED)
    read_unlock(mmu, lock, walker)
    if status == EBUSY:
        write_lock(mmu, lock, load_relaxed(mmu, VCPUS))
        if not must_retry(mmu, seq, ipa, ipa + size):
            status = map_range(table, ipa, size, output, attributes, level, _ZERO)
        write_unlock(mmu, lock)
    if status == ENOMEM:  # too many tables are put aside: wait until they can be freed
        reclaim_tables(table, True)
    if status == OK and level < last:
        own[at.MAPPED_BLOCKS] += _ONE
    return FILLED


@compiled
def _mark(memslots: Words, own: Own, record: U64, page: U64) -> None:
    """A page of a slot that logs is about to become writable: mark it in the slot's bitmap.

    Who takes the log takes bits and rights under the lock for writing. So mark and entry are one step to it, as long as
    both are made under one hold of the lock for reading: a bit that was taken between them would leave a page that can
    be written and is in no log. The mark comes first, so that at no moment, and for nobody who looks without the lock
    (KVM_GET_DIRTY_LOG with manual protection), there is such a page: the entry's release store, or exchange, orders the
    two for every walker that goes by the entry. x86 marks here, too (``make_spte()``); arm64 after it has dropped the
    lock, and after the entry, which is late, but never too late: whoever takes the log later finds the page writable
    with its bit set. A map that then loses its race has marked a page that nobody wrote, which costs a copy.
    """
    bitmap = load_relaxed(memslots, (record << RECORD_SHIFT) + DIRTY_BITMAP)
    if bitmap != 0 and bitmap_mark(bitmap, page):
        own[at.DIRTY_MARKS] += _ONE


@compiled
def _is_page(table: Table, gfn: U64) -> bool:
    """Whether the leaf for ``gfn`` is a page still; the lock is held for reading, and the slot logs.

    The level of the fault is older than the invalidation sequence: logging may have been switched off and on since, and
    the page be part of a write-protected block again, whose other pages would be written unnoticed.
    """
    shape, desk = table.shape, table.desk
    status = lookup_shared(table, gfn << 12)
    return status == OK and desk[FIND + _ONE] == shape[LAST_LEVEL]
