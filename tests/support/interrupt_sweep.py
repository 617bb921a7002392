"""SIGINT at every place: before each instruction of the package's frames, in turn, and around each system call.

``places`` runs an action once per place, each a code object and an offset, and sends SIGINT (which raises there, unless
it is held off). ``tests/vm/test_ctrl_c_at_every_place.py`` is a program, too: it prints how many places there were.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import guestmem
from kernel_slots import Injector

__all__ = ["Place", "around_calls", "places"]

_PACKAGE = str(Path(guestmem.__file__).parent)


class Place(NamedTuple):
    """Where a signal was sent."""

    file: str
    function: str
    line: int
    offset: int

    def __str__(self) -> str:
        return f"{os.path.relpath(self.file, _PACKAGE)}:{self.line} {self.function}+{self.offset}"


def _ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _place(frame: FrameType) -> Place:
    code = frame.f_code
    return Place(code.co_filename, code.co_qualname, frame.f_lineno or 0, frame.f_lasti)


def _traced(
    action: Callable[[], object], at: Callable[[FrameType], bool], among: Callable[[FrameType], bool] = _ours
) -> BaseException | None:
    """Run it with ``at`` called before each instruction of the frames ``among``; SIGINT is sent where it says so."""

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "call" and not among(frame):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and at(frame):
            os.kill(os.getpid(), signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.settrace(None)
    return None


def found(action: Callable[[], object]) -> list[Place]:
    """All places that one run comes by, in the order in which it first does."""
    seen: dict[Place, None] = {}

    def note(frame: FrameType) -> bool:
        seen.setdefault(_place(frame))
        return False

    _traced(action, note)
    return list(seen)


def places(
    action: Callable[[], object], stride: int = 1, start: int = 0, within: str = ""
) -> Iterator[tuple[Place, bool]]:
    """Run ``action`` with SIGINT at each ``stride``-th place in turn; yields the place, and whether it was raised.

    ``within``: only in files whose names end so.
    """
    for place in [place for place in found(action) if place.file.endswith(within)][start::stride]:
        sent: list[bool] = []

        def here(frame: FrameType, place: Place = place, sent: list[bool] = sent) -> bool:
            if sent or frame.f_lasti != place.offset or _place(frame) != place:
                return False
            sent.append(True)
            return True

        def inside(frame: FrameType, place: Place = place) -> bool:
            return frame.f_code.co_filename == place.file and frame.f_code.co_qualname == place.function

        for _ in range(2):  # an action that goes to and fro comes by every second time
            error = _traced(action, here, inside)
            if sent:
                yield place, error is not None
                break


class Sender(Injector):
    """Sends SIGINT just before call ``first``, or just behind it; the call is made, if that does not raise."""

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        here = len(self.calls) == self.first
        self.calls.append(name)
        if here and not self.after:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            return function(*arguments, **named)
        finally:
            if here and self.after:
                os.kill(os.getpid(), signal.SIGINT)


def around_calls(action: Callable[[], object]) -> Iterator[tuple[str, bool]]:
    """Run ``action`` with SIGINT just before, and just behind, each ``ioctl`` and ``mmap`` in turn."""
    for call in range(1000):
        for after in (False, True):
            sender = Sender(call)
            sender.after = after
            raised = False
            with sender.on():
                try:
                    action()
                except KeyboardInterrupt:
                    raised = True
            if len(sender.calls) <= call:
                return
            yield f"{'behind' if after else 'before'} {sender.calls[call]} {call}", raised
