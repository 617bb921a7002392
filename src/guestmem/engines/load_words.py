"""A load as words: what vCPUs touch, written by whoever has them work on it, read by the vCPUs of either engine."""

from __future__ import annotations

from ..compiled import const
from ..structure import Structure, name_fields

ONE_TARGET = Structure("target", "eight bytes of guest memory", size=4)
TARGET_GPA = ONE_TARGET.word("guest address of the eight bytes that are touched")
TARGET_FLAGS = ONE_TARGET.word("MUST and other bits below; the tags of old and new memory")
TARGET_OLD = ONE_TARGET.word("their host address before the update, 0 for none")
TARGET_NEW = ONE_TARGET.word("and after it")
TARGET = const(ONE_TARGET.size)

HEADER = Structure("load", "what stands before a load's targets", size=8)
LOAD_CHANGED = HEADER.word("targets in ranges that the next update changes; they come first")
LOAD_OTHERS = HEADER.word("targets elsewhere")
LOAD_AS_ID = HEADER.word("address space")
LOAD_WINDOW = HEADER.word("WINDOW before the update")
LOAD_HEADER = const(HEADER.size)

ONE_REPORT = Structure("report", "what a vCPU says of a load: see ``report.LoadReport``", size=8)
REPORT_EPOCH = ONE_REPORT.word("number of the load")
LAST_OLD = ONE_REPORT.word("start of the last access in an update that saw old, 0 for none")
LAST_OLD_GPA = ONE_REPORT.word("what it accessed")
FIRST_NEW = ONE_REPORT.word("end of the first that saw new, 2**64 - 1 for none")
FIRST_NEW_GPA = ONE_REPORT.word("what it accessed")
REPORT_WORDS = const(ONE_REPORT.size)

MUST = const(1)  # has memory before and after: should be there throughout
OLD_READONLY = const(2)
NEW_READONLY = const(4)
CHANGED = const(8)
PRIVATE = const(16)  # accesses are private: of a guest_memfd's private pages
MARKED = const(32)  # private writes leave SECRET set, and who reads it by a shared access is counted
SECRET = const(1 << 63)
OLD_TAG, NEW_TAG = const(8), const(16)
"""TARGET_FLAGS: bits, and where the two tags of eight bits begin: a byte of the memory itself, 0 without one."""
OLD_DENIED, NEW_DENIED = const(24), const(27)
"""TARGET_FLAGS: where the three bits begin that say that reads, writes, fetches have no right (NR, NW, NX)."""
TAG_BYTE = const(6)
"""Of the eight bytes of a target: the count is before it, and after it a ``ret``."""
DEVICE_TAG = const(0xFF)
"""What a VMM answers a read of no memory with: no memory has this tag, so what was overwritten by it is seen to be."""

SEQUENTIAL, RANDOM, HOT = const(0), const(1), const(2)
"""Patterns: which target is next."""

name_fields(globals())
