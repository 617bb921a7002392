"""The interface of the generations: who may touch a page in which state, and what converts it.

Each generation is a small file of its own: ``mappability`` (2025), ``shareability`` (2025), ``attributes`` (taken in
2026, the default) and ``vm_attributes`` (of the VM, 6.8 on). Their words for a state are stored in a range map, so that
storing one takes time in the ranges that it replaces; looking at references takes time in pages.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..compiled import Own, Words
from ..errors import GuestMemfdError, RangeNodesError
from ..units import PAGE_SIZE

if TYPE_CHECKING:
    from ..ranges import RangeMap

__all__ = ["EHWPOISON", "GUEST_MEMFD_FLAG_INIT_SHARED", "GUEST_MEMFD_FLAG_MMAP", "InodeOfStates", "States"]

EHWPOISON = 133
"""Linux's number on all but alpha, mips, parisc and sparc; Python's ``errno`` has no name for it."""
GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1


class InodeOfStates(Protocol):
    """What a generation needs of an inode."""

    words: Words
    states: RangeMap
    found: Own

    def invalidation(self, first: int, last: int, kinds: str) -> AbstractContextManager[None]:
        """The guest's mappings of pages [first, last] of ``kinds`` (shared, private, both) go, and come back after."""

    def window_barred(self, first: int, last: int) -> None:
        """Raw accesses of the host to pages [first, last] end in SIGBUS from now on."""

    def window_follows(self, first: int, last: int) -> None:
        """Raw accesses of the host to pages [first, last] are allowed where states allow them."""

    def regroup(self, first: int, last: int) -> None:
        """Split or join huge folios around pages [first, last], as their states now are."""

    def prepare_shared(self, first: int, last: int) -> None:
        """Pages [first, last] are about to be shared: split huge folios, and do to bytes what the platform does."""


class States:
    """One generation. ``HOST_BARS``, ``GUEST_BARS``: bits of a state with which host or guest may not fault.

    ``PRIVATE``: bits with which only private accesses of the guest go, and without which only shared ones; 0 if
    accesses have no kind. ``CHECKS``: whether a conversion looks at references.
    """

    NAME: ClassVar[str] = ""
    HOST_BARS: ClassVar[int] = 0
    GUEST_BARS: ClassVar[int] = 0
    PRIVATE: ClassVar[int] = 0
    NAMES: ClassVar[dict[int, str]] = {}
    """What each state is called."""

    def initial(self, flags: int) -> int:
        """The state of every page of a new file with ``flags``."""
        raise NotImplementedError

    def convert(self, inode: InodeOfStates, first: int, last: int, *, private: bool) -> None:
        """Let pages [first, last] be private, or shared: all, or GuestMemfdError and none."""
        raise NotImplementedError

    def punched(self, inode: InodeOfStates, first: int, last: int) -> None:
        """Pages [first, last] were punched out; what becomes of their state. The lock is held for writing."""

    def last_put(self, inode: InodeOfStates, index: int) -> None:
        """The last reference to a page that waited for it was dropped."""


@contextmanager
def room_for(inode: InodeOfStates, first: int, stores: int = 1) -> Iterator[None]:
    """Room for ``stores`` stores that then cannot fail, or GuestMemfdError (ENOMEM) at page ``first``."""
    try:
        inode.states.preallocate(stores)
    except RangeNodesError as error:
        raise GuestMemfdError(errno.ENOMEM, f"guest_memfd: {error}", error_offset=first * PAGE_SIZE) from None
    try:
        yield
    finally:
        inode.states.release()


def in_use(page: int) -> GuestMemfdError:
    """EAGAIN: ``page`` has references from outside."""
    return GuestMemfdError(
        errno.EAGAIN,
        f"guest_memfd: page {page} is in use: pinned, or mapped again meanwhile",
        error_offset=page * PAGE_SIZE,
    )
