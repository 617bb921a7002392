"""Ctrl-C as commands with figures want it: once, to end with what was measured; twice, to end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has been pressed, to be asked between steps; a second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        del frame
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
