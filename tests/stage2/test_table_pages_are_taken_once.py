"""Table pages: each is taken by one, zeroed, given back once; running out is ENOMEM and changes nothing."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.atomics import exchange, peek, poke
from guestmem.compiled import U64, Own, Words, compiled, own, u64
from guestmem.errors import InvariantError, Stage2Error, UsageError
from guestmem.explore import load
from guestmem.stage2 import Pool
from guestmem.stage2.free_list import cache_drain, cache_put, cache_take, cache_topup
from guestmem.stage2.layout import (
    CACHE,
    CACHE_CAPACITY,
    CACHE_COUNT,
    COUNT,
    ENOMEM,
    LIMIT,
    OK,
    PAGE_SHIFT,
    PAGES,
    STRIDE,
)

BASE = 0x4000_0000


def shape(page_shift: int = 12, stride: int = 9) -> Own:
    made = own(48)
    made[int(PAGE_SHIFT)], made[int(STRIDE)] = page_shift, stride
    return made


@pytest.mark.parametrize("page_shift", [12, 14, 16])
def test_random_runs(page_shift: int, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    """Against a set of page numbers: every run aligned, zeroed, and of pages that nobody has."""
    pool = Pool(100, page_shift, base=BASE)
    held: dict[int, int] = {}
    full = 0
    for _ in range(sized(600, 150)):
        pages = {pool.page_of(address) + at for address, count in held.items() for at in range(count)}
        if held and rng.random() < 0.45:
            address = rng.choice(list(held))
            pool.free(address, held.pop(address))
            continue
        count = rng.choice([1, 1, 1, 2, 4, 8, 16])
        runs = [at for at in range(0, 100 - count + 1, count) if not pages & set(range(at, at + count))]
        try:
            address = pool.alloc(count)
        except Stage2Error as refused:
            full += 1
            if runs or refused.errno != errno.ENOMEM:
                raise
        else:
            assert pool.page_of(address) in runs
            assert all(pool.load(address, index) == 0 for index in (0, 1, (count << page_shift - 3) - 1))
            for index in (0, 1, (count << page_shift - 3) - 1):
                pool.store(address, index, rng.getrandbits(64))
            held[address] = count
        assert pool.used == sum(held.values())
        pool.check([address + (at << page_shift) for address, count in held.items() for at in range(count)])
    assert full
    for address, count in held.items():
        pool.free(address, count)
    pool.check([])
    assert pool.free_pages == 100


def test_enomem_names_what_is_left() -> None:
    pool = Pool(5, base=BASE)
    taken = [pool.alloc() for _ in range(5)]
    pool.free(taken[0])
    pool.free(taken[2])
    with pytest.raises(Stage2Error) as caught:
        pool.alloc(2)
    assert str(caught.value) == "ENOMEM: table pages: no 2 in a row are free, 2 of 5 pages are free in all"
    assert sorted(pool.alloc() for _ in range(2)) == [taken[0], taken[2]]
    pool.check(taken)


def test_caches_fill_before_and_hand_out_zeroed() -> None:
    pool, words = Pool(70, base=BASE), shape()
    for page in [pool.alloc() for _ in range(70)]:  # so that every page is dirty
        pool.store(page, 7, 1)
        pool.free(page)
    first, second = pool.desk(40), pool.desk(40)
    assert cache_topup(words, pool.words, pool.pages, first, 4) == OK
    assert first[int(CACHE_COUNT)] == 40
    assert cache_topup(words, pool.words, pool.pages, first, 40) == OK
    assert cache_topup(words, pool.words, pool.pages, second, 31) == ENOMEM
    assert second[int(CACHE_COUNT)] == 30  # what there was stays
    assert cache_topup(words, pool.words, pool.pages, second, 30) == OK
    held = pool.cached(first) + pool.cached(second)
    pool.check(held)
    assert pool.used == 70
    assert all(pool.load(page, index) == 0 for page in held for index in range(0, 512, 7))
    page = cache_take(second) - 1
    assert pool.address_of(int(page)) in held
    cache_put(second, page)
    assert sorted(pool.cached(first) + pool.cached(second)) == sorted(held)
    assert cache_drain(pool.pages, first)
    assert cache_drain(pool.pages, second)
    assert cache_take(second) == 0
    pool.check([])


def test_small_tables_zero_their_entries_only() -> None:
    pool = Pool(8, base=BASE)
    page = pool.alloc()
    for index in range(16):
        pool.store(page, index, 5)
    pool.free(page)
    desk = pool.desk(8)
    assert cache_topup(shape(12, 3), pool.words, pool.pages, desk, 8) == OK
    assert [pool.load(page, index) for index in range(16)] == [0] * 8 + [5] * 8


@compiled(nogil=True)
def hammer(shape: Own, pool: Words, pages: Words, desk: Own, number: U64, rounds: U64) -> U64:
    """Fill a cache, stamp its pages, see that the stamps stay, give all back; how often a page was somebody else's."""
    one = u64(1)
    wrong = u64(0)
    while rounds > 0:
        cache_topup(shape, pool, pages, desk, desk[CACHE_CAPACITY])
        at = u64(0)
        while at < desk[CACHE_COUNT]:
            if exchange(pool, desk[CACHE + at] << u64(9), number) != 0:
                wrong += one
            at += one
        at = u64(0)
        while at < desk[CACHE_COUNT]:
            if exchange(pool, desk[CACHE + at] << u64(9), u64(0)) != number:
                wrong += one
            at += one
        if not cache_drain(pages, desk):
            wrong += one
        rounds -= one
    return wrong


