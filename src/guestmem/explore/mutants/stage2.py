"""Mutants of stage-2 tables: walks, break-before-make, invalidation, disciplines, pKVM's ownership.

Origins: commits of Linux by their first twelve digits, arch/arm64/kvm/hyp/pgtable.c and mmu.c if nothing else is said.
"""

from __future__ import annotations

from ..operators import drop_call, drop_fence, swap
from . import Mutant

__all__ = ["MUTANTS"]

_ENTRY, _MAP, _UNMAP, _WALK, _BBM = (f"stage2/{name}.py" for name in ("entry", "map", "unmap", "walk", "bbm"))
_UNLINKED, _DISCIPLINE, _SUBTREE = (f"stage2/{name}.py" for name in ("unlinked", "discipline", "lock_subtree"))
_TABLE, _TLBI, _LOCKED = "stage2/table.py", "stage2/tlbi.py", "stage2/locked.py"
_REFS = "stage2/refs.py"
_PLAIN_RECOVER = "                store_release(pool, entry, new)\n                seen = old\n"
_GUEST, _TRANSITIONS = "stage2/pkvm/guest.py", "stage2/pkvm/transitions.py"

_TABLE_GOES = "            invalidate_range(mmu, (desk[ADDRESS] - ONE) >> shift << shift, ONE << shift)\n"
_FLUSH = (
    "                invalidate_range(self.mmu, ipa, size)\n            return status\n\n        return self._range("
)
_NO_FLUSH = "                pass\n            return status\n\n        return self._range("
_BOTH = "    if what != EVERYTHING:\n        _log(mmu, hub, COMBINED, start, end)\n"

