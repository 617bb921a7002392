"""Before exit_retry is taken, every page table of the guest is found, whatever the guest put there, in bounded time.

The tables are random, or made to mislead; the oracle walks them entry by entry.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import struct

import numpy as np
import pytest

from guestmem.engines.kvm.guest_frames import GuestFrames, UnknownTables
from guestmem.engines.kvm.x86.guest_tables import table_frames
from guestmem.memslots import Slot

pytestmark = pytest.mark.no_kvm

FRAMES = 64
PRESENT, LARGE = 1, 0x80


class Memory:
    """Guest frames in two slots with other memory between them; frame 0 and the last one are in none."""

    def __init__(self, frames: int = FRAMES) -> None:
        self.bytes = mmap.mmap(-1, frames << 12)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        half = frames // 2
        self.slots = [Slot(0, 7, 1, half - 1, address + 0x1000), Slot(0, 3, half, half - 1, address + (half << 12))]
        self.last = frames - 1

    def entry(self, frame: int, index: int, value: int) -> None:
        struct.pack_into("<Q", self.bytes, (frame << 12) + 8 * index, value)

    def naive(self, root: int, levels: int) -> set[tuple[int, int]]:
        """Frame and level of each table that a walk can come to."""
        found, todo = set(), [(root, levels)]
        while todo:
            frame, level = todo.pop()
            if (frame, level) in found:
                continue
            found.add((frame, level))
            if level == 1 or not 0 < frame < self.last:
                continue
            for (entry,) in struct.iter_unpack("<Q", self.bytes[frame << 12 : (frame + 1) << 12]):
                if entry & PRESENT and not (entry & LARGE and level <= 3):
                    todo.append(((entry & 0xFFFFFFFFFF000) >> 12, level - 1))
        return found

    def found(self, root: int, levels: int, most: int = 10_000) -> set[tuple[int, int]]:
        """The same, by production."""
        arrays = table_frames(GuestFrames(self.slots, most), root << 12 | 0x18, levels)
        return {
            (int(frame), level)
            for level, frames in zip(range(levels, 0, -1), arrays, strict=True)
            for frame in frames.tolist()
        }


@pytest.mark.parametrize("levels", [4, 5])
def test_any_tables_at_all(levels: int, rng: random.Random) -> None:
    """Any frame at any level: one frame at several levels, a table that names itself, frames in no slot."""
    for _ in range(20):
        memory = Memory()
        for frame in range(FRAMES):
            for _ in range(rng.randrange(4)):
                value = (
                    rng.randrange(FRAMES + 2) << 12 | rng.choice((0x67, 0x67, 0x66, 0xE7)) | rng.getrandbits(1) << 63
                )
                memory.entry(frame, rng.randrange(512), value)
        assert memory.found(5, levels) == memory.naive(5, levels)


def test_a_frame_at_two_levels_is_walked_at_both() -> None:
    """Met first as a table of the last level, where nothing is below it."""
    memory = Memory()
    memory.entry(1, 0, 2 << 12 | 0x67)
    memory.entry(1, 1, 3 << 12 | 0x67)
    for above, below in ((2, 4), (3, 5), (4, 9), (5, 6)):
        memory.entry(above, 0, below << 12 | 0x67)
    memory.entry(3, 1, 4 << 12 | 0x67)
    memory.entry(5, 1, 4 << 12 | 0x67)
    assert {(4, 2), (4, 1), (9, 1)} <= memory.found(1, 4)


def test_more_tables_than_are_looked_at_are_unknown() -> None:
    memory = Memory()
    for frame in range(1, FRAMES - 1):
        for index in range(512):
            memory.entry(frame, index, (1 + index % (FRAMES - 2)) << 12 | 0x67)
    assert len(memory.found(1, 4)) == 1 + 3 * (FRAMES - 2)
    with pytest.raises(UnknownTables, match="more page tables than are looked at"):
        memory.found(1, 4, most=FRAMES)


def test_tables_that_cannot_be_read_are_unknown() -> None:
    memory = Memory()
    memory.entry(1, 0, 40 << 12 | 0x67)
    memory.slots[1] = memory.slots[1]._replace(userspace_addr=0x1000)
    with pytest.raises(UnknownTables, match="the page table at 0x28000 cannot be read"):
        memory.found(1, 4)


def test_frames_in_no_slot_cost_no_look_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest may name a quarter of a million of them, in 512 tables, to slow the judge down."""
    memory = Memory()
    frames = GuestFrames(memory.slots, 10)
    monkeypatch.setattr(frames, "host", None)
    named = np.arange(1 << 40, (1 << 40) + 300_000, dtype=np.uint64)
    assert frames.read(np.concatenate([named, np.array([1, 2], np.uint64)])).shape == (2, 512)
    assert frames.left == 8
