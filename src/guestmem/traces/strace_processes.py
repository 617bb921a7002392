"""Which thread a line of strace's is of, where ``[pid N]`` stands only while there are several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .columns import NO_THREAD

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .columns import Changes

__all__ = ["Processes"]


class Processes:
    """The threads of a recording. ``renamed`` is told when the one that had no number, 0, is known to have one.

    ``saw_bracket``: whether a line had ``[pid N]``.
    """

    __slots__ = ("_alive", "_attached", "_renamed", "_root", "_used_root", "saw_bracket")

    def __init__(self, renamed: Callable[[int, int], None]) -> None:
        self._renamed = renamed
        self._alive: dict[int, None] = {}
        self._attached: set[int] = set()
        self.saw_bracket = self._used_root = False
        self._root: int | None = None
        """The process whose lines had no number while it was alone."""

    def attached(self, thread: int) -> None:
        """Strace says that ``thread`` is traced now."""
        self._alive[thread] = None
        self._attached.add(thread)

    def ended(self, thread: int) -> None:
        """``thread`` is over."""
        self._alive.pop(thread, None)

    def of_line(self, thread: int, *, has_bracket: bool, resumes: bool, waiting: Collection[int]) -> int:
        """The thread of a line that has the number ``thread``, or 0 for none; 0 if that is not known.

        ``resumes``: whether it is the end of a call, as those in ``waiting`` still have to come.
        """
        if has_bracket and thread:
            return self._bracketed(thread)
        if thread:
            return thread
        if not self.saw_bracket:
            self._used_root = True
            return 0
        if len(self._alive) == 1:
            return next(iter(self._alive))
        if resumes and len(waiting) == 1:
            return next(iter(waiting))
        return 0

    def _bracketed(self, thread: int) -> int:
        if not self.saw_bracket and self._used_root:
            self._alive.setdefault(0)
        self.saw_bracket = True
        if 0 in self._alive and thread not in self._attached:
            self._root = thread
            del self._alive[0]
            self._renamed(0, thread)
        self._alive[thread] = None
        return thread

    def name_the_root(self, changes: Changes) -> None:
        """Changes of the process whose lines had no number get it."""
        if self._root is None:
            return
        for i, thread in enumerate(changes.thread):
            if thread != NO_THREAD:
                break
            changes.thread[i] = self._root
