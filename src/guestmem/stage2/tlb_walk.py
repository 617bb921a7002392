"""What a vCPU's hardware does: translate through the TLB, walk the table on a miss, set flags, apply invalidations.

The walk takes no lock and no SRCU section: what protects it is that an invalidation of a table waits for every vCPU
in the guest, walks included, before the table is freed. Idea: Arm DDI 0487, D8; and for the order of looks,
``vcpu_enter_guest()``, Linux ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

from ..atomics import compare_exchange, fence, load_acquire, load_relaxed, store_release
from ..compiled import ONE, U64, Own, Words, compiled, const, u64
from .entry import is_table, level_shift, output_address
from .layout import (
    ACCESSED,
    BLOCK_KIND,
    BLOCK_LEVELS,
    EXECUTE_GRANTED,
    EXECUTE_MASK,
    IPA_END,
    LAST_LEVEL,
    MIN_BLOCK_LEVEL,
    PAGE_KIND,
    PAGE_MASK,
    PAGE_SHIFT,
    POOL_BASE,
    READ_GRANTED,
    READ_MASK,
    ROOT,
    START_LEVEL,
    STRIDE,
    TABLE_MASK,
    TLB_BASE,
    TLB_RING,
    VALID,
    WRITE_GRANTED,
    WRITE_MASK,
)
from .tlb_entries import fill, forget, forget_all, leaf_place, tag_of, walk_place
from .tlb_layout import (
    ACCESS_FLAG,
    APPLIED,
    BBM,
    BY_ADDRESS,
    COMBINED_BASE,
    COMBINED_MASK,
    CONFLICT,
    CONFLICTS,
    DBM,
    ENTRY_ABOUT,
    ENTRY_FLUSHES,
    ENTRY_TARGET,
    ENTRY_WORDS,
    FETCH,
    FILLS,
    FLAGS_SET,
    FORGETS,
    FOUND,
    FOUND_LEVEL,
    HITS,
    HOST_ADDRESS,
    IDENTITY,
    IN_GUEST,
    LEAF_HITS,
    LINE,
    LINES,
    LOCAL_IPA,
    LOCAL_LEVEL,
    LOCAL_SEEN,
    LOCALS,
    LOCALS_SEEN,
    OK,
    OVERRUNS,
    PERMISSION,
    READ,
    RECORD_END,
    RECORD_START,
    SEEN,
    SEQUENCE,
    SETS_ACCESSED,
    SETS_DIRTY,
    SPECULATES,
    SPECULATIVE,
    STALE_COMBINED,
    STALE_LEAF,
    STALE_WALK,
    TLB_NT,
    TLB_WALKER,
    TRANSLATION,
    TWO_SIZES,
    WALK_HITS,
    WALKS,
    WRITE,
)
from .tlb_strict import finding, look_at_use
from .tlbi import acknowledge, record_at

__all__ = [
    "tlb_apply",
    "tlb_enter",
    "tlb_leave",
    "tlb_look",
    "tlb_miss",
    "tlb_prefetch",
    "tlb_speculate",
    "tlb_translate",
]

_THREE = const(3)
_FULL_ENTRY = const(32)
"""Records behind from which a vCPU that enters forgets everything rather than one thing after the other."""
_LIFTS = const(8)
"""In an entry's rights: no write yet, but the hardware grants one when it comes (dirty flag, dirty-bit-modifier)."""


@compiled
def _rights(shape: Own, tlb: Own, descriptor: U64) -> U64:
    """What an access through a leaf may do without another look at its descriptor."""
    rights = u64(0)
    if descriptor & shape[READ_MASK] == shape[READ_GRANTED]:
        rights |= READ
    if descriptor & shape[WRITE_MASK] == shape[WRITE_GRANTED]:
        if descriptor & tlb[SETS_DIRTY] == tlb[SETS_DIRTY]:
            rights |= WRITE
        else:
            rights |= _LIFTS
    elif descriptor & tlb[DBM] != 0:
        rights |= _LIFTS
    if descriptor & shape[EXECUTE_MASK] == shape[EXECUTE_GRANTED]:
        rights |= FETCH
    return rights


@compiled
def _conflict(tlb: Own, ipa: U64, level: U64) -> U64:
    """Two leaves of different size for one address: an abort where FEAT_BBM is 2, else software broke its duty."""
    if tlb[BBM] < 2:
        finding(tlb, TWO_SIZES, ipa, level, tlb[SEEN])
    tlb[CONFLICTS] += ONE
    forget_all(tlb)
    return CONFLICT


