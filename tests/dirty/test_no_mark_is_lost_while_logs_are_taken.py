"""A page marked while a log is taken is in that log or in the next: never lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from guestmem.compiled import U64, Words, compiled, u64
from guestmem.dirty import DirtyBitmap
from guestmem.dirty.bitmap import bitmap_set

pytestmark = pytest.mark.slow


@compiled(nogil=True)
def mark_all(bitmap: Words, pages: U64) -> U64:
    """Mark every page once; returns how many bits were clear."""
    page = u64(0)
    fresh = u64(0)
    while page < pages:
        if bitmap_set(bitmap, page):
            fresh += u64(1)
        page += u64(1)
    return fresh


@pytest.mark.compiled_only
def test_every_mark_is_taken_once(sized: Callable[[int, int], int]) -> None:
    pages = 1 << 16
    log = DirtyBitmap(pages)
    mark_all(log.words, 0)  # compiled before the race: beside a loop that never rests, a compilation takes minutes
    fresh = 0
    taken = 0
    for _ in range(sized(20, 2)):
        marked: list[int] = []

        def work(found: list[int] = marked) -> None:
            found.append(mark_all(log.words, pages))

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            taken += sum(byte.bit_count() for byte in log.take())
        thread.join()
        taken += sum(byte.bit_count() for byte in log.take())
        fresh += marked[0]
    assert fresh == taken == pages * sized(20, 2)
