"""Mutants of kinds that models long missed: two of a thing, second tries, blocks, reuse, full logs, hardware's flags.

Each is found by its models and was found by none before them.
"""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _RETRY, _LOOKUP = "engines/soft/user_mem_abort.py", "stage2/retry.py", "memslots/lookup.py"
_ENTRY, _UNMAP, _WALK = "stage2/entry.py", "stage2/unmap.py", "stage2/tlb_walk.py"
_AWAY = "            srcu_exit(srcu, u64(0), reader)\n            srcu_enter(srcu, u64(0), reader)\n"

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
            "engines/soft/vcpu.py",
            "            host = slot_userspace_addr(memslots, record) + (",
            f"{_AWAY}            host = slot_userspace_addr(memslots, record) + (",
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
        *(_WALK, "load_relaxed(mmu, hub + SEQUENCE) - seen >= ring\n", "head - seen >= ring + _ONE\n"),
        models=("stage2-ring",),
    ),
    # The dirty-bit-modifier alone.
    Mutant(
        "modifier-not-hardwares",
        "a leaf whose right to write hardware may give is stored over plainly",
        *(_ENTRY, "    return not writable and descriptor & shape[MODIFIER] != 0", "    return False"),
        models=("stage2-modifier-split",),
    ),
)
