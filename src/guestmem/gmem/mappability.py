"""Mappability, of "restricted mapping of guest_memfd at the host" (2025): three states, and a wait for the last put.

ALL: host and guest may fault. GUEST: the guest alone ("private"). NONE: neither, because somebody outside still holds
the page; when the last reference is dropped, a callback makes it GUEST. It was not taken: pages wait without bound, the
callback runs wherever a reference is dropped, and a hole makes a private page everybody's. Those hazards are kept, and
tested. Source: Fuad Tabba, v5 to v7, kvm, January to March 2025.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from ..errors import GuestMemfdError
from ..units import PAGE_SIZE
from .conversion import converting, store_state
from .convert import folio_forget, folio_register, folio_registered
from .folio import folios_in_use, unmap_host
from .invalidate_lock import write_lock, write_unlock
from .layout import IN_USE, NONE, SAME
from .states import GUEST_MEMFD_FLAG_INIT_SHARED, InodeOfStates, States, room_for

__all__ = ["ALL_MAPPABLE", "GUEST_MAPPABLE", "NONE_MAPPABLE", "Mappability"]

ALL_MAPPABLE, GUEST_MAPPABLE, NONE_MAPPABLE = 0b00, 0b10, 0b11


class Mappability(States):
    """Three states: ALL 0, GUEST 2, NONE 3. Bit 1 bars the host, bit 0 the guest; accesses have no kind."""

    NAME: ClassVar[str] = "mappability"
    HOST_BARS: ClassVar[int] = 0b10
    GUEST_BARS: ClassVar[int] = 0b01
    NAMES: ClassVar[dict[int, str]] = {ALL_MAPPABLE: "all", GUEST_MAPPABLE: "guest", NONE_MAPPABLE: "none"}

    def initial(self, flags: int) -> int:
        """ALL with INIT_SHARED, else GUEST."""
        return ALL_MAPPABLE if flags & GUEST_MEMFD_FLAG_INIT_SHARED else GUEST_MAPPABLE

    def convert(self, inode: InodeOfStates, first: int, last: int, *, private: bool) -> None:
        """Share: ALL, always. Unshare: unmap the host, GUEST where nobody holds the page, else NONE and registered."""
        if not private:
            self.share(inode, first, last)
            return
        self.unshare(inode, first, last, unmap=True)
        self.register(inode, first, last)

    def share(self, inode: InodeOfStates, first: int, last: int) -> None:
        """Every page becomes ALL; those that waited for a last put wait no longer."""
        with converting(inode, first, last, ALL_MAPPABLE) as changes:
            if not changes:
                return
            with room_for(inode, first), inode.invalidation(first, last, "both"):
                self._forget(inode, first, last)
                store_state(inode, first, last, ALL_MAPPABLE, private=False)

    def unshare(self, inode: InodeOfStates, first: int, last: int, *, unmap: bool = False) -> list[int]:
        """Every page becomes GUEST, or NONE where a mapping or pin is left; returns the latter.

        As in the proposal, nothing is unmapped by itself: ``unmap`` is the caller's step in between.
        """
        held: list[int] = []
        with converting(inode, first, last, GUEST_MAPPABLE) as changes:
            if not changes:
                return held
            try:
                if unmap:
                    inode.window_barred(first, last)
                    unmap_host(inode.words, first, last)
                page = int(folios_in_use(inode.words, first, last))
                while page != int(NONE):
                    held.append(page)
                    page = int(folios_in_use(inode.words, page + 1, last)) if page < last else int(NONE)
                with room_for(inode, first, 1 + len(held)), inode.invalidation(first, last, "both"):
                    inode.states.store(first, last + 1, GUEST_MAPPABLE, reserved=True)
                    for page in held:
                        inode.states.store(page, page + 1, NONE_MAPPABLE, reserved=True)
                    inode.regroup(first, last)
            finally:
                inode.window_follows(first, last)
        return held

    def register(self, inode: InodeOfStates, first: int, last: int) -> None:
        """Ask for a callback at the last put of every NONE page; EAGAIN if one is mapped: unmap it and try again."""
        write_lock(inode.words)
        try:
            for start, end, state in list(inode.states.overlapping(first, last + 1)):
                for page in range(start, end) if state == NONE_MAPPABLE else ():
                    status = folio_register(inode.words, page)
                    if status == IN_USE:
                        raise GuestMemfdError(
                            errno.EAGAIN,
                            f"guest_memfd: page {page} is mapped: no callback can be registered",
                            error_offset=page * PAGE_SIZE,
                        )
                    if status == SAME:
                        inode.states.store(page, page + 1, GUEST_MAPPABLE)
        finally:
            write_unlock(inode.words)

    def _forget(self, inode: InodeOfStates, first: int, last: int) -> None:
        for start, end, state in list(inode.states.overlapping(first, last + 1)):
            for page in range(start, end) if state == NONE_MAPPABLE else ():
                folio_forget(inode.words, page)

    def punched(self, inode: InodeOfStates, first: int, last: int) -> None:
        """A hole makes its pages ALL, whatever they were: the guest's private memory is everybody's from then on."""
        inode.states.store(first, last + 1, ALL_MAPPABLE, reserved=True)
        inode.window_follows(first, last)

    def last_put(self, inode: InodeOfStates, index: int) -> None:
        """NONE becomes GUEST; nothing, if the page was shared again or taken again since."""
        write_lock(inode.words)
        try:
            if folio_registered(inode.words, index):
                inode.states.store(index, index + 1, GUEST_MAPPABLE)
        finally:
            write_unlock(inode.words)
