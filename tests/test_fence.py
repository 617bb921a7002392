"""Store, then load of another word, on two sides: with the full fence at least one side sees the other, without it not.

Source of the test: the store buffering litmus test (SB) of the memory model literature.
"""

from __future__ import annotations

import os
import threading

import pytest

from chance import until_met
from guestmem.atomics import fence, fetch_add, load_acquire, store_release, wait_for
from guestmem.compiled import U64, Own, Words, compiled, own, u64, words

pytestmark = [
    pytest.mark.slow,  # two spinning sides need a core each; beside other work they take long
    pytest.mark.compiled_only,  # the interpreted form is sequentially consistent and cannot miss
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores needed"),
]

ROUNDS, CHUNKS = 20_000, 10


@compiled(nogil=True)
def side(shared: Words, seen: Own, me: U64, rounds: U64, fenced: bool) -> None:
    """In each round: meet the other side, write the round's number, look at what the other side has written."""
    number = u64(1)
    while number <= rounds:
        fetch_add(shared, u64(32), u64(1))
        spins = u64(0)
        while load_acquire(shared, u64(32)) < number << 1:  # a spin: only so do both sides run at the same instant
            spins += u64(1)
            if spins > 2000:  # the other side has no core just now
                wait_for(shared, u64(32), load_acquire(shared, u64(32)), u64(20_000))
        store_release(shared, me << 4, number)
        if fenced:
            fence()
        seen[number] = load_acquire(shared, (u64(1) - me) << 4)
        number += u64(1)


def missed(fenced: bool) -> int:
    """In how many rounds neither side saw what the other wrote."""
    shared, seen = words(64), [own(ROUNDS + 1) for _ in range(2)]
    threads = [threading.Thread(target=side, args=(shared, seen[me], me, ROUNDS, fenced)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(seen[0][number] < number and seen[1][number] < number for number in range(1, ROUNDS + 1))


def test_with_the_fence_one_side_sees_the_other() -> None:
    assert sum(missed(fenced=True) for _ in range(CHUNKS)) == 0


def test_without_the_fence_both_sides_miss() -> None:
    """Proof that the test above can fail here."""
    until_met(lambda _: missed(fenced=False), "this machine reordered nothing, so the test above proves nothing here")
