"""Every error that guestmem raises, in one family.

An error message is one line: which field, what it was, what is allowed. Errors that mirror the kernel carry the
kernel's ``errno``. The command line prints the message and exits with status 2; no traceback reaches a user.
"""

from __future__ import annotations

import errno as _errno
import os

__all__ = [
    "BatchError",
    "CapabilityError",
    "DestroyedError",
    "GeometryError",
    "GuestMemfdError",
    "GuestmemError",
    "InvariantError",
    "LevelError",
    "LockedError",
    "MappedError",
    "MemoryFaultError",
    "MemslotError",
    "MissingPackageError",
    "OutOfRangeError",
    "OwnedError",
    "RangeNodesError",
    "SigbusError",
    "Stage2Error",
    "TablePagesError",
    "TraceError",
    "UnalignedError",
    "UnmappedError",
    "UnsafeError",
    "UsageError",
]


class GuestmemError(Exception):
    """Base of all errors of this package.

    ``errno`` is the number that the kernel would return, or None where the kernel has none.
    """

    errno: int | None = None


class UsageError(GuestmemError, ValueError):
    """An argument that cannot be meant: the message names it, its value, and what is allowed."""


class TraceError(GuestmemError):
    """A trace that cannot be read.

    >>> str(TraceError("size is not a number", path="boot.log", line=7, text="Slot#0 size=zz"))
    "boot.log:7: size is not a number: 'Slot#0 size=zz'"
    """

    def __init__(self, message: str, *, path: str = "", line: int = 0, text: str = "") -> None:
        self.message, self.path, self.line, self.text = message, path, line, text
        where = f"{path}:{line}: " if path and line else f"{path}: " if path else ""
        shown = text if len(text) <= 120 else text[:117] + "..."
        super().__init__(where + message + (f": {shown!r}" if text else ""))


class MemslotError(GuestmemError):
    """A memslot change that the kernel would refuse; ``errno`` says how.

    >>> error = MemslotError(17, "slot 3: [0x100, 0x200) overlaps slot 1 [0x0, 0x180)")
    >>> error.errno, str(error)
    (17, 'EEXIST: slot 3: [0x100, 0x200) overlaps slot 1 [0x0, 0x180)')
    """

    def __init__(self, errno: int, message: str) -> None:
        self.errno = errno
        super().__init__(f"{_errno.errorcode.get(errno, os.strerror(errno))}: {message}")


class BatchError(MemslotError):
    """An entry of a batch was refused; ``entry`` is its index. Nothing of the batch was applied."""

    def __init__(self, errno: int, message: str, *, entry: int) -> None:
        self.entry = entry
        super().__init__(errno, f"entry {entry}: {message}")


class Stage2Error(GuestmemError):
    """A stage-2 operation, descriptor or configuration that the kernel or the architecture refuses; ``errno`` says how.

    >>> error = Stage2Error(34, "ipa: 0x1000000000000 is outside 48 bits")
    >>> error.errno, str(error)
    (34, 'ERANGE: ipa: 0x1000000000000 is outside 48 bits')
    """

    def __init__(self, errno: int, message: str) -> None:
        self.errno = errno
        super().__init__(f"{_errno.errorcode.get(errno, os.strerror(errno))}: {message}")


class UnalignedError(Stage2Error):
    """EINVAL: an address or size that is not in whole pages, or not in whole leaves of the level asked for."""


class OutOfRangeError(Stage2Error):
    """ERANGE: an address beyond the input, or the output, that the table has."""


class LevelError(Stage2Error):
    """EINVAL: a level at which no leaf may stand."""


class GeometryError(Stage2Error):
    """EINVAL: a granule, input size and start level that the architecture does not put together."""


class DestroyedError(Stage2Error):
    """EINVAL: an operation on a table that was destroyed."""


class OwnedError(Stage2Error):
    """EPERM: an owner's mark is where something was to be mapped."""


class MappedError(Stage2Error):
    """EAGAIN: it is mapped already, with whatever rights."""


class UnmappedError(Stage2Error):
    """EAGAIN: nothing is mapped where a leaf was to be changed."""


class LockedError(Stage2Error):
    """EAGAIN: another walker was faster, or is between break and make; try again, as a vCPU faults again."""


class TablePagesError(Stage2Error):
    """ENOMEM: the pool has no page for another table; what was done stays, and the table is usable."""


class RangeNodesError(GuestmemError, MemoryError):
    """ENOMEM: a range map has no node left for another store; nothing has changed.

    >>> str(RangeNodesError("ranges: 4 of capacity 4, and no node left for another"))
    'ENOMEM: ranges: 4 of capacity 4, and no node left for another'
    """

    errno = _errno.ENOMEM

    def __init__(self, message: str) -> None:
        super().__init__(f"ENOMEM: {message}")


class GuestMemfdError(GuestmemError):
    """A call on a guest_memfd that the kernel would refuse; ``errno`` says how, nothing has changed.

    ``error_offset``: of a conversion, the offset in bytes of the first page that stood against it, else None.

    >>> error = GuestMemfdError(11, "guest_memfd: page 3 is in use", error_offset=0x3000)
    >>> error.errno, hex(error.error_offset), str(error)
    (11, '0x3000', 'EAGAIN: guest_memfd: page 3 is in use')
    """

    def __init__(self, errno: int, message: str, *, error_offset: int | None = None) -> None:
        self.errno, self.error_offset = errno, error_offset
        name = {133: "EHWPOISON"}.get(errno) or _errno.errorcode.get(errno, os.strerror(errno))
        super().__init__(f"{name}: {message}")


class SigbusError(GuestMemfdError):
    """The host touched a page of a guest_memfd that it may not: SIGBUS for a process, EFAULT for the kernel.

    ``page`` is the page's index in the file, ``state`` in words why.

    >>> error = SigbusError(3, "private")
    >>> error.page, error.state, error.errno, str(error)
    (3, 'private', 14, 'SIGBUS: guest_memfd: page 3 is private')
    """

    def __init__(self, page: int, state: str) -> None:
        self.page, self.state = page, state
        super().__init__(_errno.EFAULT, "")
        self.args = (f"SIGBUS: guest_memfd: page {page} is {state}",)


class MemoryFaultError(GuestmemError):
    """KVM_RUN returned -1 with EFAULT and KVM_EXIT_MEMORY_FAULT: the wrong kind of access, or no page.

    ``flags`` has bit 3 for a private access; ``gpa`` and ``size`` are in bytes.

    >>> error = MemoryFaultError(8, 0x4000, 0x1000)
    >>> error.errno, str(error)
    (14, 'KVM_EXIT_MEMORY_FAULT: private access at gpa 0x4000, size 0x1000')
    """

    errno = _errno.EFAULT

    def __init__(self, flags: int, gpa: int, size: int) -> None:
        self.flags, self.gpa, self.size = flags, gpa, size
        kind = "private" if flags & 8 else "shared"
        super().__init__(f"KVM_EXIT_MEMORY_FAULT: {kind} access at gpa {gpa:#x}, size {size:#x}")


class CapabilityError(GuestmemError):
    """The engine cannot do what was asked; the message names the capability."""

    errno = _errno.ENOTSUP


class UnsafeError(GuestmemError):
    """A design that is known to harm this guest, as it is now: the message has each reason. Nothing was changed."""


class MissingPackageError(GuestmemError, ImportError):
    """A package that this part needs is not installed, or of a version that does not do; the message says what does."""


class InvariantError(GuestmemError, AssertionError):
    """``check()`` found a structure broken; the message names the first invariant that does not hold."""
