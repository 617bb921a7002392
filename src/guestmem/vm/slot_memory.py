"""Host memory behind slots, owned by what can reach it: nothing is unmapped while a slot, or a call, can get there.

A slot's memory is registered before the kernel is asked for the slot, and let go only when the slots say that it is
gone: by id for memory that was made or given for it, by host address for a slot that lies in other memory that the VM
knows, whoever keeps that at the moment: a slot, a view, a transaction. What goes is kept for as long as a call that
began before may still use it: each such call holds the ``Era`` it began in, and an era holds what went in it and the
next one, so Python's own counts are the grace period (the idea is RCU's).
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import mmap
import operator
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..abi.arguments import whole
from ..abi.structures import KVM_MEM_MAX_NR_PAGES
from ..errors import MemslotError, UsageError
from ..memslots import Slot, SlotKey
from ..units import PAGE_SHIFT, PAGE_SIZE, format_size

__all__ = ["Era", "HostPiece", "SlotMemory", "host_address"]

_MAP_NORESERVE = 0x4000
_new = tuple.__new__


def host_address(host: Any) -> int | None:
    """A host address if that is what ``host`` is; UsageError or MemslotError for a number that is none."""
    try:
        operator.index(host)
    except TypeError:
        return None
    return whole("host", host)


class HostPiece:
    """A piece of host memory: an object with a buffer, which stays mapped as long as this lives.

    ``buffer`` None: an address that somebody else takes care of.
    """

    __slots__ = ("__weakref__", "address", "buffer", "size")

    def __init__(self, address: int, size: int, buffer: memoryview | None = None) -> None:
        self.address, self.size, self.buffer = address, size, buffer

    def overlaps(self, start: int, end: int) -> bool:
        """Whether some of it is."""
        return self.buffer is not None and self.address < end and start < self.address + self.size

    @classmethod
    def of(cls, host: Any, size: int) -> HostPiece:
        """From None (new memory), an address, or a writable object with a buffer (memoryview, mmap, NumPy array)."""
        if host is None:
            if size % PAGE_SIZE or not 0 < size <= KVM_MEM_MAX_NR_PAGES * PAGE_SIZE:
                return cls(0, size)  # no slot can have it, and whoever is asked for the slot says why
            try:
                host = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
            except OSError as error:
                why = f"size: {format_size(size)} of host memory: {error.strerror}"
                raise MemslotError(error.errno or errno.ENOMEM, why) from None
        elif (address := host_address(host)) is not None:
            return cls(address, size)
        try:
            view = memoryview(host).cast("B")
        except (TypeError, ValueError):
            raise UsageError(
                f"host: {type(host).__name__} is neither an address nor one piece of memory with a buffer"
            ) from None
        if view.readonly:
            raise UsageError(
                "host: the buffer is read-only; a guest writes to it (KVM_MEM_READONLY keeps only it from that)"
            )
        if view.nbytes < size:
            raise UsageError(f"host: the buffer has {view.nbytes:#x} bytes, the slot {size:#x}")
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        if address % PAGE_SIZE:
            raise MemslotError(
                errno.EINVAL, f"host: the buffer begins at {address:#x}, within a page (an mmap begins with one)"
            )
        return cls(address, view.nbytes, view)  # while it is held, nobody can unmap or resize what is behind it


class Era:
    """A time between two changes. Whoever holds it holds all that goes from then on."""

    __slots__ = ("gone", "next")

    def __init__(self) -> None:
        self.gone: tuple[HostPiece, ...] = ()
        self.next: Era | None = None


class _Entry(weakref.ref[HostPiece]):
    """A piece in an index."""

    __slots__ = ("bits", "place")

    bits: int
    place: tuple[int, int]


class PieceIndex:
    """Pieces that somebody keeps, whoever it is, by where they are; sorted by address within classes of size.

    Not for several threads at once; but a piece may go at any moment, in any thread.

    >>> index = PieceIndex()
    >>> piece = HostPiece.of(None, 0x3000)
    >>> start = piece.address
    >>> index.add(piece)
    >>> [*index.overlapping(start + 0x2FFF, 1)] == [piece], [*index.overlapping(start + 0x3000, 1)]
    (True, [])
    >>> del piece
    >>> [*index.overlapping(start, 1)]
    []
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        """By identity of the piece."""
        self._classes: dict[int, list[tuple[int, int]]] = {}
        """By the number of bits of their sizes: address, identity."""
        self._gone: deque[weakref.ref[HostPiece]] = deque()

    def add(self, piece: HostPiece) -> None:
        """Once more is nothing. O(n) words are moved."""
        self._forget()
        if piece.buffer is None or id(piece) in self._entries:
            return
        entry = self._entries[id(piece)] = _Entry(piece, self._gone.append)
        entry.bits, entry.place = piece.size.bit_length(), (piece.address, id(piece))
        bisect.insort(self._classes.setdefault(entry.bits, []), entry.place)

    def _forget(self) -> None:
        """Take out what has gone since. O(n) words are moved for each."""
        while self._gone:
            entry = self._gone.popleft()
            assert isinstance(entry, _Entry)
            listed = self._classes[entry.bits]
            del listed[bisect.bisect_left(listed, entry.place)]
            del self._entries[entry.place[1]]

    def overlapping(self, address: int, size: int) -> Iterator[HostPiece]:
        """Those that overlap ``[address, address + size)``. O(log n + k) for each class of size."""
        if self._gone:
            self._forget()
        for bits, listed in self._classes.items():
            first = bisect.bisect_left(listed, (address - (1 << bits),))
            for place in range(first, len(listed)):
                start, known = listed[place]
                if start >= address + size:
                    break
                piece = self._entries[known]()
                if piece is not None and piece.overlaps(address, address + size):
                    yield piece


