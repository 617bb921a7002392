"""Attributes of the file, as taken in September 2026: KVM_SET_MEMORY_ATTRIBUTES2 on the guest_memfd itself.

Two states, no waiting. A conversion to private unmaps the host first, then looks at references: EAGAIN, with the offset
of the first page in use, if there are any, and the guest's mappings are left alone. One that changes nothing succeeds,
pins or not. A hole keeps its state. Source: "guest_memfd: In-place conversion support", kvm, 2025 to 2026.
"""

from __future__ import annotations

from typing import ClassVar

from .checks import KVM_MEMORY_ATTRIBUTE_PRIVATE
from .conversion import converting, store_state, take_from_host
from .states import GUEST_MEMFD_FLAG_INIT_SHARED, InodeOfStates, States, room_for

__all__ = ["KVM_MEMORY_ATTRIBUTE_PRIVATE", "Attributes"]


class Attributes(States):
    """Two states, shared 0 and private 8, of the file."""

    NAME: ClassVar[str] = "attributes"
    HOST_BARS: ClassVar[int] = KVM_MEMORY_ATTRIBUTE_PRIVATE
    PRIVATE: ClassVar[int] = KVM_MEMORY_ATTRIBUTE_PRIVATE
    NAMES: ClassVar[dict[int, str]] = {0: "shared", KVM_MEMORY_ATTRIBUTE_PRIVATE: "private"}

    def initial(self, flags: int) -> int:
        """Shared with INIT_SHARED, else private."""
        return 0 if flags & GUEST_MEMFD_FLAG_INIT_SHARED else KVM_MEMORY_ATTRIBUTE_PRIVATE

    def convert(self, inode: InodeOfStates, first: int, last: int, *, private: bool) -> None:
        """Same? Room, host, guest, store: whatever can fail comes before the guest's mappings are touched."""
        value = KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        with converting(inode, first, last, value) as changes:
            if not changes:
                return
            with room_for(inode, first):
                if private:
                    take_from_host(inode, first, last)
                with inode.invalidation(first, last, "shared" if private else "private"):
                    store_state(inode, first, last, value, private=private)
