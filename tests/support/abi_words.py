"""Words for tests of the ABI: a page, host memory that is mapped, errnos as answers have them."""

from __future__ import annotations

import errno
from typing import Protocol

from guestmem.conform.calls import ARENA, BUFFER, LOG_BYTES, Answer

__all__ = ["ARENA", "BUFFER", "EBADF", "EEXIST", "EFAULT", "EINVAL", "ENOENT", "ENXIO", "OK", "PAGE", "Ask", "pages_of"]

PAGE = 0x1000


class Ask(Protocol):
    """One call on a VM: its kind and numbers, as ``conform.calls`` has them; its answer."""

    def __call__(self, kind: str, *numbers: int) -> Answer: ...


OK = 0
EBADF, EEXIST, EFAULT, EINVAL, ENOENT, ENXIO = (
    -number for number in (errno.EBADF, errno.EEXIST, errno.EFAULT, errno.EINVAL, errno.ENOENT, errno.ENXIO)
)


def pages_of(log: bytes) -> set[int]:
    """The pages that a log names; what a call did not write is still the pattern that was there."""
    assert len(log) == LOG_BYTES
    written = log.rstrip(b"\xa5")
    return {8 * at + bit for at, byte in enumerate(written) for bit in range(8) if byte >> bit & 1}
