"""Which pages of a file are bound to which slot: a range map from pages to slots.

Source: ``kvm_gmem_bind()``, ``kvm_gmem_unbind()``, Linux 6.18, ``virt/kvm/guest_memfd.c``, where it is an xarray.
"""

from __future__ import annotations

import errno
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple, Protocol

from ..errors import GuestMemfdError, InvariantError, RangeNodesError
from ..memslots.slot import Slot
from ..ranges import RangeMap

__all__ = ["Bindings", "Bound", "Incoming"]


class Bound(NamedTuple):
    """A slot, and the first page of the file that it has bound."""

    slot: Slot
    first: int

    @property
    def end(self) -> int:
        """The page after the last that it has bound."""
        return self.first + self.slot.npages


class Incoming(Protocol):
    """What slots of an update that is under way will have bound."""

    def __iter__(self) -> Iterator[Bound]: ...

    def overlapping(self, first: int, end: int) -> Iterator[tuple[Slot, int, int]]:
        """As ``Bindings.overlapping``."""


class Bindings:
    """The slots of one file. Everything is O(log n) but ``check`` and iteration.

    ``put`` may find no room (the kernel's xarray, no memory); ``promise`` asks before anything is changed, and what was
    promised cannot fail: the map has room for all slots that two address spaces can have. Nor can ``remove``.

    >>> bindings = Bindings()
    >>> bindings.put(Slot(0, 3, 0x100, 16, 0), 8)
    >>> list(bindings.overlapping(20, 30))
    [(Slot 3 [0x100000, 0x110000) 64 KiB -> 0x0, 268, 272)]
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], Bound] = {}
        self._pages = RangeMap(capacity=1 << 16)
        self._keys: dict[int, tuple[int, int]] = {}

    @staticmethod
    def _number(slot: Slot) -> int:
        return 1 + (slot.as_id << 16 | slot.id)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Bound]:
        return iter(list(self._slots.values()))

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def get(self, slot: Slot) -> Bound | None:
        """What a slot has bound."""
        return self._slots.get((slot.as_id, slot.id))

    def other(self, first: int, end: int, but: Container[tuple[int, int]] = ()) -> Bound | None:
        """A slot that has bound a page of [first, end), those of the keys ``but`` left out. O(log n + those)."""
        for _, _, number in self._pages.overlapping(first, end):
            if self._keys[number] not in but:
                return self._slots[self._keys[number]]
        return None

    def promise(self) -> None:
        """RangeNodesError unless there is room for another slot; then ``put`` of it, ``promised``, cannot fail."""
        self._pages.preallocate()
        self._pages.release()

    def put(self, slot: Slot, first: int, *, promised: bool = False) -> None:
        """Let a slot that has bound nothing have pages from ``first`` on, which nobody has; RangeNodesError."""
        bound, number, key = Bound(slot, first), self._number(slot), (slot.as_id, slot.id)
        self._keys[number], self._slots[key] = key, bound  # first: who finds a page asks whose it is
        try:
            self._pages.store(first, bound.end, number, reserved=promised)
        except RangeNodesError:
            del self._slots[key], self._keys[number]
            raise

    def remove(self, slot: int, as_id: int) -> None:
        """A slot goes; EINVAL if it has bound nothing."""
        bound = self._slots.get((as_id, slot))
        if bound is None:
            raise GuestMemfdError(errno.EINVAL, f"guest_memfd: slot {slot} has bound no range")
        self._pages.store(bound.first, bound.end, 0, reserved=True)
        number = self._number(bound.slot)
        del self._slots[as_id, slot]
        self._keys.pop(number, None)

    def follow(self, gone: Iterable[tuple[int, int]], incoming: Iterable[Bound]) -> None:
        """Slots ``gone`` (as_id, id) go, those ``incoming``, which were promised, come. O(those x log n).

        Where memory fails on the way, the same call does the rest, and called once more it changes nothing: who has
        gone is not asked to go again, and who has come goes and comes to the same place. No slot that stays is touched.
        """
        for as_id, slot in gone:
            if (as_id, slot) in self:
                self.remove(slot, as_id)
        for bound in incoming:
            self.put(*bound, promised=True)

    def clear(self) -> None:
        """All slots go."""
        self._pages.clear()
        self._slots.clear()
        self._keys.clear()

    def overlapping(self, first: int, end: int) -> Iterator[tuple[Slot, int, int]]:
        """Slots that have bound pages of [first, end), each with the frames [start, end) of these."""
        for start, stop, number in self._pages.overlapping(first, end):
            slot, page = self._slots[self._keys[number]]
            yield slot, slot.base_gfn + start - page, slot.base_gfn + stop - page

    def check(self) -> None:
        """Raise InvariantError unless every slot has its pages, and no page is bound otherwise. O(n)."""
        self._pages.check()
        if list(self._pages) != sorted(
            (bound.first, bound.end, self._number(bound.slot)) for bound in self._slots.values()
        ):
            raise InvariantError(f"guest_memfd: {self._pages!r} are bound, slots have {sorted(self._slots.values())}")
