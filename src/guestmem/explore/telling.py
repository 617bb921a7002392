"""Words in words: what stories say of a VM's, a table's and a TLB's words, and of their values, as KVM people would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..stage2.tlb_layout import (
    COMBINED_BASE,
    COMBINED_MASK,
    ENTRY_TAG,
    ENTRY_TARGET,
    ENTRY_WORDS,
    LEAF_BASE,
    LEAF_MASK,
    WALK_BASE,
    WALK_MASK,
)

if TYPE_CHECKING:
    from .scene import Scene

__all__ = [
    "Told",
    "entry_words",
    "memslots_values",
    "srcu_values",
    "table_words",
    "tlb_changes",
    "vm_tlb_changes",
    "vm_values",
]

_MODES = {0: "OUTSIDE", 1: "IN_GUEST", 2: "IN_HOST"}
_MOST_FORGOTTEN = 2
Word = Callable[[int], int]


class Told:
    """A label of words that also says what they are, and what values mean: see ``Scene.words``.

    >>> mode = Told(lambda index: "mode", lambda index, value, word: ("", "in guest" if value else "outside"))
    >>> mode(3), mode.told(3, 1, lambda index: 0)
    ('mode', ('', 'in guest'))
    """

    def __init__(self, label: Callable[[int], str], told: Callable[[int, int, Word], tuple[str, str]]) -> None:
        self._label, self.told = label, told

    def __call__(self, index: int) -> str:
        """The label of a word."""
        return self._label(index)


def vm_values(label: Callable[[int], str]) -> Callable[[int, int, Word], tuple[str, str]]:
    """Of the words of a software engine's VM, by their labels."""

    def told(index: int, value: int, word: Word) -> tuple[str, str]:
        del word
        name = label(index)
        if name == "FLUX":
            ranges = value & 255
            return "", f"{ranges} range{'s' * (ranges > 1)} in flux" if ranges else "nothing in flux"
        if name.startswith("MODE of"):
            return "", _MODES.get(value, "")
        return "", ""

    return told


def memslots_values(scene: Scene) -> Callable[[int, int, Word], tuple[str, str]]:
    """Of the words of a VM's slots: which set is active."""
    layout = scene.room("memslots.layout")
    first, space, sets, one = (int(each) for each in (layout.SPACES, layout.SPACE_WORDS, layout.SETS, layout.SET_WORDS))

    def told(index: int, value: int, word: Word) -> tuple[str, str]:
        del word
        if index < first or (index - first) % space or index >= first + space * layout.MAX_ADDRESS_SPACES:
            return "", ""
        number = (index - first) // space
        return f"the active set of space {number}", f"set {(value - index - sets) // one}"

    return told


def srcu_values(label: Callable[[int], str]) -> Callable[[int, int, Word], tuple[str, str]]:
    """Of SRCU's words: where a reader is."""

    def told(index: int, value: int, word: Word) -> tuple[str, str]:
        del word
        if label(index).startswith("reader "):
            return "", f"inside, since epoch {value}" if value else "outside"
        return "", ""

    return told


def table_words(table: Any, pool: Any) -> Told:
    """Of the entries of a stage-2 table (``PageTable``): level, index, and what the entry says."""
    format_, geometry = table.format, table.format.geometry
    root, shift = pool.page_of(table.root), 9

    def levels(word: Word) -> dict[int, int]:
        """By page, the level of its entries, of all that can be reached from the root."""
        found = {root: geometry.start_level}
        todo = [root]
        while todo:
            page = todo.pop()
            count = geometry.root_entries if page == root else geometry.entries
            for index in range(count):
                value = word((page << shift) + index)
                if value and found[page] < 3:
                    entry = format_.decode(value, found[page])
                    if type(entry).__name__ == "Table" and (below := pool.page_of(entry.address)) not in found:
                        found[below] = found[page] + 1
                        todo.append(below)
        return found

    def told(index: int, value: int, word: Word) -> tuple[str, str]:
        page, place = index >> shift, index & ((1 << shift) - 1)
        level = levels(word).get(page)
        if level is None:
            return f"entry [{place:#x}] of table page {page}, not linked", entry_words(format_.decode(value, 3))
        return f"entry [{place:#x}] of the level-{level} table", entry_words(format_.decode(value, level))

    return Told(lambda index: f"page {index >> shift}, entry {index & 511}", told)


def entry_words(entry: Any) -> str:
    """What an entry is, in a few words."""
    kinds = {kind.__name__ for kind in type(entry).__mro__}  # a twin's, of whichever format
    if "Leaf" in kinds:
        flags = ", old" * (not entry.accessed) + ", dirty" * entry.dirty
        return f"valid {entry.rights} to {entry.address:#x}{flags}"
    if "Table" in kinds:
        return f"table at {entry.address:#x}"
    if "Owned" in kinds:
        return f"owned, kind {entry.kind}"
    return "invalid" if "Empty" in kinds else "locked" if "Locked" in kinds else "malformed"


def tlb_changes(shift: Callable[[int], int]) -> Callable[[Sequence[int], Sequence[int]], list[str]]:
    """How a TLB of ``stage2.tlb_entries`` changed; ``shift(level)``: of what an entry of a level maps."""

    def address(kind: str, tag: int) -> str:
        if kind == "page":
            return f"page {tag - 1:#x}"
        level = (tag - 1) & 3
        return f"{kind} {(tag - 1) >> 2 << shift(level):#x}, level {level}"

    def told(before: Sequence[int], after: Sequence[int]) -> list[str]:
        lines, gone = [], []
        caches = (
            ("page", COMBINED_BASE, COMBINED_MASK),
            ("leaf", LEAF_BASE, LEAF_MASK),
            ("table", WALK_BASE, WALK_MASK),
        )
        for kind, base, mask in caches:
            first = after[int(base)]
            for place in range(first, first + int(ENTRY_WORDS) * (after[int(mask)] + 1), int(ENTRY_WORDS)):
                was, now = before[place + int(ENTRY_TAG)], after[place + int(ENTRY_TAG)]
                target = place + int(ENTRY_TARGET)
                if now and (was != now or before[target] != after[target]):
                    lines.append(f"TLB: {address(kind, now)} → {after[target]:#x}")
                elif was and not now:
                    gone.append(address(kind, was))
        return lines + _forgets(gone)

    return told


def vm_tlb_changes(first: int, entries: int, size: int) -> Callable[[Sequence[int], Sequence[int]], list[str]]:
    """How the TLB of a vCPU without tables changed (``SmallGuest``): where it begins, entries, words of one."""

    def told(before: Sequence[int], after: Sequence[int]) -> list[str]:
        lines, gone = [], []
        for place in range(first, first + entries * size, size):
            was, now = (before[place], before[place + 1]), (after[place], after[place + 1])
            if was != now and now[0]:
                rights = "rw" if now[0] & 2 else "r-"
                lines.append(f"TLB: gfn {now[0] >> 2:#x} → {now[1]:#x} {rights}")
            elif was != now:
                gone.append(f"gfn {was[0] >> 2:#x}")
        return lines + _forgets(gone)

    return told


def _forgets(gone: Sequence[str]) -> list[str]:
    if not gone:
        return []
    return [f"TLB: forgets {', '.join(gone) if len(gone) <= _MOST_FORGOTTEN else f'{len(gone)} entries'}"]