def test_two_threads_never_hold_the_same_page(sized: Callable[[int, int], int]) -> None:
    pool, words = Pool(64, base=BASE), shape(12, 3)
    wrong = [1, 1]
    begin = threading.Barrier(2)

    def work(number: int) -> None:
        desk = pool.desk(40)
        begin.wait()
        wrong[number] = int(hammer(words, pool.words, pool.pages, desk, 1 + number, sized(20000, 60)))

    hammer(words, pool.words, pool.pages, pool.desk(1), 1, 1)  # compiled before the start
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0, 0]
    pool.check([])


class Intruder:
    """A scheduler of the interpreted form that runs ``intrude`` just before the first write of a bit."""

    def __init__(self, bits: int, intrude: Callable[[], object]) -> None:
        self.bits, self.intrude, self.done = bits, intrude, False

    def step(self, operation: str, words: Any, index: int, first: int, second: int) -> int:
        if operation not in {"load_relaxed", "load_acquire"} and index == self.bits and not self.done:
            self.done = True
            self.intrude()
        seen: int = words.cells[index]
        match operation:
            case "store_relaxed" | "store_release":
                words.cells[index] = first
            case "compare_exchange":
                words.cells[index] = second if seen == first else seen
            case "fetch_add":
                words.cells[index] = seen + first
            case "fetch_or":
                words.cells[index] = seen | first
            case "load_relaxed" | "load_acquire":
                pass
            case _:
                raise AssertionError(operation)
        return seen


EXCHANGE = "seen = compare_exchange(pages, first + word, free, rest)"


@pytest.mark.parametrize("mutant", [False, True], ids=["as it is", "a store instead of the exchange"])
def test_a_topup_in_the_middle_of_another(mutant: bool) -> None:
    replaced = [("stage2/free_list.py", EXCHANGE, "store_relaxed(pages, first + word, rest)")]
    with load(replaced if mutant else []) as twin:
        free_list = twin.room("stage2.free_list")
        pool = twin.room("stage2.pool").Pool(16, base=BASE)
        first, second = pool.desk(6), pool.desk(6)
        words = twin.room("compiled").own(48)
        words[int(PAGE_SHIFT)], words[int(STRIDE)] = 12, 3

        def topup(desk: Own) -> None:
            assert free_list.cache_topup(words, pool.words, pool.pages, desk, 6) == 0

        intruder = Intruder(int(PAGES) + 8 * 16, lambda: topup(second))
        with twin.room("atomics").schedule(intruder):
            topup(first)
        assert intruder.done
        held = pool.cached(first) + pool.cached(second)
        assert len(held) == 12
        assert len(set(held)) == (6 if mutant else 12)
        if not mutant:
            pool.check(held)


