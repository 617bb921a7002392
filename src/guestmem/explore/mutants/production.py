"""Mutants of what production runs: updates in phases, and a vCPU's exits."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_UPDATE, _EXIT = "engines/soft/update.py", "engines/soft/stage2_vcpu.py"
_ATOMIC = ("production-atomic",)

MUTANTS = (
    Mutant(
        "production-zap-not-waited",
        "an update goes on while vCPUs may still use what it zapped",
        *(_UPDATE, "change(self._as_id, [(start, end)], wait=wait)", "change(self._as_id, [(start, end)], wait=False)"),
        models=_ATOMIC,
        origin="own: atomic_unacknowledged, by mistake",
    ),
    Mutant(
        "production-zap-forgets",
        "the first range that an update stalls is put in flux, but stays in the table",
        *(
            _UPDATE,
            "            for start, end, kind in ranges:\n                change = stage2.zap",
            "            for start, end, kind in ranges[1:]:\n                change = stage2.zap",
        ),
        models=_ATOMIC,
    ),
    Mutant(
        "production-zap-without-flux",
        "what an update zaps is not in flux: a fault maps the old memory again before the swap",
        *(_UPDATE, "        self._engine.mark(covering(self._in_flux, FLUX_MAX))\n", ""),
        models=_ATOMIC,
    ),
    Mutant(
        "production-release-forgotten",
        "vCPUs that wait for a range in flux are not told that it is over",
        *(_UPDATE, "            self._engine.release()\n", "            pass\n"),
        models=_ATOMIC,
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
        "pause-host-counts-as-outside",
        "a pause does not wait for a vCPU that is in the host for a fault",
        "engines/soft/requests.py",
        "            if load_acquire(vm, VCPUS + VCPU * vcpu + MODE) == OUTSIDE:\n",
        "            if load_acquire(vm, VCPUS + VCPU * vcpu + MODE) != IN_GUEST:\n",
        models=("production-pause",),
    ),
)
