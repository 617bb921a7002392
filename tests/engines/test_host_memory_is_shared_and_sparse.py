"""Host memory is real: ranges that overlap share it, ranges that do not never do, and a terabyte costs what is used."""

from __future__ import annotations

import ctypes
import random
import resource

import pytest

from guestmem.engines import HostMemory
from guestmem.errors import GuestmemError, UsageError

PAGE = 4096
HVA = 0x7F0000000000


def put(memory: HostMemory, hva: int, value: int) -> None:
    ctypes.c_uint64.from_address(memory.translate(hva)).value = value


def test_random_ranges_keep_their_aliases(rng: random.Random) -> None:
    for _ in range(30):
        ranges = []
        for _ in range(rng.randrange(1, 8)):
            start = HVA + rng.randrange(64) * PAGE
            ranges.append((start, start + rng.randrange(1, 16) * PAGE))
        pages = sorted({hva for start, end in ranges for hva in range(start, end, PAGE)})
        memory = HostMemory(ranges)
        assert memory.size == len(pages) * PAGE
        assert len({memory.translate(hva) for hva in pages}) == len(pages), "two pages of the recording are one here"
        for hva in pages:
            put(memory, hva + 8, hva)
        for hva in pages:
            assert memory.word(memory.translate(hva + 8)) == hva
            assert memory.translate(hva + 8) == memory.translate(hva) + 8
        for start, end in ranges:  # a slot needs its host memory in one piece
            assert memory.translate(end - 1) - memory.translate(start) == end - 1 - start
        memory.close()


def test_addresses_outside_are_refused() -> None:
    memory = HostMemory([(HVA, HVA + PAGE), (HVA + 4 * PAGE, HVA + 5 * PAGE)])
    for hva in (0, HVA - 1, HVA + PAGE, HVA + 4 * PAGE - 1, HVA + 5 * PAGE, 1 << 64):
        with pytest.raises(UsageError, match=f"hva: {hva:#x} is in none of the 2 host ranges"):
            memory.translate(hva)
    assert memory.translate(HVA + 4 * PAGE) == memory.address + PAGE
    memory.close()


def test_a_terabyte_is_sparse() -> None:
    size = 1 << 40
    memory = HostMemory([(HVA, HVA + size)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for place in (0, size // 2, size - PAGE):
        put(memory, HVA + place, place + 1)
    assert [memory.word(memory.translate(HVA + place)) for place in (0, size // 2, size - PAGE)] == [
        1,
        size // 2 + 1,
        size - PAGE + 1,
    ]
    assert memory.word(memory.translate(HVA + size // 4)) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    memory.close()


def test_what_no_machine_has_is_an_error() -> None:
    for size in (1 << 62, (1 << 64) - PAGE):
        with pytest.raises(GuestmemError, match="host memory: cannot map"):
            HostMemory([(0, size)])


def test_no_ranges_and_two_closes() -> None:
    memory = HostMemory([])
    with pytest.raises(UsageError, match="none of the 0 host ranges"):
        memory.translate(HVA)
    memory.close()
    memory.close()
