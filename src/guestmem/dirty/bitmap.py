"""A slot's dirty bitmap: one bit a page, set by vCPUs, taken by KVM_GET_DIRTY_LOG or cleared by KVM_CLEAR_DIRTY_LOG.

Two halves of equal size, as in KVM: the bitmap itself, and behind it room for what a call took out, which is what it
must write-protect again and copy to user space. Source: ``kvm_alloc_dirty_bitmap()``, ``kvm_get_dirty_log_protect()``
and ``kvm_clear_dirty_log_protect()``, Linux 6.18, ``virt/kvm/kvm_main.c``.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..atomics import (
    address_of,
    exchange,
    fetch_and,
    fetch_or,
    host_fetch_or,
    host_load,
    load_relaxed,
    store_relaxed,
)
from ..compiled import INTERPRETED, ONE, U64, Words, compiled, const, u64, words
from ..errors import InvariantError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "DirtyBitmap",
    "bitmap_clear",
    "bitmap_fill",
    "bitmap_mark",
    "bitmap_merge",
    "bitmap_set",
    "bitmap_take",
    "bitmap_words",
]

_ONES = const((1 << 64) - 1)
_FRAMES = 1 << 52


@compiled
def bitmap_set(bitmap: Words, page: U64) -> bool:
    """A vCPU wrote ``page``: set its bit; returns whether it was clear. O(1).

    Looks before it writes, so that a page written again and again does not bounce a cache line.
    """
    bit = ONE << (page & u64(63))
    word = page >> 6
    if load_relaxed(bitmap, word) & bit != 0:
        return False
    return fetch_or(bitmap, word, bit) & bit == 0


@compiled
def bitmap_mark(bitmap: U64, page: U64) -> bool:
    """As ``bitmap_set``, for a bitmap at a host address: a slot's record holds one, as ``memslot->dirty_bitmap``. O(1).

    Two orders matter, and neither is made here. A mark and the entry that it stands for are one step to who takes the
    log, because both hold the table's lock. And the mark comes first: the entry that lets writes through is stored with
    release after it, so who sees a write through that entry sees the mark, also without the lock.
    """
    bit = ONE << (page & u64(63))
    word = bitmap + (page >> 6 << 3)
    if host_load(word) & bit != 0:
        return False
    return host_fetch_or(word, bit) & bit == 0


@compiled
def _address(bitmap: Words) -> U64:
    """Host address of the first word."""
    return address_of(bitmap, u64(0))


@compiled(nogil=True)
def bitmap_merge(bitmap: Words, half: U64) -> None:
    """Set in the bitmap what is set in the second half, while vCPUs mark. O(words)."""
    word = u64(0)
    while word < half:
        bits = load_relaxed(bitmap, half + word)
        if bits != 0:
            fetch_or(bitmap, word, bits)
        word += ONE


@compiled(nogil=True)
def bitmap_take(bitmap: Words, half: U64) -> U64:
    """Move each word that is not 0 to the second half, and leave 0; returns how many there were. O(words).

    One exchange a word: a bit set by a vCPU meanwhile is in what was taken, or stays. The caller write-protects what
    was taken before it lets anybody read the pages.
    """
    taken = u64(0)
    word = u64(0)
    while word < half:
        bits = u64(0)
        if load_relaxed(bitmap, word) != 0:
            bits = exchange(bitmap, word, u64(0))
            taken += ONE
        store_relaxed(bitmap, half + word, bits)
        word += ONE
    return taken


@compiled(nogil=True)
def bitmap_clear(bitmap: Words, half: U64, first: U64, count: U64, limit: U64) -> U64:
    """Clear, in ``count`` words from ``first`` on, the bits of the second half's first words; returns how many words.

    The second half is left with the bits that really were set: those are write-protected again. Only the first
    ``limit`` pages exist. O(count).
    """
    changed = u64(0)
    at = u64(0)
    while at < count and first + at < half:
        mask = load_relaxed(bitmap, half + at)
        if mask != 0:
            mask &= fetch_and(bitmap, first + at, mask ^ _ONES)
            if (first + at + ONE) << 6 > limit and limit & u64(63) != 0:
                mask &= (ONE << (limit & u64(63))) - ONE
            store_relaxed(bitmap, half + at, mask)
            if mask != 0:
                changed += ONE
        at += ONE
    return changed


@compiled(nogil=True)
def bitmap_fill(bitmap: Words, pages: U64) -> None:
    """Set the bits of all ``pages``. Before any vCPU: relaxed is enough. O(words)."""
    word = u64(0)
    while word < pages >> 6:
        store_relaxed(bitmap, word, _ONES)
        word += ONE
    if pages & u64(63) != 0:
        store_relaxed(bitmap, word, (ONE << (pages & u64(63))) - ONE)


def bitmap_words(npages: int) -> int:
    """Words of one half: a bit a page, rounded up to whole words.

    >>> bitmap_words(130)
    3
    """
    return (npages + 63) >> 6


class DirtyBitmap:
    """The dirty bitmap of a slot of ``npages``; ``ones``: all pages are dirty at first (KVM_DIRTY_LOG_INITIALLY_SET).

    vCPUs call ``bitmap_set`` on ``words``; the methods are for one thread at a time (KVM holds ``slots_lock``).

    >>> log = DirtyBitmap(130)
    >>> log.mark(129), log.mark(129), log.count()
    (True, False, 1)
    >>> log.take()[16:].hex(), log.count()
    ('0200000000000000', 0)
    """

    __slots__ = ("__dict__", "_ones", "half", "npages")

    def __init__(self, npages: int, *, ones: bool = False) -> None:
        if not 1 <= npages < _FRAMES:
            raise UsageError(f"npages: {npages} is not in 1..{_FRAMES - 1:#x}")
        self.npages, self.half, self._ones = npages, bitmap_words(npages), ones

    @cached_property
    def words(self) -> Words:
        """Both halves; made when first asked for, so that switching logging on is quick."""
        made = words(2 * self.half)
        if self._ones:
            bitmap_fill(made, self.npages)
        return made

    @cached_property
    def _cells(self) -> memoryview:
        if INTERPRETED:
            return self.words.cells
        return memoryview(self.words).cast("B").cast("Q")  # type: ignore[arg-type] # an ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that KVM_GET_DIRTY_LOG copies out."""
        return 8 * self.half

    def mark(self, page: int) -> bool:
        """Set a page's bit, counted from the slot's first; returns whether it was clear. O(1)."""
        if not 0 <= page < self.npages:
            raise UsageError(f"page: {page} is not in 0..{self.npages - 1}")
        return bool(bitmap_set(self.words, page))

    def load(self, bits: bytes) -> None:
        """Set the whole bitmap, before any vCPU marks in it. Missing bytes are 0."""
        self._cells[: self.half] = memoryview(bits.ljust(self.nbytes, b"\0")[: self.nbytes]).cast("Q")

    def merge(self, bits: bytes) -> None:
        """Set these bits too, while vCPUs may mark others. Missing bytes are 0. O(words)."""
        self._cells[self.half :] = memoryview(bits.ljust(self.nbytes, b"\0")[: self.nbytes]).cast("Q")
        bitmap_merge(self.words, self.half)

    @property
    def address(self) -> int:
        """Host address of the bitmap, for ``bitmap_mark``; valid as long as this object lives."""
        return int(_address(self.words))

    def copy(self) -> bytes:
        """The bitmap as KVM copies it out: little-endian, whole words. Clears nothing. O(words)."""
        return _bytes(self._cells[: self.half])

    def take(self) -> bytes:
        """KVM_GET_DIRTY_LOG without manual protection: the bitmap, which is 0 afterwards. O(words)."""
        bitmap_take(self.words, self.half)
        return _bytes(self._cells[self.half :])

    def clear(self, first_page: int, num_pages: int, bits: bytes) -> int:
        """KVM_CLEAR_DIRTY_LOG: clear ``bits``; returns how many words really changed. O(num_pages / 64).

        ``first_page`` is a multiple of 64; ``bits`` has whole words. Bits beyond the slot are harmless.
        """
        count = self.ask(first_page, num_pages, bits)
        return int(bitmap_clear(self.words, self.half, first_page >> 6, count, self.npages))

    def ask(self, first_page: int, num_pages: int, bits: bytes) -> int:
        """Put what a clear asks for into the second half, where ``bitmap_clear`` looks; returns how many words."""
        if first_page & 63 or not 0 <= first_page < _FRAMES:
            raise UsageError(f"first_page: {first_page} is not a multiple of 64, or no frame")
        if not 0 <= num_pages < _FRAMES:
            raise UsageError(f"num_pages: {num_pages} is not in 0..{_FRAMES - 1:#x}")
        count = bitmap_words(num_pages)
        if len(bits) < 8 * count or (first_page >> 6) + count > self.half:
            raise UsageError(f"bits: {len(bits)} bytes for pages {first_page} + {num_pages} of {self.npages}")
        self._cells[self.half : self.half + count] = memoryview(bits)[: 8 * count].cast("Q")
        return count

    def protected(self) -> bytes:
        """What the last ``take`` or ``clear`` found set, counted from its first page: to be write-protected again."""
        return _bytes(self._cells[self.half :])

    def count(self) -> int:
        """How many pages are dirty. O(words)."""
        return sum(word.bit_count() for word in self._cells[: self.half].tolist())

    def array(self) -> npt.NDArray[np.bool_]:
        """A boolean a page, as a NumPy array of its own. O(npages)."""
        array: npt.NDArray[np.bool_] = as_array(self.copy(), self.npages)
        return array

    def check(self) -> None:
        """Raise InvariantError if a bit beyond the last page is set. O(1)."""
        rest = self.npages & 63
        if rest and self._cells[self.half - 1] >> rest:
            raise InvariantError(f"dirty bitmap: a bit beyond page {self.npages - 1} is set")


def _bytes(cells: memoryview) -> bytes:
    if sys.byteorder == "little":
        return cells.tobytes()
    return b"".join(word.to_bytes(8, "little") for word in cells.tolist())


def as_array(bits: bytes, npages: int) -> Any:
    """A boolean a page from a bitmap as the kernel copies it out. O(npages).

    >>> as_array(bytes([5]), 4).tolist()
    [True, False, True, False]
    """
    import numpy as np

    return np.unpackbits(np.frombuffer(bits, np.uint8), count=npages, bitorder="little").view(np.bool_)
