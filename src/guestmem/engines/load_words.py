"""A load as words: what vCPUs touch, written by whoever has them work on it, read by the vCPUs of either engine."""

from __future__ import annotations

from ..compiled import const

LOAD_HEADER = const(8)
LOAD_CHANGED = const(0)  # targets in ranges that the next update changes; they come first
LOAD_OTHERS = const(1)  # targets elsewhere
LOAD_AS_ID = const(2)
LOAD_WINDOW = const(3)  # WINDOW before the update
TARGET = const(4)
TARGET_GPA = const(0)  # of the 8 bytes that are touched
TARGET_FLAGS = const(1)
TARGET_OLD = const(2)  # host address of the 8 bytes before the update, 0 for none
TARGET_NEW = const(3)  # and after it
MUST = const(1)  # has memory before and after: should be there throughout
OLD_READONLY = const(2)
NEW_READONLY = const(4)
CHANGED = const(8)

SEQUENTIAL, RANDOM, HOT = const(0), const(1), const(2)
"""Patterns: which target is next."""
