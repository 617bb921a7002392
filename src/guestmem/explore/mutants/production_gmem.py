"""Mutants of slots with a guest_memfd in production: the vCPU's fault, the engine's invalidation, both kinds' zaps."""

from __future__ import annotations

from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _MAP = "engines/soft/gmem_slot.py", "engines/soft/gmem_abort.py"
_FILES, _TABLES = "engines/soft/files.py", "engines/soft/stage2.py"
_CONVERT, _REBIND = ("production-gmem-convert",), ("production-gmem-rebind",)
_RETRY, _ZAPS = "    if must_retry(mmu, seq, ipa, ipa + size):", "ranges = [(start, end)] if kinds"
_SEQ = "    seq = invalidate_seq(mmu)\n"
_FIND = "    record = find(memslots, own[at.AS_ID], gfn)\n"
_FLUX = "    if flux & _COUNT != 0 and in_flux(vm, flux, gfn, writes):\n"
_SERVED = "        status = guest_fault(gmem.inode, gmem.states, page, private, True, out)\n"

MUTANTS = (
    Mutant(
        "production-gmem-retry-forgotten",
        "a fault maps the page that it found although an invalidation ran meanwhile",
        *(
            _MAP,
            "    if must_retry(mmu, seq, ipa, ipa + size):\n        read_unlock",
            "    if False:\n        read_unlock",
        ),
        models=(*_CONVERT, *_REBIND),
    ),
    Mutant(
        "production-gmem-seq-late",
        "the invalidation sequence is read after the state of the page was looked at",
        *(_FAULT, _SERVED, f"{_SERVED}        seq = invalidate_seq(table.mmu)\n"),
        models=_CONVERT,
        origin="own, after Linux 13ec9308a857: the sequence before the mmap lock is dropped",
    ),
    Mutant(
        "production-gmem-seq-after-slots",
        "the sequence is read after the slot was looked up",
        *(_FAULT, _SEQ, ""),
        models=_REBIND,
        also=(Mutation(_FAULT, _FIND, f"{_FIND}{_SEQ}"),),
    ),
    Mutant(
        "production-gmem-wrong-kind-zapped",
        "a conversion to private zaps what was mapped by private accesses",
        *(
            _FILES,
            'ranges = [(start, end)] if kinds != "private" else []',
            'ranges = [(start, end)] if kinds == "both" else []',
        ),
        models=_CONVERT,
    ),
    Mutant(
        "production-gmem-private-stays",
        "a slot that goes leaves the leaves of private accesses",
        *(_TABLES, "private = self.zap_kind(as_id, self.private(gone), wait=wait)", "private = 0"),
        models=_REBIND,
    ),
    Mutant(
        "production-gmem-flux-passed-over",
        "a fault in a slot with a file does not wait for ranges in flux",
        *(_FAULT, _FLUX, "    if False:\n"),
        models=_REBIND,
    ),
    Mutant(
        "production-gmem-kind-not-asked",
        "a shared access is served as a private one",
        *(_FAULT, _SERVED, _SERVED.replace("private, True", "True, True")),
        models=_CONVERT,
    ),
)
