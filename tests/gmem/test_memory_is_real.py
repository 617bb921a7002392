"""A file's memory is the system's: committed when touched or allocated, given back by holes, zero when it is back."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from gmem_files import PAGE, errno_of, whole
from guestmem.errors import GuestMemfdError, SigbusError
from guestmem.gmem import GuestMemfd

Make = Callable[..., GuestMemfd]
KEEP, PUNCH = 1, 2


def resident_of_this_process(file: GuestMemfd) -> int:
    """Bytes of the file that this process has mapped and committed; the system walks its tables, and counts exactly."""
    here, found = False, 0
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            first = line.split(None, 1)[0]
            if not first.endswith(":"):
                here = int(first.partition("-")[0], 16) == file.inode.backing.address
            elif here and first == "Rss:":
                found += int(line.split()[1]) << 10
    return found


def test_nothing_is_committed_until_it_is_touched(make: Make) -> None:
    file = make(1 << 20)  # 4 GiB
    assert file.inode.backing.resident == 0
    with file.mmap() as host:
        host[5 * PAGE] = 1
        host[(1 << 19) * PAGE] = 1
    assert file.inode.backing.resident == 2 * PAGE


def test_holes_give_memory_back(make: Make) -> None:
    pages = 4096
    file = make(pages)
    assert resident_of_this_process(file) == 0
    with file.mmap() as host:
        for page in range(0, pages, 2):
            host[page * PAGE] = 1
        file.fallocate(KEEP, 0, pages * PAGE)
        assert file.inode.backing.resident == pages * PAGE
        used = resident_of_this_process(file)
        assert used >= pages // 2 * PAGE
        file.punch(PAGE, (pages - 2) * PAGE)
        assert file.inode.backing.resident == 2 * PAGE
        assert resident_of_this_process(file) <= used - (pages // 2 - 1) * PAGE
        assert host[0] == 1
        assert host[2 * PAGE] == 0


def test_a_hole_reads_as_zero_and_leaves_its_neighbours(make: Make) -> None:
    file = make(4)
    with file.mmap() as host:
        host.write(0, b"\xaa" * 4 * PAGE)
        file.punch(PAGE, PAGE)
        assert host.read(0, 4 * PAGE) == b"\xaa" * PAGE + bytes(PAGE) + b"\xaa" * 2 * PAGE
        host.write(PAGE, b"\xbb" * PAGE)
        file.fallocate(KEEP, PAGE, PAGE)
        assert host.read(PAGE, PAGE) == b"\xbb" * PAGE, "memory that is there is left alone"


def test_fallocate_answers(make: Make) -> None:
    file = make(4)
    file.fallocate(KEEP, 0, 4 * PAGE)
    for mode, offset, length, number in (
        (KEEP | PUNCH, PAGE - 1, PAGE, errno.EINVAL),
        (KEEP, 4 * PAGE, PAGE, errno.EINVAL),
        (KEEP, 5 * PAGE, PAGE, errno.EINVAL),
        (KEEP, 3 * PAGE, 2 * PAGE, errno.EINVAL),
        (KEEP | PUNCH, 0, PAGE - 1, errno.EINVAL),
        (KEEP, 0, 0, errno.EINVAL),
        (KEEP, -PAGE, PAGE, errno.EINVAL),
        (KEEP, 0, -PAGE, errno.EINVAL),
        (0, 0, PAGE, errno.EOPNOTSUPP),
        (PUNCH, 0, PAGE, errno.EOPNOTSUPP),
        (KEEP | 0x10, 0, PAGE, errno.EOPNOTSUPP),
        (KEEP | PUNCH, (1 << 63) - PAGE, PAGE, errno.EFBIG),
    ):
        assert errno_of(lambda: file.fallocate(mode, offset, length)) == number, (mode, offset, length)  # noqa: B023
        assert file.inode.backing.resident == 4 * PAGE
    file.punch(4 * PAGE, PAGE)
    file.punch(8 * PAGE, PAGE)
    assert file.inode.backing.resident == 4 * PAGE
    file.punch(2 * PAGE, PAGE)
    assert file.inode.backing.resident == 3 * PAGE
    file.fallocate(KEEP, 2 * PAGE, PAGE)
    assert file.inode.backing.resident == 4 * PAGE


@pytest.mark.parametrize("offset", [0, 1, PAGE])
@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1])
def test_holes_are_of_whole_pages(make: Make, offset: int, length: int) -> None:
    file = make(4)
    file.fallocate(KEEP, 0, 4 * PAGE)
    if offset % PAGE == 0 and length % PAGE == 0:
        file.punch(offset, length)
        assert file.inode.backing.resident == 3 * PAGE
    else:
        assert errno_of(lambda: file.punch(offset, length)) == errno.EINVAL
        assert file.inode.backing.resident == 4 * PAGE


@pytest.mark.parametrize(("flags", "number"), [(0, errno.ENODEV), (2, errno.ENODEV)])
def test_no_mapping_without_the_flag(make: Make, flags: int, number: int) -> None:
    assert errno_of(make(4, flags).mmap) == number


def test_mappings(make: Make) -> None:
    assert errno_of(lambda: make(4).mmap(shared=False)) == errno.EINVAL
    with make(4, 1).mmap() as host, pytest.raises(SigbusError, match="page 2 is private"):
        host.read(2 * PAGE, 1)
    with make(4).mmap(0, 16 * PAGE) as host:
        host.write(3 * PAGE, b"\xaa" * PAGE)
        with pytest.raises(SigbusError, match="page 4 is past the end of the file"):
            host.write(4 * PAGE - 8, b"\xbb" * 16)
        assert host.read(4 * PAGE - 16, 16) == b"\xaa" * 8 + b"\xbb" * 8, "what came before is written"


def test_host_and_guest_see_one_memory(make: Make) -> None:
    file = make(4)
    slot = whole(file)
    with file.mmap() as host:
        host.write(PAGE, b"\xaa" * 8)
        page = file.guest_fault(slot, 0x101, private=False).page
        assert file.inode.backing.read(page * PAGE, 8) == b"\xaa" * 8
        file.inode.backing.write(page * PAGE, b"\xff" * 8)
        assert host.read(PAGE, 8) == b"\xff" * 8


def test_poison(make: Make) -> None:
    file = make(4)
    slot = whole(file)
    with file.mmap() as host:
        assert errno_of(lambda: file.poison(1)) == errno.ENOENT
        host[PAGE] = 1
        file.poison(1)
        with pytest.raises(SigbusError, match="page 1 is poisoned"):
            host.read(PAGE, 1)
        with pytest.raises(GuestMemfdError, match=r"^EHWPOISON: guest_memfd: page 1 is poisoned$") as caught:
            file.guest_fault(slot, 0x101, private=False)
        assert caught.value.errno == 133
        assert errno_of(lambda: file.pin(PAGE, PAGE)) == 133
        assert host[0] == 0
        file.check()
        file.punch(PAGE, PAGE)
        assert host[PAGE] == 0


def test_a_policy_says_where_new_pages_lie(make: Make) -> None:
    file = make(8)
    assert file.policy(0) == ("default", ())
    file.set_policy(0, 4 * PAGE, "bind", [1])
    file.set_policy(4 * PAGE, 4 * PAGE, "interleave", [0, 2])
    file.fallocate(KEEP, 0, 6 * PAGE)
    assert [file.node(page) for page in range(8)] == [1, 1, 1, 1, 0, 2, None, None]
    file.set_policy(0, PAGE, "preferred", [3])
    assert file.node(0) == 1, "no page is moved"
    file.fallocate(KEEP, 0, PAGE)
    assert file.node(0) == 1
    file.punch(0, PAGE)
    assert file.node(0) is None
    file.fallocate(KEEP, 0, PAGE)
    assert file.node(0) == 3
    file.set_policy(0, 8 * PAGE, "default")
    assert file.policy(5) == ("default", ())
    for mode, nodes in (("bind", []), ("default", [1]), ("bind", [64]), ("nearby", [0])):
        assert errno_of(lambda: file.set_policy(0, PAGE, mode, nodes)) == errno.EINVAL  # noqa: B023