def test_check_finds_corruption() -> None:
    def fresh() -> Pool:
        pool = Pool(70, base=BASE)
        pool.alloc(4)
        return pool

    pool = fresh()
    pool.check()
    first = 32 + 8 * 70
    for word, value, message in (
        (first + 1, peek(pool.pages, first + 1) | 1 << 6, "pool: page 70 is marked free, but there are 70"),
        (first, peek(pool.pages, first) | 2, "pool: 4 pages taken and not given, but 3 are not free"),
        (int(PAGES) + 8 * 9 + int(COUNT), 3, "pool: free page 0x40009000 has count 3, not 0"),
        (int(LIMIT), 69, "pool: limit is 69, not 70"),
    ):
        before = peek(pool.pages, word)
        poke(pool.pages, word, value)
        with pytest.raises(InvariantError) as caught:
            pool.check()
        assert str(caught.value) == message
        poke(pool.pages, word, before)
    held = [BASE + 0x1000 * at for at in range(4)]
    for wrong, message in (
        (held[:3], "pool: 1 table pages leaked, the first 0x40003000"),
        ([*held, held[1]], "pool: table page 0x40001000 is used twice"),
        ([*held, BASE + 0x9000], "pool: table page 0x40009000 is used, but was freed"),
    ):
        with pytest.raises(InvariantError) as caught:
            pool.check(wrong)
        assert str(caught.value) == message
    with pytest.raises(InvariantError, match="pool: one of 1 table pages at 0x40009000 was free already"):
        pool.free(BASE + 0x9000)


def test_bad_arguments() -> None:
    pool = Pool(8, base=BASE)
    for call, message in (
        (lambda: Pool(0), "limit: 0 table pages are not in 1..16777216"),
        (lambda: Pool(8, 13), "page_shift: 13 is not 12, 14 or 16"),
        (lambda: Pool(8, base=0x1000), "base: 0x1000 is not a multiple of 0x10000 with 8 pages below 0x10000000000"),
        (lambda: Pool(8, base=1 << 40), "base: 0x10000000000 is not a multiple of 0x10000 with 8 pages below"),
        (lambda: pool.alloc(3), "count: 3 is not 1, 2, 4, 8 or 16"),
        (lambda: pool.free(BASE + 0x8000), "address: 0x40008000 is not the start of a table page in Pool [0x40000000"),
        (lambda: pool.free(BASE + 8), "address: 0x40000008 is not the start of a table page"),
        (lambda: pool.free(BASE + 0x1000, 2), "count: 2 pages from 0x40001000 cannot come from one alloc"),
        (lambda: pool.load(BASE, 8 * 512), "index: 4096 from 0x40000000 leaves Pool"),
        (lambda: pool.load(BASE, -1), "index: -1 from 0x40000000 leaves Pool"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value).startswith(message)


@pytest.mark.compiled_only
def test_same_pages_in_both_forms(rng: random.Random) -> None:
    program = rng.getrandbits(64)
    with load() as twin:
        results = []
        for make in (Pool, twin.room("stage2.pool").Pool):
            steps, pool, log = random.Random(program), make(90, base=BASE), []
            held: list[tuple[int, int]] = []
            for _ in range(200):
                if held and steps.random() < 0.4:
                    pool.free(*held.pop(steps.randrange(len(held))))
                    continue
                count = steps.choice([1, 2, 4])
                try:
                    held.append((pool.alloc(count), count))
                    log.append(held[-1])
                except Stage2Error as error:
                    log.append((error.errno or 0, count))
            results.append(log)
        assert results[0] == results[1]
