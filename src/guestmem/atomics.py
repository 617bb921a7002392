"""Atomic operations on shared words, fences, waiting and waking, and accesses to raw host memory; in both forms.

Compiled they are LLVM atomics with the order in their name, and a futex. Interpreted they are plain Python in which
each operation is a schedule point: while a scheduler is installed (``schedule()``), it carries out the operation.

Orders: ``relaxed`` promises only that the word is read or written once and whole; ``acquire`` keeps later accesses
after it, ``release`` earlier ones before it; read-modify-writes are both. Store, then load of another word, on two
sides, needs ``fence`` between: nothing weaker keeps that order (CONTRIBUTING.md, two forms).

Indices are not checked in the compiled form. A wait compares the low 32 bits of the word, which is all a futex has.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .compiled import INTERPRETED, U64, Words, compiled, u64
from .futex import FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE, SYS_FUTEX
from .units import U64_MAX

__all__ = [
    "Scheduler",
    "address_of",
    "compare_exchange",
    "exchange",
    "fence",
    "fetch_add",
    "fetch_and",
    "fetch_or",
    "host_fetch_add",
    "host_fetch_or",
    "host_load",
    "host_store",
    "load_acquire",
    "load_relaxed",
    "peek",
    "poke",
    "schedule",
    "store_relaxed",
    "store_release",
    "wait",
    "wait_for",
    "wake",
    "wake_all",
]


class Scheduler(Protocol):
    """What the interpreted form hands each operation to, while one is installed."""

    def step(self, operation: str, words: Words | None, index: int, first: int, second: int) -> int:
        """Carry out ``operation`` (its name in this module) and return what it returns (0 for none).

        ``words`` is None for operations that touch no word (``fence``) or a raw host address (then ``index``).
        Operands that an operation does not have are 0. ``wait_for`` arrives as ``wait``, its nanoseconds as ``second``
        (``wait``: 2**64 - 1, for ever).
        """


_scheduler: Scheduler | None = None


@contextmanager
def schedule(scheduler: Scheduler) -> Iterator[None]:
    """Install a scheduler of the interpreted form for a while."""
    global _scheduler  # noqa: PLW0603 - one scheduler a loaded copy: atomics are called from everywhere
    if not INTERPRETED:
        raise RuntimeError("compiled atomics cannot be scheduled: load the interpreted form with explore.load()")
    before, _scheduler = _scheduler, scheduler
    try:
        yield
    finally:
        _scheduler = before


if TYPE_CHECKING or INTERPRETED:
    # Without a scheduler, real threads may run this form: the GIL may change hands between the read and the write of
    # a read-modify-write, so these (and stores, which must not fall in between) take one lock.
    _lock = threading.Lock()
    # A memoryview would count from its end, as compiled code never does.
    _NEGATIVE = "the index of a word is negative"
    _libc: Any = ctypes.CDLL(None, use_errno=True)

    def _at(address: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(address)

    def load_relaxed(words: Words, index: int) -> int:
        """The word at ``index``; no order."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("load_relaxed", words, index, 0, 0)
        return words.cells[index]

    def load_acquire(words: Words, index: int) -> int:
        """The word at ``index``; later accesses stay after it."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("load_acquire", words, index, 0, 0)
        return words.cells[index]

    def store_relaxed(words: Words, index: int, value: int) -> None:
        """Write the word at ``index``; no order."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            _scheduler.step("store_relaxed", words, index, value, 0)
            return
        with _lock:
            words.cells[index] = value

    def store_release(words: Words, index: int, value: int) -> None:
        """Write the word at ``index``; earlier accesses stay before it."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            _scheduler.step("store_release", words, index, value, 0)
            return
        with _lock:
            words.cells[index] = value

    def compare_exchange(words: Words, index: int, old: int, new: int) -> int:
        """Write ``new`` if the word is ``old``; returns what it was. Acquire and release."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("compare_exchange", words, index, old, new)
        with _lock:
            seen = words.cells[index]
            if seen == old:
                words.cells[index] = new
            return seen

    def exchange(words: Words, index: int, value: int) -> int:
        """Write ``value``; returns what the word was. Acquire and release."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("exchange", words, index, value, 0)
        with _lock:
            seen = words.cells[index]
            words.cells[index] = value
            return seen

    def fetch_add(words: Words, index: int, value: int) -> int:
        """Add modulo 2**64; returns what the word was. Acquire and release."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("fetch_add", words, index, value, 0)
        with _lock:
            seen = words.cells[index]
            words.cells[index] = (seen + value) & U64_MAX
            return seen

    def fetch_and(words: Words, index: int, value: int) -> int:
        """Keep the bits of ``value``; returns what the word was. Acquire and release."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("fetch_and", words, index, value, 0)
        with _lock:
            seen = words.cells[index]
            words.cells[index] = seen & value
            return seen

    def fetch_or(words: Words, index: int, value: int) -> int:
        """Set the bits of ``value``; returns what the word was. Acquire and release."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            return _scheduler.step("fetch_or", words, index, value, 0)
        with _lock:
            seen = words.cells[index]
            words.cells[index] = seen | value
            return seen

    def fence() -> None:
        """Full fence (sequentially consistent): no access moves across it, not even a load before a store."""
        if _scheduler is not None:
            _scheduler.step("fence", None, 0, 0, 0)

    def address_of(words: Words, index: int) -> int:
        """Host address of a word."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        return words.address + 8 * index

    def host_load(address: int) -> int:
        """The 8 bytes at a raw host address; one access, relaxed. The address must be mapped and aligned."""
        if _scheduler is not None:
            return _scheduler.step("host_load", None, address, 0, 0)
        return _at(address).value

    def host_store(address: int, value: int) -> None:
        """Write 8 bytes at a raw host address; one access, relaxed."""
        if _scheduler is not None:
            _scheduler.step("host_store", None, address, value, 0)
            return
        with _lock:
            _at(address).value = value

    def host_fetch_add(address: int, value: int) -> int:
        """Locked add at a raw host address; returns what was there. Sequentially consistent, as x86's lock prefix."""
        if _scheduler is not None:
            return _scheduler.step("host_fetch_add", None, address, value, 0)
        with _lock:
            cell = _at(address)
            seen = cell.value
            cell.value = (seen + value) & U64_MAX
            return int(seen)

    def host_fetch_or(address: int, value: int) -> int:
        """Set the bits of ``value`` at a raw host address; returns what was there. Acquire and release."""
        if _scheduler is not None:
            return _scheduler.step("host_fetch_or", None, address, value, 0)
        with _lock:
            cell = _at(address)
            seen = cell.value
            cell.value = seen | value
            return int(seen)

    def wait(words: Words, index: int, expected: int) -> None:
        """Sleep while the word is ``expected``, until woken; may wake for no reason, so callers loop."""
        wait_for(words, index, expected, U64_MAX)

    def wait_for(words: Words, index: int, expected: int, nanoseconds: int) -> None:
        """As ``wait``, for at most ``nanoseconds``."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            _scheduler.step("wait", words, index, expected, nanoseconds)
            return
        timeout = None
        if nanoseconds != U64_MAX:
            timeout = (ctypes.c_int64 * 2)(*divmod(nanoseconds, 1_000_000_000))
        _libc.syscall(
            ctypes.c_long(SYS_FUTEX),
            ctypes.c_uint64(words.address + 8 * index),
            ctypes.c_long(FUTEX_WAIT_PRIVATE),
            ctypes.c_long(expected & 0xFFFFFFFF),
            timeout,
        )

    def wake(words: Words, index: int, count: int) -> None:
        """Wake up to ``count`` threads that wait on the word."""
        if index < 0:
            raise IndexError(_NEGATIVE)
        if _scheduler is not None:
            _scheduler.step("wake", words, index, count, 0)
            return
        _libc.syscall(
            ctypes.c_long(SYS_FUTEX),
            ctypes.c_uint64(words.address + 8 * index),
            ctypes.c_long(FUTEX_WAKE_PRIVATE),
            ctypes.c_long(min(count, 0x7FFFFFFF)),
        )

else:
    from ._intrinsics import (
        address_of,
        compare_exchange,
        exchange,
        fence,
        fetch_add,
        fetch_and,
        fetch_or,
        host_fetch_add,
        host_fetch_or,
        host_load,
        host_store,
        load_acquire,
        load_relaxed,
        store_relaxed,
        store_release,
        wait,
        wait_for,
        wake,
    )


@compiled
def peek(words: Words, index: U64) -> U64:
    """From Python: the word at ``index``, acquired."""
    return load_acquire(words, index)


@compiled
def poke(words: Words, index: U64, value: U64) -> None:
    """From Python: write the word at ``index``, released."""
    store_release(words, index, value)


@compiled
def wake_all(words: Words, index: U64) -> None:
    """From Python: wake every thread that waits on the word."""
    wake(words, index, u64(0x7FFFFFFF))
