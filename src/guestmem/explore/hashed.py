"""A table of hashes of states, compiled, in place of the states themselves: hash compaction.

Four bytes a place. Where a state belongs comes from one half of its hash, and the other half stands there; so another
state is taken for it only if it passes by and has the same half. Source: Stern and Dill, "Improved probabilistic
verification by hash compaction", CHARME 1995.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compiled import U64, Own
from .asking import ALL, PASSED, STATES
from .packed import hash_of, inside, kernel

if TYPE_CHECKING:
    Halves = Any
    """Numbers of 32 bits in an array."""
    _u = int
else:
    from numpy import uint64 as _u

__all__ = ["add_first_hash", "add_hash"]

_Z = _u(0)
_1 = _u(1)
_32 = _u(32)


@inside
def add_hash(states: Halves, table: Halves, row: Halves, width: U64, tags: U64, counts: Own) -> None:
    """Add a state, to the table and to ``states``, unless its hash is there. ``tags``: the bits that are compared."""
    h = hash_of(row, _Z, width)
    slots = _u(len(table))
    i = ((h >> _32) * slots) >> _32
    tag = h & tags
    if tag == _Z:
        tag = _1
    passed = _Z
    while True:
        here = _u(table[i])
        if here == tag:
            return
        if here == _Z:
            break
        passed += _1
        i += _1
        if i == slots:
            i = _Z
    table[i] = tag
    n = counts[STATES]
    for k in range(width):
        states[n * width + k] = row[k]
    counts[STATES] = n + _1
    counts[ALL] += _1
    counts[PASSED] += passed


@kernel
def add_first_hash(states: Halves, table: Halves, row: Halves, width: U64, tags: U64, counts: Own) -> None:
    """Add the first state."""
    add_hash(states, table, row, width, tags, counts)
