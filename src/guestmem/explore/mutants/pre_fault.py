"""A mutant of pre-faulting: what KVM did until 6.18."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_ABORT = "engines/soft/user_mem_abort.py"

MUTANTS = (
    Mutant(
        "pre-fault-retries-inside",
        "a fault that finds its slot INVALID looks again and again, inside the section that the delete waits for",
        _ABORT,
        "        flags = slot_flags(memslots, record)\n",
        "        flags = slot_flags(memslots, record)\n"
        "        while record != 0 and flags & KVM_MEMSLOT_INVALID != 0:\n"
        "            record = find(memslots, own[at.AS_ID], gfn)\n"
        "            if record != 0:\n"
        "                flags = slot_flags(memslots, record)\n",
        models=("pre-fault",),
        origin="own, after KVM_PRE_FAULT_MEMORY before Linux 6.18",
    ),
    Mutant(
        "pre-fault-maps-invalid",
        "a fault maps from a slot that is INVALID",
        _ABORT,
        "        if flags & KVM_MEMSLOT_INVALID != 0:\n",
        "        if flags & KVM_MEMSLOT_INVALID > 1 << 62:\n",
        models=("pre-fault",),
    ),
)
