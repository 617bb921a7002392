"""Progress of long work on standard error: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["EVERY_S", "Progress", "about"]

EVERY_S = 10.0
"""Seconds between two lines where no terminal shows a bar."""


def about(seconds: float) -> str:
    """A duration for people, to two digits at most.

    >>> about(0.4), about(9.7), about(75), about(320), about(7300)
    ('less than a second', 'about 10 s', 'about 75 s', 'about 5 min', 'about 2.0 h')
    """
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


class Progress:
    """Shows how far something is, from ``with`` to its end.

    ``at(label, share)`` may be called often, from the thread that works; ``expected`` seconds are believed, from the
    first share that is done, until enough is done to tell better. Lines are written by a thread of their own, so that
    they come while something compiles.
    """

    def __init__(self) -> None:
        self.expected = 0.0
        self._label, self._share = "starting", 0.0
        self._begun = time.monotonic()
        self._counted = 0.0
        self._ended = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True, name="progress")
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """One line now."""
        if self._bar is not None:
            self._bar.console.print(f"guestmem: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"guestmem: {text}", file=sys.stderr, flush=True)

    def at(self, label: str, share: float) -> None:
        """``share`` of all is done, of 1, and now it is ``label``."""
        if share > 0 and not self._counted:
            self._counted = time.monotonic()
        self._label, self._share = label, share

    def left(self) -> float | None:
        """About how many seconds are left; None if nothing tells, as while something is still compiled."""
        if not self._share:
            return None
        if self._share > 0.02 and self._counted:
            return (time.monotonic() - self._counted) * (1 - self._share) / self._share
        return self.expected * (1 - self._share) or None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TextColumn("{task.fields[left]}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=1.0, left="")
            self._bar.start()
        self._teller.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        self._teller.join()  # else a line that it is about to write comes after what is printed next

    def _tell(self) -> None:
        while not self._ended.wait(EVERY_S if self._bar is None else 0.2):
            left = self.left()
            rest = "" if left is None else f"{about(left)} left"
            if not self._share and self.expected:
                rest = f"after that {about(self.expected)}"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._share, description=self._label, left=rest)
            elif not self._ended.is_set():
                done = f"{self._share:.0%}, " if self._share else ""
                spent = f"{time.monotonic() - self._begun:.0f} s"
                self.say(f"{done}{self._label}; {spent} so far{', ' * bool(rest)}{rest}")
