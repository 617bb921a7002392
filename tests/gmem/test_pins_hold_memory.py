"""A pin holds memory: all its pages or none, beyond holes, conversions and the file itself, until it lets go once."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from gmem_files import PAGE, errno_of
from guestmem import UsageError
from guestmem.gmem import GuestMemfd

Make = Callable[..., GuestMemfd]


def test_references_are_counted(make: Make) -> None:
    file = make(4)
    assert file.inode.references(1) == 0
    with file.mmap() as host:
        host[PAGE] = 1
        assert file.inode.references(1) == 1, "the mapping's"
        with file.pin(0, 2 * PAGE), file.pin(PAGE, PAGE):
            assert [file.inode.references(page) for page in range(3)] == [2, 3, 0]
            file.check()
        assert file.inode.references(1) == 1
    assert [file.inode.references(page) for page in range(2)] == [0, 0], "unmapped with the last mapping"


def test_all_or_none(make: Make) -> None:
    file = make(4)
    file.convert(2 * PAGE, PAGE, private=True)
    before = [file.inode.references(page) for page in range(4)]
    assert errno_of(lambda: file.pin(0, 4 * PAGE)) == errno.EFAULT
    file.inode.unmapped_if_unused()
    assert [file.inode.references(page) for page in range(4)] == before
    for offset, size in ((0, 0), (1, PAGE), (0, 5 * PAGE), (4 * PAGE, PAGE)):
        assert errno_of(lambda: file.pin(offset, size)) == errno.EINVAL  # noqa: B023


def test_a_pin_outlives_its_file() -> None:
    file = GuestMemfd(4 * PAGE, 3)
    inode = file.inode
    pin = file.pin(0, PAGE)
    file.close()
    pin.write(0, b"DMA")
    assert pin.read(0, 3) == b"DMA"
    pin.close()
    pin.close()
    with pytest.raises(ValueError, match="closed"):
        inode.backing.read(0, 1)
    with pytest.raises(UsageError, match="pin: it is closed"):
        pin.read(0, 1)


def test_a_mapping_outlives_its_file() -> None:
    file = GuestMemfd(4 * PAGE, 3)
    host = file.mmap()
    file.close()
    host[0] = 7
    assert host[0] == 7
    host.close()
    host.close()
    with pytest.raises(UsageError, match="mapping: it is closed"):
        _ = host[0]


def test_a_hole_beneath_a_pin(make: Make) -> None:
    file = make(4)
    with file.mmap() as host:
        host.write(0, b"A" * 2 * PAGE)
        with file.pin(0, 2 * PAGE) as pin:
            file.punch(PAGE, PAGE)
            assert host[PAGE] == 0
            assert pin.read(PAGE, 1) == b"A"
            file.check()
            file.convert(PAGE, PAGE, private=True)  # the new page is nobody's
            with pytest.raises(UsageError, match="is not within one page of 0 to 1"):
                pin.read(2 * PAGE, 1)
            with pytest.raises(UsageError, match="is not within one page"):
                pin.read(PAGE - 1, 2)
        file.check()
