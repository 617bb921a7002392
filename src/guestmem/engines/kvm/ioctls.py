"""One ioctl on a file of ``/dev/kvm``, with the argument as the caller has it: a number, an address, or bytes.

Where a structure's size is known and what the kernel writes back is wanted, ``fcntl.ioctl`` does; this is for callers
who pass addresses, or structures of any size, and want the kernel's own answer.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

__all__ = ["raw_ioctl"]


@functools.cache
def _ioctl() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).ioctl
    function.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    return function


def raw_ioctl(file: int, request: int, argument: int | bytes = 0) -> int:
    """The kernel's result, or minus its errno. Bytes are passed by the address of a copy, which is dropped."""
    if isinstance(argument, bytes):
        held = ctypes.create_string_buffer(argument, max(len(argument), 1))
        argument = ctypes.addressof(held)
    result = _ioctl()(file, request, argument)
    return result if result >= 0 else -ctypes.get_errno()
