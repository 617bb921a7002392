"""SRCU: a grace period waits for the readers that were inside when it began, for no others, and their exit ends it."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from chance import until_met
from guestmem.atomics import load_acquire, peek, poke, store_release
from guestmem.clock import now
from guestmem.compiled import U64, Words, compiled, u64, words
from guestmem.errors import InvariantError, UsageError
from guestmem.rcu import Srcu, srcu_expired, srcu_oldest, srcu_start, srcu_wait
from reused_objects import LOOKS, read_objects

LIMIT = 60


class Oracle:
    """For each reader, the grace periods that began while it was inside."""

    def __init__(self, readers: int) -> None:
        self.holds_up: list[set[int] | None] = [None] * readers

    def enter(self, reader: int) -> None:
        self.holds_up[reader] = set()

    def exit(self, reader: int) -> None:
        self.holds_up[reader] = None

    def start(self, cookie: int) -> None:
        for held in self.holds_up:
            if held is not None:
                held.add(cookie)

    def expired(self, cookie: int) -> bool:
        return not any(held and cookie in held for held in self.holds_up)


def start(srcu: Srcu) -> int:
    return int(srcu_start(srcu.words, 0))


def expired(srcu: Srcu, cookie: int) -> bool:
    return bool(srcu_expired(srcu.words, 0, srcu.readers, cookie))


def test_random_sections_and_grace_periods_agree_with_the_oracle(rng: random.Random) -> None:
    for _ in range(20):
        readers = rng.randrange(1, 6)
        srcu, oracle, cookies = Srcu(readers), Oracle(readers), []
        for _ in range(200):
            reader = rng.randrange(readers)
            match rng.randrange(3):
                case 0:
                    cookies.append(start(srcu))
                    oracle.start(cookies[-1])
                case _ if oracle.holds_up[reader] is None:
                    srcu.enter(reader)
                    oracle.enter(reader)
                case _:
                    srcu.exit(reader)
                    oracle.exit(reader)
            srcu.check()
            assert [expired(srcu, cookie) for cookie in cookies] == [oracle.expired(cookie) for cookie in cookies]
            assert srcu.inside() == [each for each, held in enumerate(oracle.holds_up) if held is not None]


def test_the_oldest_reader_decides(rng: random.Random) -> None:
    srcu = Srcu(4)
    cookies = []
    for reader in range(4):
        cookies.append(start(srcu))
        srcu.enter(reader)
    for reader in rng.sample(range(4), 4):
        srcu.exit(reader)
        oldest = srcu_oldest(srcu.words, 0, 4)
        assert [cookie <= oldest for cookie in cookies] == [expired(srcu, cookie) for cookie in cookies]


def test_nobody_inside_does_not_sleep() -> None:
    assert Srcu(3).synchronize() == 0


def test_a_reader_that_enters_later_is_not_waited_for() -> None:
    srcu = Srcu(2)
    cookie = start(srcu)
    srcu.enter(1)
    assert expired(srcu, cookie)
    assert srcu_wait(srcu.words, 0, 2, cookie) == 0


def sleeping_updater(srcu: Srcu) -> tuple[threading.Thread, list[int]]:
    """A thread that synchronizes, once it counts as waiting."""
    slept: list[int] = []
    thread = threading.Thread(target=lambda: slept.append(srcu.synchronize()), daemon=True)
    thread.start()
    while not peek(srcu.words, 16):  # waiting updaters
        thread.join(0.001)
    return thread, slept


def test_the_exit_of_the_last_reader_wakes_the_updater() -> None:
    srcu = Srcu(3)
    srcu.enter(1)
    srcu.enter(2)
    thread, slept = sleeping_updater(srcu)
    srcu.enter(0)  # later: not waited for
    srcu.exit(1)
    thread.join(0.05)
    assert thread.is_alive()
    srcu.exit(2)
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert len(slept) == 1
    woken = peek(srcu.words, 8)
    srcu.enter(1)
    srcu.exit(1)
    assert peek(srcu.words, 8) == woken, "an exit that nobody waits for wakes nobody"
    srcu.exit(0)
    srcu.check()


def test_two_updaters_wait_at_once() -> None:
    srcu = Srcu(2)
    srcu.enter(1)
    threads = [sleeping_updater(srcu)[0] for _ in range(2)]
    srcu.exit(1)
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_a_domain_needs_a_reader() -> None:
    with pytest.raises(UsageError, match="readers: 0 is not at least 1"):
        Srcu(0)


def test_check_finds_a_reader_ahead_of_the_epoch() -> None:
    srcu = Srcu(2)
    srcu.enter(1)
    srcu.check()
    poke(srcu.words, 24 + 8, 9)
    with pytest.raises(InvariantError, match="reader 1 is in epoch 9 > 1"):
        srcu.check()


# Real threads: an updater goes round eight objects, publishes the next one, and scribbles over the old one after the
# grace period. A reader that finds a scribbled object has used it after its grace period.
CURRENT, STOP, CAUGHT, SECTIONS, STARTED = 0, 8, 16, 24, 248
OBJECTS = 64  # eight of them, a cache line apart
ALIVE = 0x600D


@compiled(nogil=True)
def replace_objects(shared: Words, srcu: Words, readers: U64, times: U64, deadline: U64, skip: bool) -> U64:
    """``skip``: the broken updater, which does not wait."""
    slept = u64(0)
    done = u64(0)
    while done < times and now() < deadline:
        old = load_acquire(shared, u64(0))
        fresh = u64(64) + ((old - u64(56)) & u64(63))
        store_release(shared, fresh, u64(0x600D))
        store_release(shared, u64(0), fresh)
        cookie = srcu_start(srcu, u64(0))
        if not skip:
            slept += srcu_wait(srcu, u64(0), readers, cookie)
        store_release(shared, old, u64(0xDEAD))
        done += u64(1)
    store_release(shared, u64(8), u64(1))
    return slept


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Interpreted threads change places more often than every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Outcome(NamedTuple):
    used_after_free: int
    sections: int
    slept: int


def race(times: int, *, skip: bool) -> Outcome:
    """Up to ``times`` updates, or two seconds, under two readers."""
    srcu, shared = Srcu(3), words(256)
    poke(shared, CURRENT, OBJECTS)
    poke(shared, OBJECTS, ALIVE)
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
    slept = replace_objects(shared, srcu.words, srcu.readers, times, deadline, skip)
    for thread in threads:
        thread.join()
    srcu.check()
    return Outcome(peek(shared, CAUGHT), peek(shared, SECTIONS), slept)


@pytest.mark.slow
@pytest.mark.usefixtures("eager_switches")
def test_no_reader_sees_what_was_freed(sized: Callable[[int, int], int]) -> None:
    outcomes = [race(sized(500_000, 2_000), skip=False) for _ in range(5)]
    assert [outcome.used_after_free for outcome in outcomes] == [0] * 5
    assert all(outcome.sections for outcome in outcomes), outcomes


@pytest.mark.slow
@pytest.mark.usefixtures("eager_switches")
def test_an_updater_that_does_not_wait_is_caught(sized: Callable[[int, int], int]) -> None:
    """Proof that the test above can fail; in every order, it is the explorer's: mutants of the model ``srcu``."""
    until_met(lambda _: race(sized(100_000, 2_000), skip=True).used_after_free, "no reader met what was freed early")
