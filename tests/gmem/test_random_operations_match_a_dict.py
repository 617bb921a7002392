"""Whatever is done in whatever order, every page is as a dict of pages says; `make night` does a million."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from gmem_campaign import campaign
from guestmem.explore import load


@pytest.mark.parametrize("generation", ["attributes", "shareability"])
def test_random_operations(generation: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    made = campaign(sized(20_000, 1500), rng, generation)
    assert {"convert", "convert, refused", "host, SIGBUS", "guest, MEMORY_FAULT", "pin", "unpin", "punch"} <= set(made)
    assert min(made.values()) > 5


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (
            "gmem/folio.py",
            "if word & PRESENT != 0 and word & REFS != 0:\n            return index",
            "if False:\n            return index",
        ),
        (
            "gmem/fault.py",
            "states, index) & load_relaxed(inode, HOST_BARS) != 0",
            "states, index) & load_relaxed(inode, HOST_BARS) > 8",
        ),
        ("gmem/fault.py", "kinds != 0 and private != (state & kinds != 0)", "kinds > 8"),
        ("gmem/folio.py", "exchange(inode, entry, u64(0)) != 0:", "load_relaxed(inode, entry) > 1:"),
        ("gmem/pin.py", "            self.held.discard(page)\n", ""),
        ("gmem/inode.py", "            self._drop(first, last)\n", ""),
    ],
)
def test_a_broken_file_is_caught(file: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operations on the same sources with one line wrong, in the interpreted form."""
    package = load([(file, old, new)])
    monkeypatch.setattr("gmem_campaign.GuestMemfd", package.room("gmem.file").GuestMemfd)
    monkeypatch.setattr("gmem_campaign.Slot", package.room("memslots.slot").Slot)
    with pytest.raises((AssertionError, ValueError, OverflowError, KeyError, IndexError)):
        campaign(8000, random.Random(5))
