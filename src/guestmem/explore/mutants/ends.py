"""Mutants of what ends: a table, a guest, a pin, a page whose memory fails, nodes that all must go."""

from __future__ import annotations

from ..operators import drop_call
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_LIST, _DESTROY, _HYP = "stage2/free_list.py", "stage2/destroy.py", "stage2/pkvm/hyp.py"
_RECLAIM, _FAULT, _INODE, _NODES = "stage2/pkvm/reclaim.py", "gmem/fault.py", "gmem/inode.py", "ranges/nodes.py"
_TAKEN = "compare_exchange(pages, first + word, free, free ^ (run << shift))"
_READERS = "reclaim_wait(ranges, desk[QUEUE], _CAPACITY, ranges, srcu, desk[READERS], freed"
_LOOK = "    status = _host_page(inode, states, index, create)\n    if status == OK:\n"
_PINS = "        if (load_relaxed(el2, page_word(el2, at)) >> PIN_SHIFT) & PIN_MASK != 0:\n"
_UNLOCKED = "    write_lock(host, lock, load_relaxed(host, VCPUS))\n"
_PIN = "    status = _checked(shape, el2, page, ONE, SHARED_OWNED, SHARED_BORROWED)\n"

MUTANTS = (
    Mutant(
        "pool-row-stored",
        "pages in a row are taken by a plain store over what others take and give in that word",
        *(_LIST, _TAKEN, _TAKEN.replace("compare_exchange", "_stored")),
        models=("stage2-pool-row",),
        also=(
            Mutation(
                _LIST,
                "@compiled\ndef take_run(",
                "@compiled\ndef _stored(pages: Words, word: U64, was: U64, new: U64) -> U64:\n"
                "    store_relaxed(pages, word, new)\n    return was\n\n\n@compiled\ndef take_run(",
            ),
        ),
    ),
    Mutant(
        "pool-row-looks-once",
        "who was too late for a row tries it with what it saw before, for ever",
        *(_LIST, "                free = seen\n", ""),
        models=("stage2-pool-row",),
    ),
    Mutant(
        "ranges-wait-for-nobody",
        "a writer that frees all that waits does not wait for readers",
        *(_NODES, _READERS, _READERS.replace("desk[READERS]", "u64(0)")),
        models=("ranges-wait",),
    ),
    Mutant(
        "destroy-no-invalidation",
        "a table's pages are given back while a vCPU still has translations of it",
        *drop_call(_DESTROY, "destroy_table", "invalidate_all"),
        models=("stage2-destroy", "stage2-destroy-again"),
        origin="Linux: kvm_free_stage2_pgd() clears pgt before the table goes",
    ),
    Mutant(
        "destroy-root-stays",
        "walks of vCPUs still begin at the root of a table that is destroyed",
        *(_DESTROY, "    root = exchange(mmu, ROOT, u64(0))\n", "    root = load_relaxed(mmu, ROOT)\n"),
        models=("stage2-destroy", "stage2-destroy-again"),
    ),
    Mutant(
        "teardown-keeps-borrowed",
        "a dying guest keeps what it borrows",
        *(_RECLAIM, "        if borrowed:\n", "        if False:\n"),
        models=("stage2-teardown",),
    ),
    Mutant(
        "teardown-over-budget",
        "a teardown gives back all leaves in one call, whatever its budget",
        *(_RECLAIM, "        budget -= ONE\n", ""),
        models=("stage2-teardown",),
    ),
    Mutant(
        "unshare-pinned",
        "the host takes back a page that the hypervisor has pinned",
        *(_HYP, _PINS, "        if False:\n"),
        models=("stage2-hyp-pin",),
    ),
    Mutant(
        "pin-unlocked",
        "the hypervisor pins without the host's lock",
        *(_HYP, _UNLOCKED + _PIN, _PIN),
        models=("stage2-hyp-pin",),
        also=(
            Mutation(
                _HYP,
                "wrapping(old - (ONE << PIN_SHIFT)))\n    write_unlock(host, lock)\n",
                "wrapping(old - (ONE << PIN_SHIFT)))\n",
            ),
        ),
    ),
    Mutant(
        "gmem-fault-maps-late",
        "a host fault maps its page after it let the lock go: poisoned meanwhile, it is mapped all the same",
        *(_FAULT, _LOOK, _LOOK.replace("    if", "    read_unlock(inode)\n    if")),
        models=("gmem-poison",),
        also=(Mutation(_FAULT, "            status = LAST\n    read_unlock(inode)\n", "            status = LAST\n"),),
    ),
    Mutant(
        "gmem-poison-still-mapped",
        "a page whose memory failed stays mapped",
        *(_INODE, "                unmap_host(self.words, head, last)\n                folio", "                folio"),
        models=("gmem-poison-mapped",),
    ),
    Mutant(
        "gmem-poison-unsaid",
        "a page whose memory failed is mapped again by the next fault",
        *(_INODE, "                folio_poison(self.words, head)\n", ""),
        models=("gmem-poison", "gmem-poison-mapped"),
    ),
)
