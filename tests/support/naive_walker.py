"""Two walkers of a few lines, from the fact sheet alone: Arm stage 2 (all granules) and x86 nested paging.

They share no code with the package, not even constants. ``read(table, index)`` is the word of an entry; ``reader``
makes one from a pool's words. A walk gives Seen(pa, rights, level) or Fault(kind, level); ``*_pages`` give all leaves
as a dict {first input address: Seen}. Rights are "r", "w" and of "x", "p" (privileged), "u" (user) one, or "-".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["Fault", "Read", "Seen", "arm_owned", "arm_pages", "arm_walk", "npt_pages", "npt_walk", "reader"]

Read = Callable[[int, int], int]

ARM_SHIFTS = {4: [39, 30, 21, 12], 16: [47, 36, 25, 14], 64: [55, 42, 29, 16]}
ARM_BLOCKS = {4: {1, 2}, 16: {2}, 64: {2}}
ARM_BLOCKS_52 = {4: {0, 1, 2}, 16: {1, 2}, 64: {1, 2}}
NPT_SHIFTS = [39, 30, 21, 12]


class Seen(NamedTuple):
    pa: int
    rights: str
    level: int


class Fault(NamedTuple):
    kind: str
    level: int


def reader(words: Any, base: int) -> Read:
    """Reads a pool's words (an array, or interpreted words) as if they lay at ``base``."""
    cells = getattr(words, "cells", words)
    return lambda table, index: int(cells[(table - base) // 8 + index])


def bit(word: int, number: int) -> bool:
    return word >> number & 1 == 1


def field(word: int, high: int, low: int) -> int:
    return word >> low & ((1 << (high - low + 1)) - 1)


class _Arm(NamedTuple):
    granule: int
    ipa_bits: int
    start: int
    shifts: list[int]
    wide: bool
    xnx: bool

    def address(self, word: int, low: int) -> int:
        """Output address above bit ``low``."""
        if self.wide and self.granule != 64:
            return field(word, 49, low) << low | field(word, 9, 8) << 50
        address = field(word, 47, low) << low
        return address | field(word, 15, 12) << 48 if self.wide else address

    def kind(self, word: int, level: int) -> str:
        if not bit(word, 0):
            return "invalid"
        if level == 3:
            return "leaf" if bit(word, 1) else "reserved"
        if bit(word, 1):
            return "table"
        return "leaf" if level in (ARM_BLOCKS_52 if self.wide else ARM_BLOCKS)[self.granule] else "reserved"

    def rights(self, word: int) -> str:
        execute = {0: "x", 1: "u", 2: "-", 3: "p"}[field(word, 54, 53)]
        if not self.xnx:
            execute = "-" if bit(word, 54) else "x"
        return ("r" if bit(word, 6) else "-") + ("w" if bit(word, 7) else "-") + execute


def _arm(granule: int, ipa_bits: int, start: int | None, wide: bool, xnx: bool, stride: int | None) -> _Arm:
    shifts = ARM_SHIFTS[granule]
    if stride is not None:
        shifts = [shifts[3] + stride * above for above in (3, 2, 1, 0)]
    if start is None:  # the deepest, but 3, whose table is at most 16 tables
        table = 2 ** (shifts[2] - shifts[3])
        start = max(level for level in (0, 1, 2) if 2**ipa_bits // 2 ** shifts[level] <= 16 * table)
    return _Arm(granule, ipa_bits, start, shifts, wide, xnx)


def arm_walk(
    read: Read,
    root: int,
    ipa: int,
    *,
    granule: int = 4,
    ipa_bits: int = 40,
    start: int | None = None,
    wide: bool = False,
    xnx: bool = True,
    hardware_af: bool = True,
    stride: int | None = None,
) -> Seen | Fault:
    """``wide``: 52-bit addresses; ``stride``: bits a level where tables are smaller than the granule's."""
    arm = _arm(granule, ipa_bits, start, wide, xnx, stride)
    if ipa >= 2**ipa_bits:
        return Fault("translation", 0)
    table, level = root, arm.start
    index = ipa >> arm.shifts[level]
    while True:
        word = read(table, index)
        kind = arm.kind(word, level)
        if kind != "table":
            break
        table = arm.address(word, arm.shifts[3])
        level += 1
        index = (ipa >> arm.shifts[level]) % 2 ** (arm.shifts[level - 1] - arm.shifts[level])
    if kind != "leaf":
        return Fault("translation", level)
    if not bit(word, 10) and not hardware_af:
        return Fault("access flag", level)
    shift = arm.shifts[level]
    return Seen(arm.address(word, shift) + ipa % 2**shift, arm.rights(word), level)


def _arm_entries(arm: _Arm, read: Read, table: int, level: int, at: int) -> Iterator[tuple[int, int, int, str]]:
    count = 2 ** (arm.ipa_bits - arm.shifts[level])
    if level != arm.start:
        count = 2 ** (arm.shifts[level - 1] - arm.shifts[level])
    for index in range(count):
        word = read(table, index)
        if word == 0:
            continue
        here = at + index * 2 ** arm.shifts[level]
        kind = arm.kind(word, level)
        if kind == "table":
            yield from _arm_entries(arm, read, arm.address(word, arm.shifts[3]), level + 1, here)
        else:
            yield here, word, level, kind


def arm_pages(
    read: Read,
    root: int,
    *,
    granule: int = 4,
    ipa_bits: int = 40,
    start: int | None = None,
    wide: bool = False,
    xnx: bool = True,
    stride: int | None = None,
) -> dict[int, Seen]:
    """Every block and page, by its first address."""
    arm = _arm(granule, ipa_bits, start, wide, xnx, stride)
    return {
        at: Seen(arm.address(word, arm.shifts[level]), arm.rights(word), level)
        for at, word, level, kind in _arm_entries(arm, read, root, arm.start, 0)
        if kind == "leaf"
    }


def arm_owned(
    read: Read,
    root: int,
    *,
    granule: int = 4,
    ipa_bits: int = 40,
    start: int | None = None,
    stride: int | None = None,
) -> dict[int, tuple[int, int]]:
    """Every invalid entry that is not 0, by its first address: word and level."""
    arm = _arm(granule, ipa_bits, start, False, True, stride)
    return {
        at: (word, level) for at, word, level, kind in _arm_entries(arm, read, root, arm.start, 0) if kind == "invalid"
    }


def npt_walk(read: Read, root: int, gpa: int, *, pa_bits: int = 48, stride: int | None = None) -> Seen | Fault:
    """As a user access with EFER.NXE: "not present", "reserved", "supervisor" (U/S 0 somewhere), or rights of all."""
    shifts = NPT_SHIFTS if stride is None else [12 + stride * above for above in (3, 2, 1, 0)]
    size = 9 if stride is None else stride
    if gpa >= 2 ** (shifts[0] + size):
        return Fault("not present", 0)
    table, write, execute, user = root, True, True, True
    for level in range(4):
        word = read(table, (gpa >> shifts[level]) % 2**size)
        if not bit(word, 0):
            return Fault("not present", level)
        if field(word, 51, 12) >> (pa_bits - 12):
            return Fault("reserved", level)
        write &= bit(word, 1)
        user &= bit(word, 2)
        execute &= not bit(word, 63)
        large = level < 3 and bit(word, 7)
        if large and (level == 0 or field(word, shifts[level] - 1, 12) & ~1):
            return Fault("reserved", level)
        if large or level == 3:
            if not user:
                return Fault("supervisor", level)
            pa = field(word, 51, shifts[level]) << shifts[level]
            rights = "r" + ("w" if write else "-") + ("x" if execute else "-")
            return Seen(pa + gpa % 2 ** shifts[level], rights, level)
        table = field(word, 51, 12) << 12
    raise AssertionError("unreachable")


def npt_pages(read: Read, root: int, *, pa_bits: int = 48, stride: int | None = None) -> dict[int, Seen]:
    """Every block and page that translates, by its first address."""
    shifts = NPT_SHIFTS if stride is None else [12 + stride * above for above in (3, 2, 1, 0)]
    found: dict[int, Seen] = {}
    todo = [(root, 0, 0)]
    while todo:
        table, level, at = todo.pop()
        for index in range(512 if stride is None else 2**stride):
            word = read(table, index)
            here = at + index * 2 ** shifts[level]
            if not bit(word, 0):
                continue
            if level < 3 and not bit(word, 7) and not field(word, 51, 12) >> (pa_bits - 12):
                todo.append((field(word, 51, 12) << 12, level + 1, here))
                continue
            seen = npt_walk(read, root, here, pa_bits=pa_bits, stride=stride)
            if isinstance(seen, Seen):
                found[here] = seen
    return found