@compiled
def _walk(shape: Own, pool: Words, mmu: Words, tlb: Own, ipa: U64, need: U64) -> U64:
    """Walk from the deepest table that is cached; sets flags; fills tables and the leaf. ``need`` 0: speculation."""
    last = shape[LAST_LEVEL]
    start = shape[START_LEVEL]
    to_words = shape[PAGE_SHIFT] - _THREE
    in_table = (ONE << shape[STRIDE]) - ONE
    root = load_relaxed(mmu, ROOT)
    tlb[FOUND_LEVEL] = start
    tlb[WALKS] += ONE
    if root == 0 or ipa >= shape[IPA_END]:
        return TRANSLATION
    level = start
    entry = ((root - ONE) << to_words) + (ipa >> level_shift(shape, start))
    above = last
    while above > start:
        above -= ONE
        place = walk_place(shape, tlb, ipa, above)
        if tlb[place] == tag_of(shape, ipa, above) and look_at_use(
            shape, pool, mmu, tlb, place, STALE_WALK, ipa, above
        ):
            level = above + ONE
            entry = tlb[place + ENTRY_TARGET] + ((ipa >> level_shift(shape, level)) & in_table)
            tlb[WALK_HITS] += ONE
            break
    while True:
        descriptor = load_acquire(pool, entry)
        if is_table(shape, descriptor, level):
            table = (output_address(shape, descriptor) - shape[POOL_BASE]) >> 3
            fill(tlb, walk_place(shape, tlb, ipa, level), tag_of(shape, ipa, level), table, u64(0))
            level += ONE
            entry = table + ((ipa >> level_shift(shape, level)) & in_table)
            continue
        tlb[FOUND_LEVEL] = level
        tlb[FOUND] = descriptor
        if descriptor & shape[VALID] == 0:
            return TRANSLATION
        if level == last:
            if descriptor & shape[PAGE_MASK] != shape[PAGE_KIND]:
                return TRANSLATION
        elif descriptor & shape[TABLE_MASK] != shape[BLOCK_KIND] or (shape[BLOCK_LEVELS] >> level) & ONE == 0:
            return TRANSLATION
        flagged = descriptor
        if descriptor & shape[ACCESSED] == 0:
            if tlb[SETS_ACCESSED] == 0:
                return ACCESS_FLAG
            flagged |= shape[ACCESSED]
        if need & WRITE != 0:
            if flagged & tlb[DBM] != 0:
                flagged = (flagged & ~shape[WRITE_MASK]) | shape[WRITE_GRANTED]
            if flagged & shape[WRITE_MASK] == shape[WRITE_GRANTED]:
                flagged |= tlb[SETS_DIRTY]
        if flagged == descriptor:
            break
        if compare_exchange(pool, entry, descriptor, flagged) == descriptor:
            tlb[FLAGS_SET] += ONE
            tlb[FOUND] = flagged
            descriptor = flagged
            break
        # Somebody changed it: look at it again.
    if descriptor & tlb[TLB_NT] == 0 or level == last:
        shift = level_shift(shape, level)
        target = output_address(shape, descriptor) >> shift << shift  # nT of a block lies among the address bits
        fill(
            tlb, leaf_place(shape, tlb, ipa, level), tag_of(shape, ipa, level), target, _rights(shape, tlb, descriptor)
        )
        tlb[FILLS] += ONE
    return OK


@compiled
def tlb_speculate(shape: Own, pool: Words, mmu: Words, tlb: Own, ipa: U64) -> U64:
    """Fill leaf and combined entry for ``ipa`` (as virtual address, too) as hardware may at any time in the guest."""
    tlb[SPECULATIVE] += ONE
    return _fill_from_leaf(shape, pool, mmu, tlb, ipa, ipa, u64(0))


@compiled
def tlb_prefetch(shape: Own, pool: Words, mmu: Words, tlb: Own, ipa: U64) -> U64:
    """Walk the table for ``ipa`` and fill its leaf, whatever leaves are cached, as hardware may at any time.

    It finds what has taken the place of a leaf that is still cached.
    """
    tlb[SPECULATIVE] += ONE
    return _walk(shape, pool, mmu, tlb, ipa, u64(0))


