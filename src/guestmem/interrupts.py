"""Signals held off: while the kernel, the engine and Python's own records change together, no handler may raise.

Python runs a signal's handler in the main thread, between any two of its instructions; Ctrl-C's raises. A signal mask
does not help: another thread that does not mask the signal takes it, and the main thread runs the handler all the same.
So for the time of a ``with held:`` each handler is exchanged for one that notes the signal, and at its end what was
noted is handed to the handler that was there. It nests, and costs some 5 µs in the main thread, nothing elsewhere.

Not held off: exceptions that another thread throws into this one (``PyThreadState_SetAsyncExc``), and signals whose
disposition ends the process. A handler that is put back is interrupting again (``signal.siginterrupt``).

Near Python's recursion limit whatever is called may raise. So who comes in is made sure of some frames first, or
refused with RecursionError before anything has changed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C half of ``signal``
import gc
import os
import signal
import sys
import threading
from _thread import get_ident
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Section", "held"]

_LOOK_S = 0.05
_FRAMES = 40
"""That must be left up to the recursion limit: what happens inside takes some twenty."""
_TRIES = 8
_NUMBERS = tuple(int(number) for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
# As in ``signal``, without its translation to enums, which costs more than the rest.
_get: Callable[[int], Any] = _signal.getsignal
_set: Callable[[int, Any], Any] = _signal.signal

_before: list[tuple[int, Any]] = []
"""Handlers that were exchanged."""
_noted: list[int] = []
_depth = 0
"""Of the main thread's ``held``, nested."""


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)
    if not _depth:  # left behind: see _put_back
        handlers = dict(_before)
        _put_back()
        _tell(handlers)


_main: int | None = threading.main_thread().ident
"""The main thread, also of a child."""


def _is_main() -> bool:
    return get_ident() == _main


def _enter() -> None:
    """In the main thread: from here on no handler raises."""
    global _depth  # noqa: PLW0603 - handlers are the process's, too
    if _depth:
        _depth += 1
        return
    _see_that_there_are(_FRAMES)
    if _before:
        _put_back()  # an exception thrown by a tracer can have left some
    try:
        _depth = 1
        for number in _NUMBERS:
            handler = _get(number)
            if callable(handler) and handler is not _note:
                _before.append((number, handler))
                _set(number, _note)
    except BaseException:
        _depth = 0
        _put_back()
        raise


def _leave() -> None:
    """In the main thread: handlers are as before, and have been told."""
    global _depth  # noqa: PLW0603
    if _depth > 1:
        _depth -= 1
        return
    handlers = _before.copy()
    _depth = 0
    try:
        _put_back()
    finally:
        if _noted:  # of those that were put back nothing is noted any more
            _tell(dict(handlers))


def _put_back() -> None:
    """Put back what was exchanged, whatever is raised meanwhile; that is raised at the end.

    A handler that was put back may raise, some times over. If one cannot be put back at all (no frames are left), it
    stays exchanged, and the next signal, or the next to come in, puts it back.
    """
    error: BaseException | None = None
    tries = 0
    while _before and tries < _TRIES:
        try:
            tries += 1
            number, handler = _before[-1]
            if _get(number) is _note:
                _set(number, handler)
            if _before and _before[-1][0] == number:  # unless a signal that came just now has put all back
                _before.pop()
            tries = 0
        except BaseException as raised:  # noqa: BLE001
            error = raised
    if error is not None:
        raise error


def _see_that_there_are(frames: int) -> None:
    """RecursionError unless so many more can be had. Where less than half of them are in use, that is quickly seen."""
    try:
        sys._getframe(sys.getrecursionlimit() // 2)  # noqa: SLF001
    except ValueError:  # the stack is not that deep; calls of C that are counted, too (3.11), do not double it
        return
    _take(frames)


def _take(frames: int) -> None:
    if frames:
        _take(frames - 1)


def _tell(handlers: dict[int, Any]) -> None:
    """Have the handlers of the signals that came run, each once, as if they came now."""
    error: BaseException | None = None
    while _noted:
        number = _noted.pop()
        if number in _noted:
            continue
        handler = handlers.get(number, _get(number))
        try:
            if callable(handler):
                handler(number, sys._getframe(2))  # noqa: SLF001 - what Python gives a handler, too
        except BaseException as raised:  # noqa: BLE001
            error = raised
    if error is not None:
        raise error


class _Held:
    """``held``."""

    __slots__ = ()

    def __enter__(self) -> None:
        if _is_main():
            _enter()

    def __exit__(self, *_exception: object) -> None:
        if _depth and _is_main():
            _leave()


held = _Held()
"""``with held:`` no signal's handler runs, and what came is told to it at the end. See the module.

>>> import signal
>>> with held:
...     signal.raise_signal(signal.SIGINT)
...     after = True
Traceback (most recent call last):
KeyboardInterrupt
>>> after
True
"""


class Section:
    """A reentrant lock, with signals held off in the main thread for as long as it is held.

    While the lock is waited for, they are not. Nor does Python's collector run while it is held: it would run any
    object's ``__del__``, in this thread, in the midst of what the lock keeps together.

    >>> section = Section()
    >>> with section, section:
    ...     pass
    """

    __slots__ = ("_collects", "_depth", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._collects = False

    def __enter__(self) -> None:
        if get_ident() != _main:
            _see_that_there_are(_FRAMES)
            self._lock.acquire()
        else:
            _enter()
            if not self._lock.acquire(blocking=False):
                self._wait()
        self._depth += 1
        if self._depth == 1:
            self._collects = gc.isenabled()
            gc.disable()

    def _wait(self) -> None:
        """In the main thread: what comes meanwhile is told."""
        while not self._lock.acquire(timeout=_LOOK_S):
            if _depth == 1 and _noted:
                _leave()  # raises, as a rule
                _enter()

    def __exit__(self, *_exception: object) -> None:
        self._depth -= 1
        if not self._depth and self._collects:
            gc.enable()
        self._lock.release()
        if _depth and get_ident() == _main:
            _leave()


def _in_a_child() -> None:
    """After fork: the thread that called it is the only one, and its signals are not held off."""
    global _depth, _main
    _depth, _main = 0, get_ident()
    _noted.clear()
    _put_back()


os.register_at_fork(after_in_child=_in_a_child)
