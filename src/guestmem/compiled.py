"""One source, two forms: the decorator that makes a plain function fast, and the values both forms compute with.

*Compiled*: Numba turns the function, by one declared signature, into machine code on its first call and keeps it in
a cache on disk. *Interpreted*: the same text runs as plain Python. A module is interpreted when its package was
imported a second time by ``explore.load()`` or when ``GUESTMEM_INTERPRET=1`` is set.

The signature is the annotations: ``Words`` (shared between threads: only ``atomics`` touch it), ``Own`` (words of one
thread: plain indexing), ``U64``, ``bool``, ``None``, and NamedTuples of these, for what travels together: between
compiled functions they cost nothing, from Python a microsecond, so what Python calls takes their fields. The rules
that make the two forms equal: CONTRIBUTING.md.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from .units import U64_MAX

__all__ = [
    "INTERPRETED",
    "ONE",
    "TWO",
    "U64",
    "WORD_TYPES",
    "ZERO",
    "Own",
    "Words",
    "compiled",
    "compiled_copy",
    "const",
    "own",
    "u64",
    "words",
    "wrapping",
]

INTERPRETED = __name__ != "guestmem.compiled" or os.environ.get("GUESTMEM_INTERPRET") == "1"
"""Whether this copy of the package is in its interpreted form."""

U64 = int
"""Annotation of an unsigned 64-bit word."""

WORD_TYPES = ("Words", "Own", "U64", "bool", "None")
"""What a compiled function's annotations may say."""

_F = TypeVar("_F", bound=Callable[..., Any])
_LINE = 64
_PAGES_FROM = 1 << 16


class Words:
    """Words that several threads share. No plain indexing: all access goes through ``atomics``.

    This class is what the interpreted form uses; compiled code gets a NumPy array of ``uint64``, and mypy sees this
    class in both.
    """

    __slots__ = ("address", "cells")

    def __init__(self, buffer: mmap.mmap | bytearray) -> None:
        self.cells = memoryview(buffer).cast("B").cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))

    def __len__(self) -> int:
        return len(self.cells)


class Own(Protocol):
    """Words of one thread: TLB, counters, scratch space. Plain indexing."""

    def __getitem__(self, index: int, /) -> int:
        """The word at ``index``."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Set the word at ``index``."""

    def __len__(self) -> int:
        """Number of words."""

    def tolist(self) -> list[int]:
        """All words; one call, where each index from Python takes 100 ns."""


if TYPE_CHECKING or INTERPRETED:

    def u64(value: int, /) -> int:
        """``value`` as an unsigned word; interpreted, a value outside raises OverflowError."""
        if not 0 <= value <= U64_MAX:
            raise OverflowError(f"{value:#x} leaves an unsigned 64-bit word")
        return int(value)

    def wrapping(value: int, /) -> int:
        """``value`` modulo 2**64: the only way to wrap around on purpose."""
        return value & U64_MAX

    def const(value: int, /) -> int:
        """A module constant that compiled functions may use."""
        return value

else:
    from ._packages import require_numba

    require_numba()
    from numba import uint64 as u64
    from numpy import uint64 as const

    wrapping = u64

ZERO, ONE, TWO = const(0), const(1), const(2)


def words(count: int) -> Words:
    """``count`` zeroed words for several threads, aligned to a cache line; pages are committed when touched."""
    if INTERPRETED:
        return Words(mmap.mmap(-1, count * 8) if count * 8 >= _PAGES_FROM else bytearray(count * 8))
    return cast("Words", _array(count))


def own(count: int) -> Own:
    """``count`` zeroed words for one thread."""
    if INTERPRETED:
        return memoryview(bytearray(count * 8)).cast("Q")
    return cast("Own", _array(count))


def _array(count: int) -> Any:
    import numpy as np

    if count * 8 >= _PAGES_FROM:
        return np.frombuffer(mmap.mmap(-1, count * 8), np.uint64)
    raw = np.zeros(count + _LINE // 8, np.uint64)
    skip = -raw.__array_interface__["data"][0] % _LINE // 8
    return raw[skip : skip + count]


@overload
def compiled(function: _F, /) -> _F: ...


@overload
def compiled(*, nogil: bool = False, inline: bool = False) -> Callable[[_F], _F]: ...


def compiled(function: Any = None, /, *, nogil: bool = False, inline: bool = False) -> Any:
    """Compile a function by its annotations, on its first call; in the interpreted form, leave it as it is.

    ``nogil``: run without the GIL. Only for functions that loop or wait: a short call that gives the GIL away may wait
    5 ms to get it back from a busy Python thread.
    ``inline``: put the machine code into each caller. For the inside of hot loops: a call between compiled functions
    hands over seven words an array (a table walk of five arrays: 20 ns a page with calls, 6 without).

    The function sees words only, allocates nothing, does not recurse, and reports failure by its return value.
    A call costs 120 ns and some 45 ns an array.
    """

    def decorate(plain: Any) -> Any:
        if INTERPRETED:
            return plain
        from ._numba import dispatcher

        return dispatcher(plain, nogil=nogil, inline=inline)

    return decorate if function is None else decorate(function)


def compiled_copy(plain: _F) -> _F:
    """A plain function of a module that does without Numba, compiled as ``compiled`` would; the module keeps its own.

    Whole numbers that the module names become constants (``const``).
    """
    if INTERPRETED:
        return plain
    where = plain.__globals__
    numbers = {name: const(where[name]) for name in plain.__code__.co_names if type(where.get(name)) is int}
    copy = FunctionType(plain.__code__, {**where, **numbers}, plain.__name__)
    copy.__annotations__, copy.__module__, copy.__qualname__ = (
        plain.__annotations__,
        plain.__module__,
        plain.__qualname__,
    )
    return cast("_F", compiled(copy))
