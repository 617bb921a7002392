"""One clock for all: it never goes back, on any thread, and it is the one that Python reads."""

from __future__ import annotations

import time
from collections.abc import Callable

from guestmem.clock import now
from guestmem.compiled import U64, Own, compiled, own, u64


@compiled(nogil=True)
def read_clock(times: Own, count: U64) -> None:
    place = u64(0)
    while place < count:
        times[place] = now()
        place += u64(1)


def test_it_never_goes_back_and_is_pythons(sized: Callable[[int, int], int]) -> None:
    count = sized(100_000, 1_000)
    times = own(count)
    before = time.monotonic_ns()
    read_clock(times, count)
    after = time.monotonic_ns()
    read = [before, *(int(times[place]) for place in range(count)), after]
    assert read == sorted(read)
