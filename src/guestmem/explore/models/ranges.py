"""A range map: stores beside a reader that takes no lock, with nodes that are used again."""

from __future__ import annotations

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

    def updater(words: Words, desk: Own, freed: Own) -> int:
        for first, last, value in _STORES[:stores]:
            assert not store.ranges_store(words, desk, freed, first, last, value, 0)
            if waits:
                nodes.free_waiting(words, desk, freed)
                left = desk[int(layout.WAITING)], desk[int(layout.CHAIN)]
                assert left == (0, 0), f"a writer that waited for readers has {left} left to free"
        return int(desk[int(layout.COUNT)])

    scene.thread("reader", reader, words, scene.own(3))
    scene.thread("updater", updater, words, scene.own(ranges._desk.tolist()), scene.own(64))  # noqa: SLF001
    scene.final("the reader is out", lambda view: not view.word("ranges", base + 32))


def one_store(scene: Scene) -> None:
    """One store."""
    build(scene, 1)


def two_stores(scene: Scene) -> None:
    """Two stores: the node of the first state is free once its readers have left."""
    build(scene, 2)


def two_that_wait(scene: Scene) -> None:
    """Two stores, and a wait after each, as at the end of a transaction: what they unlinked is free at once then."""
    build(scene, 2, waits=True)


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
)
