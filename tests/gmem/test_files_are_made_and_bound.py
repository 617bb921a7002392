"""Creation, binding, unbinding and close answer as the kernel does: its errno, and nothing changed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from gmem_files import PAGE, errno_of, whole
from guestmem import UsageError
from guestmem.abi.versions import VERSIONS
from guestmem.errors import GuestMemfdError
from guestmem.gmem import GuestMemfd
from guestmem.memslots.slot import Slot

Make = Callable[..., GuestMemfd]


def slot(number: int, npages: int, base_gfn: int = 0) -> Slot:
    return Slot(0, number, base_gfn, npages, 0)


@pytest.mark.parametrize("size", [0, 1, 8, PAGE - 1, PAGE + 1, -PAGE, 1 << 63, (1 << 64) - PAGE])
def test_sizes_that_cannot_be(size: int) -> None:
    assert errno_of(lambda: GuestMemfd(size)) == errno.EINVAL


@pytest.mark.parametrize("known", sorted({version.gmem_flags for version in VERSIONS}))
def test_each_flag_alone(known: int) -> None:
    for bit in range(64):
        if known >> bit & 1:
            GuestMemfd(PAGE, 1 << bit, known=known).close()
        else:
            assert errno_of(lambda: GuestMemfd(PAGE, 1 << bit, known=known)) == errno.EINVAL  # noqa: B023


def test_flags_are_looked_at_before_the_size() -> None:
    with pytest.raises(GuestMemfdError, match=r"^EINVAL: guest_memfd: flags 0x4 are not of 0x3$"):
        GuestMemfd(1, 4)


@pytest.mark.parametrize("offset", [1, 8, PAGE - 1, 4 * PAGE, 1 << 63, (1 << 64) - PAGE])
def test_offsets_that_cannot_be_bound(make: Make, offset: int) -> None:
    file = make(4)
    assert errno_of(lambda: file.bind(slot(0, 1), offset)) == errno.EINVAL
    assert errno_of(lambda: file.bind(slot(0, 5), 0)) == errno.EINVAL
    file.bind(slot(0, 4), 0)


def test_a_sum_from_2_to_the_63_on_passes(make: Make) -> None:
    """It is a loff_t, and negative; what it names has no pages, and a fault there is EFAULT."""
    file = make(4)
    file.bind(slot(0, 2), (1 << 63) - 2 * PAGE)
    file.bind(slot(1, 4, 16), 0)
    assert errno_of(lambda: file.get_pfn(slot(0, 2), 1)) == errno.EFAULT
    file.unbind(0)


@pytest.mark.parametrize("number", sorted({version.gmem_overlap_errno for version in VERSIONS}))
def test_a_page_is_bound_once(make: Make, number: int) -> None:
    file = make(8, overlap_errno=number)
    file.bind(slot(0, 4), 0)
    for first, count in ((0, 4), (3, 1), (2, 4), (0, 8)):
        assert errno_of(lambda: file.bind(slot(1, count, 16), first * PAGE)) == number  # noqa: B023
        file.check()
    file.bind(slot(1, 4, 16), 4 * PAGE)
    file.unbind(0)
    file.bind(slot(2, 2, 0), PAGE)
    assert list(file.bindings.overlapping(0, 8)) == [(slot(2, 2), 0, 2), (slot(1, 4, 16), 16, 20)]


def test_one_that_is_bound_can_only_go(make: Make) -> None:
    file = make(8)
    bound = slot(3, 2)
    file.bind(bound, 0)
    assert errno_of(lambda: file.bind(bound, 4 * PAGE)) == errno.EINVAL
    file.unbind(3)
    assert errno_of(lambda: file.unbind(3)) == errno.EINVAL


def test_a_file_of_another_vm(make: Make) -> None:
    file = make(4, vm="one")
    assert errno_of(lambda: file.bind(slot(0, 4), 0, vm="another")) == errno.EINVAL
    file.bind(slot(0, 4), 0, vm="one")


def test_a_frame_is_a_page_by_its_slot(make: Make) -> None:
    file = make(8)
    bound = slot(5, 3, 0x1000)
    file.bind(bound, 4 * PAGE)
    assert file.get_pfn(bound, 0x1002, private=False).page == 6
    assert file.get_pfn(bound, 0x1002, private=False).address == file.inode.backing.address + 6 * PAGE
    assert errno_of(lambda: file.get_pfn(bound, 0x1003)) == errno.EIO
    assert errno_of(lambda: file.get_pfn(slot(6, 1), 0)) == errno.EIO


def test_closed_while_bound() -> None:
    gone: list[tuple[int, int, int, str]] = []

    @contextmanager
    def invalidate(slot: Slot, start: int, end: int, kinds: str) -> Iterator[None]:
        gone.append((slot.id, start, end, kinds))
        yield

    file = GuestMemfd(4 * PAGE, 3, invalidate=invalidate)
    bound = whole(file)
    assert file.get_pfn(bound, 0x100, private=False).page == 0
    file.close()
    assert gone == [(1, 0x100, 0x104, "both")]
    assert errno_of(lambda: file.get_pfn(bound, 0x100)) == errno.EFAULT
    for call in (
        file.close,
        file.mmap,
        lambda: file.bind(bound, 0),
        lambda: file.convert(0, PAGE, private=True),
        lambda: file.fallocate(1, 0, PAGE),
        lambda: file.pin(0, PAGE),
        lambda: file.poison(0),
        lambda: file.link(None),
    ):
        assert errno_of(call) == errno.EBADF


def test_several_files_on_one_inode(make: Make) -> None:
    """The state is the inode's; slots and invalidations are each file's; memory stays until the last one is closed."""
    seen: list[tuple[str, int, int]] = []

    def of(name: str) -> Callable[[Slot, int, int, str], AbstractContextManager[None]]:
        @contextmanager
        def invalidate(_slot: Slot, start: int, end: int, _kinds: str) -> Iterator[None]:
            seen.append((name, start, end))
            yield

        return invalidate

    one = make(4, vm="one", invalidate=of("one"))
    two = one.link("two", invalidate=of("two"))
    one.bind(slot(0, 4, 0x100), 0, vm="one")
    two.bind(slot(0, 2, 0x200), PAGE, vm="two")
    with one.mmap() as host:
        host[2 * PAGE] = 7
    one.convert(2 * PAGE, PAGE, private=True)
    assert seen == [("one", 0x102, 0x103), ("two", 0x201, 0x202)]
    assert two.state(2) == "private"
    one.close()
    page = two.guest_fault(slot(0, 2, 0x200), 0x201, private=True)
    assert two.inode.backing.read(page.page * PAGE, 1) == b"\7"
    two.check()
    two.close()
    with pytest.raises(UsageError, match="link: states is not attributes or invalidate"):
        make(1).link(None, states="mappability")


def test_numbers_that_are_none_and_pages_that_are_not_there(make: Make) -> None:
    file = make(4)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: GuestMemfd("a"), "size: 'a' is not an integer"),  # type: ignore[arg-type]
        (lambda: GuestMemfd(4096.0), "size: 4096.0 is not an integer"),  # type: ignore[arg-type]
        (lambda: file.pin("a", 1), "offset: 'a' is not an integer"),  # type: ignore[arg-type]
        (lambda: file.fallocate(1, 0, None), "length: None is not an integer"),  # type: ignore[arg-type]
        (lambda: file.mmap(0.5), "offset: 0.5 is not an integer"),  # type: ignore[arg-type]
        (lambda: file.poison(4), "page: 4 is not within the file's 4"),
        (lambda: file.poison(-1), "page: -1 is not within the file's 4"),
        (lambda: file.state(4), "page: 4 is not within the file's 4"),
        (lambda: file.mmap(-1), "mapping: offset -0x1 is not a page's, or size 0x4001 is not positive"),
    ]
    for call, line in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"states": "magic"}, "states: 'magic' is not one of attributes, mappability, shareability, vm-attributes"),
        ({"folio_size": 8192}, "folio_size: 0x2000 is not one of 0x1000, 0x200000, 0x40000000"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        GuestMemfd(PAGE, **options)  # type: ignore[arg-type]
    assert str(caught.value) == line
