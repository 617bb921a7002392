"""Mutants of updates of both address spaces: each lets one space show the new before the other has it."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_SPACES, _FAULT = "engines/soft/spaces.py", "engines/soft/user_mem_abort.py"

MUTANTS = (
    Mutant(
        "spaces-given-at-once",
        "what comes in the space that is published first does not wait for the other",
        *(_SPACES, "if effect.action in _GIVES and _space(effect) != last:", "if False:"),
        models=("production-spaces-comes", "production-spaces-writable"),
    ),
    Mutant(
        "spaces-rights-at-once",
        "rights that are given in the space that is published first do not wait",
        *(_SPACES, ", Action.LIFT: int(STALLS_WRITES)}", "}"),
        models=("production-spaces-writable",),
    ),
    Mutant(
        "spaces-faults-go-on",
        "a fault that looked at FLUX before the space was put in flux maps what it finds there",
        _SPACES,
        "                part.zap(ranges[slots.as_id], wait=wait)\n",
        "                part.zap([each for each in ranges[slots.as_id] if each in stalled(effects)], wait=wait)\n",
        models=("production-spaces-comes", "production-spaces-writable"),
    ),
    Mutant(
        "spaces-hole-believed",
        "a fault that finds nothing does not look whether an update began meanwhile",
        *(_FAULT, "    exits = outcome == HOLE\n", "    exits = False\n"),
        models=("production-spaces-goes",),
    ),
    Mutant(
        "spaces-readonly-believed",
        "a write that finds read-only memory does not look whether an update began meanwhile",
        *(_FAULT, "    if outcome == READONLY:\n        exits = True\n", ""),
        models=("production-spaces-readonly",),
    ),
    Mutant(
        "spaces-released-early",
        "what is in flux is released before the second space is published",
        _SPACES,
        "        first.publish_with(last)\n",
        "        first.at_desk()\n        first.publish()\n        self.release()\n        last.at_desk()\n"
        "        last.publish()\n",
        models=("production-spaces-comes",),
    ),
)