MUTANTS = (
    # Which translations an invalidation covers.
    Mutant(
        "stage2-range-base",
        "the range of a table that goes begins at the address of the walk, not of the entry",
        *(_UNMAP, _TABLE_GOES, "            invalidate_range(mmu, desk[ADDRESS] - ONE, ONE << shift)\n"),
        models=("stage2-unmap", "stage2-unmap-tlb"),
        origin="Linux 4c36a1567388: TLBI range of a collapse from the granule's base",
    ),
    Mutant(
        "stage2-table-level-hint",
        "a table that goes is invalidated with the level of a leaf, and stays in the walk cache",
        *(_UNMAP, _TABLE_GOES, "            invalidate_ipa(mmu, desk[ADDRESS] - ONE, level)\n"),
        models=("stage2-unmap", "stage2-unmap-tlb"),
        origin="Linux 36e008323926: no level hint when a table is zapped",
    ),
    Mutant(
        "stage2-level-zero",
        "level 0 is given where none is meant",
        *(_UNMAP, _TABLE_GOES, "            invalidate_ipa(mmu, desk[ADDRESS] - ONE, u64(0))\n"),
        models=("stage2-unmap", "stage2-unmap-tlb"),
        origin="Linux 0f0ff097bf77: TLBI by range without a level, not with level 0",
    ),
    Mutant(
        "stage2-deferred-table",
        "a table that goes is left to the one invalidation at the end, after it was freed",
        *(_UNMAP, _TABLE_GOES, "            high = desk[ADDRESS]\n"),
        models=("stage2-unmap-defer",),
        origin="Linux f62d4c3eb687: no deferred TLBI of tables that are freed",
    ),
    Mutant(
        "stage2-relax-keeps-stale",
        "who loses the race to add a right keeps its stale entry, and faults for ever",
        "stage2/protect.py",
        "    invalidate_local(mmu, desk[WALKER], ipa, level)\n",
        "    if status == OK:\n        invalidate_local(mmu, desk[WALKER], ipa, level)\n",
        models=("stage2-relax",),
        origin="Linux be097997a273: TLBI also if relaxing permissions lost its race",
    ),
    Mutant(
        "stage2-split-no-tlbi",
        "a leaf is replaced without an invalidation",
        *drop_call(_ENTRY, "break_entry", "invalidate_ipa"),
        models=("stage2-split",),
        origin="own: break without TLBI",
    ),
    Mutant(
        "stage2-protect-no-flush",
        "the copy is taken while TLBs still let writes through",
        *drop_call(_TABLE, "PageTable.write_protect", "invalidate_range"),
        models=("stage2-log",),
        origin="own: the flush that kvm_arch_mmu_enable_log_dirty_pt_masked()'s callers owe",
    ),
    Mutant(
        "stage2-age-no-flush",
        "an access by a cached translation leaves no flag",
        *drop_call(_TABLE, "PageTable.young", "invalidate_range"),
        models=("stage2-age",),
        origin="own: the flush that the notifier's core owes",
    ),
    Mutant(
        "stage2-only-leaves",
        "combined entries stay when a leaf goes",
        *(_TLBI, _BOTH, _BOTH.replace("!= EVERYTHING", "== COMBINED")),
        models=("stage2-unmap-fills", "stage2-unmap-tlb"),
        origin="own: IPAS2E1IS without VMALLE1IS",
    ),
    Mutant(
        "stage2-combined-first",
        "a combined entry is filled again from the leaf that is about to go",
        *swap(_TLBI, "log_invalidation", "_log(mmu, hub, what, start, end)"),
        models=("stage2-unmap-fills",),
        origin="own: VMALLE1IS before IPAS2E1IS",
    ),
    # Walks.
    Mutant(
        "stage2-age-one",
        "aging looks at the first leaf only",
        "stage2/young.py",
        "                change_entry(table, shape[ACCESSED], u64(0))\n",
        "                change_entry(table, shape[ACCESSED], u64(0))\n            break\n",
        models=("stage2-age",),
        origin="Linux df6556adf27b: test_clear_young visits all leaves of its range",
    ),
    Mutant(
        "stage2-accumulated-address",
        "an entry that is passed over is not counted in the address",
        *(_MAP, "(desk[ADDRESS] - ipa)  #", "(desk[RESULT] << shape[PAGE_SHIFT])  #"),
        models=("stage2-map-range",),
        origin="Linux 1f0f4a2ef7a5: physical address from where the walk is",
    ),
    Mutant(
        "stage2-stale-child",
        "after a table was replaced the walk descends into the old one",
        _WALK,
        "        old = load_acquire(pool, entry)\n        descends = is_table",
        "        old = desk[OLD] if step == _AGAIN else load_acquire(pool, entry)\n        descends = is_table",
        models=("stage2-collapse-rwlock",),
        origin="Linux a9f0e3d5a089: reload the entry after the callback",
    ),
    Mutant(
        "stage2-eagain-swallowed",
        "a map that lost its race says that all is well",
        *(_MAP, "if status != EAGAIN or flags & IGNORE_EAGAIN == 0:", "if status != EAGAIN:"),
        models=("stage2-map",),
        origin="Linux 19cffd16ed64: EAGAIN is passed over only where asked for",
    ),
    # Freeing.
    Mutant(
        "stage2-root-kept",
        "the last reference to an unlinked tree's root is never dropped",
        *(
            _UNLINKED,
            "        if not page_give(pages, page):",
            "        if page != root and not page_give(pages, page):",
        ),
        models=("stage2-collapse-rcu", "stage2-collapse-rwlock"),
        origin="Linux f6a27d6dc51b: drop the root of a removed table",
    ),
    Mutant(
        "stage2-put-twice",
        "callers drop what the function that frees drops already",
        _DISCIPLINE,
        "        free_unlinked(shape, pool, pages, mmu, page)\n        return\n",
        "        free_unlinked(shape, pool, pages, mmu, page)\n        page_give(pages, page)\n        return\n",
        models=("stage2-collapse-rwlock",),
        origin="Linux c60d847be7b8: two fixes that each drop the reference",
    ),
    Mutant(
        "stage2-level-too-deep",
        "the walk that frees takes tables for leaves",
        _UNLINKED,
        "        level = load_relaxed(pages, line + ENTRY_LEVEL) + ONE\n",
        "        level = load_relaxed(pages, line + ENTRY_LEVEL) + u64(2)\n",
        models=("stage2-collapse-rwlock-3",),
        origin="kvmarm, 4 November 2022: review of v4 of the parallel faults, mended in v5",
    ),
    Mutant(
        "stage2-free-at-once",
        "a table is freed while others walk it",
        *(_DISCIPLINE, "    if desk[FLAGS] & SHARED == 0:\n        free", "    if desk[WALKER] < 64:\n        free"),
        models=("stage2-collapse-rcu", "stage2-collapse-lock"),
        origin="own: no grace period",
    ),
    Mutant(
        "stage2-no-section",
        "a shared walk is in no read-side section",
        *drop_call(_WALK, "walk_begin", "srcu_enter"),
        models=("stage2-look-rcu", "stage2-look-lock"),
        origin="own: kvm_pgtable_walk_begin() forgotten",
    ),
    Mutant(
        "stage2-no-read-lock",
        "a fault does not hold the lock",
        *drop_call(_LOCKED, "map_shared", "read_lock"),
        models=("stage2-unmap",),
        origin="own: mmu_lock forgotten",
    ),
    Mutant(
        "stage2-subtree-not-waited",
        "an entry that another walker has locked is passed over",
        *(_SUBTREE, "    while seen == locked:\n", "    while seen == 0 and locked == 0:\n"),
        models=("stage2-collapse-lock",),
        origin="own: first form of the parallel faults, April 2022, without its spin",
    ),
    Mutant(
        "stage2-subtree-no-wake",
        "who makes an entry wakes nobody",
        *(_ENTRY, "if load_relaxed(mmu, RETRY_WAITERS) != 0:", "if load_relaxed(mmu, RETRY_WAITERS) > 1:"),
        models=("stage2-collapse-lock",),
    ),
    Mutant(
        "stage2-subtree-no-fence",
        "the look for waiters may go before the entry is made (weak memory)",
        *drop_fence(_ENTRY, "make_entry"),
        models=("stage2-collapse-lock",),
    ),
    # Entries.
    Mutant(
        "stage2-plain-break",
        "a shared walk locks by a plain store",
        _ENTRY,
        "        if compare_exchange(pool, entry, old, locked) != old:\n            return False\n",
        "        store_relaxed(pool, entry, locked)\n",
        models=("stage2-map", "stage2-collapse-rcu"),
        origin="own: stage2_try_set_pte() without cmpxchg",
    ),
    Mutant(
        "stage2-plain-rights",
        "a right is added to what the entry was",
        *(_ENTRY, "if desk[FLAGS] & SHARED != 0:\n        return", "if desk[FLAGS] & SHARED == 0:\n        return"),
        models=("stage2-relax-block",),
        origin="own: stage2_attr_walker() without cmpxchg",
    ),
    Mutant(
        "stage2-refs-no-second-look",
        "walk_refs holds a page, and does not look whether it is still the child",
        *(
            _REFS,
            "    if load_acquire(pool, entry) == descriptor:\n        return True\n",
            "    if held != 0:\n        return True\n",
        ),
        models=("stage2-reuse-refs",),
        origin="own: step (b) of the rule in docs/stage2.md",
    ),
    # Flags that hardware sets, FEAT_BBM.
    Mutant(
        "stage2-recover-plain",
        "pages get the rights of their block by a plain store, over a flag that hardware has just set",
        *("stage2/recover.py", "                seen = compare_exchange(pool, entry, old, new)\n", _PLAIN_RECOVER),
        models=("stage2-bbm2-recover",),
        origin="own: an SPTE with volatile bits written without atomics",
    ),
    Mutant(
        "stage2-modifier-stays",
        "write protection leaves the dirty-bit-modifier: hardware gives the right back",
        *(
            "stage2/protect.py",
            "shape[WRITE_MASK] | shape[MODIFIER], shape[WRITE_DENIED]",
            "shape[WRITE_MASK], shape[WRITE_DENIED]",
        ),
        models=("stage2-dirty-protect",),
        origin="own: S2AP[1] taken, DBM left",
    ),
    Mutant(
        "stage2-plain-change",
        "an exclusive change of a leaf stores over a flag that hardware has just set",
        *(_ENTRY, "    if not hardware_may_write(shape, mmu, old):\n", "    if old != 0:\n"),
        models=("stage2-flags-protect",),
        origin="own: an SPTE with volatile bits written without atomics",
    ),
    Mutant(
        "stage2-plain-break-flags",
        "an exclusive break stores over a flag that hardware has just set",
        *(
            _ENTRY,
            "        desk[OLD] = exchange(pool, entry, locked)\n",
            "        store_relaxed(pool, entry, locked)\n",
        ),
        models=("stage2-flags-split",),
        origin="own: an SPTE with volatile bits written without atomics",
    ),
    Mutant(
        "stage2-split-drops-flags",
        "the flags that hardware set until the break are not in the pages",
        *drop_call(_BBM, "replace_block", "add_flags"),
        models=("stage2-flags-split",),
        origin="own: accessed and dirty bits not carried over",
    ),
    Mutant(
        "stage2-collapse-drops-flags",
        "flags are collected before hardware can no more set them",
        *(_BBM, "block | _late_flags(table, old, block))", "block)"),
        models=("stage2-flags-collapse",),
        origin="own: accessed and dirty bits not carried over",
    ),
    Mutant(
        "stage2-bbm-drops-flags",
        "the same, where the block is there before the invalidation",
        *(_BBM, "    late = _late_flags(table, old, block)\n", "    late = u64(0)\n"),
        models=("stage2-bbm1-collapse", "stage2-bbm2-collapse"),
        origin="own: accessed and dirty bits not carried over",
    ),
    Mutant(
        "stage2-bbm1-without-nt",
        "hardware caches the block again before its table is there",
        *(_BBM, "new if new != 0 else old | shape[NT])", "new if new != 0 else old)"),
        models=("stage2-bbm1-split",),
        origin="own: FEAT_BBM level 1 without nT",
    ),
    Mutant(
        "stage2-bbm1-as-2",
        "a block is replaced at once where hardware has FEAT_BBM level 1",
        *(_BBM, "    flags = desk[FLAGS]\n    level =", "    flags = desk[FLAGS] << ONE\n    level ="),
        models=("stage2-bbm1-split",),
        origin="own: FEAT_BBM level 2 assumed",
    ),
    Mutant(
        "stage2-bbm2-no-tlbi",
        "the block that a table replaced stays in TLBs",
        *drop_call(_BBM, "replace_block", "invalidate_ipa", 1),
        models=("stage2-bbm2-split",),
        origin="own: FEAT_BBM level 2 without the invalidation after",
    ),
    Mutant(
        "stage2-rest-not-cleared",
        "a table that lost its place goes back to the cache with what it would have kept",
        *drop_call("stage2/edges.py", "put_rest", "_clear", 1),
        models=("stage2-map-rest",),
        origin="own: a page of the cache that is not zero",
    ),
    Mutant(
        "stage2-rest-lost",
        "the other pages of a block that is broken are not in its table",
        *(_MAP, "desk[FLAGS] & KEEP_REST != 0:", "desk[FLAGS] & KEEP_REST == 0:"),
        models=("stage2-map-rest",),
        origin="own: kvm_pgtable_stage2_map() on a part of a block that no fault brings back",
    ),
    # pKVM.
    Mutant(
        "stage2-donate-fails-late",
        "table pages for the guest's map are not there after the host has lost its page",
        _TRANSITIONS,
        "    least = (shape[LAST_LEVEL] - shape[START_LEVEL]) << ONE\n"
        "    if take_pages(hyp, least) != OK:\n"
        "        return ENOMEM\n    lock_both(host, guest)\n    status = check_live(el2, handle)\n"
        "    if status == OK and not is_memory(el2, page << shape[PAGE_SHIFT], (page + ONE) << shape[PAGE_SHIFT]):",
        "    least = shape[LAST_LEVEL] - shape[START_LEVEL]\n"
        "    if take_pages(hyp, least) != OK:\n"
        "        return ENOMEM\n    lock_both(host, guest)\n    status = check_live(el2, handle)\n"
        "    if status == OK and not is_memory(el2, page << shape[PAGE_SHIFT], (page + ONE) << shape[PAGE_SHIFT]):",
        models=("stage2-donate-block",),
        origin="kvmarm, 28 April 2026: check the cache first (Fixes: 1e579adca177)",
    ),
    Mutant(
        "stage2-donate-unlocked",
        "a page is given away without the host's lock",
        *drop_call(_GUEST, "lock_both", "write_lock"),
        models=("stage2-donate",),
        origin="own: host_lock_component() forgotten",
    ),
)
