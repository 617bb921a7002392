"""Mutants of what stands beside: two vCPUs on one file, a conversion beside a transaction, attributes of the VM."""

from __future__ import annotations

from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_FILES, _FAULT = "engines/soft/files.py", "engines/soft/gmem_slot.py"
_TWO, _TRANSACTION, _ATTRIBUTES = ("gmem-two-vcpus",), ("gmem-transaction",), ("gmem-attributes",)
_LOCK, _UNLOCK = "        gmem_read_lock(gmem.inode)\n", "        gmem_read_unlock(gmem.inode)\n"
_SERVED = "        status = guest_fault(gmem.inode, gmem.states, page, private, True, out)\n"

MUTANTS = (
    Mutant(
        "gmem-incoming-untold",
        "slots that come are not invalidated before they are bound",
        *(_FILES, "                file.incoming = coming\n", "                pass\n"),
        models=_TRANSACTION,
    ),
    Mutant(
        "gmem-incoming-unbound",
        "slots that came have bound nothing when the update is over",
        *("gmem/bindings.py", "        for bound in incoming:\n", "        for bound in ():\n"),
        models=_TRANSACTION,
    ),
    Mutant(
        "gmem-closed-file-unlocked",
        "attributes of the VM change without the lock of files that are closed, whose slots are faulted in still",
        *(
            _FILES,
            "if file.attributes is not None]\n        inodes",
            "if file.attributes is not None and not file.closed]\n        inodes",
        ),
        models=_ATTRIBUTES,
        origin="own: so it was here until November 2026",
    ),
    Mutant(
        "gmem-attributes-unlocked",
        "a fault looks at the VM's attributes without the file's lock",
        *(_FAULT, _LOCK, ""),
        models=_ATTRIBUTES,
        also=(Mutation(_FAULT, _UNLOCK, ""),),
    ),
    Mutant(
        "gmem-two-wrong-kind-zapped",
        "a conversion to private zaps what was mapped by private accesses",
        *(
            _FILES,
            'ranges = [(start, end)] if kinds != "private" else []',
            'ranges = [(start, end)] if kinds == "both" else []',
        ),
        models=_TWO,
    ),
    Mutant(
        "gmem-two-seq-after-state",
        "the invalidation sequence is read after the state of the page was looked at",
        *(
            _FAULT,
            _SERVED,
            f"{_SERVED}        seq = invalidate_seq(table.mmu)\n",
        ),
        models=_TWO,
    ),
)
