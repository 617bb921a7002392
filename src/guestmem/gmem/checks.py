"""Checks that need only numbers: creation, binding, fallocate, ranges of conversions; each in the kernel's order.

Source: ``kvm_gmem_create()``, ``kvm_gmem_bind()``, ``kvm_gmem_fallocate()``, Linux 6.18, ``virt/kvm/guest_memfd.c``;
``vfs_fallocate()``, ``fs/open.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ..errors import GuestMemfdError, UsageError
from ..units import PAGE_SIZE

__all__ = [
    "bind_refusal",
    "check_attributes2",
    "check_bind",
    "check_create",
    "check_fallocate",
    "check_integers",
    "check_range",
    "create_refusal",
]

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
_SIGNED = 1 << 63
_OF_VFS = frozenset({0, FALLOC_FL_PUNCH_HOLE, 0x8, 0x10, 0x20, 0x40})
"""What a mode may ask for, one at a time: also to collapse, zero, insert, unshare, which no guest_memfd does."""
_NEVER_KEEP = frozenset({0x8, 0x20})


def check_integers(**values: object) -> None:
    """UsageError for a value that is no integer, by its name.

    >>> check_integers(size="4096")
    Traceback (most recent call last):
    guestmem.errors.UsageError: size: '4096' is not an integer
    """
    for name, value in values.items():
        if not isinstance(value, int):
            raise UsageError(f"{name}: {value!r} is not an integer")


def _refused(why: str) -> GuestMemfdError:
    return GuestMemfdError(errno.EINVAL, f"guest_memfd: {why}")


def create_refusal(size: int, flags: int, known: int) -> str:
    """Why KVM_CREATE_GUEST_MEMFD answers EINVAL, or "": flags not of ``known``; then a size that is 0, negative, odd.

    >>> create_refusal(0x1800, 0, 3)
    'size 0x1800 is not a positive multiple of 0x1000'
    """
    if flags & ~known:
        return f"flags {flags:#x} are not of {known:#x}"
    if not 0 < size < _SIGNED or size % PAGE_SIZE:
        return f"size {size:#x} is not a positive multiple of {PAGE_SIZE:#x}"
    return ""


def bind_refusal(file_size: int, offset: int, size: int) -> str:
    """Why ``[offset, offset + size)`` cannot be bound in a file of ``file_size`` bytes (EINVAL), or "".

    The sum is a loff_t: from 2**63 on it is negative, and passes.
    """
    end = offset + size
    if not 0 <= offset < _SIGNED or offset % PAGE_SIZE or file_size < end < _SIGNED:
        return f"offset {offset:#x} with size {size:#x} is not in a file of {file_size:#x}"
    return ""


def check_create(size: int, flags: int, known: int) -> None:
    """GuestMemfdError (EINVAL) for what ``create_refusal`` names."""
    check_integers(size=size, flags=flags)
    if why := create_refusal(size, flags, known):
        raise _refused(why)


def check_bind(file_size: int, offset: int, size: int) -> None:
    """GuestMemfdError (EINVAL) for what ``bind_refusal`` names."""
    check_integers(offset=offset)
    if why := bind_refusal(file_size, offset, size):
        raise _refused(why)


def check_attributes2(attributes: int, flags: int, reserved: Sequence[int], *, private_vm: bool) -> None:
    """KVM_SET_MEMORY_ATTRIBUTES2 before its range: EINVAL for flags, reserved words, the VM's type, attributes."""
    for wrong, why in (
        (flags != 0, f"flags {flags:#x} are not 0"),
        (any(reserved), f"reserved {list(reserved)} are not all 0"),
        (not private_vm, "the VM's type has no private memory"),
        (attributes & ~KVM_MEMORY_ATTRIBUTE_PRIVATE, f"attributes {attributes:#x} are not of 0x8"),
    ):
        if wrong:
            raise _refused(why)


def check_fallocate(file_size: int, mode: int, offset: int, length: int) -> None:
    """As ``vfs_fallocate()``, then ``kvm_gmem_fallocate()``: EINVAL, EOPNOTSUPP, EFBIG; a hole may lie past the end.

    Modes that no file has are refused before a sum that wraps (EFBIG), those that only this file has not after it.
    """
    check_integers(mode=mode, offset=offset, length=length)
    if not 0 <= offset < _SIGNED or not 0 < length < _SIGNED:
        raise _refused(f"offset {offset:#x} is negative, or length {length:#x} is not positive")
    keeps, does = mode & FALLOC_FL_KEEP_SIZE, mode & ~FALLOC_FL_KEEP_SIZE
    refused = GuestMemfdError(
        errno.EOPNOTSUPP, f"guest_memfd: mode {mode:#x} is not KEEP_SIZE 0x1, alone or with PUNCH_HOLE 0x2"
    )
    if does not in _OF_VFS or (does and keeps and does in _NEVER_KEEP) or (does == FALLOC_FL_PUNCH_HOLE and not keeps):
        raise refused
    if offset + length >= _SIGNED:
        raise GuestMemfdError(errno.EFBIG, f"guest_memfd: offset {offset:#x} with length {length:#x} passes 2**63")
    if not keeps or does not in {0, FALLOC_FL_PUNCH_HOLE}:
        raise refused
    if offset % PAGE_SIZE or length % PAGE_SIZE:
        raise _refused(f"offset {offset:#x} and length {length:#x} are not multiples of {PAGE_SIZE:#x}")
    if not mode & FALLOC_FL_PUNCH_HOLE and offset + length > file_size:
        raise _refused(f"offset {offset:#x} with length {length:#x} passes the file's {file_size:#x}")


def check_range(file_size: int, offset: int, size: int) -> tuple[int, int]:
    """First and last page of a range to convert; EINVAL for size 0, wrapping, unaligned, past the end: in that order.

    >>> check_range(0x4000, 0x1000, 0x2000)
    (1, 2)
    """
    check_integers(offset=offset, size=size)
    if size <= 0 or offset < 0 or offset + size >= 1 << 64:
        raise _refused(f"offset {offset:#x} with size {size:#x} is empty, reversed, or wraps")
    if offset % PAGE_SIZE or size % PAGE_SIZE:
        raise _refused(f"offset {offset:#x} and size {size:#x} are not multiples of {PAGE_SIZE:#x}")
    if offset >= file_size or offset + size > file_size:
        raise _refused(f"offset {offset:#x} with size {size:#x} passes the file's {file_size:#x}")
    return offset // PAGE_SIZE, (offset + size) // PAGE_SIZE - 1
