"""A dirty bitmap is a set of pages: marked, taken, copied and cleared as one; bits beyond the last page stay 0."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import InvariantError, UsageError
from guestmem.dirty import DirtyBitmap


def pages(bits: bytes) -> set[int]:
    return {8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1}


@pytest.mark.parametrize("npages", [1, 63, 64, 65, 130, 512])
def test_random_work(npages: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    log = DirtyBitmap(npages)
    oracle: set[int] = set()
    for _ in range(sized(600, 120)):
        action = rng.randrange(8)
        if action < 5:
            page = rng.randrange(npages)
            assert log.mark(page) is (page not in oracle)
            oracle.add(page)
        elif action == 5:
            assert pages(log.copy()) == oracle
        elif action == 6:
            assert pages(log.take()) == oracle
            assert pages(log.protected()) == oracle
            oracle = set()
        else:
            first = 64 * rng.randrange(log.half)
            count = min(npages - first, 64 * rng.randrange(1, 4))
            bits = rng.randbytes(8 * ((count + 63) // 64))
            given = {first + page for page in pages(bits)}
            was = set(oracle)
            oracle -= given
            log.clear(first, count, bits)
            assert {first + page for page in pages(log.protected()) if page < 8 * len(bits)} == was & given
        assert log.count() == len(oracle)
        log.check()
    assert log.array().tolist() == [page in oracle for page in range(npages)]


@pytest.mark.parametrize("npages", [1, 63, 64, 65, 130])
def test_all_ones_are_the_pages_that_there_are(npages: int) -> None:
    log = DirtyBitmap(npages, ones=True)
    assert pages(log.copy()) == set(range(npages))
    log.check()
    if npages % 64:
        log.load(b"\xff" * log.nbytes)
        with pytest.raises(InvariantError, match="beyond page"):
            log.check()


def test_what_cannot_be_meant() -> None:
    for npages in (0, -1, 1 << 52, 1 << 64):
        with pytest.raises(UsageError, match="npages"):
            DirtyBitmap(npages)
    log = DirtyBitmap(64)
    with pytest.raises(UsageError):
        log.mark(64)
    with pytest.raises(UsageError):
        log.mark(-1)
    with pytest.raises(UsageError):
        log.clear(1, 1, bytes(8))
    with pytest.raises(UsageError):
        log.clear(0, 64, b"")
    log.mark(3)
    for first, count in ((-64, 64), (0, -1), (0, -64), (1 << 64, 0), (0, 1 << 64)):
        with pytest.raises(UsageError):
            log.clear(first, count, b"\xff" * 8)
    assert log.count() == 1
