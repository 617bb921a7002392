"""A table, for people: as a list of ranges with rights and level, and as a tree with its ranges merged.

Reads words through a function, so that any table can be printed: of a pool here, of a memory dump, of another process.
Idea: ``ptdump`` of Linux (``arch/arm64/kvm/ptdump.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..units import format_size
from .descriptor import Entry, Leaf, Locked, Malformed, Owned, Rights, Table
from .format import Format

__all__ = ["Range", "dump", "format_dump", "format_tree", "leaves"]

ReadEntry = Callable[[int, int], int]
"""Address of a table page (or root), index: the word there. ``Pool.load`` is one."""


@dataclass(frozen=True, slots=True)
class Range:
    """Entries of one level side by side that say the same, their outputs side by side too: ``[start, end)``, bytes.

    ``address``: output of the first byte, None where nothing is mapped. ``rights``: those of the leaf and of all
    tables above it.
    """

    start: int
    end: int
    level: int
    entry: Entry
    rights: Rights
    address: int | None = None

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x}) {format_size(self.end - self.start)} {self.text()}"

    def text(self) -> str:
        """What the range says, without where it is."""
        match self.entry:
            case Leaf() as leaf:
                memory = "?" if leaf.memory is None else leaf.memory.value
                words = [f"{self.rights}", f"level {self.level}", f"-> {self.address:#x}", memory]
                words += ["old"] * (not leaf.accessed) + ["dirty"] * leaf.dirty
                words += [f"software {leaf.software:#x}"] * bool(leaf.software)
                return " ".join(words)
            case Owned(kind, payload):
                return f"owned, level {self.level}, kind {kind}, payload {payload:#x}"
            case Locked():
                return f"locked, level {self.level}"
            case Malformed(word, _, why):
                return f"malformed, level {self.level}: {word:#x}: {why}"
        return f"empty, level {self.level}"

    def continued_by(self, other: Range) -> bool:
        """Whether ``other`` is the same, and goes on where this ends."""
        if (self.end, self.level, self.rights) != (other.start, other.level, other.rights):
            return False
        if isinstance(self.entry, Leaf) and isinstance(other.entry, Leaf):
            assert self.address is not None
            return self.address + self.end - self.start == other.address and replace(self.entry, address=0) == replace(
                other.entry, address=0
            )
        return self.entry == other.entry


def _entries(format_: Format, read: ReadEntry, table: int, start: int, level: int) -> Iterator[tuple[int, Entry]]:
    """Input address and entry of each place of a table that is not empty."""
    geometry = format_.geometry
    count = geometry.root_entries if level == geometry.start_level else geometry.entries
    for index in range(count):
        if word := read(table, index):
            yield start + (index << geometry.shift(level)), format_.decode(word, level)


def leaves(format_: Format, read: ReadEntry, root: int) -> Iterator[Range]:
    """All entries that are neither empty nor tables, one by one, by input address. O(table pages * entries)."""
    return _leaves(format_, read, root, 0, format_.geometry.start_level, Rights.RWX)


def _leaves(format_: Format, read: ReadEntry, table: int, start: int, level: int, above: Rights) -> Iterator[Range]:
    size = format_.geometry.size(level)
    for at, entry in _entries(format_, read, table, start, level):
        if isinstance(entry, Table):
            limited = above & getattr(entry, "rights", Rights.RWX)
            yield from _leaves(format_, read, entry.address, at, level + 1, limited)
        else:
            yield _range(at, at + size, level, entry, above)


def _range(start: int, end: int, level: int, entry: Entry, above: Rights) -> Range:
    if isinstance(entry, Leaf):
        return Range(start, end, level, entry, above & entry.rights, entry.address)
    return Range(start, end, level, entry, Rights.NONE)


def _merged(ranges: Iterator[Range]) -> Iterator[Range]:
    last: Range | None = None
    for each in ranges:
        if last is not None and last.continued_by(each):
            last = replace(last, end=each.end)
        else:
            if last is not None:
                yield last
            last = each
    if last is not None:
        yield last


def dump(format_: Format, read: ReadEntry, root: int) -> list[Range]:
    """Ranges of a table, merged, by input address. The table should not change meanwhile.

    >>> from guestmem.stage2.arm import arm_stage2
    >>> from guestmem.stage2.pool import Pool
    >>> arm, pool = arm_stage2(0x1000, 32), Pool(32, base=0x80000000)
    >>> root, table = pool.alloc(4), pool.alloc()
    >>> pool.store(root, 3, arm.table(table))
    >>> for index in range(3):
    ...     pool.store(table, index, arm.leaf(3, 0x7000 + 0x1000 * index, arm.attributes(Rights.RW)))
    >>> pool.store(table, 3, arm.owned(2, 1))
    >>> pool.store(root, 4, arm.leaf(2, 0x40000000, arm.attributes(Rights.RWX, software=1)))
    >>> print(format_dump(dump(arm, pool.load, root)))
    [0x600000, 0x603000) 12 KiB rw- level 3 -> 0x7000 normal
    [0x603000, 0x604000) 4 KiB owned, level 3, kind 2, payload 0x1
    [0x800000, 0xa00000) 2 MiB rwx level 2 -> 0x40000000 normal software 0x1
    """
    return list(_merged(leaves(format_, read, root)))


def format_dump(ranges: list[Range]) -> str:
    """One line a range."""
    return "\n".join(map(str, ranges))


def format_tree(format_: Format, read: ReadEntry, root: int) -> str:
    """The table pages as a tree, with what each one's own entries say, merged.

    >>> from guestmem.stage2.arm import arm_stage2
    >>> from guestmem.stage2.pool import Pool
    >>> arm, pool = arm_stage2(0x1000, 32), Pool(32, base=0x80000000)
    >>> root, table = pool.alloc(4), pool.alloc()
    >>> pool.store(root, 3, arm.table(table))
    >>> pool.store(table, 0, arm.leaf(3, 0x7000, arm.attributes(Rights.RW)))
    >>> pool.store(table, 1, arm.leaf(3, 0x8000, arm.attributes(Rights.RW)))
    >>> print(format_tree(arm, pool.load, root))
    Arm stage 2, 4K, 32 bits: root 0x80000000 level 2, 4 pages
    └─ [0x600000, 0x800000) table 0x80004000 level 3, 2 of 512
       └─ [0x600000, 0x602000) 8 KiB rw- level 3 -> 0x7000 normal
    """
    geometry = format_.geometry
    pages = f"{geometry.root_pages} page" + "s" * (geometry.root_pages > 1)
    head = f"{format_.name}, {geometry.ipa_bits} bits: root {root:#x} level {geometry.start_level}, {pages}"
    return "\n".join([head, *_branches(format_, read, root, 0, geometry.start_level, Rights.RWX)[0]])


def _branches(
    format_: Format, read: ReadEntry, table: int, start: int, level: int, above: Rights
) -> tuple[list[str], int]:
    """Lines of a table's entries and all below, and how many entries it has."""
    size = format_.geometry.size(level)
    children: list[tuple[Range, str, list[str]]] = []
    used = 0
    for at, entry in _entries(format_, read, table, start, level):
        used += 1
        if isinstance(entry, Table):
            rights = above & getattr(entry, "rights", Rights.RWX)
            below, count = _branches(format_, read, entry.address, at, level + 1, rights)
            child = Range(at, at + size, level, entry, rights, entry.address)
            text = f"[{at:#x}, {at + size:#x}) table {entry.address:#x} level {level + 1}, "
            text += f"{count} of {format_.geometry.entries}" + f" {rights}" * (rights != Rights.RWX)
            children.append((child, text, below))
            continue
        own = _range(at, at + size, level, entry, above)
        if children and children[-1][0].continued_by(own):
            own = replace(children.pop()[0], end=own.end)
        children.append((own, "", []))
    lines = []
    for place, (child, text, below) in enumerate(children):
        last = place == len(children) - 1
        lines.append(("└─ " if last else "├─ ") + (text or str(child)))
        lines += [("   " if last else "│  ") + line for line in below]
    return lines, used
