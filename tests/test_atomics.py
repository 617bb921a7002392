"""Atomic operations: none is lost between threads, and each does what a few lines of Python say, in both forms."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from chance import until_met
from guestmem import explore
from guestmem.atomics import (
    address_of,
    compare_exchange,
    exchange,
    fence,
    fetch_add,
    fetch_and,
    fetch_or,
    host_fetch_add,
    host_fetch_or,
    host_load,
    host_store,
    load_acquire,
    load_relaxed,
    peek,
    poke,
    store_relaxed,
    store_release,
)
from guestmem.compiled import U64, Own, Words, compiled, own, u64, words

MASK = 2**64 - 1
OPERATIONS = (
    *("load_relaxed", "load_acquire", "store_relaxed", "store_release", "compare_exchange", "exchange"),
    *("fetch_add", "fetch_and", "fetch_or", "host_load", "host_store", "host_fetch_add", "host_fetch_or", "fence"),
)


def in_threads(*calls: Callable[[], object]) -> None:
    """Run the calls at the same time; each starts when all threads are there."""
    meet = threading.Barrier(len(calls))
    threads = [threading.Thread(target=lambda call=call: (meet.wait(), call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@compiled(nogil=True)
def add_many(words: Words, index: U64, times: U64) -> None:
    done = u64(0)
    while done < times:
        fetch_add(words, index, u64(1))
        done += u64(1)


@compiled(nogil=True)
def add_many_to_host(words: Words, index: U64, times: U64) -> None:
    address = address_of(words, index)
    done = u64(0)
    while done < times:
        host_fetch_add(address, u64(1))
        done += u64(1)


@compiled(nogil=True)
def exchange_many(words: Words, index: U64, times: U64) -> None:
    done = u64(0)
    while done < times:
        seen = load_relaxed(words, index)
        if compare_exchange(words, index, seen, seen + u64(1)) == seen:
            done += u64(1)


@compiled(nogil=True)
def add_in_two_steps(words: Words, index: U64, times: U64) -> None:
    done = u64(0)
    while done < times:
        store_relaxed(words, index, load_relaxed(words, index) + u64(1))
        done += u64(1)


@pytest.mark.parametrize("function", [add_many, add_many_to_host, exchange_many])
def test_two_threads_lose_no_increment(function: Callable[..., None], sized: Callable[[int, int], int]) -> None:
    times = sized(10_000_000, 20_000)
    shared = words(8)
    in_threads(lambda: function(shared, 3, times), lambda: function(shared, 3, times))
    assert peek(shared, 3) == 2 * times


@pytest.mark.compiled_only
def test_increments_in_two_steps_are_lost() -> None:
    """Proof that the test above can fail here."""
    times = 100_000_000  # some 50 ms: enough that both threads run at once

    def lost(_: int) -> bool:
        shared = words(8)
        in_threads(*[partial(add_in_two_steps, shared, 3, times)] * 2)
        return peek(shared, 3) < 2 * times

    until_met(lost, "two threads that add in two steps met", minutes=0.5)


def oracle(memory: list[int], operation: str, index: int, first: int, second: int) -> int:
    """What ``operation`` does to ``memory`` and returns, in plain Python."""
    seen = memory[index]
    name = operation.removeprefix("host_")
    if name.startswith("store") or name == "exchange" or (name == "compare_exchange" and seen == first):
        memory[index] = second if name == "compare_exchange" else first
    if name.startswith("fetch"):
        memory[index] = {"add": (seen + first) & MASK, "and": seen & first, "or": seen | first}[name[6:]]
    return 0 if name == "fence" or name.startswith("store") else seen


@compiled
def run(words: Words, program: Own, length: U64, results: Own) -> None:
    """Each instruction: number of the operation, index, two operands."""
    at = u64(0)
    while at < length:
        operation = program[at << 2]
        index = program[(at << 2) + u64(1)]
        first = program[(at << 2) + u64(2)]
        second = program[(at << 2) + u64(3)]
        result = u64(0)
        if operation == 0:
            result = load_relaxed(words, index)
        elif operation == 1:
            result = load_acquire(words, index)
        elif operation == 2:
            store_relaxed(words, index, first)
        elif operation == 3:
            store_release(words, index, first)
        elif operation == 4:
            result = compare_exchange(words, index, first, second)
        elif operation == 5:
            result = exchange(words, index, first)
        elif operation == 6:
            result = fetch_add(words, index, first)
        elif operation == 7:
            result = fetch_and(words, index, first)
        elif operation == 8:
            result = fetch_or(words, index, first)
        elif operation == 9:
            result = host_load(address_of(words, index))
        elif operation == 10:
            host_store(address_of(words, index), first)
        elif operation == 11:
            result = host_fetch_add(address_of(words, index), first)
        elif operation == 12:
            result = host_fetch_or(address_of(words, index), first)
        else:
            fence()
        results[at] = result
        at += u64(1)


def random_program(rng: random.Random, size: int, length: int) -> list[tuple[int, int, int, int]]:
    values = [0, 1, 2, 1 << 31, 1 << 32, 1 << 63, MASK, rng.getrandbits(64)]
    return [
        (rng.randrange(len(OPERATIONS)), rng.randrange(size), rng.choice(values), rng.choice(values))
        for _ in range(length)
    ]


@pytest.mark.parametrize("round_", range(20))
def test_random_programs_give_the_same_memory_and_results_in_both_forms(round_: int, rng: random.Random) -> None:
    rng.seed(rng.random() + round_)
    size, length = 8, 500
    program = random_program(rng, size, length)
    memory = [0] * size
    expected = [oracle(memory, OPERATIONS[number], *operands) for number, *operands in program]

    shared, code, results = words(size), own(4 * length), own(length)
    for place, word in enumerate(word for instruction in program for word in instruction):
        code[place] = word
    run(shared, code, length, results)
    assert [int(results[at]) for at in range(length)] == expected
    assert [int(peek(shared, index)) for index in range(size)] == memory

    with explore.load() as twin:
        atomics, cells = twin.room("atomics"), twin.room("compiled").words(size)
        returned = [one_by_one(atomics, cells, OPERATIONS[number], *operands) for number, *operands in program]
        assert returned == expected
        assert list(cells.cells) == memory


def one_by_one(atomics: Any, cells: Any, operation: str, index: int, first: int, second: int) -> int:
    """Call one operation of the twin."""
    function = getattr(atomics, operation)
    if operation == "fence":
        return function() or 0
    place = (atomics.address_of(cells, index),) if operation.startswith("host") else (cells, index)
    operands = 0 if "load" in operation else 2 if operation == "compare_exchange" else 1
    return function(*place, *(first, second)[:operands]) or 0


def test_a_store_in_python_is_seen_by_a_load() -> None:
    shared = words(3)
    poke(shared, 2, MASK)
    assert [peek(shared, index) for index in range(3)] == [0, 0, MASK]


@pytest.mark.parametrize("count", [1, 7, 8, 1 << 13, 1 << 20])
def test_words_are_zero_and_start_a_cache_line(count: int, interpreted: bool) -> None:
    shared = words(count)
    assert len(shared) == count
    assert {peek(shared, 0), peek(shared, count // 2), peek(shared, count - 1)} == {0}
    if not interpreted:
        assert shared.ctypes.data % 64 == 0  # type: ignore[attr-defined]
