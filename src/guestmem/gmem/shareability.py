"""Shareability, of "1G page support for guest_memfd" (May 2025): KVM_GMEM_CONVERT_SHARED and _PRIVATE on the file.

Two states. References are looked at and not awaited: EAGAIN with the offset of the first page in use. The guest's
mappings go before that look, so a refused conversion has cost them; host pages are unmapped only on the way to private.
Size 0 succeeds. A hole keeps its state. Source: Ackerley Tng, RFC v2, linux-mm.
"""

from __future__ import annotations

from typing import ClassVar

from .conversion import converting, store_state, take_from_host
from .states import GUEST_MEMFD_FLAG_INIT_SHARED, InodeOfStates, States, room_for

__all__ = ["SHAREABILITY_ALL", "SHAREABILITY_GUEST", "Shareability"]

SHAREABILITY_ALL, SHAREABILITY_GUEST = 0, 1


class Shareability(States):
    """Two states: ALL 0, GUEST 1."""

    NAME: ClassVar[str] = "shareability"
    HOST_BARS: ClassVar[int] = SHAREABILITY_GUEST
    PRIVATE: ClassVar[int] = SHAREABILITY_GUEST
    NAMES: ClassVar[dict[int, str]] = {SHAREABILITY_ALL: "shared", SHAREABILITY_GUEST: "private"}

    def initial(self, flags: int) -> int:
        """ALL with INIT_SHARED, else GUEST."""
        return SHAREABILITY_ALL if flags & GUEST_MEMFD_FLAG_INIT_SHARED else SHAREABILITY_GUEST

    def convert(self, inode: InodeOfStates, first: int, last: int, *, private: bool) -> None:
        """Guest, host, store: the guest's mappings of both kinds go first, also if the conversion is then refused."""
        value = SHAREABILITY_GUEST if private else SHAREABILITY_ALL
        with converting(inode, first, last, value) as changes:
            if not changes:
                return
            with room_for(inode, first), inode.invalidation(first, last, "both"):
                if private:
                    take_from_host(inode, first, last)
                store_state(inode, first, last, value, private=private)
