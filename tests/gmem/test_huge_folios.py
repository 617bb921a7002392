"""A huge folio has no shared page: it is split for the first, and joined again when the last is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gmem_files import PAGE, whole
from guestmem.gmem import GuestMemfd
from guestmem.memslots.slot import Slot

Make = Callable[..., GuestMemfd]
HUGE = 512


def orders(file: GuestMemfd) -> list[int]:
    """The order of each folio that is there, in order."""
    found, page = [], 0
    while page < file.inode.npages:
        order = file.inode.folio_order(page)
        if file.inode.folio(page):
            found.append(order)
        page += 1 << order
    return found


@pytest.mark.parametrize("generation", ["attributes", "shareability", "mappability"])
def test_split_and_joined(make: Make, generation: str) -> None:
    gone: list[tuple[int, int]] = []

    @contextmanager
    def invalidate(_slot: Slot, start: int, end: int, _kinds: str) -> Iterator[None]:
        gone.append((start, end))
        yield

    file = make(2 * HUGE, 1, states=generation, folio_size=2 << 20, invalidate=invalidate)
    slot = whole(file, base_gfn=0)
    file.fallocate(1, 0, 2 * HUGE * PAGE)
    assert orders(file) == [9, 9]
    assert file.guest_fault(slot, 7, private=True)[1:] == (7, 9)
    file.inode.backing.write(5 * PAGE, b"kept")
    file.convert(5 * PAGE, PAGE, private=False)
    assert gone[-1] == (0, HUGE), "the whole block's mappings go, though one page is converted"
    assert orders(file) == [0] * HUGE + [9]
    file.check()
    with file.mmap() as host:
        assert host.read(5 * PAGE, 4) == b"kept"
        file.convert(6 * PAGE, PAGE, private=False)
        file.convert(5 * PAGE, PAGE, private=True)
        assert orders(file) == [0] * HUGE + [9], "page 6 is shared still"
        file.convert(6 * PAGE, PAGE, private=True)
    assert orders(file) == [9, 9]
    assert (file.inode.count("splits"), file.inode.count("joins")) == (1, 1)
    assert file.inode.backing.read(5 * PAGE, 4) == b"kept"


def test_never_joined(make: Make) -> None:
    file = make(HUGE, 1, folio_size=2 << 20, joins=False)
    file.fallocate(1, 0, HUGE * PAGE)
    for _ in range(3):
        file.convert(0, PAGE, private=False)
        file.convert(0, PAGE, private=True)
    assert orders(file) == [0] * HUGE
    assert (file.inode.count("splits"), file.inode.count("joins")) == (1, 0)


def test_a_gibibyte(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make(HUGE * HUGE, 1, folio_size=1 << 30)
    word = file.inode.folio
    monkeypatch.setattr(file.inode.backing, "allocate", lambda _offset, _size: None)  # a GiB, but not for real
    file.fallocate(1, 0, PAGE)
    assert orders(file) == [18]
    file.convert(1 << 29, PAGE, private=False)
    assert word(0) == word(HUGE * HUGE - 1) == word(1 << 17)
    file.convert(1 << 29, PAGE, private=True)
    assert orders(file) == [18]


def test_a_block_that_is_not_whole_or_shared_has_pages(make: Make) -> None:
    file = make(HUGE + 7, 3, folio_size=2 << 20)
    file.fallocate(1, 0, 3 * PAGE)
    assert orders(file) == [0, 0, 0]
    file.convert(0, HUGE * PAGE, private=True)
    assert orders(file) == [0, 0, 0], "not all of its pages are there"
    file.fallocate(1, 0, (HUGE + 7) * PAGE)
    assert orders(file) == [0] * (HUGE + 7)
    file.convert(0, PAGE, private=False)
    file.convert(0, PAGE, private=True)
    assert orders(file) == [9] + [0] * 7, "now they are"


def test_a_hole_splits_what_reaches_out(make: Make) -> None:
    file = make(3 * HUGE, 1, folio_size=2 << 20)
    file.fallocate(1, 0, 3 * HUGE * PAGE)
    file.punch((HUGE - 1) * PAGE, (HUGE + 2) * PAGE)
    assert orders(file) == [0] * (HUGE - 1) + [0] * (HUGE - 1)
    assert file.inode.backing.resident == (2 * HUGE - 2) * PAGE
    file.punch(0, 3 * HUGE * PAGE)
    assert orders(file) == []
    file.fallocate(1, 0, PAGE)
    assert orders(file) == [9]


def test_poison_takes_the_folio(make: Make) -> None:
    file = make(HUGE, 1, folio_size=2 << 20)
    file.fallocate(1, 0, PAGE)
    file.poison(9)
    assert file.inode.poisoned(0, HUGE - 1) == list(range(HUGE))
