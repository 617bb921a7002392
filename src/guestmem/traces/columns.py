"""A trace's changes and transactions as columns of numbers, since a boot under test may have a million of them.

``Changes`` and ``Transactions`` are read like lists of ``RecordedChange`` and ``Transaction``, which are made when
somebody asks for one; who looks at all of them goes over the columns. A change costs 81 bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

from ..memslots.changes import Change, ChangeKind
from ..memslots.slot import Slot
from .timeline import RecordedChange, Separation, Transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = [
    "CODES",
    "CREATE",
    "DELETE",
    "FLAGS_ONLY",
    "IMPLIED",
    "KIND",
    "KINDS",
    "MOVE",
    "NOTHING",
    "NO_SLOT",
    "NO_THREAD",
    "REFUSED",
    "SEPARATIONS",
    "Changes",
    "Plain",
    "Transactions",
]

KINDS = (ChangeKind.CREATE, ChangeKind.DELETE, ChangeKind.MOVE, ChangeKind.FLAGS_ONLY, ChangeKind.NOTHING)
CREATE, DELETE, MOVE, FLAGS_ONLY, NOTHING = range(5)
KIND, IMPLIED, REFUSED = 7, 8, 16
"""A change's ``code``: its kind, and two bits; what is below REFUSED was carried out."""
CODES = {kind: code for code, kind in enumerate(KINDS)}
NO_SLOT = -1
"""In the column ``old``: there was no slot of this number. 0 or more: who made it; below: see ``assume``."""
NO_THREAD = -(1 << 63)
LARGEST = (1 << 63) - 1
SEPARATIONS = tuple(Separation)


def _or_none(time: float) -> float | None:
    return None if time != time else time  # noqa: PLR0124 (not a number)


class Plain(NamedTuple):
    """Columns of changes, as ``Changes`` keeps them, in which nothing needs a closer look.

    KVM carried out each, all numbers are such as a slot can have, and stamps, which are those of the return, do not
    step back.
    """

    slots: array[int]
    bases: array[int]
    npages: array[int]
    hvas: array[int]
    flags: array[int]
    threads: array[int]
    times: array[float]

    @classmethod
    def of_bytes(cls, columns: tuple[bytes, ...]) -> Plain:
        """The same of the bytes of each."""
        return cls._make(map(array, "IQQQIqd", columns))

    def part(self, at: int, count: int) -> Plain:
        """``count`` of the changes, from ``at`` on."""
        if at == 0 and count == len(self.slots):
            return self
        return Plain._make(column[at : at + count] for column in self)


class Changes(Sequence[RecordedChange]):
    """The changes of one trace, in the order in which they took effect.

    Columns, one entry a change: ``slot`` (address space in the upper half), ``base`` and ``npages`` in frames, ``hva``
    in bytes, ``flags``, ``code`` (see KIND), ``old``, ``line``, ``ret``, ``thread`` (or NO_THREAD), and ``time``,
    ``began``, ``ended`` in seconds (or NaN). ``seen_flags`` are all flags that some change had.
    """

    __slots__ = (
        "_extra",
        "base",
        "began",
        "code",
        "ended",
        "flags",
        "hva",
        "line",
        "npages",
        "old",
        "path",
        "ret",
        "seen_flags",
        "slot",
        "thread",
        "time",
    )

    def __init__(self, path: str = "") -> None:
        self.path = path
        self._extra: list[Slot] = []
        """Slots that no change made: they were there before the trace began."""
        self.seen_flags = 0
        self.slot, self.flags = array("I"), array("I")
        self.base, self.npages, self.hva = array("Q"), array("Q"), array("Q")
        self.code = array("B")
        self.old = array("i")
        self.line = array("Q")
        self.ret, self.thread = array("q"), array("q")
        self.time, self.began, self.ended = array("d"), array("d"), array("d")

    def append(
        self,
        slot: int,
        base: int,
        npages: int,
        hva: int,
        flags: int,
        code: int,
        old: int,
        line: int,
        ret: int,
        thread: int | None,
        time: float | None,
        began: float | None,
        ended: float | None,
    ) -> None:
        """One more change; ``slot``, ``code`` and ``old`` as in the columns."""
        self.slot.append(slot)
        self.base.append(base)
        self.npages.append(npages)
        self.hva.append(hva)
        self.flags.append(flags)
        self.seen_flags |= flags
        self.code.append(code)
        self.old.append(old)
        self.line.append(line)
        self.ret.append(ret if -LARGEST <= ret <= LARGEST else -LARGEST if ret < 0 else LARGEST)
        self.thread.append(NO_THREAD if thread is None else thread)
        self.time.append(math.nan if time is None else time)
        self.began.append(math.nan if began is None else began)
        self.ended.append(math.nan if ended is None else ended)

    def extend(
        self,
        plain: Plain,
        codes: bytearray,
        olds: list[int],
        lines: Sequence[int],
        began: array[float],
        ended: array[float],
    ) -> None:
        """Many changes at once."""
        count = len(codes)
        self.slot.extend(plain.slots)
        self.base.extend(plain.bases)
        self.npages.extend(plain.npages)
        self.hva.extend(plain.hvas)
        self.flags.extend(plain.flags)
        self.seen_flags |= functools.reduce(operator.or_, set(plain.flags), 0)
        self.code.frombytes(codes)
        self.old.fromlist(olds)
        self.line.extend(lines)
        self.ret.frombytes(bytes(8 * count))
        self.thread.extend(plain.threads)
        self.time.extend(plain.times)
        self.began.extend(began)
        self.ended.extend(ended)

    def assume(self, slot: Slot) -> int:
        """What ``old`` says for a slot that no change made."""
        self._extra.append(slot)
        return -1 - len(self._extra)

    def made_by(self, maker: int) -> Slot:
        """The slot that change ``maker`` made, or one that was assumed."""
        if maker < NO_SLOT:
            return self._extra[-2 - maker]
        slot = self.slot[maker]
        return Slot(slot >> 16, slot & 0xFFFF, self.base[maker], self.npages[maker], self.hva[maker], self.flags[maker])

    def old_slot(self, index: int) -> Slot | None:
        """The slot that had the number of change ``index`` before it."""
        maker = self.old[index]
        return None if maker == NO_SLOT else self.made_by(maker)

    def __len__(self) -> int:
        return len(self.code)

    @overload
    def __getitem__(self, index: int) -> RecordedChange: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RecordedChange, ...]: ...
    def __getitem__(self, index: int | slice) -> RecordedChange | tuple[RecordedChange, ...]:
        if isinstance(index, slice):
            return tuple([self[i] for i in range(*index.indices(len(self)))])
        slot, code, thread = self.slot[index], self.code[index], self.thread[index]
        return RecordedChange(
            Change(slot & 0xFFFF, self.base[index], self.npages[index], self.hva[index], self.flags[index], slot >> 16),
            KINDS[code & KIND],
            self.old_slot(index),
            self.line[index],
            self.path,
            _or_none(self.time[index]),
            None if thread == NO_THREAD else thread,
            self.ret[index],
            bool(code & IMPLIED),
            _or_none(self.began[index]),
            _or_none(self.ended[index]),
        )

    def pick(self, indices: Iterable[int]) -> tuple[RecordedChange, ...]:
        """The changes at ``indices``."""
        return tuple([self[i] for i in indices])


