"""Blocks of lines of QEMU's log backend: its changes as columns, its vCPUs' calls put together."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from array import array
from typing import TYPE_CHECKING

from ..memslots.slot import KVM_MEM_SLOTS_NUM
from ..units import PAGE_SHIFT, PAGE_SIZE
from .bundles import Bundler
from .columns import Plain
from .event_words import KIND
from .recorder import BEGIN_WORD, ELSEWHERE_WORD, end_word
from .replay import MAX_SIZE

if TYPE_CHECKING:
    from .bundles import Made

__all__ = ["CALL", "CALLS", "CHANGE", "KVM_RUN", "OTHER", "ROW", "plain_of", "plain_or_bundles"]

ROW = re.compile(
    r"(?:(\d{1,10})@(\d{1,20}\.\d+):kvm_(?:set_user_memory AddrSpace#(\d{1,5}) Slot#(\d{1,5}) flags=0x([0-9a-f]{1,8}) "
    r"gpa=0x([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16}) ua=0x([0-9a-f]{1,16})"
    r"(?: guest_memfd=-1 guest_memfd_offset=0x0)? ret=(-?\d{1,10})"
    r"|(run_exit cpu_index \d{1,6}, reason \d{1,6}(?=\n)"
    r"|vcpu_ioctl cpu_index \d{1,6}, type 0x[0-9a-f]{1,8}(?=, arg \S))(?:, arg \S{1,40})?)"
    r"|(.*))\n",
    re.ASCII,
)
"""Lines of QEMU's log backend as it has printed them for years, a group for each field; else the whole line."""
CHANGE, CALL, OTHER = 8, 9, 10
CALLS = re.compile(r"run_exit cpu_index (\d+), reason (\d+)|vcpu_ioctl cpu_index (\d+), type 0x([0-9a-f]+)", re.ASCII)
KVM_RUN = "ae80"


def plain_or_bundles(block: str) -> tuple[array[int] | array[float], ...] | Made:
    """The columns of a block of lines, if all are changes that need no closer look, else its KVM_RUNs put together."""
    rows = ROW.findall(block)
    columns = list(zip(*rows, strict=True))
    plain = None if any(columns[OTHER]) or not all(columns[CHANGE]) else plain_of(columns)
    if plain is not None:
        return tuple(plain)
    made = Bundler()
    parts: dict[str, int | None] = {}
    for row in rows:
        call = row[CALL]
        event = None
        if call:
            if call not in parts:
                parts[call] = _word_of(call)
            event = parts[call]
        thread = int(row[0]) if event is not None else 0
        if event is None:
            made.other(row)
        elif event == BEGIN_WORD and made.last_of(thread) & KIND == BEGIN_WORD:
            time = float(row[1])  # it had returned by now
            made.add((row[0], call), thread, "", [time, time], [ELSEWHERE_WORD, BEGIN_WORD])
        else:
            made.add((row[0], call), thread, "", [float(row[1])], [event])
    return made.made()


def _word_of(call: str) -> int | None:
    """The word of a KVM_RUN's begin or end; None for any other call."""
    match = CALLS.match(call)
    if match is None or (match[3] and match[4] != KVM_RUN):
        return None
    return BEGIN_WORD if match[3] else end_word(int(match[2]))


def plain_of(columns: list[tuple[str, ...]]) -> Plain | None:
    """The same of the groups of ROW, of which each row is a change."""
    flags = {word: int(word, 16) for word in set(columns[4])}
    spaces = {word: int(word) << 16 for word in set(columns[2])}
    if set(columns[CHANGE]) != {"0"} or max(spaces.values()) > 1 << 20 or max(flags.values()) > 3:  # a guest_memfd
        return None
    hexadecimal = itertools.repeat(16)
    gpas, sizes, hvas = (list(map(int, columns[i], hexadecimal)) for i in (5, 6, 7))
    slots = list(map(int, columns[3]))
    times = array("d", list(map(float, columns[1])))
    odd = functools.reduce(operator.or_, itertools.chain(gpas, sizes, hvas))
    if (
        odd & (PAGE_SIZE - 1)
        or odd >> 62
        or max(sizes) > MAX_SIZE
        or max(slots) >= KVM_MEM_SLOTS_NUM
        or not all(map(operator.le, times, itertools.islice(times, 1, None)))
    ):
        return None
    if any(spaces.values()):
        slots = list(map(operator.or_, slots, map(spaces.__getitem__, columns[2])))
    threads = {word: int(word) for word in set(columns[0])}
    shift = itertools.repeat(PAGE_SHIFT)
    return Plain(
        array("I", slots),
        array("Q", list(map(operator.rshift, gpas, shift))),
        array("Q", list(map(operator.rshift, sizes, shift))),
        array("Q", hvas),
        array("I", list(map(flags.__getitem__, columns[4]))),
        array("q", list(map(threads.__getitem__, columns[0]))),
        times,
    )
