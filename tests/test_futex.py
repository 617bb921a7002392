"""Waiting is sleeping: a thread that waits uses no processor, is woken, and never sleeps on a word that has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestmem.atomics import address_of, fetch_add, peek, poke, wait, wait_for, wake, wake_all
from guestmem.compiled import U64, Words, compiled, u64, words
from guestmem.futex import SYS_FUTEX

WORD, RETURNED = 0, 8
LIMIT = 200  # seconds until a test gives up; nothing here takes that long


@compiled(nogil=True)
def wait_once(words: Words, index: U64, expected: U64) -> None:
    wait(words, index, expected)
    fetch_add(words, u64(8), u64(1))


@compiled(nogil=True)
def wait_once_for(words: Words, index: U64, expected: U64, nanoseconds: U64) -> None:
    wait_for(words, index, expected, nanoseconds)


@compiled
def wake_some(words: Words, index: U64, count: U64) -> None:
    wake(words, index, count)


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.001)


@compiled
def address(words: Words, index: U64) -> U64:
    return address_of(words, index)


def asleep(thread: threading.Thread, shared: Words) -> bool:
    """Whether the thread sleeps in a futex call on WORD (and not, say, on the GIL)."""
    try:
        call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return False
    except OSError as error:
        pytest.skip(f"no /proc/.../syscall here: {error}")
    return call[0] == str(SYS_FUTEX) and int(call[1], 16) == address(shared, WORD)


@pytest.fixture
def shared() -> Iterator[Words]:
    # Pages of its own: on the heap, a late wake of a lock that was freed there (glibc does that) could reach the word.
    shared = words(8192)
    yield shared
    poke(shared, WORD, 99)
    wake_all(shared, WORD)


def sleeper(shared: Words, expected: int = 0) -> threading.Thread:
    thread = threading.Thread(target=wait_once, args=(shared, WORD, expected), daemon=True)
    thread.start()
    until(lambda: asleep(thread, shared))
    return thread


def test_a_waiting_thread_sleeps_until_it_is_woken(shared: Words) -> None:
    thread = sleeper(shared)
    assert peek(shared, RETURNED) == 0
    poke(shared, WORD, 1)
    assert thread.is_alive()  # a store alone wakes nobody
    wake_all(shared, WORD)
    thread.join(LIMIT)
    assert peek(shared, RETURNED) == 1


def test_wake_wakes_no_more_than_it_is_told(shared: Words) -> None:
    threads = [sleeper(shared), sleeper(shared)]
    wake_some(shared, WORD, 1)
    until(lambda: peek(shared, RETURNED) >= 1)
    until(lambda: any(asleep(thread, shared) for thread in threads if thread.is_alive()))
    assert peek(shared, RETURNED) == 1
    wake_all(shared, WORD)
    for thread in threads:
        thread.join(LIMIT)
    assert peek(shared, RETURNED) == 2


def test_waiting_on_another_word_is_not_woken(shared: Words) -> None:
    thread = sleeper(shared)
    wake_all(shared, RETURNED)
    until(lambda: asleep(thread, shared))
    assert peek(shared, RETURNED) == 0


def test_a_word_that_differs_is_not_waited_for(shared: Words) -> None:
    poke(shared, WORD, 7)
    wait_once(shared, WORD, 6)
    assert peek(shared, RETURNED) == 1


def test_only_the_low_half_is_compared(shared: Words) -> None:
    poke(shared, WORD, 7 << 32 | 5)
    wait_once(shared, WORD, 7 << 32 | 6)
    thread = sleeper(shared, expected=5)
    wake_all(shared, WORD)
    thread.join(LIMIT)
    assert peek(shared, RETURNED) == 2


@pytest.mark.parametrize("nanoseconds", [0, 1, 20_000_000, 1_100_000_000])
def test_a_timed_wait_ends_by_itself_and_not_before(shared: Words, nanoseconds: int) -> None:
    begun = time.monotonic_ns()
    wait_once_for(shared, WORD, 0, nanoseconds)
    assert time.monotonic_ns() - begun >= nanoseconds


def test_a_timed_wait_for_ever_is_woken(shared: Words) -> None:
    thread = threading.Thread(target=wait_once_for, args=(shared, WORD, 0, 2**64 - 1), daemon=True)
    thread.start()
    until(lambda: asleep(thread, shared))
    wake_all(shared, WORD)
    thread.join(LIMIT)
    assert not thread.is_alive()


def test_a_wait_lets_other_python_threads_run(shared: Words) -> None:
    """It gives the GIL away: this thread could not get here otherwise."""
    thread = sleeper(shared)
    assert sum(range(100_000)) == 4_999_950_000
    assert thread.is_alive()