class Transactions(Sequence[Transaction]):
    """The transactions of one trace, by first change.

    Mostly a transaction is a run of changes that follow one another: then only its first and its length are kept.
    """

    __slots__ = ("_counts", "_firsts", "_scattered", "changes", "pauses", "separations")

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self._firsts, self._counts = array("Q"), array("Q")
        self._scattered: dict[int, list[int]] = {}
        self.separations = array("B")
        """Why each is none with the one before, as a place in SEPARATIONS."""
        self.pauses = array("d")

    def begin(self, index: int, why: Separation, pause: float) -> int:
        """A transaction begins with change ``index``; its number."""
        self._firsts.append(index)
        self._counts.append(1)
        self.separations.append(SEPARATIONS.index(why))
        self.pauses.append(pause)
        return len(self._firsts) - 1

    def begin_all(self, firsts: list[int], whys: bytes | bytearray, pauses: list[float]) -> None:
        """These are all transactions: each goes on to where the next begins."""
        self._firsts.fromlist(firsts)
        self._counts.extend(map(operator.sub, [*firsts[1:], len(self.changes)], firsts))
        self.separations.frombytes(whys)
        self.pauses.fromlist(pauses)

    def go_on(self, number: int, index: int) -> None:
        """Change ``index`` belongs to transaction ``number``."""
        count = self._counts[number]
        if number in self._scattered:
            self._scattered[number].append(index)
        elif index != self._firsts[number] + count:
            self._scattered[number] = [*self.indices(number), index]
        self._counts[number] = count + 1

    def go_on_by(self, number: int, count: int) -> None:
        """The ``count`` changes that follow its last one belong to transaction ``number``."""
        if number in self._scattered:
            last = self._scattered[number][-1]
            self._scattered[number] += range(last + 1, last + 1 + count)
        self._counts[number] += count

    @property
    def extents(self) -> tuple[array[int], array[int], Collection[int]]:
        """The first change of each transaction, how many it has, and those whose changes do not follow one another."""
        return self._firsts, self._counts, self._scattered.keys()

    def indices(self, number: int) -> Sequence[int]:
        """The changes of a transaction, by their place among all."""
        if number in self._scattered:
            return self._scattered[number]
        first = self._firsts[number]
        return range(first, first + self._counts[number])

    def runs(self, first: int, last: int) -> Iterator[tuple[int, Sequence[int]]]:
        """The transactions ``[first, last)``: number, and ``indices``."""
        scattered, starts, counts = self._scattered, self._firsts, self._counts
        for number in range(first, last):
            if number in scattered:
                yield number, scattered[number]
            else:
                start = starts[number]
                yield number, range(start, start + counts[number])

    def spans(self) -> list[float]:
        """Seconds from the first stamp of each transaction to its last; NaN without."""
        time_of = self.changes.time.__getitem__
        before = map(operator.sub, self._counts, itertools.repeat(1))
        found = list(
            map(operator.sub, map(time_of, map(operator.add, self._firsts, before)), map(time_of, self._firsts))
        )
        for number, indices in self._scattered.items():
            found[number] = time_of(indices[-1]) - time_of(indices[0])
        return found

    def as_id(self, number: int) -> int:
        """The address space of a transaction."""
        return self.changes.slot[self._firsts[number]] >> 16

    def separation(self, number: int) -> Separation:
        """Why a transaction is none with the one before it in its address space."""
        return SEPARATIONS[self.separations[number]]

    def __len__(self) -> int:
        return len(self._firsts)

    @overload
    def __getitem__(self, index: int) -> Transaction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Transaction, ...]: ...
    def __getitem__(self, index: int | slice) -> Transaction | tuple[Transaction, ...]:
        if isinstance(index, slice):
            return tuple([self[i] for i in range(*index.indices(len(self)))])
        number = range(len(self))[index]
        changes = self.changes.pick(self.indices(number))
        return Transaction(number, changes[0].change.as_id, changes, self.separation(number), self.pauses[number])
