"""Pins: references that the host holds to pages for as long as it likes, as for DMA (``pin_user_pages()``).

A pin holds its pages in memory, not in the file: after a hole has been punched beneath it, it still has the old bytes,
and the file a new page, so that more memory can be in use than the file has. Source: ``mm/gup.c``, Linux.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..atomics import fetch_add
from ..compiled import U64, Words, compiled, const
from ..errors import GuestMemfdError, UsageError
from ..units import PAGE_SIZE, U64_MAX
from .folio import folio_head, page_word
from .layout import FOLIO, POISON
from .states import EHWPOISON

if TYPE_CHECKING:
    from .inode import Inode

__all__ = ["Pin", "unpinnable"]

_ONE = const(1)
_MINUS_ONE = const(U64_MAX)


@compiled
def _forget_reference(inode: Words, index: U64) -> None:
    """A reference goes with a page that left the file: nobody hears of it."""
    fetch_add(inode, page_word(index) + FOLIO, _MINUS_ONE)


class Pin:
    """Pages [first, last] of a file, pinned until ``close`` or the end of a ``with`` block.

    It may outlive its file: memory that is pinned stays.
    """

    def __init__(self, inode: Inode, first: int, last: int) -> None:
        self._inode, self.first, self.last = inode, first, last
        self.held = set(range(first, last + 1))
        """Pages whose reference this pin has in the file."""
        self.left: dict[int, bytearray] = {}
        """Bytes of pages that left the file beneath this pin."""
        self.closed = False
        inode.pins.add(self)

    def leave(self, first: int, last: int) -> None:
        """Pages [first, last] leave the file: this pin keeps their bytes. Under the file's lock for writing."""
        for page in sorted(page for page in self.held if first <= page <= last):
            self.left[page] = bytearray(self._inode.backing.read(page * PAGE_SIZE, PAGE_SIZE))
            _forget_reference(self._inode.words, int(folio_head(self._inode.words, page)))
            self.held.discard(page)

    def _page(self, offset: int, size: int) -> tuple[int, int]:
        if self.closed:
            raise UsageError("pin: it is closed")
        page, start = divmod(offset, PAGE_SIZE)
        if not self.first <= page <= self.last or start + size > PAGE_SIZE:
            raise UsageError(
                f"pin: [{offset:#x}, {offset + size:#x}) is not within one page of {self.first} to {self.last}"
            )
        return page, start

    def read(self, offset: int, size: int) -> bytes:
        """Bytes within one pinned page, at ``offset`` in the file, as a device would see them."""
        page, start = self._page(offset, size)
        if page in self.left:
            return bytes(self.left[page][start : start + size])
        return self._inode.backing.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write within one pinned page, as a device would."""
        page, start = self._page(offset, len(data))
        if page in self.left:
            self.left[page][start : start + len(data)] = data
        else:
            self._inode.backing.write(offset, data)

    def close(self) -> None:
        """Let go. A second close does nothing."""
        if self.closed:
            return
        self.closed = True
        self._inode.pins.discard(self)
        for page in sorted(self.held):
            self._inode.put(page)
        self.held.clear()
        self._inode.closed_if_unused()

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unpinnable(inode: Inode, page: int, status: int) -> GuestMemfdError:
    """Why a page cannot be pinned, by what ``pin_page`` came to: EHWPOISON, or EFAULT for its state."""
    poisoned = status == int(POISON)
    what = "poisoned" if poisoned else inode.generation.NAMES[inode.states.get(page)]
    number = EHWPOISON if poisoned else errno.EFAULT
    return GuestMemfdError(number, f"guest_memfd: page {page} is {what}: it cannot be pinned")
