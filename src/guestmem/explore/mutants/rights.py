"""Mutants of rights that are taken above the slots, and of those that slots say themselves (NR, NW, NX)."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_FAULT, _UPDATE = "engines/soft/user_mem_abort.py", "engines/soft/update.py"
_INVALIDATES = "self._engine.host_invalidation(start_gfn, end_gfn, self._as_id):\n"
_PUBLISHES = "        self.ready()\n        self._engine.counts.swaps +="
_READ, _WRITE, _FETCH = "production-deny-read", "production-deny-write", "production-deny-fetch"

MUTANTS = (
    Mutant(
        "rights-above-ignored",
        "a fault goes by the slot's rights alone, whatever is denied above it",
        *(_FAULT, "        denied = what\n", "        denied = what & _ZERO\n"),
        models=(_READ,),
    ),
    Mutant(
        "rights-hidden-in-the-slot",
        "a fault does not see NR and NX in a slot's flags, so they end with what stood above it",
        *(_FAULT, "denied |= flags & NW | flags >> _HIDDEN & (NR | NX)", "denied |= flags & NW"),
        models=(_READ, _FETCH),
    ),
    Mutant(
        "rights-leaf-executable",
        "a leaf that a read makes lets fetches through, though NX is denied",
        *(_FAULT, "writable, protected, denied & NX == 0)", "writable, protected, True)"),
        models=(_FETCH,),
    ),
    Mutant(
        "rights-leaf-writable",
        "a leaf that a read makes lets writes through, though NW is denied",
        *(_FAULT, "writable = denied & NW == 0 and not", "writable = not"),
        models=(_WRITE,),
    ),
    Mutant(
        "rights-without-a-zap",
        "rights are denied above the slots, and what is translated already stays so",
        *(_UPDATE, f"        with {_INVALIDATES}", "        if True:\n"),
        models=(_READ,),
    ),
    Mutant(
        "rights-uncovered-early",
        "rights that stood above go before the slots that say the same are published: a fault in between has them",
        _UPDATE,
        _PUBLISHES,
        f"        above_clear(self._engine.words)\n{_PUBLISHES}",
        models=(_READ,),
    ),
)
