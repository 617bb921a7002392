"""A dirty log has exactly the pages that a guest wrote since it was last taken, over moves and changes of flags."""

from __future__ import annotations

import pytest

from abi_words import ARENA, BUFFER, EFAULT, EINVAL, ENOENT, OK, PAGE, Ask, pages_of

PAGES = 130  # not a multiple of 64
MANUAL_PROTECT = 168


def taken(ask: Ask, slot: int = 0) -> set[int]:
    answer = ask("get_log", slot, 0, BUFFER)
    assert answer.result == OK
    return pages_of(answer.log)


def write(ask: Ask, *pages: int, base: int = 0) -> None:
    for page in pages:
        assert ask("write", (base + page) * PAGE, 1).exits == ("done",)


def test_what_was_written_once(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert taken(ask) == set()
    write(ask, 0, 63, 64, 129, 63)
    assert taken(ask) == {0, 63, 64, 129}
    assert taken(ask) == set()
    write(ask, 63)
    assert taken(ask) == {63}


def test_nothing_before_logging_and_nothing_after(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", 0, 0, 0, PAGES * PAGE, ARENA).result == OK
    write(ask, 5)
    assert ask("get_log", 0, 0, BUFFER).result == ENOENT
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert taken(ask) == set()
    write(ask, 5, 6)
    assert ask("region", 0, 0, 0, PAGES * PAGE, ARENA).result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert taken(ask) == set()  # switched off, the log is gone


def test_a_move_keeps_the_log(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    write(ask, 1, 100)
    assert ask("region", 0, 1, 0x400000, PAGES * PAGE, ARENA).result == OK
    write(ask, 7, base=0x400)
    assert taken(ask) == {1, 7, 100}


def test_delete_and_create_lose_the_log(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    write(ask, 1)
    assert ask("region", 0, 0, 0, 0, 0).result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert taken(ask) == set()


def test_initially_set(ask: Ask) -> None:
    assert ask("cap", MANUAL_PROTECT, 0, 3).result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert taken(ask) == set(range(PAGES))
    assert taken(ask) == set(range(PAGES))  # manual: reading clears nothing
    assert ask("clear_log", 0, 64, 64, BUFFER, 0xFF).result == OK
    assert taken(ask) == set(range(64)) | {128, 129}


def test_manual_protection_clears_what_is_cleared(ask: Ask) -> None:
    assert ask("cap", MANUAL_PROTECT, 0, 1).result == OK
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    write(ask, 1, 2, 129)
    assert taken(ask) == {1, 2, 129}
    assert ask("clear_log", 0, 2, 128, BUFFER, 0xFF).result == OK
    assert taken(ask) == {1, 2}
    write(ask, 129)
    assert ask("clear_log", 0, 64, 0, BUFFER, 0x02).result == OK
    assert taken(ask) == {2, 129}


@pytest.mark.parametrize(
    ("count", "first", "expected"),
    [
        (64, 0, OK), (0, 0, OK), (2, 128, OK), (130, 0, OK), (66, 64, OK), (0, 64, OK), (0, 128, OK),
        (1, 128, EINVAL), (3, 128, EINVAL), (63, 0, EINVAL), (65, 0, EINVAL), (64, 1, EINVAL), (64, 128, EINVAL),
        (0, 192, EINVAL), (131, 0, EINVAL), (0xFFFFFFFF, 0, EINVAL), (64, (1 << 64) - 64, EINVAL),
    ],
)  # fmt: skip
def test_ranges_to_clear(ask: Ask, count: int, first: int, expected: int) -> None:
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    assert ask("clear_log", 0, count, first, BUFFER, 0xFF).result == expected


def test_bad_ids_and_bad_memory(ask: Ask) -> None:
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    for kind, tail in (("get_log", (0,)), ("clear_log", (64, 0))):
        more = (0xFF,) if kind == "clear_log" else ()
        assert ask(kind, 1, *tail, BUFFER, *more).result == ENOENT
        assert ask(kind, 32764, *tail, BUFFER, *more).result == EINVAL
        assert ask(kind, 1 << 16, *tail, BUFFER, *more).result == EINVAL
        assert ask(kind, 0, *tail, 8, *more).result == EFAULT
    assert ask("clear_log", 1, 64, 1, BUFFER, 0).result == EINVAL  # alignment comes before the slot


def test_a_log_that_cannot_be_copied_out_is_lost(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, PAGES * PAGE, ARENA).result == OK
    write(ask, 3)
    assert ask("get_log", 0, 0, 8).result == EFAULT
    assert taken(ask) == set()


@pytest.mark.parametrize(
    ("argument", "expected"), [(0, OK), (1, OK), (3, OK), (2, EINVAL), (4, EINVAL), (1 << 63, EINVAL)]
)
def test_values_of_manual_protection(ask: Ask, argument: int, expected: int) -> None:
    assert ask("cap", MANUAL_PROTECT, 0, argument).result == expected
    assert ask("cap", MANUAL_PROTECT, 1, argument).result == EINVAL
