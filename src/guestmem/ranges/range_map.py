"""A range map from Python: like a dict whose keys are ranges; behind it the tree of ``store`` and ``lookup``."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from ..atomics import peek, poke
from ..compiled import INTERPRETED, Words, own, words
from ..errors import RangeNodesError, UsageError
from ..rcu.srcu import srcu_enter, srcu_exit, srcu_words
from ..units import U64_MAX
from . import layout as at
from .invariants import check_ranges
from .lookup import ranges_load
from .nodes import end_node, free_expired, free_waiting
from .snapshot import Ranges, RangeSnapshot, bounds_of, index_of, slice_bounds, words_of
from .store import ranges_store, ranges_store_many, worst_nodes

__all__ = ["RangeMap"]

_HUGE = 2 << 20
_SPACE = U64_MAX + 1
_SNAPSHOTS = 0  # the reader that stands for all snapshots
_RESERVED_ROOM, _CLEAR = int(at.RESERVED_ROOM), int(at.CLEAR)
_COUNT, _FREE_COUNT, _NEXT, _END = int(at.COUNT), int(at.FREE_COUNT), int(at.NEXT), int(at.END)
_USED, _WAITING, _RESERVED, _SHARED = int(at.USED), int(at.WAITING), int(at.RESERVED), int(at.SHARED)


def _words(count: int) -> Words:
    """``count`` zeroed words; where they are many, in huge pages beyond the first 2 MiB, if the system has them.

    Loads from a big map miss the TLB less, and small maps stay small. Private memory: with shared, madvise(2) asks for
    huge pages in vain on most systems.
    """
    if INTERPRETED or count * 8 < 2 * _HUGE:
        return words(count)
    import numpy as np

    memory = mmap.mmap(-1, count * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, _HUGE, count * 8 // _HUGE * _HUGE - _HUGE)
    return cast("Words", np.frombuffer(memory, np.uint64))


class RangeMap(Ranges):
    """A map from ranges of indices (0 to 2**64 - 1) to values (1 to 2**64 - 1). Equal neighbours always merge.

    ``items``: (start, end, value) to begin with, later ones over earlier ones. ``capacity``: how many ranges there is
    room for in any case; memory is committed as it is used, some 25 bytes a range. ``readers``: how many compiled
    readers may look while others store; reader r holds ``enter(r)`` around its lookups. With readers, or while a
    snapshot lives, a store writes no node that they can see; without, it edits in place.

    Python threads may read while others store: each lookup is whole, each iteration sees one moment.

    >>> attributes = RangeMap()
    >>> attributes[0x100:0x40100] = 8  # a GiB of pages from 1 MiB on: one range
    >>> attributes[0x180:0x200] = 3
    >>> attributes
    RangeMap({[0x100, 0x180): 8, [0x180, 0x200): 3, [0x200, 0x40100): 8})
    >>> attributes[0x1FF], attributes.get(0), attributes.find(0x180)
    (3, 0, (384, 512, 3))
    >>> before = attributes.snapshot()
    >>> del attributes[0x180:0x200]
    >>> attributes[0x180:0x200] = 8
    >>> list(attributes), before[0x180]
    ([(256, 262400, 8)], 3)
    """

    def __init__(
        self,
        items: Iterable[tuple[int, int, int]] = (),
        *,
        capacity: int = 1 << 20,
        readers: int = 0,
        fanout: int = 30,
    ) -> None:
        if not 1 <= capacity <= 1 << 32:
            raise UsageError(f"capacity: {capacity} ranges is not within 1 to {1 << 32:#x}")
        if not 0 <= readers <= 1 << 16:
            raise UsageError(f"readers: {readers} is not within 0 to 65536")
        if not 3 <= fanout <= 255:
            raise UsageError(f"fanout: {fanout} is not within 3 to 255")
        self.capacity, self.readers, self.fanout = capacity, readers, fanout
        minimum, size = fanout // 2, at.node_words(fanout)
        # A range and a gap take two entries, a node holds at least `minimum`; levels above are a fraction of that;
        # what waits for readers, and what one store needs at most, comes on top.
        leaves = (2 * capacity + 1) // minimum + 2
        nodes = leaves * minimum // (minimum - 1) if minimum > 1 else 2 * leaves
        nodes += nodes // 4 + 4 * int(worst_nodes(int(at.LEVELS))) + 4 * int(at.CHAIN_LENGTH)
        base = at.nodes_base(readers + 1)
        self.words = _words(base + nodes * size)
        self._desk, self._freed = own(at.desk_words(fanout)), own(at.QUEUE_CAPACITY)
        self._lock = threading.Lock()
        self._snapshots: list[int] = []  # the epochs that they began in
        self._dropped: deque[int] = deque()  # of those that ended, perhaps while this very thread holds the lock
        desk = self._desk
        desk[int(at.MINIMUM)], desk[int(at.NODE_WORDS)] = minimum, size
        desk[_NEXT], desk[_END] = base + size, base + nodes * size
        desk[int(at.SRCU)], desk[int(at.QUEUE)] = at.srcu_base(), at.queue_base(readers + 1)
        desk[int(at.READERS)], desk[_USED], desk[_SHARED] = readers + 1, 1, int(readers > 0)
        desk[int(at.FANOUT)] = fanout
        poke(self.words, int(at.WIDTH), at.node_width(fanout))
        poke(self.words, at.srcu_base(), 1)
        end_node(self.words, base, 1, at.node_width(fanout))  # one leaf with one entry: nothing, everywhere
        poke(self.words, int(at.ROOT), base << at.HEIGHT_BITS)
        for start, end, value in items:
            self.store(start, end, value)

    @property
    def root(self) -> int:
        """The tree of now, as one word, for ``load_from`` and its like. O(1)."""
        return int(peek(self.words, 0))

    def __len__(self) -> int:
        return int(self._desk[_COUNT])

    def get(self, index: int, default: int = 0) -> int:
        """The value at ``index``, or ``default``. O(log n)."""
        if type(index) is not int or not 0 <= index <= U64_MAX:
            index = index_of("index", index)
        return int(ranges_load(self.words, index)) or default

    load = get

    def store(self, start: int, end: int, value: int, *, reserved: bool = False) -> None:
        """Let every index in [start, end) have ``value``; 0 for none. O(log n + ranges replaced).

        ``reserved``: use the room that ``preallocate`` set aside: such a store cannot fail. RangeNodesError (ENOMEM)
        if there is no room; nothing has changed then.
        """
        # What is nearly always asked for, without a call but the compiled one; whatever else it is, below.
        usual = type(start) is type(end) is type(value) is int and not reserved
        if usual and 0 <= start < end <= _SPACE and 0 <= value <= U64_MAX:
            with self._lock:
                if not self._dropped and not ranges_store(
                    self.words, self._desk, self._freed, start, end - 1, value, 0
                ):
                    return
        first, last = bounds_of(start, end)
        self._put(first, last, index_of("value", value), _RESERVED_ROOM if reserved else 0)

    def erase(self, start: int, end: int) -> None:
        """Let no index in [start, end) have a value. As ``store`` of 0."""
        first, last = bounds_of(start, end)
        self._put(first, last, 0)

    def __setitem__(self, index: Any, value: int) -> None:
        """``m[start:end] = value``, or ``m[i] = value`` for one index; 0 for none."""
        if isinstance(index, slice):
            start, stop = index.start, index.stop
            if index.step is None and type(start) is type(stop) is int and 0 <= start < stop <= _SPACE:
                self.store(start, stop, value)
                return
            first, last = slice_bounds(index)
        else:
            first = last = index_of("index", index)
        self._put(first, last, index_of("value", value))

    def __delitem__(self, index: Any) -> None:
        """``del m[start:end]``, or ``del m[i]`` for one index, of which there need be no value."""
        self[index] = 0

    def clear(self) -> None:
        """Let no index have a value."""
        self._put(0, U64_MAX, 0, _CLEAR)

    def _put(self, first: int, last: int, value: int, room: int = 0) -> None:
        with self._lock:
            if self._dropped:
                self._settle()
            if ranges_store(self.words, self._desk, self._freed, first, last, value, room):
                self._make_room()
                if ranges_store(self.words, self._desk, self._freed, first, last, value, room):
                    raise self._no_room()
            elif room == _RESERVED_ROOM:
                self._desk[_RESERVED] -= min(self._desk[_RESERVED], self._per_store())

    def _make_room(self) -> None:
        """Wait for compiled readers, which leave soon; snapshots may live for ever, so they are not waited for."""
        if self._dropped:
            self._settle()
        if self._desk[_WAITING] and not self._snapshots:
            free_waiting(self.words, self._desk, self._freed)

    def _no_room(self) -> RangeNodesError:
        waiting, held = int(self._desk[_WAITING]), int(self._desk[_RESERVED])
        return RangeNodesError(
            f"ranges: no node is left for another store: {len(self)} ranges, room for {self.capacity} in any case"
            + (f"; {waiting} nodes wait for {len(self._snapshots)} snapshots" if waiting else "")
            + (f"; {held} are set aside" if held else "")
        )

    def _per_store(self) -> int:
        return int(worst_nodes(int(at.LEVELS)))

    def preallocate(self, stores: int = 1) -> None:
        """Set room aside for ``stores`` stores with ``reserved=True``, beside what is set aside already.

        Other stores do not take it. RangeNodesError (ENOMEM) if there is not so much. Source of the idea:
        ``mas_preallocate()``, Linux ``lib/maple_tree.c``.
        """
        if stores < 0:
            raise UsageError(f"stores: {stores} is not at least 0")
        with self._lock:
            for _ in range(2):
                free = int(self._desk[_FREE_COUNT]) + (int(self._desk[_END]) - int(self._desk[_NEXT])) // at.node_words(
                    self.fanout
                )
                if free >= int(self._desk[_RESERVED]) + (stores + 1) * self._per_store():
                    self._desk[_RESERVED] += stores * self._per_store()
                    return
                self._make_room()
            raise self._no_room()

    def release(self) -> None:
        """Give back all that ``preallocate`` set aside."""
        with self._lock:
            self._desk[_RESERVED] = 0

    def store_arrays(self, first: Any, last: Any, value: Any) -> None:
        """Many stores, in order: arrays of first indices, last indices (included) and values, of one length.

        Some 0.3 µs each beside the ranges replaced. A wrong entry is refused before anything is stored.
        """
        import numpy as np

        columns = [words_of(name, column) for name, column in (("first", first), ("last", last), ("value", value))]
        if any(len(column) != len(columns[0]) for column in columns):
            raise UsageError(f"arrays: lengths {', '.join(str(len(column)) for column in columns)} are not one")
        table = np.stack(columns, axis=1)
        wrong = np.flatnonzero(table[:, 0] > table[:, 1])
        if len(wrong):
            row = int(wrong[0])
            raise UsageError(f"entry {row}: first {table[row, 0]:#x} is beyond last {table[row, 1]:#x}")
        stores: Any = table.reshape(-1)
        if INTERPRETED:
            stores = memoryview(cast("Any", table.reshape(-1))).cast("B").cast("Q")
        with self._lock:
            done = int(ranges_store_many(self.words, self._desk, self._freed, stores, 0, len(table)))
            while done < len(table):
                self._make_room()
                again = int(ranges_store_many(self.words, self._desk, self._freed, stores, done, len(table)))
                if again == done:
                    raise self._no_room()
                done = again

    @classmethod
    def from_arrays(cls, first: Any, last: Any, value: Any, **options: Any) -> RangeMap:
        """A map with the ranges of three arrays, as ``to_arrays`` gives them; ``options`` as of the class."""
        ranges = cls(**options)
        ranges.store_arrays(first, last, value)
        return ranges

    def snapshot(self) -> RangeSnapshot:
        """What the map holds now, for ever, until it is closed or dropped. O(1)."""
        with self._lock:
            if self._dropped:
                self._settle()
            epoch = int(peek(self.words, at.srcu_base()))
            if not self._snapshots:
                srcu_enter(self.words, at.srcu_base(), _SNAPSHOTS)
                self._desk[_SHARED] = 1
            self._snapshots.append(epoch)
            return RangeSnapshot(self.words, self.root, len(self), lambda: self._drop(epoch))

    def _drop(self, epoch: int) -> None:
        """A snapshot ended. Garbage may be collected anywhere, so this never waits for the lock."""
        self._dropped.append(epoch)
        if self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        """Snapshots that ended hold nothing any more: the reader that stands for all goes on to the oldest left."""
        while self._dropped:
            self._snapshots.remove(self._dropped.popleft())
        if self._snapshots:
            poke(self.words, at.srcu_base() + srcu_words(_SNAPSHOTS), min(self._snapshots))
        elif int(peek(self.words, at.srcu_base() + srcu_words(_SNAPSHOTS))):
            srcu_exit(self.words, at.srcu_base(), _SNAPSHOTS)
            self._desk[_SHARED] = int(self.readers > 0)
        free_expired(self.words, self._desk, self._freed)

    def enter(self, reader: int) -> None:
        """Reader ``reader`` (0 to ``readers`` - 1) begins to look: what it can see from now on is not freed.

        Compiled readers call ``srcu_enter(words, srcu_base(), reader + 1)`` themselves.
        """
        srcu_enter(self.words, at.srcu_base(), self._reader(reader))

    def exit(self, reader: int) -> None:
        """Reader ``reader`` looks no longer."""
        srcu_exit(self.words, at.srcu_base(), self._reader(reader))

    def _reader(self, reader: int) -> int:
        number = index_of("reader", reader)
        if number >= self.readers:
            most = f", 0 to {self.readers - 1}" if self.readers else ""
            raise UsageError(f"reader: {number}: the map was made for {self.readers} readers{most}")
        return 1 + number

    @property
    def nbytes(self) -> int:
        """Bytes of the nodes in use; those that wait for readers or snapshots are not counted."""
        return int(self._desk[_USED]) * at.node_words(self.fanout) * 8

    def check(self) -> None:
        """Raise InvariantError, naming the first that does not hold, unless the map is sound. O(n)."""
        with self._lock:
            check_ranges(self.words, self._desk, self.fanout)
