"""Of two things wrong with a log ioctl the kernel names the first: rings, id, alignment, slot, range, memory."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import pytest

from abi_words import ARENA, BUFFER, EFAULT, EINVAL, ENOENT, ENXIO, OK, PAGE, Ask, pages_of

RING, MANUAL_PROTECT = 192, 168
PAGES = 130
LOGGED, UNLOGGED, ABSENT = 0, 1, 5
NOWHERE = 8


class Clear(NamedTuple):
    """Arguments of KVM_CLEAR_DIRTY_LOG."""

    slot: int = LOGGED
    num_pages: int = 64
    first_page: int = 0
    address: int = BUFFER
    pattern: int = 0


FAULTS: dict[str, tuple[int, dict[str, int]]] = {
    "id": (EINVAL, {"slot": 32764}),
    "address space": (EINVAL, {"slot": 1 << 16 | LOGGED}),
    "first page": (EINVAL, {"first_page": 1}),
    "no slot": (ENOENT, {"slot": ABSENT}),
    "no log": (ENOENT, {"slot": UNLOGGED}),
    "past the end": (EINVAL, {"num_pages": PAGES + 1}),
    "begins past the end": (EINVAL, {"first_page": 192, "num_pages": 0}),
    "odd number": (EINVAL, {"num_pages": 65}),
    "no memory": (EFAULT, {"address": NOWHERE}),
}
PAIRS = [(one, other) for one, other in combinations(FAULTS, 2) if not FAULTS[one][1].keys() & FAULTS[other][1].keys()]


@pytest.fixture
def logs(ask: Ask) -> Ask:
    if ask("extension", 118).result == 2:
        pytest.skip("this kernel has SMM's second address space")
    assert ask("region", LOGGED, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert ask("region", UNLOGGED, 0, 0x400000, PAGES * PAGE, ARENA).result == OK
    return ask


@pytest.mark.parametrize("pair", PAIRS, ids="; ".join)
def test_two_faults_of_a_clear(logs: Ask, pair: tuple[str, str]) -> None:
    (number, one), (_, other) = (FAULTS[name] for name in pair)
    assert logs("clear_log", *Clear(**one)).result == number
    assert logs("clear_log", *Clear(**one, **other)).result == number


@pytest.mark.parametrize("slot", [32764, 40000, 1 << 16, ABSENT, UNLOGGED])
def test_a_get_looks_at_the_slot_before_the_memory(logs: Ask, slot: int) -> None:
    expected = ENOENT if slot in {ABSENT, UNLOGGED} else EINVAL
    assert logs("get_log", slot, 0, NOWHERE).result == expected
    assert logs("get_log", LOGGED, 0, NOWHERE).result == EFAULT


def test_rings_come_before_everything(ask: Ask) -> None:
    assert ask("cap", RING, 0, 4096).result == OK
    for _, fault in FAULTS.values():
        assert ask("clear_log", *Clear(**fault)).result == ENXIO
        clear = Clear(**fault)
        assert ask("get_log", clear.slot, 0, clear.address).result == ENXIO


def test_no_pages_need_no_memory(logs: Ask) -> None:
    for first in (0, 64, 128):
        assert logs("clear_log", LOGGED, 0, first, NOWHERE, 0).result == OK
    assert logs("clear_log", LOGGED, 2, 128, NOWHERE, 0).result == EFAULT


@pytest.mark.parametrize("pages", [1, 63, 64, 65, 127, 128, 129])
def test_ranges_by_the_size_of_the_slot(ask: Ask, pages: int) -> None:
    """A naive oracle: it begins at a multiple of 64, within the slot, and ends at one, or where the slot does."""
    assert ask("region", 0, 1, 0, pages * PAGE, ARENA).result == OK
    for first in (0, 1, 63, 64, 65, 128, 192, pages):
        for count in (0, 1, 63, 64, 65, 128, pages - 1, pages, pages + 1, max(pages - first, 0)):
            ends = (first + count) % 64 == 0 or first + count == pages
            legal = first % 64 == 0 and first + count <= pages and ends
            assert ask("clear_log", 0, count, first, BUFFER, 0xFF).result == (OK if legal else EINVAL), (first, count)


def test_padding_is_not_looked_at(logs: Ask) -> None:
    answer = logs("get_log", LOGGED, 0xFFFFFFFF, BUFFER)
    assert answer.result == OK
    assert pages_of(answer.log) == set()


@pytest.mark.parametrize("manual", [0, 1])
def test_a_log_is_lost_with_its_memory_unless_protection_is_manual(ask: Ask, manual: int) -> None:
    assert ask("cap", MANUAL_PROTECT, 0, manual).result == OK
    assert ask("home").result == OK
    assert ask("region", LOGGED, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert ask("write", 3 * PAGE, 1).exits == ("done",)
    assert ask("get_log", LOGGED, 0, NOWHERE).result == EFAULT
    assert pages_of(ask("get_log", LOGGED, 0, BUFFER).log) == ({3} if manual else set())
    assert ask("write", 3 * PAGE, 1).exits == ("done",)  # without, it was protected again
    assert pages_of(ask("get_log", LOGGED, 0, BUFFER).log) == {3}


def test_a_clear_whose_memory_is_not_there_clears_nothing(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", LOGGED, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert ask("write", 3 * PAGE, 1).exits == ("done",)
    assert ask("clear_log", LOGGED, 64, 0, NOWHERE, 0).result == EFAULT
    assert pages_of(ask("get_log", LOGGED, 0, BUFFER).log) == {3}
