"""Mutants that show where there are two of a thing: levels of a tree, runs of pages, ranges that go."""

from __future__ import annotations

from ..operators import drop_statement, never
from . import Mutant

__all__ = ["MUTANTS"]

_TREE, _LOOKUP = "memslots/tree.py", "memslots/lookup.py"
_NODES, _RING = "ranges/nodes.py", "dirty/ring.py"
_MASK = "                runs[ONE + u64(3) * found + TWO] = mask\n                found += ONE\n"

MUTANTS = (
    Mutant(
        "slots-root-empty",
        "a root that is put above a tree of slots has no entry",
        *drop_statement(_TREE, "tree_insert", "store_relaxed(memslots, root, u64(2))"),
        models=("slots-levels-come",),
    ),
    Mutant(
        "slots-moved-over",
        "entries that move up in a node are copied lowest first, over those that are still to come",
        *(_TREE, "        if first < to:\n", "        if False:\n"),
        models=("slots-levels-come",),
    ),
    Mutant(
        "slots-walk-down-forgets",
        "who walks over all slots forgets which child it went down to",
        *drop_statement(_LOOKUP, "gfn_next", "cursor[_PATH + level + level + ONE] = index"),
        models=("slots-levels-go",),
    ),
    Mutant(
        "ranges-uncounted",
        "ranges that a store covers still count",
        *never(_NODES, "forget_values", 0),
        models=("ranges-wait", "ranges-levels-go"),
    ),
    Mutant(
        "ring-run-unsaid",
        "of two runs of pages the first does not say which pages",
        *(_RING, _MASK, "                found += ONE\n"),
        models=("dirty-ring",),
    ),
    Mutant(
        "ring-runs-apart",
        "neighbours in a dirty ring become a run each",
        *(_RING, "        if mask != 0 and next_slot == slot:\n", "        if False:\n"),
        models=("dirty-ring",),
    ),
)
