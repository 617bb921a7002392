"""What the front door takes for numbers and bytes: any whole number, any buffer, and one line for everything else.

A number of the wrong kind is a UsageError; one that does not fit into the field of the structure that it goes to is
EINVAL, as the kernel says of values that it does not allow.
"""

from __future__ import annotations

import errno
import operator
from typing import Any

from ..errors import MemslotError, UsageError
from ..units import U64_MAX

__all__ = ["U16_MAX", "U32_MAX", "content_of", "hexadecimal", "shown", "whole"]

U16_MAX = (1 << 16) - 1
U32_MAX = (1 << 32) - 1
_MOST = 60
_BITS = 128


def whole(name: str, value: Any, most: int = U64_MAX) -> int:
    """``value`` as an int in ``0..most``; UsageError if it is no whole number, MemslotError (EINVAL) if out of range.

    >>> whole("gpa", 4096)
    4096
    >>> whole("gpa", -4096)
    Traceback (most recent call last):
    guestmem.errors.MemslotError: EINVAL: gpa: -0x1000 is not in 0..0xffffffffffffffff
    """
    if type(value) is not int:
        try:
            value = int(operator.index(value))
        except TypeError:
            raise UsageError(f"{name}: {shown(value)} is not a whole number") from None
    if not 0 <= value <= most:
        raise MemslotError(errno.EINVAL, f"{name}: {hexadecimal(value)} is not in 0..{most:#x}")
    number: int = value
    return number


def shown(value: Any) -> str:
    """What was given, on one line of a message, and not all of it if that is long.

    >>> shown([0] * 100), shown(10**5000)
    ('[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,...', 'int')
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - whatever an object's own repr does
        return type(value).__name__
    return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."


def hexadecimal(number: int) -> str:
    """A number, shortened where it has more digits than anybody reads.

    >>> hexadecimal(-16), hexadecimal(1 << 8000)
    ('-0x10', '0x1000000000000000... (8001 bits)')
    """
    if number.bit_length() <= _BITS:
        return f"{number:#x}"
    return f"{number >> number.bit_length() - 61:#x}... ({number.bit_length()} bits)"


def content_of(name: str, value: Any) -> bytes:
    """The bytes of an object with a buffer, in C order; UsageError for anything else.

    >>> content_of("content", bytearray(b"ab"))
    b'ab'
    """
    try:
        return memoryview(value).tobytes()
    except (TypeError, ValueError, BufferError):
        raise UsageError(f"{name}: {type(value).__name__} is no buffer of bytes, such as bytes or an array") from None
