"""MemoryError thrown at one instruction after another of this package that may allocate."""

from __future__ import annotations

import dis
import gc
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import guestmem
from guestmem.errors import MemslotError

__all__ = ["thrown"]

PACKAGE = str(Path(guestmem.__file__).parent)
HARMLESS = {"LOAD_FAST", "STORE_FAST", "LOAD_CONST", "POP_TOP", "RETURN_VALUE", "RESUME", "NOP", "JUMP_FORWARD"}
HARMLESS |= {"LOAD_GLOBAL", "LOAD_CLOSURE", "LOAD_DEREF", "COPY", "SWAP", "PUSH_NULL", "PRECALL", "KW_NAMES", "CACHE"}
HARMLESS |= {"RERAISE", "PUSH_EXC_INFO", "POP_EXCEPT", "RETURN_GENERATOR", "SEND", "YIELD_VALUE", "COPY_FREE_VARS"}
HARMLESS |= {name for name in dis.opmap if "JUMP" in name}
"""Instructions that allocate nothing."""
LEFT_OUT = (
    "release()",
    "with engine.update(",
    "with self.section",
    "with self.lock",
    "with self.changing()",
    "with backend.alone",
    "with memslots.slots_lock",
)
"""Lines that give a lock back, which allocates nothing, and where ``with`` itself would fail to call what ends it."""
LOCKS = "interrupts.py"
"""What takes and gives back a VM's lock; so does each ``__exit__``."""


def thrown(action: Callable[[], object], number: int) -> tuple[BaseException | None, str]:
    """Run it with MemoryError at the ``number``-th instruction that may allocate; what came of it, and where it was."""
    left, where = number, ""

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left, where
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_filename.endswith(LOCKS):
            return None
        if frame.f_code.co_name == "__exit__":
            return None
        frame.f_trace_opcodes = True
        name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0).strip()
        if event == "opcode" and name not in HARMLESS and not line.startswith(LEFT_OUT):
            if not left:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_qualname}"
                left = -1
                raise MemoryError
            left -= 1
        return trace

    collects = gc.isenabled()
    gc.disable()  # what is thrown in an object's __del__ goes nowhere
    sys.settrace(trace)
    try:
        action()
    except (MemoryError, MemslotError) as error:
        return error, where
    finally:
        sys.settrace(None)
        if collects:
            gc.enable()
    return None, where
