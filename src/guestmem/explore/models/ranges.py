"""A range map: stores beside a reader that takes no lock, with nodes that are used again."""

from __future__ import annotations

from functools import partial

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import srcu_label
from ..twin import Mutation

__all__ = ["MODELS"]

_STATES = (
    ((0, 3, 1), (4, 7, 2), (8, 15, 3)),
    ((0, 3, 1), (4, 5, 2), (6, 15, 3)),
    ((0, 3, 1), (4, 15, 3)),
)
"""What the map holds before and after each of the stores: (first, last, value)."""
_STORES = ((6, 9, 3), (4, 5, 3))


def build(scene: Scene, stores: int, *, waits: bool = False) -> None:
    """The updater stores (``waits`` after each); the reader finds a range and loads another index, in one section."""
    layout, lookup, store = scene.room("ranges.layout"), scene.room("ranges.lookup"), scene.room("ranges.store")
    nodes, srcu = scene.room("ranges.nodes"), scene.room("rcu.srcu")
    ranges = scene.room("ranges.range_map").RangeMap(
        [(first, last + 1, value) for first, last, value in _STATES[0]], fanout=4, readers=1, capacity=4
    )
    nodes.free_waiting(ranges.words, ranges._desk, ranges._freed)  # noqa: SLF001 - what the updater's calls take
    base, queue = int(layout.srcu_base()), int(layout.queue_base(2))

    def label(index: int) -> str:
        if index == layout.ROOT:
            return "root"
        if base <= index < queue:
            return f"srcu {srcu_label(index - base)}"
        return f"queue {index - queue}" if queue <= index < layout.nodes_base(2) else ""

    words = scene.words("ranges", ranges.words, label)

    def reader(words: Words, found: Own) -> tuple[tuple[int, ...], int]:
        srcu.srcu_enter(words, base, 1)
        lookup.ranges_find(words, 9, found)
        around = tuple(found.tolist()[:3])
        value = lookup.ranges_load(words, 5)
        srcu.srcu_exit(words, base, 1)
        first = next((at for at, state in enumerate(_STATES) if around in state), None)
        assert first is not None, f"a reader finds {around}, which the map never held"
        held = {state for state in _STATES[first:] if any(a <= 5 <= b and v == value for a, b, v in state)}
        assert held, f"a reader loads {value} after {around}"
        return around, value

    def updater(words: Words, desk: Own, freed: Own) -> Own:
        for first, last, value in _STORES[:stores]:
            assert not store.ranges_store(words, desk, freed, first, last, value, 0)
            if waits:
                nodes.free_waiting(words, desk, freed)
                left = desk[int(layout.WAITING)], desk[int(layout.CHAIN)]
                assert left == (0, 0), f"a writer that waited for readers has {left} left to free"
        return desk

    scene.thread("reader", reader, words, scene.own(3))
    scene.thread("updater", updater, words, scene.own(ranges._desk.tolist()), scene.own(64))  # noqa: SLF001
    scene.final("the reader is out", lambda view: not view.word("ranges", base + 32))
    check = scene.room("ranges.invariants").check_ranges
    scene.final("the map is sound, all is counted", lambda view: check(words, view.result("updater"), 4))


def one_store(scene: Scene) -> None:
    """One store."""
    build(scene, 1)


def two_stores(scene: Scene) -> None:
    """Two stores: the node of the first state is free once its readers have left."""
    build(scene, 2)


def two_that_wait(scene: Scene) -> None:
    """Two stores, and a wait after each, as at the end of a transaction: what they unlinked is free at once then."""
    build(scene, 2, waits=True)


_LONG = 10
"""How long each range of a tree of two levels is at first; its value is its number, from 1 on."""
Ranges = list[tuple[int, int, int]]


def _stored(ranges: Ranges, first: int, last: int, value: int) -> Ranges:
    """What a map holds after a store, as (first, last, value), if no neighbour has the value."""
    left = [(start, min(end, first - 1), old) for start, end, old in ranges if start < first]
    right = [(max(start, last + 1), end, old) for start, end, old in ranges if end > last]
    return [*left, (first, last, value), *right]


