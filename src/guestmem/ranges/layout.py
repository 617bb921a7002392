"""Words of a range map: what readers see, and what only the one writer uses.

*map*, shared: +0 root, +1 width; an SRCU domain; a queue of chains of nodes that wait for their grace period; nodes.
The root is one word, node << 6 | height, so that one store publishes a whole new tree.

A node: ``width`` keys, ascending: where an entry starts, 2**64 - 1 past the last; as many values, or in an inner node
children, of which the last two words are the count of entries and a link that only the writer uses, for lists of nodes
that are free or wait. It begins at a cache line, and its width is in whole lines; ``fanout`` entries fill it.

An entry ends where the next one starts, so that the entries of all leaves tile the whole space; value 0 is "nothing
here". Neighbours never have equal values. An inner node's key is exactly the first key of its child.

*desk*, of the writer: free lists, counts, the paths to the two ends of a store, scratch.
"""

from __future__ import annotations

from ..compiled import const
from ..rcu import deferred_words, srcu_words

__all__: list[str] = []

ROOT = const(0)
WIDTH = const(1)
FOUR_LINES = const(32)
"""Width of a node with the usual fanout of 30, for which the search is written out."""
HEADER_WORDS = 8

HEIGHT_BITS = 6
HEIGHT_MASK = const((1 << HEIGHT_BITS) - 1)

# The writer's desk.
COUNT = const(0)  # ranges with a value
FREE = const(1)  # first free node; linked
FREE_COUNT = const(2)
NEXT = const(3)  # first node that was never used
END = const(4)  # end of the last node
USED = const(5)  # nodes in the tree
CHAIN = const(6)  # nodes that the store at hand unlinked
CHAIN_COUNT = const(7)
WAITING = const(8)  # nodes that wait for a grace period
RESERVED = const(9)  # nodes set aside for stores that must not fail
MINIMUM = const(10)  # entries of a node that is not the last of its level
NODE_WORDS = const(11)
NEW_COUNT = const(12)  # entries that the level at hand puts in
SHARED = const(13)  # readers or snapshots may hold a root: no node that they can reach is written
SRCU = const(14)  # where in *map*
QUEUE = const(15)
LEVELS = const(16)  # room for so many levels in each path
PATH_A = const(16)  # node and index a level, leaf first: where the store begins
PATH_B = const(48)  # and where it ends
STACK = const(80)  # a walk through a subtree that goes
SKIP = const(112)  # a level's node between the paths whose entries have been taken over already
NEW_KEYS = const(128)
NEW_VALUES = const(132)
READERS = const(136)
FANOUT = const(137)
STORES = const(138)  # stores that changed something
SCRATCH = const(144)  # keys, then values, of a level that is distributed anew

NOMEM = const(12)
"""Status of a store for which there are not enough nodes; nothing has changed."""

RESERVED_ROOM = const(1)
"""A store that may use nodes that were set aside."""
CLEAR = const(2)
"""A store that empties the map, for which some nodes are always kept."""

QUEUE_CAPACITY = 64
CHAIN_LENGTH = const(64)
"""Nodes that come together before they wait for a grace period as one chain."""


def node_width(fanout: int) -> int:
    """Keys that a node has room for, in whole cache lines."""
    return (fanout + 2 + 7) // 8 * 8


def node_words(fanout: int) -> int:
    """Words of a node."""
    return 2 * node_width(fanout)


def srcu_base() -> int:
    """Where in *map* the SRCU domain begins."""
    return HEADER_WORDS


def queue_base(readers: int) -> int:
    """Where in *map* the queue of waiting chains begins."""
    return (HEADER_WORDS + srcu_words(readers) + 7) // 8 * 8


def nodes_base(readers: int) -> int:
    """Where in *map* the nodes begin."""
    return (queue_base(readers) + deferred_words(QUEUE_CAPACITY) + 63) // 64 * 64


def desk_words(fanout: int) -> int:
    """Words of the writer's desk."""
    return int(SCRATCH) + 6 * node_width(fanout)
