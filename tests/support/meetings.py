"""Meetings of two threads that are certain: one is stopped at a call while the other does what it does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

__all__ = ["Meeting", "meanwhile"]

_PATIENCE_S = 200.0
_TURN_S = 0.3


class Meeting:
    """How it went: what ``call`` and ``other`` gave or raised, and whether the other was done before it went on."""

    result: Any = None
    gave: Any = None
    was_done_first = False
    met = False


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return error.with_traceback(None)


def meanwhile(other: Callable[[], Any], *, at: Sequence[str], call: Callable[[], Any], waits: bool = False) -> Meeting:
    """Run ``call`` in a thread; where it first calls a function named in ``at``, run ``other``, then let it go on.

    ``waits``: ``other`` has to wait for something that the thread has, which therefore goes on after a moment.
    AssertionError if the thread never comes by.
    """
    meeting = Meeting()
    done = threading.Event()

    def second() -> None:
        meeting.gave = _outcome(other)
        done.set()

    beside = threading.Thread(target=second)

    def trace(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name in at and not meeting.met:
            meeting.met = True
            beside.start()
            meeting.was_done_first = done.wait(_TURN_S if waits else _PATIENCE_S)

    def first() -> None:
        sys.settrace(trace)
        try:
            meeting.result = _outcome(call)
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=first)
    thread.start()
    thread.join(_PATIENCE_S)
    assert meeting.met, f"no call of {', '.join(at)}"
    beside.join(_PATIENCE_S)
    assert not thread.is_alive()
    assert not beside.is_alive()
    return meeting