class SlotMemory:
    """Which host memory is kept for which slot; by its key. Looked at and changed under the backend's lock only."""

    def __init__(self) -> None:
        self._kept: dict[SlotKey, tuple[HostPiece, ...]] = {}
        self._index = PieceIndex()
        self.era = Era()
        """Held in a local name from before a look-up of slots to the end of an access, it keeps their memory mapped."""

    def of_slot(self, key: SlotKey) -> tuple[HostPiece, ...]:
        """What is kept for a slot. O(1)."""
        return self._kept.get(key, ())

    def reaching(self, address: int, size: int) -> tuple[HostPiece, ...]:
        """What is in ``[address, address + size)`` of memory that anybody keeps: a slot, a view, … O(log n + k)."""
        return tuple(self._index.overlapping(address, size))

    def expect(self, key: SlotKey, pieces: Iterable[HostPiece]) -> None:
        """Slot ``key`` may soon reach ``pieces``, too. Before the kernel is asked."""
        kept = {id(piece): piece for piece in (*self.of_slot(key), *pieces)}
        for piece in kept.values():
            self._index.add(piece)
        self._kept[key] = tuple(kept.values())

    def know(self, piece: HostPiece) -> None:
        """There is this piece: whoever is at an address in it keeps it."""
        self._index.add(piece)

    def settle(self, key: SlotKey, slot: Slot | None) -> None:
        """Slot ``key`` is ``slot`` now, for certain: what it cannot reach is let go. After readers see it, too."""
        kept = self.of_slot(key)
        if not kept:
            return
        stay: dict[int, HostPiece] = {}
        if slot is not None:
            start, end = slot.userspace_addr, slot.userspace_addr + (slot.npages << PAGE_SHIFT)
            stay = {id(piece): piece for piece in kept if piece.overlaps(start, end)}
        self._let_go(piece for piece in kept if id(piece) not in stay)
        if stay:
            self._kept[key] = tuple(stay.values())
        else:
            del self._kept[key]

    def reshaped(self, gone: Iterable[Slot], made: Sequence[Slot], pieces: tuple[HostPiece, ...]) -> None:
        """Slots ``made`` are in the place of ``gone``, for certain; ``pieces``: what anybody keeps of their memory.

        What no slot reaches any more has its era before anything is forgotten: where memory fails, ``expect`` and
        ``settle`` of these slots come to the same end.
        """
        kept = self._kept
        lost = [kept.get(slot[:2], ()) for slot in gone]  # type: ignore[call-overload] # as a SlotKey
        stay: dict[SlotKey, tuple[HostPiece, ...]] = {}
        for as_id, name, _, npages, start, *_ in made:
            end = start + (npages << PAGE_SHIFT)
            if reached := tuple([piece for piece in pieces if piece.overlaps(start, end)]):
                stay[_new(SlotKey, (as_id, name))] = reached
        if any(some != pieces for some in lost):  # else each is reached by a slot that was made
            used = {id(piece) for some in stay.values() for piece in some}
            self._let_go(piece for some in lost for piece in some if id(piece) not in used)
        for slot in gone:
            kept.pop(slot[:2], None)  # type: ignore[call-overload] # as a SlotKey
        kept.update(stay)

    def _let_go(self, pieces: Iterable[HostPiece]) -> None:
        """Whoever holds an era that began before holds them."""
        gone = tuple(pieces)
        if gone:
            before, after = self.era, Era()
            before.gone, before.next = gone, after
            self.era = after

    def clear(self) -> None:
        """No slot is left, and nobody runs: only views, and calls that are at it, keep memory."""
        self._let_go(piece for pieces in self._kept.values() for piece in pieces)
        self._kept.clear()