def levels(scene: Scene, count: int, stores: tuple[tuple[int, int, int], ...], looked_at: tuple[int, ...]) -> None:
    """Stores into ``count`` ranges that make a tree of two levels, or do so then, while a reader finds some ranges."""
    lookup, store, nodes = (scene.room(f"ranges.{room}") for room in ("lookup", "store", "nodes"))
    srcu, base = scene.room("rcu.srcu"), int(scene.room("ranges.layout").srcu_base())
    states: list[Ranges] = [[(_LONG * at, _LONG * at + _LONG - 1, at + 1) for at in range(count)]]
    for each in stores:
        states.append(_stored(states[-1], *each))
    ranges = scene.room("ranges.range_map").RangeMap(
        [(first, last + 1, value) for first, last, value in states[0]], fanout=4, readers=1, capacity=16
    )
    nodes.free_waiting(ranges.words, ranges._desk, ranges._freed)  # noqa: SLF001 - what the updater's calls take
    words = scene.words("ranges", ranges.words)

    def reader(words: Words, found: Own) -> int:
        newest = 0
        srcu.srcu_enter(words, base, 1)
        for index in looked_at:
            lookup.ranges_find(words, index, found)
            around = tuple(found.tolist()[:3])
            held = [at for at, state in enumerate(states) if around in state and around[0] <= index <= around[1]]
            assert held, f"a reader finds {around} around {index}, which the map never held"
            assert max(held) >= newest, f"a reader finds {around} after it saw a map that is newer"
            newest = max(newest, min(held))
        srcu.srcu_exit(words, base, 1)
        return newest

    def updater(words: Words, desk: Own, freed: Own, asked: Own) -> Own:
        done = store.ranges_store_many(words, desk, freed, asked, 0, len(stores))
        assert done == len(stores), f"{done} stores were done"
        nodes.free_waiting(words, desk, freed)
        return desk

    asked = scene.own([word for each in stores for word in each])
    scene.thread("reader", reader, words, scene.own(3))
    scene.thread("updater", updater, words, scene.own(ranges._desk.tolist()), scene.own(64), asked)  # noqa: SLF001 - as above
    scene.final("the reader is out", lambda view: not view.word("ranges", base + 32))
    check = scene.room("ranges.invariants").check_ranges
    scene.final("the map is sound, all is counted", lambda view: check(words, view.result("updater"), 4))
    ends = [(end, value) for first, last, value in states[-1] for end in (first, last)]
    scene.final("it holds what was stored", lambda _view: all(ranges.get(end) == value for end, value in ends))


_INTO = (12, 13, 91), (32, 33, 92)
_BESIDE = (35, 42, 91), (75, 84, 92)
_PROVES = "a reader sees a range map as it was between two stores, and no node that was freed"
_SMALL = (
    Mutation("ranges/layout.py", "LEVELS = const(16)", "LEVELS = const(1)"),
    Mutation("ranges/layout.py", "CHAIN_LENGTH = const(64)", "CHAIN_LENGTH = const(1)"),
)
MODELS = (
    Model(
        "ranges", _PROVES, "1 store into 3 ranges in 1 node, 1 reader", one_store, geometry=_SMALL, buffer=2, stale=True
    ),
    Model(
        "ranges-reuse",
        _PROVES,
        "2 stores into 3 ranges in 1 node, 1 reader",
        two_stores,
        geometry=_SMALL,
        buffer=2,
        stale=True,
    ),
    Model(
        "ranges-wait",
        _PROVES,
        "2 stores into 3 ranges in 1 node, a wait for readers after each, 1 reader",
        two_that_wait,
        geometry=_SMALL,
        buffer=2,
        stale=True,
    ),
    *(
        Model(
            f"ranges-levels-{name}",
            _PROVES,
            f"{size}, a wait for readers, 1 reader, 3 lookups",
            partial(levels, count=count, stores=stores, looked_at=looked_at),
            geometry=(_SMALL[1],),
            buffer=2,
            stale=name == "go",
        )
        for name, size, count, stores, looked_at in (
            ("go", "1 store over 7 of 9 ranges in 3 leaves", 9, ((15, 75, 99),), (9, 40, 88)),
            ("come", "2 stores that make 4 ranges 8, in 1 leaf at first", 4, _INTO, (9, 22, 36)),
            ("beside", "2 stores to the ends of leaves, 9 ranges in 3 leaves", 9, _BESIDE, (30, 45, 79)),
        )
    ),
)
