"""Mappability waits for the last put, calls back once, and has the hazards for which it was not taken."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from gmem_files import PAGE, errno_of, whole
from guestmem import CapabilityError
from guestmem.errors import GuestMemfdError, MemoryFaultError
from guestmem.gmem import GuestMemfd

Make = Callable[..., GuestMemfd]


@pytest.fixture
def file(make: Make) -> GuestMemfd:
    return make(4, states="mappability")


def states(file: GuestMemfd) -> list[str]:
    return [file.state(page) for page in range(file.inode.npages)]


def test_without_references_a_page_is_the_guests_at_once(file: GuestMemfd) -> None:
    file.convert(0, 4 * PAGE, private=True)
    assert states(file) == ["guest"] * 4
    file.convert(PAGE, PAGE, private=False)
    assert states(file) == ["guest", "all", "guest", "guest"]


def test_the_last_put_makes_it_the_guests(file: GuestMemfd) -> None:
    one, two = file.pin(PAGE, 2 * PAGE), file.pin(2 * PAGE, PAGE)
    file.convert(0, 4 * PAGE, private=True)
    assert states(file) == ["guest", "none", "none", "guest"]
    one.close()
    assert states(file) == ["guest", "guest", "none", "guest"]
    two.close()
    assert states(file) == ["guest"] * 4


def test_shared_again_before_the_last_put(file: GuestMemfd) -> None:
    """The callback is not for this page any more: it stays everybody's."""
    pin = file.pin(0, PAGE)
    file.convert(0, PAGE, private=True)
    file.convert(0, PAGE, private=False)
    pin.close()
    assert states(file) == ["all"] * 4
    file.check()


def test_a_mapped_page_cannot_be_registered(file: GuestMemfd) -> None:
    """The steps one by one: unshare leaves mappings alone, so the caller unmaps, and tries again."""
    steps, inode = file.mappability(), file.inode
    host = file.mmap()
    host[PAGE] = 1
    assert steps.unshare(inode, 0, 3) == [1]
    assert states(file) == ["guest", "none", "guest", "guest"]
    with pytest.raises(GuestMemfdError, match="page 1 is mapped: no callback can be registered") as caught:
        steps.register(inode, 0, 3)
    assert (caught.value.errno, caught.value.error_offset) == (errno.EAGAIN, PAGE)
    host.close()
    steps.register(inode, 0, 3)
    assert states(file) == ["guest"] * 4


def test_hazard_a_pin_makes_a_page_wait_without_bound(file: GuestMemfd) -> None:
    """Neither host nor guest can have it, for as long as the pin lives; attributes answer EAGAIN instead."""
    slot = whole(file)
    with file.pin(0, PAGE):
        file.convert(0, PAGE, private=True)
        for private in (False, True):
            with pytest.raises(MemoryFaultError):
                file.guest_fault(slot, 0x100, private=private)
        assert errno_of(lambda: file.pin(0, PAGE)) == errno.EFAULT
    assert file.guest_fault(slot, 0x100, private=True).page == 0


def test_hazard_a_pin_goes_on_writing_what_is_on_its_way_to_private(file: GuestMemfd) -> None:
    with file.pin(0, PAGE) as pin:
        file.convert(0, PAGE, private=True)
        pin.write(0, b"late")
    assert (file.state(0), file.inode.backing.read(0, 4)) == ("guest", b"late")


def test_hazard_a_hole_makes_private_pages_everybodys(file: GuestMemfd) -> None:
    slot = whole(file)
    file.convert(0, 4 * PAGE, private=True)
    file.punch(PAGE, PAGE)
    assert states(file) == ["guest", "all", "guest", "guest"]
    page = file.guest_fault(slot, 0x101, private=True).page
    file.inode.backing.write(page * PAGE, b"secret")  # the guest believes that it is private still
    with file.mmap() as host:
        assert host.read(PAGE, 6) == b"secret"


def test_hazard_more_memory_than_the_file_has(file: GuestMemfd) -> None:
    """Share, pin, unshare, punch, allocate: the file has a new page while the old one is still held."""
    with file.mmap() as host:
        host.write(0, b"old")
    pin = file.pin(0, PAGE)
    file.convert(0, PAGE, private=True)
    assert file.state(0) == "none"
    file.punch(0, PAGE)
    file.fallocate(1, 0, 4 * PAGE)
    assert file.inode.backing.resident + PAGE * len(pin.left) == 5 * PAGE
    assert pin.read(0, 3) == b"old"
    with file.mmap() as host:
        assert host.read(0, 3) == b"\0\0\0"
        pin.write(0, b"new")
        assert host.read(0, 3) == b"\0\0\0", "the device writes to memory that nobody else has"
    pin.close()
    assert file.state(0) == "all"


def test_other_generations_have_no_such_steps(make: Make) -> None:
    with pytest.raises(CapabilityError, match="states are of attributes, not of mappability"):
        make(1).mappability()
