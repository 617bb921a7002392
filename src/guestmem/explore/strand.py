"""One run of a thread's code, as a greenlet that stops at each point; and what can be said of where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import greenlet

from . import operations as op
from .scene import Region

__all__ = [
    "Failure",
    "GivenUp",
    "Livelock",
    "Place",
    "Reshaped",
    "Strand",
    "Undetermined",
    "Where",
    "closed_over",
    "failure_of",
    "is_seen",
    "where_is",
    "where_of",
]

_PACKAGE = Path(__file__).parents[1]
_UNSEEN = {
    str(_PACKAGE / name)
    for name in (
        "atomics.py",
        "compiled.py",
        "explore/scene.py",
        "explore/world.py",
        "explore/strand.py",
        "explore/record.py",
    )
}


class Reshaped(BaseException):
    """A word turned out to be shared: what was searched before took too few points."""


class Livelock(Exception):  # noqa: N818 - says what it is, as a finding's kind
    """A thread went on and on."""


class Undetermined(BaseException):
    """A thread that was given the same answers again did something else: it is no function of them."""


class Where(NamedTuple):
    """A line of source: path relative to the package (or the model's file name), line, function."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Failure(NamedTuple):
    """An exception that ended a thread."""

    error: str
    message: str
    where: Where


@dataclass(frozen=True)
class Place:
    """A shared word: its region and index."""

    region: Region
    index: int

    def __str__(self) -> str:
        return self.region.named(self.index)


class Strand:
    """One run of a thread's code, stopped at a point. ``past`` is answered without a stop, if asked for by ``due``."""

    __slots__ = (
        "compact",
        "count",
        "due",
        "fed",
        "fences",
        "greenlet",
        "notes",
        "outcome",
        "overlay",
        "own",
        "past",
        "pending",
        "thread",
        "ticks",
        "where",
    )

    def __init__(
        self,
        thread: int,
        compact: dict[int, int],
        past: Sequence[int],
        due: Sequence[tuple[int, int, int, int]] = (),
        *,
        fences: bool,
    ) -> None:
        self.thread, self.compact, self.fences, self.past, self.due = thread, compact, fences, past, due
        self.greenlet: Any = None
        self.own: list[Any] = []
        """The arguments of the run; words of one thread among them are its copies."""
        self.fed = self.count = self.ticks = 0
        self.overlay: dict[int, int] = {}
        self.notes: dict[str, object] = {}
        self.outcome: Any = None
        self.pending = (op.ENDED, 0, 0, 0)
        self.where: Where | None = None


class GivenUp:
    """In the place of a run that is taken down where it stopped: its ``finally`` clauses must not reach any word."""

    __slots__ = ("instead_of",)

    def __init__(self, instead_of: Strand | None) -> None:
        self.instead_of = instead_of

    @property
    def count(self) -> int:
        """Of the operations that it still tries: none is carried out."""
        raise greenlet.GreenletExit

    @count.setter
    def count(self, _value: int) -> None:
        raise greenlet.GreenletExit


def where_is(frame: FrameType | None) -> Where:
    """The innermost line that is neither the atomics' nor the explorer's."""
    while frame is not None and frame.f_code.co_filename in _UNSEEN and frame.f_back is not None:
        frame = frame.f_back
    if frame is None:
        return Where("?", 0, "?")
    return _relative(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def is_seen(frame: FrameType) -> bool:
    """Whether a frame is a model's or a room's, and none of those that carry a run out."""
    return frame.f_code.co_filename not in _UNSEEN and "greenlet" not in frame.f_code.co_filename


def where_of(frame: FrameType) -> Where:
    """Where a frame is."""
    return _relative(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


@cache
def _relative(file: str, line: int, function: str) -> Where:
    path = Path(file)
    name = path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
    return Where(name, line, function)


def failure_of(error: Exception) -> Failure:
    """What an exception says, with the innermost line that is the model's or a room's."""
    trace: TracebackType | None = error.__traceback__
    seen = Where("?", 0, "?")
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename not in _UNSEEN:
            seen = _relative(code.co_filename, trace.tb_lineno, code.co_name)
        trace = trace.tb_next
    return Failure(type(error).__name__, " ".join(str(error).split()), seen)


def closed_over(body: Any) -> dict[str, object]:
    """What a function takes from outside that is plain data, by name, as it is now."""
    while isinstance(body, partial):
        body = body.func
    code = getattr(body, "__code__", None)
    if code is None:
        return {}
    cells = zip(code.co_freevars, body.__closure__ or (), strict=True)
    outside = {name: body.__globals__[name] for name in code.co_names if name in body.__globals__}
    for name, cell in cells:
        with suppress(ValueError):  # an empty cell
            outside[name] = cell.cell_contents
    return {name: _plain(value) for name, value in outside.items()}


def _plain(value: Any, depth: int = 4) -> object:
    """A copy of plain data, to compare with; all else is there or is another one."""
    if not depth or not isinstance(value, int | str | bytes | bytearray | list | tuple | dict | set):
        return id(value)
    if isinstance(value, list | tuple):
        return [type(value), *(_plain(each, depth - 1) for each in value)]
    if isinstance(value, dict):
        return [(_plain(key), _plain(each, depth - 1)) for key, each in value.items()]
    return (
        sorted(map(repr, value))
        if isinstance(value, set)
        else (type(value), bytes(value) if isinstance(value, bytearray) else value)
    )
