"""A load as words: what vCPUs touch, written by whoever has them work on it, read by the vCPUs of either engine."""

from __future__ import annotations

from ..compiled import const
from ..structure import Structure, name_fields

ONE_TARGET = Structure("target", "eight bytes of guest memory", size=4)
TARGET_GPA = ONE_TARGET.word("guest address of the eight bytes that are touched")
TARGET_FLAGS = ONE_TARGET.word("MUST, OLD_READONLY, NEW_READONLY, CHANGED")
TARGET_OLD = ONE_TARGET.word("their host address before the update, 0 for none")
TARGET_NEW = ONE_TARGET.word("and after it")
TARGET = const(ONE_TARGET.size)

HEADER = Structure("load", "what stands before a load's targets", size=8)
LOAD_CHANGED = HEADER.word("targets in ranges that the next update changes; they come first")
LOAD_OTHERS = HEADER.word("targets elsewhere")
LOAD_AS_ID = HEADER.word("address space")
LOAD_WINDOW = HEADER.word("WINDOW before the update")
LOAD_HEADER = const(HEADER.size)

MUST = const(1)  # has memory before and after: should be there throughout
OLD_READONLY = const(2)
NEW_READONLY = const(4)
CHANGED = const(8)
"""TARGET_FLAGS."""

SEQUENTIAL, RANDOM, HOT = const(0), const(1), const(2)
"""Patterns: which target is next."""

name_fields(globals())
