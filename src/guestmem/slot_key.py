"""Which slot of a VM: an address space and an id, as one word in ioctls and in dirty rings."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["SlotKey"]


class SlotKey(NamedTuple):
    """Which slot of a VM: its address space and its id there.

    >>> SlotKey(1, 3).word == 0x10003, SlotKey.of(0x10003)
    (True, SlotKey(as_id=1, slot=3))
    """

    as_id: int
    slot: int

    @property
    def word(self) -> int:
        """As ioctls take it and dirty rings name it: the id in bits 0 to 15, the address space above."""
        return self.as_id << 16 | self.slot

    @classmethod
    def of(cls, word: int) -> SlotKey:
        """From such a word."""
        return tuple.__new__(cls, (word >> 16, word & 0xFFFF))
