"""Mutants of what production runs: updates in phases, and a vCPU's exits."""

from __future__ import annotations

from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_UPDATE, _EXIT = "engines/soft/update.py", "engines/soft/stage2_vcpu.py"
_FAULT = "engines/soft/user_mem_abort.py"
_ATOMIC, _PHASES = ("production-atomic",), ("production-atomic-phases",)
_OVERLAY, _OVERLAYS = ("production-overlay",), ("production-overlays",)
_INVALIDATES = "self._engine.host_invalidation(start_gfn, end_gfn, self._as_id):"
_PUBLISHES = "        self.ready()\n        self._engine.counts.swaps +="
_ABOVE = "    above = load_acquire(vm, at.ABOVE)\n"

MUTANTS = (
    Mutant(
        "production-zap-not-waited",
        "an update goes on while vCPUs may still use what it zapped",
        *(_UPDATE, "take(self._as_id, ranges, wait=wait)", "take(self._as_id, ranges, wait=False)"),
        models=_PHASES,
        origin="own: atomic_unacknowledged, by mistake",
    ),
    Mutant(
        "production-zap-forgets",
        "the first range that an update stalls is put in flux, but stays in the table",
        *(_UPDATE, "take(self._as_id, ranges, wait=wait)", "take(self._as_id, ranges[1:], wait=wait)"),
        models=_PHASES,
    ),
    Mutant(
        "production-zap-without-flux",
        "what an update zaps is not in flux: a fault maps the old memory again before the swap",
        *(
            _UPDATE,
            "        self._engine.mark(marked)\n        self._engine.counts.ranges_in_flux += len(ranges)\n",
            "",
        ),
        models=_PHASES,
    ),
    Mutant(
        "production-release-forgotten",
        "vCPUs that wait for a range in flux are not told that it is over",
        *(_UPDATE, "            self._engine.release()\n", "            pass\n"),
        models=_PHASES,
    ),
    Mutant(
        "production-exit-in-guest",
        "a vCPU that handles a fault still counts as one whose invalidations must be waited for",
        *(
            _EXIT,
            "    tlb_leave(mmu, tlb)\n    leave_guest(vm, vcpu, at.IN_HOST)\n",
            "    leave_guest(vm, vcpu, at.IN_HOST)\n",
        ),
        models=_ATOMIC,
    ),
    Mutant(
        "overlay-without-invalidation",
        "an overlay is set while vCPUs may have the frame's old page mapped",
        *(_UPDATE, f"        with {_INVALIDATES}\n", "        for _ in range(1):\n"),
        models=_OVERLAYS,
    ),
    Mutant(
        "overlay-set-late",
        "an overlay is set when its invalidation is over: a fault in between maps the old page",
        *(
            _UPDATE,
            f"        with {_INVALIDATES}\n            self._above += 1\n            above_add(",
            f"        with {_INVALIDATES}\n            self._above += 1\n        above_add(",
        ),
        models=_OVERLAYS,
    ),
    Mutant(
        "overlay-not-looked-at",
        "a fault goes by the slots alone",
        *(_FAULT, "    if above & _COUNT != 0:\n", "    if False:\n"),
        models=_OVERLAYS,
    ),
    Mutant(
        "overlay-before-the-sequence",
        "a fault looks at what stands above the slots before it reads the invalidation sequence",
        *(_FAULT, "    seq = invalidate_seq(mmu)\n", f"{_ABOVE}    seq = invalidate_seq(mmu)\n"),
        models=_OVERLAYS,
        also=(Mutation(_FAULT, f"{_ABOVE}    denied", "    denied"),),
    ),
    Mutant(
        "overlay-taken-away-early",
        "overlays go before the slots that say the same are published",
        *(
            _UPDATE,
            f"        begun = _clock()\n{_PUBLISHES}",
            f"        begun = _clock()\n        above_clear(self._engine.words)\n{_PUBLISHES}",
        ),
        models=_OVERLAY,
    ),
    Mutant(
        "pause-host-counts-as-outside",
        "a pause does not wait for a vCPU that is in the host for a fault",
        "engines/soft/requests.py",
        "            if load_acquire(vm, VCPUS + VCPU * vcpu + MODE) == OUTSIDE:\n",
        "            if load_acquire(vm, VCPUS + VCPU * vcpu + MODE) != IN_GUEST:\n",
        models=("production-pause",),
    ),
)
