"""Mutants of kinds that models long missed: two of a thing, second tries, blocks, reuse, full logs, hardware's flags.

Each is found by its models; searches over states did not find them before.
"""

from __future__ import annotations

from ..operators import drop_call, drop_fence, drop_statement, weaken
from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _RETRY, _LOOKUP = "engines/soft/user_mem_abort.py", "stage2/retry.py", "memslots/lookup.py"
_ENTRY, _UNMAP, _WALK = "stage2/entry.py", "stage2/unmap.py", "stage2/tlb_walk.py"
_TLBI, _EDGES, _BITMAP, _LOG = "stage2/tlbi.py", "stage2/edges.py", "dirty/bitmap.py", "engines/soft/dirty_log.py"
_KICKS, _REQUESTS = "engines/kvm/kicks.py", "engines/soft/requests.py"
_MADE = "    make_entry(table, new)\n    desk[RESULT] += ONE\n"
_UNLINK = "unlink_table(table, table_page(shape, old))\n"
_CLEANED = """    while line < end:
        store_relaxed(pages, line + STATE, FREE)
        store_relaxed(pages, line + COUNT, u64(0))
        line += PAGE_WORDS
"""
_FREED = """    run = ((ONE << count) - ONE) << (page & u64(63))
    was = fetch_or(pages, first_word(pages) + (page >> 6), run)
"""
_AWAY = "            srcu_exit(srcu, _ZERO, reader)\n            srcu_enter(srcu, _ZERO, reader)\n"

