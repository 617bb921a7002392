"""Mutants of the range map: what readers may see, and when nodes are used again."""

from __future__ import annotations

from ..operators import weaken
from . import Mutant

__all__ = ["MUTANTS"]

_STORE, _NODES = "ranges/store.py", "ranges/nodes.py"

MUTANTS = (
    Mutant(
        "ranges-in-place",
        "a leaf is edited where readers can see it",
        *(_STORE, "    shared = desk[SHARED] != 0\n", "    shared = False\n"),
        models=("ranges-reuse",),
    ),
    Mutant(
        "ranges-publish-early",
        "the root is published before its nodes are written",
        *weaken("ranges/edit.py", "new_root", "store_release"),
        models=("ranges",),
        memory="relaxed",
    ),
    Mutant(
        "ranges-free-at-once",
        "nodes that readers can reach are free at once",
        *(_NODES, "    if shared:\n", "    if shared and False:\n"),
        models=("ranges-reuse",),
    ),
    Mutant(
        "ranges-no-grace-period",
        "nodes wait for a grace period that was over before they were unlinked",
        *(_NODES, "srcu_start(ranges, desk[SRCU])", "u64(0)"),
        models=("ranges-reuse",),
    ),
    Mutant(
        "ranges-readers-forgotten",
        "whoever frees nodes looks at no reader",
        *(
            _NODES,
            "srcu, desk[READERS], freed, _CAPACITY)\n    _free_chains(ranges, desk, freed, chains)\n    put_aside",
            "srcu, u64(0), freed, _CAPACITY)\n    _free_chains(ranges, desk, freed, chains)\n    put_aside",
        ),
        models=("ranges-reuse",),
    ),
)
