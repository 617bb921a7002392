"""Reading a range map from Python: the face that a map and its snapshots share."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any, cast

from ..compiled import INTERPRETED, Own, Words, own
from ..errors import UsageError
from ..units import U64_MAX
from .lookup import find_from, load_from, ranges_copy, ranges_gap, ranges_load_many

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["RangeSnapshot", "Ranges"]

_SPACE = 1 << 64
_COPIED = 256  # ranges that an iteration copies at a time


def index_of(name: str, value: Any, most: int = U64_MAX) -> int:
    """``value`` as an index, from 0 to ``most``."""
    try:
        number = index(value)
    except TypeError:
        raise UsageError(f"{name}: {value!r} is not an integer") from None
    if not 0 <= number <= most:
        raise UsageError(f"{name}: {number:#x} is not within 0 to {most:#x}")
    return number


def words_of(name: str, values: Any) -> npt.NDArray[np.uint64]:
    """A list or array of numbers as words, in one piece."""
    import numpy as np

    array = np.asarray(values)
    if not isinstance(values, np.ndarray) and array.ndim == 1 and array.dtype.kind not in "ui":
        try:  # a list: numbers from 2**63 on must not become floats, and none is rounded
            array = np.array([index(value) for value in values], np.uint64)
        except OverflowError:
            raise UsageError(f"{name}: a number is not within 0 to {U64_MAX:#x}") from None
        except TypeError:
            raise UsageError(f"{name}: not all are integers") from None
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise UsageError(f"{name}: {array.dtype} of shape {array.shape} is no list of integers")
    if array.dtype.kind == "i" and len(array) and array.min() < 0:
        raise UsageError(f"{name}: {array.min()} is not within 0 to {U64_MAX:#x}")
    return np.ascontiguousarray(array, np.uint64)


def bounds_of(start: Any, end: Any) -> tuple[int, int]:
    """A half-open range as its first and last index."""
    first = 0 if start is None else index_of("start", start, _SPACE)
    stop = _SPACE if end is None else index_of("end", end, _SPACE)
    if first >= stop:
        raise UsageError(f"range: [{first:#x}, {stop:#x}) is empty or reversed")
    return first, stop - 1


def slice_bounds(indices: slice) -> tuple[int, int]:
    """First and last index of a slice, which has no step."""
    if indices.step is not None:
        raise UsageError(f"step: {indices.step!r} is not None: a range has every index")
    return bounds_of(indices.start, indices.stop)


def empty_words(count: int) -> Own:
    """Words for one thread that nobody has to zero."""
    if INTERPRETED:
        return own(count)
    import numpy as np

    return cast("Own", np.empty(count, np.uint64))


def _let_go(_held: RangeSnapshot) -> None:
    """A snapshot's other name ends: nothing to do but no longer to hold it."""


