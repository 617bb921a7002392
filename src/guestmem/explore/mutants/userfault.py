"""Mutants of KVM Userfault: the order of bit, bytes, flag, zap and leaf."""

from __future__ import annotations

from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FILE = "engines/soft/userfault.py"
_LOOK = "    if load_acquire(slot, ENABLED) != 0 and userfault_bit(slot, gfn):\n        return USERFAULT\n"
_SEQ = "    seq = invalidate_seq(mmu)\n"

MUTANTS = (
    Mutant(
        "userfault-clear-relaxed",
        "the bit is cleared without release: a vCPU may see it before the page's bytes",
        _FILE,
        "    fetch_and(slot, BITMAP + (page >> 6), _ALL ^ (_ONE << (page & _IN_WORD)))\n",
        "    word = BITMAP + (page >> 6)\n"
        "    store_relaxed(slot, word, load_relaxed(slot, word) & (_ALL ^ (_ONE << (page & _IN_WORD))))\n",
        models=("userfault",),
        memory="relaxed",
        origin="own, after mail: KVM Userfault v3, kvm, June 2025",
        also=(
            Mutation(_FILE, "load_acquire, store_release", "load_acquire, load_relaxed, store_relaxed, store_release"),
        ),
    ),
    Mutant(
        "userfault-bit-unread",
        "a fault maps whatever the bit says",
        *(_FILE, _LOOK, ""),
        models=("userfault", "userfault-enable"),
    ),
    Mutant(
        "userfault-no-zap",
        "the flag comes on, and what is mapped stays",
        *(_FILE, "    if zaps:\n", "    if zaps and False:\n"),
        models=("userfault-enable",),
    ),
    Mutant(
        "userfault-zap-first",
        "the slot is zapped before the flag is on: a fault in between maps a page again",
        _FILE,
        "    store_release(slot, ENABLED, _ONE)\n    if zaps:\n"
        "        zap(table, _ZERO, npages << _PAGE_SHIFT, True)\n",
        "    if zaps:\n        zap(table, _ZERO, npages << _PAGE_SHIFT, True)\n"
        "    store_release(slot, ENABLED, _ONE)\n",
        models=("userfault-enable",),
    ),
    Mutant(
        "userfault-sequence-late",
        "a fault reads the invalidation sequence after it has looked at the flag",
        *(_FILE, _SEQ + _LOOK, _LOOK + _SEQ),
        models=("userfault-enable",),
    ),
    Mutant(
        "userfault-no-retry",
        "a fault maps although an invalidation ran meanwhile",
        "engines/soft/gmem_abort.py",
        "    if must_retry(mmu, seq, ipa, ipa + size):\n        read_unlock",
        "    if must_retry(mmu, invalidate_seq(mmu), ipa, ipa):\n        read_unlock",
        models=("userfault-enable",),
    ),
)