MUTANTS = (
    # A neighbour, and a hole.
    Mutant(
        "hint-holds-neighbour",
        "a vCPU that remembers a slot takes it for the first frame of its neighbour, too",
        *(
            _LOOKUP,
            "< load_relaxed(memslots, words + NPAGES):\n            return record\n    record = find_in",
            "<= load_relaxed(memslots, words + NPAGES):\n            return record\n    record = find_in",
        ),
        models=("slots-beside",),
    ),
    Mutant(
        "slot-end-inside",
        "the first frame behind a slot is found in it",
        *(_LOOKUP, "entry) <= gfn < load_relaxed(", "entry) <= gfn <= load_relaxed("),
        models=("slots-beside",),
    ),
    Mutant(
        "fault-reads-freed-record",
        "a fault reads host address and first frame of its slot after its section",
        *(
            _FAULT,
            "            logged = flags & _LOGGED != 0\n",
            f"{_AWAY}            logged = flags & _LOGGED != 0\n",
        ),
        models=("slots-reused",),
    ),
    # Blocks, and the second try.
    Mutant(
        "retry-first-page-only",
        "a fault that maps a block asks for invalidations of its first page",
        *(
            _RETRY,
            " and end > load_relaxed(mmu, INVALIDATE_START)",
            " and start >= load_relaxed(mmu, INVALIDATE_START)",
        ),
        models=("fault-block", "fault-block-again"),
    ),
    Mutant(
        "block-over-flux",
        "a fault beside frames in flux maps them again with its block",
        *(_FAULT, "flux & _COUNT == 0 or not flux_touches(vm, flux, first, first + frames)", "True"),
        models=("fault-block-flux",),
    ),
    Mutant(
        "fault-again-unasked",
        "a fault that took the lock once more, for writing, does not ask again for invalidations",
        *(
            _FAULT,
            "        if not must_retry(mmu, seq, ipa, ipa + size):\n            status",
            "        if True:\n            status",
        ),
        models=("fault-block-again",),
        origin="Linux: mmu_invalidate_retry() belongs under the very hold of mmu_lock that maps",
    ),
    # More than one page; a log that is full.
    Mutant(
        "unmap-deferred-last-only",
        "one invalidation for several pages covers the last",
        *(
            _UNMAP,
            "                    if start < low:\n                        low = start\n",
            "                    low = start\n",
        ),
        models=("stage2-unmap-pages",),
    ),
    Mutant(
        "log-overwritten-unnoticed",
        "a record of the log that is being overwritten is applied",
        *(_WALK, "load_relaxed(mmu, hub + SEQUENCE) - seen >= ring\n", "head - seen >= ring + ONE\n"),
        models=("stage2-ring",),
    ),
    # The dirty-bit-modifier alone.
    Mutant(
        "modifier-not-hardwares",
        "a leaf whose right to write hardware may give is stored over plainly",
        *(_ENTRY, "    return not writable and descriptor & shape[MODIFIER] != 0", "    return False"),
        models=("stage2-modifier-split",),
    ),
    # The last of several.
    Mutant(
        "lock-misses-last-reader",
        "a writer does not wait for the last reader of the lock",
        *("stage2/rwlock.py", "    while reader < readers:\n", "    while reader + ONE < readers:\n"),
        models=("fault-last",),
    ),
    Mutant(
        "tlbi-misses-last-vcpu",
        "an invalidation does not wait for the last vCPU",
        *(_TLBI, "    while walker < walkers:\n        line", "    while walker + ONE < walkers:\n        line"),
        models=("fault-last",),
    ),
    Mutant(
        "region-misses-last-vcpu",
        "KVM_SET_USER_MEMORY_REGION does not wait for the last vCPU's section",
        *("engines/soft/region.py", "srcu_wait_for(srcu, u64(0), vcpus + _ONE,", "srcu_wait_for(srcu, u64(0), vcpus,"),
        models=("slots-region",),
    ),
    Mutant(
        "invalidation-never-over",
        "an invalidation that has ended still counts as under way: faults in its range start again for ever",
        *drop_statement(
            _RETRY, "invalidate_end", "store_relaxed(mmu, INVALIDATING, load_relaxed(mmu, INVALIDATING) - ONE)"
        ),
        models=("fault-last", "fault-block"),
    ),
    # A block that is broken for one page.
    Mutant(
        "rest-drops-late-flags",
        "the rest of a block that is broken lacks what hardware set in it meanwhile",
        *drop_call(_EDGES, "put_rest", "add_flags"),
        models=("stage2-rest-flags",),
    ),
    Mutant(
        "rest-put-back-as-table",
        "a table that came too late goes back to the cache as one that is linked",
        *drop_statement(_EDGES, "put_rest", "store_relaxed(pages, line + STATE, CACHED)"),
        models=("stage2-rest-late",),
    ),
    Mutant(
        "walk-relaxed",
        "who follows a link to a table may see its entries as they were before",
        *weaken("stage2/walk.py", "walk_step", "load_acquire", 1),
        models=("stage2-rest-look",),
        memory="stale",
    ),
    Mutant(
        "queue-overfull",
        "more tables are put aside than there is room for",
        *(
            "stage2/discipline.py",
            "load_relaxed(mmu, QUEUE_CAPACITY) else",
            "load_relaxed(mmu, QUEUE_CAPACITY) + ONE else",
        ),
        models=("stage2-queue",),
    ),
    # Dirty logs: bits beside it, words that are not the first.
    Mutant(
        "mark-word-for-bit",
        "a page is not marked if another of its word is",
        *(
            _BITMAP,
            "    if host_load(word) & bit != 0:\n        return False\n    return host",
            "    if host_load(word) != 0:\n        return False\n    return host",
        ),
        models=("fault-log-beside", "log-merge"),
    ),
    Mutant(
        "merge-plain",
        "bits that are put back overwrite one that is set meanwhile",
        *(
            _BITMAP,
            "            fetch_or(bitmap, word, bits)\n",
            "            store_relaxed(bitmap, word, load_relaxed(bitmap, word) | bits)\n",
        ),
        models=("log-merge",),
    ),
    Mutant(
        "clear-no-flush",
        "KVM_CLEAR_DIRTY_LOG returns while a vCPU writes through a translation from before",
        *drop_call(_LOG, "clear_and_protect", "invalidate_range"),
        models=("fault-log-clear",),
    ),
    Mutant(
        "clear-protects-first-word",
        "KVM_CLEAR_DIRTY_LOG protects the slot's first pages, whichever were asked for",
        *(_LOG, "table, bitmap, half, gfn + (first << 6), count)", "table, bitmap, half, gfn, count)"),
        models=("fault-log-clear",),
    ),
    Mutant(
        "protect-no-flush",
        "a range loses the right to write, but not the TLBs",
        *("stage2/zap.py", "end if lost != 0 else start)", "start)"),
        models=("stage2-protect",),
    ),
    Mutant(
        "protect-keeps-stale-level",
        "a right is added to whatever leaf is there, by the level that the fault saw",
        *(_FAULT, " and (not logged or _is_page(table, gfn))", ""),
        models=("fault-log-joined",),
    ),
    Mutant(
        "split-gives-up",
        "a range is split as far as the table pages at hand go",
        *(_LOG, "(status == ENOMEM and done == 0 and desk[CACHE_COUNT] == 0)", "status == ENOMEM"),
        models=("stage2-split-chunks",),
    ),
    # What is asked of vCPUs, and wakes that a second look after a while hides.
    Mutant(
        "exit-looks-for-nothing",
        "a vCPU that was in the host for a fault enters the guest without a look at what was asked of it",
        *(
            "engines/soft/stage2_vcpu.py",
            "    elif not stage2_look(slots, load, table, tlb, vcpu):\n        return u64(0)\n",
            "",
        ),
        models=("load-change",),
        origin="vcpu-requests.rst: requests are looked at after the vCPU is seen to be in the guest",
    ),
    Mutant(
        "swap-not-counted",
        "a vCPU that met an INVALID slot and is about to sleep does not see that the slots were swapped",
        *(
            _REQUESTS,
            "    fetch_add(vm, SWAPS, _ONE)\n    wake(vm, SWAPS, _EVERYBODY)\n",
            "    wake(vm, SWAPS, _EVERYBODY)\n",
        ),
        models=("slots-invalid",),
    ),
    Mutant(
        "kvm-kick-fence",
        "a vCPU that comes in may miss a kick, and be missed by it",
        *drop_fence(_KICKS, "kick_all"),
        models=("kvm-kick",),
        memory="stale",
        origin="vcpu-requests.rst: store, then look, on two sides, needs full barriers",
    ),
    Mutant(
        "kvm-turn-fence",
        "a vCPU that answers a kept exit may look for pauses before it is seen to be inside",
        *drop_fence("engines/kvm/answers.py", "take_turn"),
        models=("kvm-pause-turn",),
        memory="stale",
    ),
    Mutant(
        "map-end-inside",
        "an exit for the first byte behind a slot is answered from its memory",
        *(
            "engines/kvm/address_map.py",
            "    if gpa < load_relaxed(entries, entry + _END):",
            "    if gpa <= load_relaxed(entries, entry + _END):",
        ),
        models=("update-lock-beside",),
    ),
    # pKVM: a page that a guest had shared; a block of which half is no memory.
    Mutant(
        "unshare-leaves-no-mark",
        "a page that its guest shares no longer has no owner in the host's table",
        *drop_call("stage2/pkvm/transitions.py", "guest_unshare_host", "mark_host_page"),
        models=("stage2-unshare",),
    ),
    Mutant(
        "host-block-not-uniform",
        "the host maps a block of which part is no memory as one thing",
        *(
            "stage2/pkvm/host.py",
            "(level >= shape[MIN_BLOCK_LEVEL] and is_uniform(shape, el2, start, end))",
            "level >= shape[MIN_BLOCK_LEVEL]",
        ),
        models=("stage2-donate-edge",),
    ),
    Mutant(
        "share-not-counted-down",
        "the end of one share ends all of them",
        *(
            "stage2/pkvm/transitions.py",
            "                if share_count(el2, at) == 0:\n                    set_host",
            "                if True:\n                    set_host",
        ),
        models=("stage2-share",),
    ),
    Mutant(
        "settle-forgets-held-exits",
        "in a pause nobody waits for exits that were still to be answered when it began",
        *(_KICKS, "    return _wait_for(vm, vcpus, targets, True)", "    return _wait_for(vm, vcpus, targets, False)"),
        models=("kvm-pause-settles",),
    ),
    Mutant(
        "hinted-record-past-end",
        "a lookup with the caller's hint takes the hinted slot for its neighbour's first frame",
        *(
            _LOOKUP,
            "< load_relaxed(memslots, words + NPAGES):\n            return record\n    return find_in",
            "<= load_relaxed(memslots, words + NPAGES):\n            return record\n    return find_in",
        ),
        models=("slots-beside",),
    ),
    # Three levels, small enough to be searched whole.
    Mutant(
        "table-goes-before-block",
        "a table is unlinked before the block stands that takes its place",
        *(
            "stage2/map.py",
            f"{_MADE}    if visit == TABLE_PRE:\n        {_UNLINK}",
            f"    if visit == TABLE_PRE:\n        {_UNLINK}{_MADE}",
        ),
        models=("stage2-look-lock-3",),
    ),
    Mutant(
        "page-free-before-clean",
        "a page that is given back can be taken before its line says so",
        *("stage2/free_list.py", f"{_CLEANED}{_FREED}", f"{_FREED}{_CLEANED}"),
        models=("stage2-pool",),
    ),
    Mutant(
        "walk-keeps-first-table",
        "a walk that comes up from a table, and goes on, holds it for ever",
        *drop_call("stage2/walk.py", "walk_step", "_release_child"),
        models=("stage2-collapse-two",),
    ),
)
