"""KVM_SET_MEMORY_ATTRIBUTES: by frame, no slot needed; private memory is the file's, shared userspace_addr's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gmem_files import PAGE, errno_of
from guestmem.errors import GuestMemfdError, MemoryFaultError
from guestmem.gmem import GuestMemfd, VmMemoryAttributes
from guestmem.memslots.slot import Slot
from guestmem.ranges import layout as at


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((1, 0, 7, 1), "flags 0x1 are not 0"),
        ((1, 0, 1), "attributes 0x1 are not of 0x8"),
        ((0, 0, 8), "is empty, or wraps"),
        (((1 << 64) - PAGE, 2 * PAGE, 8), "is empty, or wraps"),
        (((1 << 64) - PAGE, PAGE, 8), "is empty, or wraps"),
        ((1, PAGE, 8), "are not page aligned"),
        ((0, PAGE + 1, 8), "are not page aligned"),
    ],
)
def test_what_is_refused(arguments: tuple[int, ...], line: str) -> None:
    attributes = VmMemoryAttributes()
    with pytest.raises(GuestMemfdError, match=line) as caught:
        attributes.set(*arguments)
    assert caught.value.errno == errno.EINVAL
    assert not len(attributes.ranges)


def test_a_vm_without_private_memory() -> None:
    assert errno_of(lambda: VmMemoryAttributes(0).set(0, PAGE, 8)) == errno.EINVAL


def test_invalidated_only_if_something_changes() -> None:
    seen: list[tuple[int, int, int]] = []

    @contextmanager
    def invalidate(start: int, end: int) -> Iterator[None]:
        before = attributes.get(start)
        yield
        seen.append((start, end, before))

    attributes = VmMemoryAttributes(invalidate=invalidate)
    attributes.set(PAGE, 4 * PAGE, 8)
    attributes.set(2 * PAGE, PAGE, 8)
    attributes.set(2 * PAGE, PAGE, 0)
    attributes.set(0, PAGE, 0)
    assert seen == [(1, 5, 0), (2, 3, 8)]
    assert list(attributes.ranges) == [(1, 2, 8), (3, 5, 8)]


def test_no_room_is_enomem() -> None:
    attributes = VmMemoryAttributes()
    attributes.set(0, 8 * PAGE, 8)
    attributes.ranges._desk[int(at.RESERVED)] = 1 << 40
    before = list(attributes.ranges)
    assert errno_of(lambda: attributes.set(PAGE, PAGE, 0)) == errno.ENOMEM
    assert list(attributes.ranges) == before
    attributes.set(PAGE, PAGE, 8)


@pytest.mark.parametrize("flags", [0, 3])
def test_which_memory_serves_a_fault(flags: int) -> None:
    """Without MMAP, shared memory is userspace_addr's; with it, the slot is gmem-only, and KVM may look elsewhere."""
    attributes = VmMemoryAttributes()
    file = GuestMemfd(4 * PAGE, flags, states="vm-attributes", attributes=attributes)
    slot = Slot(0, 1, 0x100, 4, 0x7000_0000_0000)
    file.bind(slot, 0)
    attributes.set(0x101 * PAGE, PAGE, 8)
    assert file.guest_fault(slot, 0x101, private=True).page == 1
    shared, of_kvm = file.kvm_access(slot, 0x102, private=False)
    assert of_kvm == 0x7000_0000_2000
    assert file.gmem_only == bool(flags)
    if file.gmem_only:
        assert (shared.page, shared.address == of_kvm) == (2, False)
    else:
        assert (shared.page, shared.address == of_kvm) == (-1, True)
    for gfn, private in ((0x101, False), (0x102, True)):
        with pytest.raises(MemoryFaultError) as caught:
            file.guest_fault(slot, gfn, private=private)
        assert (caught.value.flags, caught.value.gpa) == (8 * private, gfn * PAGE)
    assert errno_of(lambda: file.convert(0, PAGE, private=True)) == errno.ENOTTY
    file.close()
