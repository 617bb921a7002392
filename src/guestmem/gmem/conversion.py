"""The frame of a conversion, whatever its generation: lock, look at the host's references, store, unlock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .convert import convert_begin, convert_end, convert_from_host
from .invalidate_lock import write_unlock
from .layout import OK, SAME
from .states import InodeOfStates, in_use

__all__ = ["converting", "store_state", "take_from_host"]


@contextmanager
def converting(inode: InodeOfStates, first: int, last: int, value: int) -> Iterator[bool]:
    """The invalidate lock, for writing, from the look at the states on; False, without it: every page has ``value``.

    It counts as a conversion unless the block raises.
    """
    if convert_begin(inode.words, inode.states.words, first, last, value, inode.found) == SAME:
        yield False
        return
    try:
        yield True
    except BaseException:
        write_unlock(inode.words)
        raise
    convert_end(inode.words)


def take_from_host(inode: InodeOfStates, first: int, last: int) -> None:
    """Unmap pages [first, last] from the host; EAGAIN, with the first of them, if somebody outside holds one."""
    inode.window_barred(first, last)
    if convert_from_host(inode.words, first, last, inode.found) != OK:
        inode.window_follows(first, last)
        raise in_use(int(inode.found[0]))


def store_state(inode: InodeOfStates, first: int, last: int, value: int, *, private: bool) -> None:
    """Pages [first, last] have ``value`` from now on; the guest has none of them mapped as they were."""
    if not private:
        inode.prepare_shared(first, last)
    inode.states.store(first, last + 1, value, reserved=True)
    if private:
        inode.regroup(first, last)
    inode.window_follows(first, last)
