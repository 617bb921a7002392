"""Mutants of guest_memfd: orders of looks that conversions, faults, pins and last puts depend on."""

from __future__ import annotations

from ..operators import drop_call, drop_operand
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _FOLIO, _LOCK = "gmem/fault.py", "gmem/folio.py", "gmem/invalidate_lock.py"
_CONVERT, _MAPPABILITY, _ATTRIBUTES = "gmem/convert.py", "gmem/mappability.py", "gmem/attributes.py"
_ABORT = "engines/soft/gmem_abort.py"
_LOOK = "    status = _host_page(inode, states, index, create)\n"
_STATE = "                out[2] = state\n"
_SECOND_LOOK = "            if load_acquire(inode, page_word(index) + PTE) != 0:\n                return OK\n"

MUTANTS = (
    Mutant(
        "gmem-no-references",
        "a conversion does not look at references",
        *(_CONVERT, "    if page == NONE:\n        return OK\n", "    if page <= NONE:\n        return OK\n"),
        models=("gmem-pin", "gmem-late", "gmem-memory"),
    ),
    Mutant(
        "gmem-hole-shares",
        "a hole makes its pages shared, as that of 2025 did",
        "gmem/states.py",
        '"""Pages [first, last] were punched out; what becomes of their state. The lock is held for writing."""\n',
        "inode.states.store(first, last + 1, 0, reserved=True)\n",
        models=("gmem-hole",),
        origin="own, after mail: restricted mapping of guest_memfd, v7, kvm, March 2025",
    ),
    Mutant(
        "gmem-entry-left",
        "the host's page-table entry is left, though its reference is dropped",
        *(_FOLIO, "exchange(inode, entry, u64(0)) != 0:", "load_relaxed(inode, entry) != 0:"),
        models=("gmem-host-mapped",),
    ),
    Mutant(
        "gmem-no-host-flush",
        "whoever unmaps does not wait for host threads inside an access",
        *drop_call(_FOLIO, "unmap_host", "srcu_synchronize"),
        models=("gmem-host",),
    ),
    Mutant(
        "gmem-fault-no-reference",
        "a host fault has no reference between its look at the state and its entry",
        *drop_call(_FAULT, "_host_page", "fetch_add"),
        models=("gmem-host",),
    ),
    Mutant(
        "gmem-fault-no-lock",
        "a host fault looks at the state without the lock",
        *(_FAULT, f"    read_lock(inode)\n{_LOOK}", _LOOK),
        models=("gmem-host",),
        also=(Mutation(_FAULT, "            status = LAST\n    read_unlock(inode)\n", "            status = LAST\n"),),
    ),
    Mutant(
        "gmem-pin-unchecked",
        "a pin takes a reference to a page that nobody holds, and does not look at the page tables again",
        *(_FAULT, _SECOND_LOOK, "            return OK\n"),
        models=("gmem-pin",),
        origin="own, after mm/gup.c: try_get_folio() and gup_fast_pte_range()",
        also=(
            Mutation(
                _FOLIO,
                " and seen & REFS != 0:\n        now = compare_exchange(inode, word, seen, seen",
                ":\n        now = compare_exchange(inode, word, seen, seen",
            ),
        ),
    ),
    Mutant(
        "gmem-writer-does-not-wait",
        "the lock is taken for writing beside readers",
        *(_LOCK, "        if seen == _WRITER:\n", "        if seen & _WRITER != 0:\n"),
        models=("gmem-host",),
    ),
    Mutant(
        "gmem-unlock-wakes-nobody",
        "the last reader does not wake the writer",
        _LOCK,
        "== _WRITER | _ONE:\n        wake(inode, LOCK, _EVERYBODY)\n",
        "== _WRITER | _ONE:\n        return\n",
        models=("gmem-host",),
    ),
    Mutant(
        "gmem-guest-sequence-late",
        "a guest's fault reads the invalidation sequence after it has looked at the state",
        _ABORT,
        "        return status\n    level = shape[LAST_LEVEL]\n",
        "        return status\n    seq = invalidate_seq(mmu)\n    level = shape[LAST_LEVEL]\n",
        models=("gmem-guest",),
    ),
    Mutant(
        "gmem-guest-no-retry",
        "a guest's fault maps although an invalidation ran meanwhile",
        _ABORT,
        "    if must_retry(mmu, seq, ipa, ipa + size):\n        read_unlock",
        "    if must_retry(mmu, invalidate_seq(mmu), ipa, ipa):\n        read_unlock",
        models=("gmem-guest",),
    ),
    Mutant(
        "gmem-guest-no-lock",
        "a guest's fault looks at the state without the file's lock",
        *(_FAULT, "    read_lock(inode)\n    status = OK\n", "    status = OK\n"),
        also=(Mutation(_FAULT, f"{_STATE}    read_unlock(inode)\n", _STATE),),
        models=("gmem-guest",),
    ),
    Mutant(
        "gmem-zap-wrong-kind",
        "a conversion has the guest's mappings of the new kind go, not those of the old",
        *(_ATTRIBUTES, '"shared" if private else "private"', '"private" if private else "shared"'),
        models=("gmem-guest", "gmem-guest-reads"),
    ),
    Mutant(
        "gmem-register-blind",
        "a page is registered for its last put although that has been",
        *drop_operand(_CONVERT, "folio_register", 0, 1),
        models=("gmem-last-put-take",),
        origin="own, after mail: restricted mapping of guest_memfd, v5, kvm, January 2025",
    ),
    Mutant(
        "gmem-put-makes-private",
        "the last put makes a page the guest's whatever happened to it since",
        *(_MAPPABILITY, "if folio_registered(inode.words, index):", "if folio_registered(inode.words, index) or True:"),
        models=("gmem-last-put-share",),
    ),
    Mutant(
        "gmem-share-keeps-type",
        "a page that is shared again still waits for its last put",
        *drop_call(_MAPPABILITY, "Mappability.share", "_forget"),
        models=("gmem-last-put-share",),
    ),
    Mutant(
        "gmem-toggle-accepted",
        "a slot that has bound a file may drop the flag KVM_MEM_GUEST_MEMFD",
        *("memslots/checks.py", "_STAY = KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD", "_STAY = KVM_MEM_READONLY"),
        models=("gmem-toggle",),
        origin="Linux 9935df5333aa",
    ),
)