@compiled
def _fill_from_leaf(shape: Own, pool: Words, mmu: Words, tlb: Own, va: U64, ipa: U64, need: U64) -> U64:
    """Find a leaf in the TLB or by a walk, fill the combined entry from it; OK or what the access faults with."""
    place = u64(0)
    level = shape[MIN_BLOCK_LEVEL]
    while level <= shape[LAST_LEVEL]:
        here = leaf_place(shape, tlb, ipa, level)
        if tlb[here] == tag_of(shape, ipa, level):
            if place != 0:
                return _conflict(tlb, ipa, level)
            place = here
            tlb[FOUND_LEVEL] = level
        level += ONE
    rights = u64(0)
    target = u64(0)
    cached = True
    level = tlb[FOUND_LEVEL]
    if place != 0 and look_at_use(shape, pool, mmu, tlb, place, STALE_LEAF, ipa, level):
        target = tlb[place + ENTRY_TARGET]
        rights = tlb[place + ENTRY_ABOUT]
        if rights & need == need:
            tlb[LEAF_HITS] += ONE
        elif tlb[FORGETS] != 0 or (need & WRITE != 0 and rights & _LIFTS != 0):
            tlb[place] = u64(0)
            place = u64(0)
    else:
        place = u64(0)
    if place == 0:
        status = _walk(shape, pool, mmu, tlb, ipa, need)
        if status != OK:
            return status
        level = tlb[FOUND_LEVEL]
        shift = level_shift(shape, level)
        target = output_address(shape, tlb[FOUND]) >> shift << shift
        rights = _rights(shape, tlb, tlb[FOUND])
        cached = tlb[FOUND] & tlb[TLB_NT] == 0 or level == shape[LAST_LEVEL]
    tlb[FOUND_LEVEL] = level
    if rights & need != need:
        return PERMISSION
    page_shift = shape[PAGE_SHIFT]
    page = (ipa & ((ONE << level_shift(shape, level)) - ONE)) >> page_shift << page_shift
    tlb[HOST_ADDRESS] = (target | page) | (ipa & ((ONE << page_shift) - ONE))
    if cached:
        where = tlb[COMBINED_BASE] + ENTRY_WORDS * ((va >> page_shift) & tlb[COMBINED_MASK])
        fill(tlb, where, (va >> page_shift) + ONE, target | page | level, (ipa >> page_shift << page_shift) | rights)
    return OK


@compiled
def tlb_miss(shape: Own, pool: Words, mmu: Words, tlb: Own, va: U64, ipa: U64, need: U64) -> U64:
    """``tlb_translate`` beyond the first look. O(levels)."""
    where = tlb[COMBINED_BASE] + ENTRY_WORDS * ((va >> shape[PAGE_SHIFT]) & tlb[COMBINED_MASK])
    if tlb[where] == (va >> shape[PAGE_SHIFT]) + ONE:
        rights = tlb[where + ENTRY_ABOUT]
        level = tlb[where + ENTRY_TARGET] & _THREE
        if look_at_use(shape, pool, mmu, tlb, where, STALE_COMBINED, ipa, level) and rights & need != need:
            if tlb[FORGETS] == 0 and (need & WRITE == 0 or rights & _LIFTS == 0):
                tlb[FOUND_LEVEL] = level
                return PERMISSION
            tlb[where] = u64(0)
    return _fill_from_leaf(shape, pool, mmu, tlb, va, ipa, need)


@compiled(inline=True)
def tlb_translate(shape: Own, pool: Words, mmu: Words, tlb: Own, va: U64, ipa: U64, need: U64) -> U64:
    """Translate one access in the guest: OK and tlb[HOST_ADDRESS], or the fault that it takes.

    ``va`` is the virtual address that stage 1 maps to ``ipa``. ``need``: READ, WRITE or FETCH. TRANSLATION,
    ACCESS_FLAG, PERMISSION: tlb[FOUND_LEVEL] is the level of the fault. CONFLICT: everything was forgotten, try again.
    """
    page_shift = shape[PAGE_SHIFT]
    where = tlb[COMBINED_BASE] + ENTRY_WORDS * ((va >> page_shift) & tlb[COMBINED_MASK])
    if tlb[where] == (va >> page_shift) + ONE and tlb[where + ENTRY_ABOUT] & need == need:
        target = tlb[where + ENTRY_TARGET]
        if look_at_use(shape, pool, mmu, tlb, where, STALE_COMBINED, tlb[where + ENTRY_ABOUT], target & _THREE):
            tlb[HOST_ADDRESS] = (target >> page_shift << page_shift) | (va & ((ONE << page_shift) - ONE))
            tlb[HITS] += ONE
            return OK
    return tlb_miss(shape, pool, mmu, tlb, va, ipa, need)


