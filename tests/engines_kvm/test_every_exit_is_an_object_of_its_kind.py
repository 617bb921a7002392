"""Each exit reason gives a value of its kind, with the fields of ``struct kvm_run``; all others, OtherExit."""

from __future__ import annotations

import struct

import pytest

from guestmem.engines.kvm.abi import ExitReason
from guestmem.engines.kvm.exits import (
    DirtyRingFull,
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    Io,
    MemoryFault,
    Mmio,
    OtherExit,
    Shutdown,
    SystemEvent,
    decode,
)

pytestmark = pytest.mark.no_kvm
DATA = 0x1000


@pytest.mark.parametrize(
    ("reason", "union", "exit_"),
    [
        (ExitReason.MMIO, struct.pack("<Q8sIB", 0xFEE00010, b"abcdefgh", 4, 1), Mmio(0xFEE00010, 4, True, b"abcd")),
        (ExitReason.MMIO, struct.pack("<Q8sIB", 8, b"", 8, 0), Mmio(8, 8, False, b"")),
        (ExitReason.IO, struct.pack("<BBHIQ", 1, 2, 0x3F8, 2, DATA), Io(0x3F8, 2, 2, True, b"wxyz")),
        (ExitReason.IO, struct.pack("<BBHIQ", 0, 1, 0x60, 1, DATA), Io(0x60, 1, 1, False, b"")),
        (ExitReason.HLT, b"", Hlt()),
        (ExitReason.SHUTDOWN, b"", Shutdown()),
        (ExitReason.INTERNAL_ERROR, struct.pack("<IIQ", 3, 0, 0), InternalError(3, 0, b"")),
        (
            ExitReason.INTERNAL_ERROR,
            struct.pack("<IIQB15s", 1, 6, 1, 2, b"\x0f\xc7" + bytes(13)),
            InternalError(1, 6, b"\x0f\xc7"),
        ),
        (ExitReason.INTERNAL_ERROR, struct.pack("<IIQB", 1, 6, 0, 2), InternalError(1, 6, b"")),
        (ExitReason.FAIL_ENTRY, struct.pack("<QI", 0x80000021, 3), FailEntry(0x80000021, 3)),
        (ExitReason.SYSTEM_EVENT, struct.pack("<I", 2), SystemEvent(2)),
        (ExitReason.DIRTY_RING_FULL, b"", DirtyRingFull()),
        (ExitReason.MEMORY_FAULT, struct.pack("<QQQ", 8, 0x4000, 0x1000), MemoryFault(8, 0x4000, 0x1000)),
        (4321, b"", OtherExit(4321)),
    ],
)
def test_it_is_decoded(reason: int, union: bytes, exit_: Exit) -> None:
    page = bytearray(2 * DATA)
    struct.pack_into("<I", page, 8, reason)
    page[32 : 32 + len(union)] = union
    page[DATA : DATA + 4] = b"wxyz"
    assert decode(memoryview(page)) == exit_
    assert type(decode(bytes(page))) is type(exit_)
