"""A stage-2 table in plain Python, as one would write it first: lists of entries, numbers, a count for each table.

What the compiled tables are measured against: the same work (descend, count, write), one Python step at a time.
"""

from __future__ import annotations

__all__ = ["PAGE", "PlainTable", "plain_fault"]

PAGE = 4096
BLOCK = 512 * PAGE
_VALID, _PAGE = 1, 3


class _Below:
    """A table: its entries, and how many are not empty."""

    def __init__(self) -> None:
        self.entries: list[object] = [0] * 512
        self.count = 0


class PlainTable:
    """Three levels, 4K pages, 2M blocks; addresses in bytes."""

    def __init__(self) -> None:
        self.root = _Below()
        self.root.entries = [0] * 1024

    def level2(self, ipa: int) -> _Below:
        """The table of 2M entries for an address; made if it is not there."""
        index = ipa >> 30
        below = self.root.entries[index]
        if not isinstance(below, _Below):
            below = self.root.entries[index] = _Below()
            self.root.count += 1
        return below

    def leaf_table(self, ipa: int) -> _Below:
        """The table of pages for an address."""
        above = self.level2(ipa)
        index = ipa >> 21 & 511
        below = above.entries[index]
        if not isinstance(below, _Below):
            below = above.entries[index] = _Below()
            above.count += 1
        return below

    def map(self, ipa: int, pages: int, address: int, attributes: int) -> None:
        """Map pages one by one."""
        for page in range(pages):
            at = ipa + page * PAGE
            table = self.leaf_table(at)
            index = at >> 12 & 511
            if not table.entries[index]:
                table.count += 1
            table.entries[index] = (address + page * PAGE) | attributes | _PAGE

    def map_blocks(self, ipa: int, blocks: int, address: int, attributes: int) -> None:
        """Map 2M blocks."""
        for block in range(blocks):
            at = ipa + block * BLOCK
            table = self.level2(at)
            index = at >> 21 & 511
            if not table.entries[index]:
                table.count += 1
            table.entries[index] = (address + block * BLOCK) | attributes | _VALID

    def unmap(self, ipa: int, pages: int) -> None:
        """Unmap pages; a table that is empty then goes."""
        for at in range(ipa, ipa + pages * PAGE, PAGE):
            table = self.leaf_table(at)
            index = at >> 12 & 511
            if table.entries[index]:
                table.entries[index] = 0
                table.count -= 1
            if not table.count:
                above = self.level2(at)
                above.entries[at >> 21 & 511] = 0
                above.count -= 1

    def lookup(self, ipa: int) -> object:
        """The descriptor for an address."""
        found = self.level2(ipa).entries[ipa >> 21 & 511]
        return found.entries[ipa >> 12 & 511] if isinstance(found, _Below) else found

    def split(self, ipa: int, blocks: int) -> None:
        """Make a table of pages of each block."""
        for at in range(ipa, ipa + blocks * BLOCK, BLOCK):
            above = self.level2(at)
            block = above.entries[at >> 21 & 511]
            assert isinstance(block, int)
            below = _Below()
            below.entries = [block + index * PAGE | _PAGE for index in range(512)]
            below.count = 512
            above.entries[at >> 21 & 511] = below

    def collapse(self, ipa: int, blocks: int) -> None:
        """Make a block of each table whose pages are one run."""
        for at in range(ipa, ipa + blocks * BLOCK, BLOCK):
            above = self.level2(at)
            below = above.entries[at >> 21 & 511]
            assert isinstance(below, _Below)
            first = below.entries[0]
            assert isinstance(first, int)
            if all(word == first + index * PAGE for index, word in enumerate(below.entries)):
                above.entries[at >> 21 & 511] = first ^ (_PAGE ^ _VALID)


def plain_fault(table: PlainTable, slots: list[tuple[int, int, int]], tlb: dict[int, int], gfn: int) -> None:
    """A whole fault: the slot by bisection, the host page, the leaf, the entry of the TLB."""
    low, high = 0, len(slots)
    while low < high:
        middle = (low + high) // 2
        if slots[middle][0] + slots[middle][1] <= gfn:
            low = middle + 1
        else:
            high = middle
    base, pages, host = slots[low]
    assert base <= gfn < base + pages
    address = host + (gfn - base) * PAGE
    table.map(gfn * PAGE, 1, address, 0x7FC)
    tlb[gfn] = address
