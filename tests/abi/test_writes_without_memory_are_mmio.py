"""A write where no slot is, or to a read-only one, is an MMIO exit; to host memory that is not mapped, EFAULT."""

from __future__ import annotations

from abi_words import ARENA, BUFFER, EFAULT, OK, PAGE, Ask, pages_of

UNMAPPED = 0x200000000000


def test_what_becomes_of_writes(ask: Ask) -> None:
    assert ask("home").result == OK
    assert ask("write", 0, 1).exits == ("mmio write 8 at 0x0", "done")
    assert ask("region", 0, 1, PAGE, PAGE, ARENA).result == OK
    assert ask("region", 1, 3, 2 * PAGE, PAGE, ARENA).result == OK
    assert ask("region", 2, 1, 4 * PAGE, PAGE, UNMAPPED).result == OK
    assert ask("write", 0, 4).exits == ("mmio write 8 at 0x0", "mmio write 8 at 0x2000, 2 pages", "done")
    assert ask("write", 4 * PAGE, 1).result == EFAULT
    assert pages_of(ask("get_log", 0, 0, BUFFER).log) == {0}
    assert pages_of(ask("get_log", 1, 0, BUFFER).log) == set()
    assert pages_of(ask("get_log", 2, 0, BUFFER).log) == set()
