"""Nodes of a range map: taken, given back, or put aside until no reader can see them. Only the writer calls these."""

from __future__ import annotations

from ..atomics import load_relaxed, store_relaxed
from ..compiled import ONE, TWO, U64, Own, Words, compiled, const, u64
from ..rcu import defer, reclaim, reclaim_wait, srcu_start
from .layout import (
    CHAIN,
    CHAIN_COUNT,
    COUNT,
    FREE,
    FREE_COUNT,
    NEXT,
    NODE_WORDS,
    QUEUE,
    QUEUE_CAPACITY,
    READERS,
    SKIP,
    SRCU,
    STACK,
    USED,
    WAITING,
    WIDTH,
)
from .lookup import node_count

__all__: list[str] = []

_LAST = const((1 << 64) - 1)
_CAPACITY = const(QUEUE_CAPACITY)


@compiled
def take_node(ranges: Words, desk: Own) -> U64:
    """A free node, else one never used. There is one: the store has counted before it began."""
    node = desk[FREE]
    if node == 0:
        node = desk[NEXT]
        desk[NEXT] = node + desk[NODE_WORDS]
    else:
        desk[FREE] = load_relaxed(ranges, node + desk[NODE_WORDS] - ONE)
        desk[FREE_COUNT] -= ONE
    desk[USED] += ONE
    return node


@compiled
def give_node(ranges: Words, desk: Own, node: U64, shared: bool) -> None:
    """A node that the tree no longer has: to the free list at once, or, with readers about, to the store's chain.

    Only the link is written, which readers do not look at.
    """
    desk[USED] -= ONE
    link = node + desk[NODE_WORDS] - ONE
    if shared:
        store_relaxed(ranges, link, desk[CHAIN])
        desk[CHAIN] = node
        desk[CHAIN_COUNT] += ONE
        desk[WAITING] += ONE
    else:
        store_relaxed(ranges, link, desk[FREE])
        desk[FREE] = node
        desk[FREE_COUNT] += ONE


@compiled
def end_node(ranges: Words, node: U64, count: U64, end: U64) -> None:
    """Write how many entries a node has; keys from there up to ``end`` are beyond all: a search need not count."""
    width = load_relaxed(ranges, WIDTH)
    store_relaxed(ranges, node + width + width - TWO, count)
    while count < end:
        store_relaxed(ranges, node + count, _LAST)
        count += ONE


@compiled
def forget_values(ranges: Words, desk: Own, node: U64, first: U64, end: U64) -> None:
    """Entries [first, end) of a leaf go: those with a value are no longer counted."""
    values = node + load_relaxed(ranges, WIDTH)
    while first < end:
        if load_relaxed(ranges, values + first) != 0:
            desk[COUNT] -= ONE
        first += ONE


@compiled
def give_subtree(ranges: Words, desk: Own, node: U64, level: U64, shared: bool) -> None:
    """Give back a node of ``level`` and all below it, but for what SKIP names. O(entries).

    A loop: compiled functions do not recurse.
    """
    width = load_relaxed(ranges, WIDTH)
    desk[STACK + level + level] = node
    desk[STACK + level + level + ONE] = u64(0)
    at = level
    while at <= level:
        node = desk[STACK + at + at]
        index = desk[STACK + at + at + ONE]
        if node == desk[SKIP + at]:
            at += ONE
            continue
        if at == 0:
            forget_values(ranges, desk, node, u64(0), node_count(ranges, node, width))
        elif index < node_count(ranges, node, width):
            desk[STACK + at + at + ONE] = index + ONE
            at -= ONE
            desk[STACK + at + at] = load_relaxed(ranges, node + width + index)
            desk[STACK + at + at + ONE] = u64(0)
            continue
        give_node(ranges, desk, node, shared)
        at += ONE


@compiled
def _free_chains(ranges: Words, desk: Own, freed: Own, chains: U64) -> None:
    """Nodes of ``chains`` chains to the free list."""
    chain = u64(0)
    while chain < chains:
        node = freed[chain]
        while node != 0:
            link = node + desk[NODE_WORDS] - ONE
            after = load_relaxed(ranges, link)
            store_relaxed(ranges, link, desk[FREE])
            desk[FREE] = node
            desk[FREE_COUNT] += ONE
            desk[WAITING] -= ONE
            node = after
        chain += ONE


@compiled
def put_aside(ranges: Words, desk: Own) -> None:
    """Let the nodes that stores unlinked wait for a grace period, as one chain, if the queue has room.

    If it has none, they stay, and later ones join them: a later grace period is one for them, too.
    """
    if desk[CHAIN] != 0 and defer(ranges, desk[QUEUE], _CAPACITY, srcu_start(ranges, desk[SRCU]), desk[CHAIN]):
        desk[CHAIN] = u64(0)
        desk[CHAIN_COUNT] = u64(0)


@compiled
def free_expired(ranges: Words, desk: Own, freed: Own) -> None:
    """Free what no reader can see any more, without waiting. O(readers + nodes freed)."""
    put_aside(ranges, desk)
    srcu = desk[SRCU]
    chains = reclaim(ranges, desk[QUEUE], _CAPACITY, ranges, srcu, desk[READERS], freed, _CAPACITY)
    _free_chains(ranges, desk, freed, chains)
    put_aside(ranges, desk)


@compiled(nogil=True)
def free_waiting(ranges: Words, desk: Own, freed: Own) -> None:
    """Free all that waits, after its grace period: waits for readers that are inside. No snapshot may be alive."""
    while desk[CHAIN] != 0 or desk[WAITING] != 0:
        put_aside(ranges, desk)
        srcu = desk[SRCU]
        chains = reclaim_wait(ranges, desk[QUEUE], _CAPACITY, ranges, srcu, desk[READERS], freed, _CAPACITY)
        _free_chains(ranges, desk, freed, chains)
