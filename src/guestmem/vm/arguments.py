"""What a caller of ``Vm`` gives, as numbers and bytes; one line for what is neither."""

from __future__ import annotations

import errno
import operator
from typing import Any

from ..abi.arguments import U32_MAX, content_of, hexadecimal, shown, whole
from ..dirty.ring import ENTRY_BYTES, ring_size
from ..errors import MemslotError, UsageError

__all__ = ["argument_of", "count_of", "flags_of", "request_of", "ring_bytes_of"]


def count_of(name: str, value: Any, least: int, most: int) -> int:
    """A number in ``least..most``; UsageError for anything else."""
    try:
        number = int(operator.index(value))
    except TypeError:
        raise UsageError(f"{name}: {shown(value)} is not a whole number") from None
    if number < least:
        raise UsageError(f"{name}: {_shown(number)} is not at least {least}")
    if number > most:
        raise UsageError(f"{name}: {_shown(number)} is more than {most}")
    return number


def _shown(number: int) -> str:
    """In decimal, which Python refuses from some thousand digits on."""
    return str(number) if abs(number) >> 64 == 0 else hexadecimal(number)


def ring_bytes_of(entries: Any) -> int:
    """Size of a dirty ring; MemslotError (EINVAL, E2BIG) as the kernel refuses it, where it is the same everywhere."""
    size = count_of("ring_entries", entries, 0, U32_MAX) * ENTRY_BYTES
    if size:
        try:
            ring_size(size)
        except MemslotError as error:
            raise MemslotError(error.errno or 0, f"ring_entries: {entries}: {str(error).partition(': ')[2]}") from None
    return size


def flags_of(given: Any) -> int | None:
    """Flags of a guest_memfd; None: all that there are."""
    return None if given is None else whole("flags", given)


def request_of(given: Any) -> int:
    """The number of an ioctl; ENOTTY for one that has more than 32 bits, UsageError for what is no number."""
    try:
        number = int(operator.index(given))
    except TypeError:
        raise UsageError(f"request: {shown(given)} is not a whole number") from None
    if not 0 <= number <= U32_MAX:
        raise MemslotError(errno.ENOTTY, f"ioctl: {hexadecimal(number)} is not in 0..{U32_MAX:#x}")
    return number


def argument_of(given: Any) -> bytes | int:
    """What an ioctl is given, as bytes or as the number or address that it is."""
    try:
        number: int = operator.index(given)
    except TypeError:
        return content_of("argument", given)
    if not -1 << 63 <= number < 1 << 64:
        raise UsageError(f"argument: {hexadecimal(number)} is no number of 64 bits")
    return number
