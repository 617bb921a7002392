"""Mutants of a batch in one call, and of ranges taken with one wait: order, waits, and what is left to the phases."""

from __future__ import annotations

from ..operators import drop_call
from ..twin import Mutation
from . import Mutant

__all__ = ["MUTANTS"]

_TRANSACT, _CALL, _PHASES = "engines/soft/transaction.py", "engines/soft/at_once.py", "memslots/phases.py"
_WHOLE, _ZAP, _LAYOUT = "memslots/whole.py", "stage2/zap.py", "engines/soft/layout.py"
_ONE = ("production-split",)
_ALL = ("production-split", "production-split-lookups", "slots-reused")
_ATOMIC, _TAKES = ("production-atomic",), ("production-atomic", "production-truncate")
_RANGES = ("stage2-zap-ranges",)
_MARKS = """        flux_mark(vm, ranges, stalls)
        took[ZAPS] = zap_ranges(table, ranges, stalls, wait)
"""
_PUBLISHES = """    publish(memslots, desk)
    if stalls != 0:
        flux_release(vm)
"""
_SLEEPS = (
    "    slept = srcu_wait_for(updater.srcu, u64(0), updater.readers, srcu_start(updater.srcu, u64(0)), deadline())\n"
)
_WAITS = "        wait_for_logged(mmu, hub, before)\n"
_LOGS = "        if taken.low < taken.high:\n            if wait:\n"
_OVER = "    if wait:\n        wait_for_logged"

MUTANTS = (
    Mutant(
        "at-once-readers-passed-over",
        "a batch is over at once, whoever is inside: a record is used again under a fault",
        *(_TRANSACT, _SLEEPS, "    slept = u64(0)\n"),
        models=_ALL,
    ),
    Mutant(
        "at-once-last-reader",
        "a batch does not wait for the last reader before it is over",
        *(_TRANSACT, "u64(0), updater.readers, srcu_start", "u64(0), updater.readers - _ONE, srcu_start"),
        models=_ALL,
    ),
    Mutant(
        "at-once-grace-before-swap",
        "the grace period begins before the swap, so that a fault may still enter the old set",
        *(
            _TRANSACT,
            "    publish(memslots, desk)\n",
            "    cookie = srcu_start(updater.srcu, u64(0))\n    publish(memslots, desk)\n",
        ),
        models=_ALL,
        also=(Mutation(_TRANSACT, "srcu_start(updater.srcu, u64(0)), deadline", "cookie, deadline"),),
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
        "at-once-not-brought",
        "the set that was active before does not get what was published",
        *(_TRANSACT, "        bring(memslots, desk, False)\n        took", "        took"),
        models=_ONE,
    ),
    Mutant(
        "at-once-brought-early",
        "the set that was active before is edited while readers may be in it",
        *(
            _TRANSACT,
            _SLEEPS,
            f"    settle(memslots, desk)\n    bring(memslots, desk, False)\n{_SLEEPS}",
        ),
        models=_ALL,
    ),
    Mutant(
        "at-once-takes-memory",
        "what a batch in one call takes is neither put in flux nor zapped",
        *(_TRANSACT, "action == _STALL or action == _WRITES", "action == _WRITES"),
        models=_TAKES,
    ),
    Mutant(
        "at-once-takes-rights",
        "a batch in one call takes the right to write without a wait",
        *(_TRANSACT, "action == _STALL or action == _WRITES", "action == _STALL"),
        models=("production-readonly",),
    ),
    Mutant(
        "at-once-rights-for-memory",
        "of memory that goes, a batch in one call takes the right to write alone",
        *(_TRANSACT, "STALLS_ALL if action == _STALL", "STALLS_ALL if action == _WRITES"),
        models=_TAKES,
    ),
    Mutant(
        "at-once-without-flux",
        "what a batch in one call zaps is not in flux: a fault maps the old memory again before the swap",
        *(_TRANSACT, _MARKS, _MARKS.replace("        flux_mark(vm, ranges, stalls)\n", "")),
        models=_TAKES,
    ),
    Mutant(
        "at-once-flux-late",
        "a batch in one call zaps before it puts in flux: a fault in between maps the old memory again",
        *(_TRANSACT, _MARKS, "".join(reversed(_MARKS.splitlines(keepends=True)))),
        models=_TAKES,
    ),
    Mutant(
        "at-once-not-waited",
        "a batch in one call does not wait for vCPUs that use what it zapped",
        *(_TRANSACT, "zap_ranges(table, ranges, stalls, wait)", "zap_ranges(table, ranges, stalls, False)"),
        models=_TAKES,
    ),
    Mutant(
        "at-once-released-early",
        "faults go on before the new set is published, and map the old memory",
        *(_TRANSACT, _PUBLISHES, "    if stalls != 0:\n        flux_release(vm)\n    publish(memslots, desk)\n"),
        models=_TAKES,
    ),
    Mutant(
        "at-once-not-released",
        "vCPUs that wait for what a batch in one call had in flux are not told that it is over",
        *(_TRANSACT, _PUBLISHES, "    publish(memslots, desk)\n"),
        models=_TAKES,
    ),
    Mutant(
        "at-once-second-range",
        "of two ranges that a batch in one call takes, only the first waits",
        *(_TRANSACT, "            found += _ONE\n", "            found = _ONE\n"),
        models=("production-atomic-second",),
    ),
    Mutant(
        "ranges-not-waited",
        "ranges are taken while vCPUs may still use them",
        *(_ZAP, _WAITS, "        pass\n"),
        models=_RANGES,
    ),
    Mutant(
        "ranges-first-waited",
        "of two ranges, the wait is for what the first had",
        *(
            "stage2/invalidate.py",
            "wait_for_vcpus(mmu, hub, last, last - before)",
            "wait_for_vcpus(mmu, hub, before + TWO, TWO)",
        ),
        models=_RANGES,
    ),
    Mutant(
        "ranges-last-logged",
        "of two ranges, only the last is invalidated",
        *(
            _ZAP,
            "        if taken.low < taken.high:\n            if wait:\n",
            "        if taken.low < taken.high:\n            if wait and entry + ONE == count:\n",
        ),
        models=_RANGES,
    ),
    Mutant(
        "ranges-tables-early",
        "tables that go with ranges are free before vCPUs have stopped walking them",
        *(_ZAP, _OVER, f"    _free(table, chain)\n    chain = u64(0)\n{_OVER}"),
        models=("stage2-zap-tables",),
    ),
    Mutant(
        "ranges-tables-forgotten",
        "of the tables that go with ranges, those of the last are freed",
        *(_ZAP, "_take(table, start, end - start, wait, chain)", "_take(table, start, end - start, wait, u64(0))"),
        models=("stage2-zap-tables",),
    ),
    Mutant(
        "ranges-protected-not-logged",
        "a range that loses the right to write beside one that goes is not invalidated",
        *(_ZAP, "end if lost != 0 else start)", "start)"),
        models=("stage2-zap-protects", "stage2-protect-zaps"),
    ),
    Mutant(
        "ranges-first-kind",
        "all ranges lose what the first one does",
        *(_ZAP, "ranges[entry * RANGE_WORDS + TWO] == TAKES_ALL", "ranges[TWO] == TAKES_ALL"),
        models=("stage2-zap-protects", "stage2-protect-zaps"),
    ),
    Mutant(
        "ranges-without-lock",
        "ranges are taken while faults map",
        *drop_call(_ZAP, "zap_ranges", "write_lock"),
        models=("fault-flux",),
    ),
)
