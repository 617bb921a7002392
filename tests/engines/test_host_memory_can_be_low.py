"""Host memory below 2**40: the same ranges, at addresses that fit the same large pages, gone when it is closed."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from guestmem.engines.host_memory import HostMemory
from guestmem.errors import GuestmemError

GIB, LARGE = 1 << 30, 1 << 21


def test_low_and_congruent(rng: random.Random) -> None:
    ranges, at = [], 0x7F00_0000_0000
    for size in (0x1000, 0x30_0000, GIB, 3 * GIB + LARGE, 0x8000, 4 * LARGE):
        at += rng.randrange(1 << 20) << 12
        ranges.append((at, at + size))
        at += size
    memory = HostMemory(ranges, low=True)
    spans = []
    for start, end in ranges:
        real = memory.translate(start)
        assert memory.translate(end - 8) == real + end - start - 8
        assert real + end - start <= 1 << 40
        assert (real - start) % (GIB if end - start >= GIB else LARGE) == 0
        memory.write(real, start.to_bytes(8, "little"))
        spans.append((real, real + end - start))
    assert [memory.word(real) for real, _ in spans] == [start for start, _ in ranges]
    spans.sort()
    assert all(spans[at][1] <= spans[at + 1][0] for at in range(len(spans) - 1))
    memory.close()
    memory.close()


def mapped() -> set[str]:
    """Where each mapping starts, as `START-`."""
    return {line.partition("-")[0] + "-" for line in Path("/proc/self/maps").read_text().splitlines()}


def test_gone_when_closed() -> None:
    memory = HostMemory([(0, 16 * GIB)], low=True)
    start = f"{memory.address:x}-"
    assert start in mapped()
    memory.close()
    gc.collect()
    assert start not in mapped()


def test_too_large_is_an_error() -> None:
    with pytest.raises(GuestmemError, match=r"low memory: no room for 2 TiB below 0x10000000000"):
        HostMemory([(0, 2 << 40)], low=True)
