"""Deferred free: each item comes back once, in order, not before its grace period, and a full queue says so."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable

import pytest

from chance import until_met
from guestmem.atomics import load_relaxed, peek, poke, store_release
from guestmem.clock import now
from guestmem.compiled import U64, Own, Words, compiled, own, u64, words
from guestmem.errors import InvariantError, UsageError
from guestmem.rcu import (
    Deferred,
    Srcu,
    defer,
    deferred_words,
    reclaim,
    reclaim_wait,
    srcu_start,
)
from reused_objects import LOOKS, read_objects


def test_random_calls_agree_with_the_oracle(rng: random.Random) -> None:
    """The oracle: a list of items, each with the readers that were inside when it was put aside."""
    for _ in range(20):
        readers, capacity = rng.randrange(1, 5), rng.choice([1, 2, 4, 16])
        srcu = Srcu(readers)
        deferred = Deferred(srcu, capacity)
        waiting: deque[tuple[int, set[int]]] = deque()
        inside: set[int] = set()
        next_item = rng.choice([0, 2**64 - 40])
        for _ in range(150):
            reader = rng.randrange(readers)
            match rng.randrange(4):
                case 0:
                    room = len(waiting) < capacity
                    assert deferred.defer(next_item % 2**64) == room
                    if room:
                        waiting.append((next_item % 2**64, set(inside)))
                        next_item += 1
                case 1:
                    expected = []
                    while waiting and not waiting[0][1]:
                        expected.append(waiting.popleft()[0])
                    assert deferred.reclaim() == expected
                case _ if reader in inside:
                    srcu.exit(reader)
                    inside.discard(reader)
                    for _, held in waiting:
                        held.discard(reader)
                case _:
                    srcu.enter(reader)
                    inside.add(reader)
            deferred.check()
            assert len(deferred) == len(waiting)
        for reader in inside:
            srcu.exit(reader)
        assert deferred.drain() == [item for item, _ in waiting]
        deferred.check()


def test_items_may_share_a_cookie() -> None:
    srcu = Srcu(1)
    deferred = Deferred(srcu, 8)
    srcu.enter(0)
    cookie = srcu_start(srcu.words, 0)
    assert all(deferred.defer(item, cookie) for item in (5, 6, 7))
    assert deferred.reclaim() == []
    srcu.exit(0)
    assert deferred.reclaim() == [5, 6, 7]


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    srcu = Srcu(1)
    deferred = Deferred(srcu, 2)
    assert [deferred.defer(item) for item in (1, 2, 3)] == [True, True, False]
    deferred.check()
    assert deferred.reclaim() == [1, 2]
    assert deferred.defer(3)
    assert deferred.drain() == [3]


def test_the_limit_is_kept_and_the_rest_waits() -> None:
    srcu, queue, freed = Srcu(1), words(deferred_words(8)), own(8)
    for item in range(5):
        assert defer(queue, 0, 8, srcu_start(srcu.words, 0), item)
    assert reclaim(queue, 0, 8, srcu.words, 0, 1, freed, 2) == 2
    assert [int(freed[place]) for place in range(2)] == [0, 1]
    assert reclaim_wait(queue, 0, 8, srcu.words, 0, 1, freed, 8) == 3
    assert [int(freed[place]) for place in range(3)] == [2, 3, 4]


def test_draining_waits_for_the_readers() -> None:
    srcu = Srcu(2)
    deferred = Deferred(srcu, 4)
    srcu.enter(1)
    deferred.defer(9)
    got: list[list[int]] = []
    thread = threading.Thread(target=lambda: got.append(deferred.drain()), daemon=True)
    thread.start()
    while not peek(srcu.words, 16):  # waiting updaters
        thread.join(0.001)
    assert got == []
    srcu.exit(1)
    thread.join(60)
    assert got == [[9]]


@pytest.mark.parametrize("capacity", [-4, 0, 3, 6])
def test_a_capacity_is_a_power_of_two(capacity: int) -> None:
    with pytest.raises(UsageError, match=f"capacity: {capacity} is not a power of two"):
        Deferred(Srcu(1), capacity)


TAKEN, PUT, HIGHEST, PLACES = 0, 1, 4, 8


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (TAKEN, 9, "3 items in and 9 out"),
        (PUT, 8, "8 items in and 0 out, but room for 4 between"),
        (PUT, 2, "are not those put in"),  # one is lost
        (PLACES + 1, 99, "are not those put in"),  # another stands in its place
        (PLACES + 3, 10, "item 0xa waits twice"),
        (PLACES, 77, "cookie 77 is ahead of epoch 4"),
        (HIGHEST, 4, "cookie 4 was handed back, a reader is inside since 1"),
    ],
)
def test_check_finds(place: int, value: int, message: str) -> None:
    srcu = Srcu(1)
    deferred = Deferred(srcu, 4)
    srcu.enter(0)
    for item in (10, 11, 12):
        assert deferred.defer(item)
    deferred.check()
    poke(deferred.words, place, value)
    with pytest.raises(InvariantError, match=message):
        deferred.check()


# Real threads: an updater replaces objects from a pool and scribbles over each one that it is handed back.
STOP, CAUGHT, SECTIONS, STARTED, FIRST_OBJECT = 8, 16, 24, 248, 32


@compiled(nogil=True)
def replace_objects(
    shared: Words,
    srcu: Words,
    readers: U64,
    queue: Words,
    free: Own,
    freed: Own,
    times: U64,
    deadline: U64,
    early: bool,
) -> U64:
    """Eight free objects, the one that was freed first is used first. ``early``: the broken updater.

    Returns how often it had to wait for an object.
    """
    taken = u64(0)
    put = u64(8)
    waited = u64(0)
    done = u64(0)
    while done < times and now() < deadline:
        if taken == put:
            waited += u64(1)
            back = reclaim_wait(queue, u64(0), u64(8), srcu, u64(0), readers, freed, u64(8))
        else:
            back = reclaim(queue, u64(0), u64(8), srcu, u64(0), readers, freed, u64(8))
        while back != 0:
            back -= u64(1)
            store_release(shared, freed[back], u64(0xDEAD))
            free[put % u64(8)] = freed[back]
            put += u64(1)
        if taken != put:
            fresh = free[taken % u64(8)]
            taken += u64(1)
            store_release(shared, fresh, u64(0x600D))
            old = load_relaxed(shared, u64(0))
            store_release(shared, u64(0), fresh)
            # Early: a cookie of long before the object was replaced.
            cookie = u64(1) if early else srcu_start(srcu, u64(0))
            defer(queue, u64(0), u64(8), cookie, old)
            done += u64(1)
    store_release(shared, u64(8), u64(1))
    return waited


def race(times: int, *, early: bool) -> tuple[int, int]:
    """Uses after free, and read-side sections, with two readers, in two seconds at most."""
    srcu, shared, queue = Srcu(3), words(256), words(deferred_words(8))
    free, freed = own(8), own(8)
    objects = [FIRST_OBJECT + 8 * each for each in range(9)]
    for place, item in enumerate(objects[1:]):
        free[place] = item
    poke(shared, objects[0], 0x600D)
    poke(shared, 0, objects[0])
    threads = [
        threading.Thread(target=read_objects, args=(shared, srcu.words, reader, LOOKS), daemon=True)
        for reader in (1, 2)
    ]
    for thread in threads:
        thread.start()
    while peek(shared, STARTED) < len(threads):
        assert all(thread.is_alive() for thread in threads)
        time.sleep(0.001)
    deadline = time.monotonic_ns() + 2_000_000_000
    replace_objects(shared, srcu.words, srcu.readers, queue, free, freed, times, deadline, early)
    for thread in threads:
        thread.join()
    return peek(shared, CAUGHT), peek(shared, SECTIONS)


@pytest.mark.slow
def test_no_reader_sees_what_was_handed_back(sized: Callable[[int, int], int]) -> None:
    for _ in range(5):
        caught, sections = race(sized(200_000, 5_000), early=False)
        assert sections > 0
        assert caught == 0


@pytest.mark.slow
def test_items_handed_back_early_are_caught(sized: Callable[[int, int], int]) -> None:
    """Proof that the test above can fail: a cookie from before the item was replaced."""
    until_met(lambda _: race(sized(200_000, 20_000), early=True)[0], "no reader met what was handed back early")
