"""The formats that can be read. A new one is a file with a ``Reader``, and a place in this list."""

from __future__ import annotations

from .ftrace import FtraceReader
from .qemu import QemuReader
from .strace import StraceReader

__all__ = ["READERS", "known_formats"]

READERS = (QemuReader, FtraceReader, StraceReader)


def known_formats() -> str:
    """What all readers look for, in one line."""
    return "; ".join(reader.events for reader in READERS)
