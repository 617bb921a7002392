"""A conversion changes all pages of its range or none, never waits, and says which page stood against it."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gmem_files import PAGE, errno_of, whole
from guestmem.errors import GuestMemfdError, SigbusError
from guestmem.gmem import GuestMemfd
from guestmem.memslots.slot import Slot
from guestmem.ranges import layout as at

Make = Callable[..., GuestMemfd]
TWO_STATES = ["attributes", "shareability"]


def guest_writes(file: GuestMemfd, slot: Slot, page: int, value: bytes, *, private: bool) -> None:
    found = file.guest_fault(slot, slot.base_gfn + page, private=private)
    file.inode.backing.write(found.page * PAGE, value)


def guest_reads(file: GuestMemfd, slot: Slot, page: int, *, private: bool) -> bytes:
    return file.inode.backing.read(file.guest_fault(slot, slot.base_gfn + page, private=private).page * PAGE, 1)


def states(file: GuestMemfd) -> str:
    return "".join(file.state(page)[0] for page in range(file.inode.npages))


@pytest.mark.parametrize("generation", TWO_STATES)
@pytest.mark.parametrize("flags", [1, 3])
def test_there_and_back(make: Make, generation: str, flags: int) -> None:
    """What was written stays over conversions; the host is shut out while the page is private."""
    file = make(1, flags, states=generation)
    slot, private = whole(file), flags == 1
    with file.mmap() as host:
        for value in (b"A", b"B", b"C"):
            if private:
                with pytest.raises(SigbusError):
                    host.write(0, b"?")
                with pytest.raises(SigbusError):
                    host.read(0, 1)
            else:
                host.write(0, value)
            guest_writes(file, slot, 0, value, private=private)
            private = not private
            file.convert(0, PAGE, private=private)
            assert guest_reads(file, slot, 0, private=private) == value
            if not private:
                assert host.read(0, 1) == value


@pytest.mark.parametrize("generation", TWO_STATES)
@pytest.mark.parametrize("target", range(4))
def test_only_the_target_changes(make: Make, generation: str, target: int) -> None:
    file = make(4, states=generation)
    slot = whole(file)
    with file.mmap() as host:
        for page in reversed(range(4)):
            host.write(page * PAGE, bytes([65 + page]))
        file.convert(target * PAGE, PAGE, private=True)
        assert states(file) == "".join("p" if page == target else "s" for page in range(4))
        for page in reversed(range(4)):
            assert guest_reads(file, slot, page, private=page == target) == bytes([65 + page])
            if page != target:
                assert host[page * PAGE] == 65 + page
        file.convert(target * PAGE, PAGE, private=False)
        assert host.read(target * PAGE, 1) == bytes([65 + target])


@pytest.mark.parametrize("flags", [1, 3])
def test_pages_that_are_not_there_are_converted(make: Make, flags: int) -> None:
    file = make(1, flags)
    to = flags == 3
    file.convert(0, PAGE, private=to)
    assert file.state(0) == ("private" if to else "shared")
    assert file.inode.backing.resident == 0


@pytest.mark.parametrize("touched", range(7))
def test_a_whole_file_of_which_two_pages_are_there(make: Make, touched: int) -> None:
    file = make(8)
    slot = whole(file)
    with file.mmap() as host:
        for page in (touched, touched + 1):
            host.write(page * PAGE, b"A")
        file.convert(0, 8 * PAGE, private=True)
        assert states(file) == "p" * 8
        for page in range(8):
            file.convert(page * PAGE, PAGE, private=False)
            assert host.read(page * PAGE, 1) == (b"A" if page in {touched, touched + 1} else b"\0")
            assert guest_reads(file, slot, page, private=False) == (b"A" if page in {touched, touched + 1} else b"\0")


@pytest.mark.parametrize("generation", TWO_STATES)
def test_a_hole_keeps_the_state(make: Make, generation: str) -> None:
    file = make(1, states=generation)
    slot = whole(file)
    with file.mmap() as host:
        host.write(0, b"A")
        file.punch(0, PAGE)
        assert (file.state(0), host[0]) == ("shared", 0)
        file.convert(0, PAGE, private=True)
        guest_writes(file, slot, 0, b"B", private=True)
        file.punch(0, PAGE)
        assert file.state(0) == "private"
        assert guest_reads(file, slot, 0, private=True) == b"\0"


@pytest.mark.parametrize("generation", TWO_STATES)
@pytest.mark.parametrize("pinned", range(4))
def test_a_pinned_page_refuses_all(make: Make, generation: str, pinned: int) -> None:
    file = make(4, states=generation)
    slot = whole(file)
    with file.mmap() as host:
        host.write(pinned * PAGE, b"B")
        pin = file.pin(pinned * PAGE, PAGE)
        for offset, size in ((0, 4 * PAGE), (pinned * PAGE, PAGE)):
            with pytest.raises(GuestMemfdError) as caught:
                file.convert(offset, size, private=True)
            assert (caught.value.errno, caught.value.error_offset) == (errno.EAGAIN, pinned * PAGE)
            assert states(file) == "ssss"
            file.check()
        for page in set(range(4)) - {pinned}:
            file.convert(page * PAGE, PAGE, private=True)
            guest_writes(file, slot, page, b"C", private=True)
        assert host[pinned * PAGE] == ord("B"), "unmapped, and faulted again"
        pin.close()
        file.convert(0, 4 * PAGE, private=True)
        assert states(file) == "pppp"
        for page in range(4):
            assert guest_reads(file, slot, page, private=True) == (b"B" if page == pinned else b"C")
    assert file.inode.count("refusals") == 2


def test_nothing_to_do_succeeds_even_if_pinned(make: Make) -> None:
    file = make(4)
    with file.pin(0, 4 * PAGE):
        file.convert(0, 4 * PAGE, private=False)
        assert file.inode.count("conversions") == 0


def test_only_the_way_to_private_looks_at_references(make: Make) -> None:
    """In a mixed range, every page that is there is looked at, also those that are private already."""
    file = make(4)
    file.convert(0, PAGE, private=True)
    with file.pin(3 * PAGE, PAGE):
        file.convert(0, 2 * PAGE, private=False)
        assert states(file) == "ssss"


@pytest.mark.parametrize(("generation", "expected"), [("attributes", []), ("shareability", ["both"])])
def test_what_a_refused_conversion_costs_the_guest(make: Make, generation: str, expected: list[str]) -> None:
    gone: list[str] = []

    @contextmanager
    def invalidate(_slot: Slot, _start: int, _end: int, kinds: str) -> Iterator[None]:
        gone.append(kinds)
        yield

    file = make(4, states=generation, invalidate=invalidate)
    whole(file)
    with file.pin(0, PAGE):
        assert errno_of(lambda: file.convert(0, 4 * PAGE, private=True)) == errno.EAGAIN
    assert gone == expected
    file.convert(0, 4 * PAGE, private=True)
    assert gone[len(expected) :] == (["shared"] if generation == "attributes" else ["both"])
    file.convert(0, 4 * PAGE, private=False)
    assert gone[-1] == ("private" if generation == "attributes" else "both")


@pytest.mark.parametrize("generation", [*TWO_STATES, "mappability"])
@pytest.mark.parametrize(
    ("offset", "size"),
    [
        *((0, 0), (1, PAGE), (0, PAGE + 1), (0, 1), (PAGE // 2, PAGE // 2), (4 * PAGE, PAGE), (0, 5 * PAGE)),
        *((8 * PAGE, PAGE), ((1 << 64) - PAGE, PAGE), ((1 << 64) - PAGE, 2 * PAGE), (2 * PAGE, -PAGE), (-PAGE, PAGE)),
    ],
)
def test_ranges_that_cannot_be(make: Make, generation: str, offset: int, size: int) -> None:
    file = make(4, states=generation)
    if generation == "shareability" and size == 0:
        file.convert(offset, size, private=True)
    else:
        assert errno_of(lambda: file.convert(offset, size, private=True)) == errno.EINVAL
    assert set(states(file)) <= {"s", "a"}


def test_the_ioctl_checks_in_order(make: Make) -> None:
    file = make(4)
    for arguments, line in (
        ((0, PAGE, 1, 1, (1,)), "flags 0x1 are not 0"),
        ((0, PAGE, 1, 0, (0, 1)), "reserved [0, 1] are not all 0"),
        ((0, PAGE, 1), "attributes 0x1 are not of 0x8"),
        ((0, 0, 8), "is empty, reversed, or wraps"),
        ((1, PAGE, 8), "are not multiples of 0x1000"),
        ((0, 5 * PAGE, 8), "passes the file's 0x4000"),
    ):
        with pytest.raises(GuestMemfdError) as caught:
            file.set_memory_attributes2(*arguments)
        assert caught.value.errno == errno.EINVAL
        assert caught.value.error_offset is None
        assert str(caught.value).endswith(line)
    file.set_memory_attributes2(0, PAGE, 8)
    assert states(file) == "psss"
    plain = make(4, private_vm=False)
    assert errno_of(lambda: plain.set_memory_attributes2(0, PAGE, 8)) == errno.EINVAL
    other = make(4, states="shareability")
    assert errno_of(lambda: other.set_memory_attributes2(0, PAGE, 8)) == errno.ENOTTY


@pytest.mark.parametrize("offset", [0, PAGE, 512 * PAGE])
@pytest.mark.parametrize("size", [PAGE, 512 * PAGE])
@pytest.mark.parametrize("holes", [False, True])
def test_ranges_amid_other_pages(make: Make, offset: int, size: int, holes: bool) -> None:
    """4 KiB and 2 MiB, at and beside their alignment: neighbours keep bytes and state, odd pages flip back."""
    pages = 1100
    file = make(pages)
    slot, first, end = whole(file), offset // PAGE, (offset + size) // PAGE
    near = sorted({0, first, end - 1, end, end + 1, pages - 1} | {abs(first - 1), min(first + 1, pages - 1)})
    with file.mmap() as host:
        for page in near:
            host.write(page * PAGE, bytes([1 + page % 200]))
        file.convert(offset, size, private=True)
        if holes:
            file.punch(offset, size)
            file.fallocate(1, offset, size)
        for page in near:
            inside = first <= page < end
            old = 0 if inside and holes else 1 + page % 200
            assert guest_reads(file, slot, page, private=inside) == bytes([old])
            if inside:
                guest_writes(file, slot, page, b"\xee", private=True)
            else:
                assert host[page * PAGE] == old
        for page in range(first + 1, min(end, first + 8), 2):
            file.convert(page * PAGE, PAGE, private=False)
            assert file.state(page) == "shared"
            assert file.state(page - 1) == "private"
        file.convert(offset, size, private=False)
        assert host[offset] == 0xEE


@pytest.mark.parametrize("generation", [*TWO_STATES, "mappability"])
def test_no_node_for_the_states_leaves_every_byte(make: Make, generation: str, rng: random.Random) -> None:
    """With room for 0, 1, 2 … nodes of the range map: ENOMEM with the offset, every word as before."""
    file = make(400, states=generation)
    for page in range(0, 400, 3):
        file.convert(page * PAGE, PAGE, private=True)
    ranges, desk = file.inode.states, file.inode.states._desk
    refused = done = 0
    for room in range(0, 130, 3):
        first = rng.randrange(300)
        free = int(desk[int(at.FREE_COUNT)]) + (int(desk[int(at.END)]) - int(desk[int(at.NEXT)])) // at.node_words(30)
        desk[int(at.RESERVED)] = max(free - room, 0)  # all but `room` nodes are set aside
        before = list(ranges), words_of(file)
        try:
            file.convert(first * PAGE, 40 * PAGE, private=bool(room & 1))
        except GuestMemfdError as error:
            refused += 1
            assert (error.errno, error.error_offset) == (errno.ENOMEM, first * PAGE)  # noqa: PT017 - it may succeed
            assert (list(ranges), words_of(file)) == before
        else:
            done += 1
        desk[int(at.RESERVED)] = 0
        file.check()
    assert refused
    assert done


def words_of(file: GuestMemfd) -> bytes:
    """The inode's lock and the words of its pages; SRCU's epochs and what was counted are beside them."""
    words: Any = file.inode.words
    all_words = bytes(getattr(words, "cells", words))
    return all_words[:64] + all_words[-16 * file.inode.npages :]


@pytest.mark.parametrize("failing", ["allocate", "punch"])
def test_memory_that_fails(make: Make, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Each call for memory fails once: a fault, a pin and a hole are refused, and folios are as they were."""
    file = make(8)
    slot = whole(file)
    with file.mmap() as host:
        host.write(0, b"A")
        before = [file.inode.folio(page) for page in range(8)]

        def fails(_offset: int, _size: int) -> None:
            raise GuestMemfdError(errno.ENOMEM, "guest_memfd: no memory")

        monkeypatch.setattr(file.inode.backing, failing, fails)
        calls: list[Callable[[], object]] = (
            [
                lambda: host.read(PAGE, 1),
                lambda: file.guest_fault(slot, 0x102, private=False),
                lambda: file.pin(0, 4 * PAGE),
                lambda: file.fallocate(1, PAGE, 2 * PAGE),
            ]
            if failing == "allocate"
            else [lambda: file.punch(4 * PAGE, PAGE)]
        )
        for call in calls:
            assert errno_of(call) == errno.ENOMEM
            assert [file.inode.folio(page) for page in range(8)] == before
            file.check()
        monkeypatch.undo()
        assert host[PAGE] == 0


def test_fallocate_keeps_what_it_has_committed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    file, allocate = make(8), None
    allocate = file.inode.backing.allocate

    def three_pages(offset: int, size: int) -> None:
        if offset + size > 3 * PAGE:
            raise GuestMemfdError(errno.ENOMEM, "guest_memfd: no memory")
        allocate(offset, size)

    monkeypatch.setattr(file.inode.backing, "allocate", three_pages)
    assert errno_of(lambda: file.fallocate(1, 0, 8 * PAGE)) == errno.ENOMEM
    assert [file.inode.folio(page) != 0 for page in range(8)] == [True] * 3 + [False] * 5