class Ranges(ABC):
    """What can be read of a range map or of a snapshot. Indices are 0 to 2**64 - 1, values 1 to 2**64 - 1."""

    words: Words

    @property
    @abstractmethod
    def root(self) -> int:
        """The tree to read, as one word."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of ranges: stretches of one value, as long as they can be. O(1)."""

    @abstractmethod
    def snapshot(self) -> RangeSnapshot:
        """What the map holds now, for ever. O(1)."""

    def get(self, index: int, default: int = 0) -> int:
        """The value at ``index``, or ``default``. O(log n)."""
        return int(load_from(self.words, self.root, index_of("index", index))) or default

    def __getitem__(self, index: Any) -> Any:
        """The value at an index (KeyError if there is none), or of a slice the list of its ranges, clipped to it."""
        if isinstance(index, slice):
            first, last = slice_bounds(index)
            return list(self._ranges(first, last))
        value = self.get(index)
        if not value:
            raise KeyError(index)
        return value

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and 0 <= index < _SPACE and self.get(index) != 0

    def find(self, index: int) -> tuple[int, int, int]:
        """The whole range around ``index``: start, end, value, a gap with value 0. O(log n).

        ``end`` is the next index with a different value; 2**64 if there is none.
        """
        found = own(3)
        find_from(self.words, self.root, index_of("index", index), found)
        return int(found[0]), int(found[1]) + 1, int(found[2])

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(start, end, value) of each range, ascending, as of now: stores meanwhile are not seen."""
        return self._ranges(0, U64_MAX)

    def overlapping(self, start: int | None = None, end: int | None = None) -> Iterator[tuple[int, int, int]]:
        """(start, end, value) of each range that meets [start, end), clipped to it; none that is only near."""
        return self._ranges(*bounds_of(start, end))

    def _ranges(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        with self.snapshot() as snapshot:
            room = 8  # grows, so that looking at the first few is cheap
            while True:
                out = empty_words(3 * room)
                count = int(ranges_copy(snapshot.words, snapshot.root, first, last, out, room))
                for at in range(0, 3 * count, 3):
                    yield int(out[at]), int(out[at + 1]) + 1, int(out[at + 2])
                if count < room or int(out[3 * count - 2]) >= last:
                    return
                first = int(out[3 * count - 2]) + 1
                room = min(4 * room, _COPIED)

    def gaps(self, start: int | None = None, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, end) of each stretch of [start, end) without a value."""
        first, last = bounds_of(start, end)
        for begin, stop, _ in self._ranges(first, last):
            if begin > first:
                yield first, begin
            first = stop
        if first <= last:
            yield first, last + 1

    def find_gap(self, size: int, start: int | None = None, end: int | None = None) -> int | None:
        """Where the first gap of at least ``size`` indices within [start, end) begins; None if there is none.

        O(log n + ranges passed).
        """
        first, last = bounds_of(start, end)
        if index_of("size", size, _SPACE) == 0:
            raise UsageError("size: 0 is not at least 1")
        if size - 1 > last - first:
            return None
        found = own(2)
        if size == _SPACE:  # more than a word holds
            return 0 if len(self) == 0 else None
        with self.snapshot() as snapshot:  # the search lets go of the GIL: no store may edit in place meanwhile
            return int(found[0]) if ranges_gap(snapshot.words, snapshot.root, first, last, size, found) else None

    def covered(self) -> int:
        """Number of indices that have a value. O(n)."""
        return sum(end - start for start, end, _ in self)

    def load_many(self, indices: Any) -> npt.NDArray[np.uint64]:
        """The values at many indices, all of one moment, 0 where there is none: an array as long. O(log n) each."""
        import numpy as np

        wanted = words_of("indices", indices)
        values = np.zeros(len(wanted), np.uint64)
        asked, found = cast("Any", wanted), cast("Any", values)
        if INTERPRETED:
            asked, found = memoryview(asked), memoryview(found)
        with self.snapshot() as snapshot:  # as above
            ranges_load_many(snapshot.words, snapshot.root, asked, found, len(wanted))
        return values

    def to_arrays(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """First index, last index and value of all ranges, ascending: three NumPy arrays of ``len(self)`` words. O(n).

        Last indices, not ends: 2**64 is no word.
        """
        import numpy as np

        with self.snapshot() as snapshot:
            room = len(snapshot)
            out = own(3 * room + 3)
            ranges_copy(snapshot.words, snapshot.root, 0, U64_MAX, out, room)
        table = np.frombuffer(cast("Any", out), np.uint64)[: 3 * room].reshape(room, 3)
        return table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy()

    def __eq__(self, other: object) -> bool:
        """Whether two maps hold the same; as with dicts, maps and snapshots of them compare alike. O(n)."""
        if not isinstance(other, Ranges):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown: list[str] = []
        for start, end, value in self:
            if len(shown) == 4:
                shown.append(f"… {len(self) - 4} more")
                break
            shown.append(f"[{start:#x}, {end:#x}): {value:#x}" if value > 9 else f"[{start:#x}, {end:#x}): {value}")
        return f"{type(self).__name__}({{{', '.join(shown)}}})"


class RangeSnapshot(Ranges):
    """What a range map held at one moment: the root of its tree then, whose nodes are not freed while this lives.

    Taken by ``RangeMap.snapshot()`` in constant time. Ends with ``close()``, a ``with`` block, or when it is dropped;
    until then each store makes new nodes for what it touches, and the old ones wait.
    """

    def __init__(self, words: Words, root: int, count: int, close: Callable[[], None]) -> None:
        self.words, self._tree, self._count = words, root, count
        self._finish = weakref.finalize(self, close)

    @property
    def root(self) -> int:
        """The tree of that moment, as one word, for ``load_from`` and its like; UsageError once it is closed."""
        if not self._finish.alive:
            raise UsageError("snapshot: it is closed")
        return self._tree

    def __len__(self) -> int:
        return self._count

    def snapshot(self) -> RangeSnapshot:
        """Another name for the same moment: it holds this one alive."""
        return RangeSnapshot(self.words, self.root, self._count, partial(_let_go, self))

    def close(self) -> None:
        """Let the old nodes go. Reading it afterwards is an error. A second close does nothing."""
        self._finish()

    def __enter__(self) -> RangeSnapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