@compiled
def tlb_apply(shape: Own, pool: Words, mmu: Words, tlb: Own, most: U64) -> None:
    """Apply what was logged since the last time, or forget everything if that is more than ``most`` records; say so.

    A speculative fill may come after each record.
    """
    hub = load_relaxed(mmu, TLB_BASE)
    ring = load_relaxed(mmu, TLB_RING)
    line = hub + LINES + LINE * tlb[TLB_WALKER]
    head = load_acquire(mmu, hub + SEQUENCE)
    seen = tlb[SEEN]
    lost = head - seen > most
    while seen < head and not lost:
        record = record_at(mmu, hub, seen)
        what = load_acquire(mmu, record)
        start = load_acquire(mmu, record + RECORD_START)
        end = load_acquire(mmu, record + RECORD_END)
        # If the place of this record is being written again, the log has gone on so far that this look sees it.
        lost = load_relaxed(mmu, hub + SEQUENCE) - seen >= ring
        if not lost:
            forget(shape, tlb, what, start, end)
            seen += ONE
            tlb[SEEN] = seen
            if tlb[SPECULATES] != 0:
                tlb_speculate(shape, pool, mmu, tlb, tlb[SPECULATES] - ONE)
    if lost:
        head = load_acquire(mmu, hub + SEQUENCE)
        forget_all(tlb)
        tlb[OVERRUNS if most == ring else ENTRY_FLUSHES] += ONE
    tlb[SEEN] = head
    store_release(mmu, line + APPLIED, head)
    acknowledge(mmu, hub)


@compiled(inline=True)
def tlb_look(shape: Own, pool: Words, mmu: Words, tlb: Own) -> None:
    """Between two accesses in the guest: apply invalidations, if there are any."""
    if load_acquire(mmu, load_relaxed(mmu, TLB_BASE) + SEQUENCE) != tlb[SEEN]:
        tlb_apply(shape, pool, mmu, tlb, load_relaxed(mmu, TLB_RING))


@compiled
def tlb_enter(shape: Own, pool: Words, mmu: Words, tlb: Own) -> None:
    """Enter the guest: from now on invalidators wait for this vCPU; apply what was logged meanwhile.

    The fence pairs with the one in ``wait_for_vcpus``: this vCPU sees the record, or the invalidator sees it inside.
    """
    hub = load_relaxed(mmu, TLB_BASE)
    line = hub + LINES + LINE * tlb[TLB_WALKER]
    store_release(mmu, line + IN_GUEST, ONE)
    fence()
    locals_ = load_relaxed(mmu, line + LOCALS)
    if locals_ != tlb[LOCALS_SEEN]:
        tlb[LOCAL_SEEN] += ONE
        if locals_ - tlb[LOCALS_SEEN] == 1:
            forget(
                shape,
                tlb,
                BY_ADDRESS | load_relaxed(mmu, line + LOCAL_LEVEL) << 8,
                load_relaxed(mmu, line + LOCAL_IPA),
                u64(0),
            )
            _forget_page(shape, tlb, load_relaxed(mmu, line + LOCAL_IPA))
        else:
            forget_all(tlb)
        tlb[LOCALS_SEEN] = locals_
    if load_acquire(mmu, hub + SEQUENCE) != tlb[SEEN]:
        tlb_apply(shape, pool, mmu, tlb, _FULL_ENTRY)


@compiled
def _forget_page(shape: Own, tlb: Own, ipa: U64) -> None:
    """Forget the combined entries that lead to the page of ``ipa``, or to a block around it. O(entries)."""
    if tlb[IDENTITY] != 0:  # other pages of a block fault once more each
        tlb[tlb[COMBINED_BASE] + ENTRY_WORDS * ((ipa >> shape[PAGE_SHIFT]) & tlb[COMBINED_MASK])] = u64(0)
        return
    place = tlb[COMBINED_BASE]
    end = place + ENTRY_WORDS * (tlb[COMBINED_MASK] + ONE)
    while place < end:
        shift = level_shift(shape, tlb[place + ENTRY_TARGET] & _THREE)
        if tlb[place] != 0 and tlb[place + ENTRY_ABOUT] >> shift == ipa >> shift:
            tlb[place] = u64(0)
        place += ENTRY_WORDS


@compiled
def tlb_leave(mmu: Words, tlb: Own) -> None:
    """Leave the guest. Release: accesses through the TLB are over before an invalidator sees it outside."""
    hub = load_relaxed(mmu, TLB_BASE)
    store_release(mmu, hub + LINES + LINE * tlb[TLB_WALKER] + IN_GUEST, u64(0))
    acknowledge(mmu, hub)
