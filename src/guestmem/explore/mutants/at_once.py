"""Mutants of a batch in one call: what keeps it apart from readers, and what it must leave to the phases."""

from __future__ import annotations

from . import Mutant

__all__ = ["MUTANTS"]

_WHOLE, _CALL, _PHASES = "memslots/whole.py", "engines/soft/at_once.py", "memslots/phases.py"
_ONE = ("production-split",)
_ALL = ("production-split", "production-split-lookups", "slots-reused")

MUTANTS = (
    Mutant(
        "at-once-no-wait",
        "a batch that found a reader inside goes on without waiting for it: a record is used again under a fault",
        *(_CALL, "                engine.counts.slept += srcu.synchronize()\n", ""),
        models=_ALL,
    ),
    Mutant(
        "at-once-readers-passed-over",
        "a batch is over at once, whoever is inside",
        *(
            _WHOLE,
            "    if not srcu_expired(srcu, u64(0), readers, srcu_start(srcu, u64(0))):\n        return False\n",
            "",
        ),
        models=_ALL,
    ),
    Mutant(
        "at-once-last-reader",
        "a batch does not look at the last reader before it is over",
        *(
            _WHOLE,
            "srcu_expired(srcu, u64(0), readers, srcu_start",
            "srcu_expired(srcu, u64(0), readers - ONE, srcu_start",
        ),
        models=_ALL,
    ),
    Mutant(
        "at-once-grace-before-swap",
        "the grace period begins before the swap, so that a fault may still enter the old set",
        _WHOLE,
        "    publish(memslots, desk)\n    if not srcu_expired(srcu, u64(0), readers, srcu_start(srcu, u64(0))):\n",
        "    cookie = srcu_start(srcu, u64(0))\n    expired = srcu_expired(srcu, u64(0), readers, cookie)\n"
        "    publish(memslots, desk)\n    if not expired:\n",
        models=_ALL,
    ),
    Mutant(
        "at-once-edits-the-active-set",
        "a batch is seen from its first change on",
        _PHASES,
        "            return entry\n        entry += ONE\n",
        "            return entry\n        store_release(memslots, desk[SPACE], desk[EDITED])\n        entry += ONE\n",
        models=_ALL,
    ),
    Mutant(
        "at-once-takes-memory",
        "a batch that takes memory goes by one call, so that no vCPU is asked to forget it",
        *(_WHOLE, "(not losing and _loses(", "(losing and _loses("),
        models=_ONE,
    ),
    Mutant(
        "at-once-takes-rights",
        "a batch that takes the right to write goes by one call",
        *(_WHOLE, "action == _WRITES or action == _STALL", "action == _STALL"),
        models=("production-readonly",),
    ),
    Mutant(
        "at-once-has-run",
        "slots are cut in one call, as if no vCPU had run",
        *(_CALL, "losing and not engine.has_run", "losing"),
        models=_ONE,
    ),
    Mutant(
        "at-once-no-undo",
        "a batch that is left to the phases leaves what it edited",
        *(_WHOLE, "        bring(memslots, desk, True)\n", ""),
        models=_ONE,
    ),
    Mutant(
        "at-once-not-brought",
        "the set that was active before does not get what was published",
        *(_WHOLE, "        return PUBLISHED\n    bring(memslots, desk, False)\n", "        return PUBLISHED\n"),
        models=_ONE,
    ),
)
