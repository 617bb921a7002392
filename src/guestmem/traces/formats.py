"""The formats that can be read. A new one is a file with a ``Reader``, and a place in this list."""

from __future__ import annotations

from .bpf import BpfReader
from .ftrace import FtraceReader
from .perf_trace import PerfTraceReader
from .qemu import QemuReader
from .simpletrace import SimpletraceReader
from .strace import StraceReader

__all__ = ["READERS", "known_formats"]

READERS = (QemuReader, BpfReader, PerfTraceReader, FtraceReader, StraceReader, SimpletraceReader)


def known_formats() -> str:
    """What all readers look for, in one line."""
    return "; ".join(reader.events for reader in READERS)
