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
from .columns import Plain
from .event_pieces import PieceMaker
from .event_words import KIND
from .recorder import BEGIN_WORD, ELSEWHERE_WORD, RETURNED, end_word
from .region_fields import MAX_SIZE

if TYPE_CHECKING:
    from .event_pieces import EventKey, EventPieces, Lane

__all__ = ["CALL", "CALLS", "CHANGE", "FIELDS", "KVM_RUN", "OTHER", "ROW", "plain_of", "plain_or_pieces"]

FIELDS = (
    r"AddrSpace#(\d{1,5}) Slot#(\d{1,5}) flags=0x([0-9a-f]{1,8}) gpa=0x([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16}) "
    r"ua=0x([0-9a-f]{1,16})(?: guest_memfd=-1 guest_memfd_offset=0x0)? ret=(-?\d{1,10})"
)
"""Those of a kvm_set_user_memory, a group for each."""
ROW = re.compile(
    rf"(?:(\d{{1,10}})@(\d{{1,20}}\.\d+):kvm_(?:set_user_memory {FIELDS}"
    r"|(run_exit cpu_index \d{1,6}, reason \d{1,6}(?=\n)"
    r"|vcpu_ioctl cpu_index \d{1,6}, type 0x[0-9a-f]{1,8}(?=, arg \S))(?:, arg \S{1,40})?)"
    r"|(.*))\n",
    re.ASCII,
)
"""Lines of QEMU's log backend as it has printed them for years, a group for each field; else the whole line."""
CHANGE, CALL, OTHER = 8, 9, 10
CALLS = re.compile(r"run_exit cpu_index (\d+), reason (\d+)|vcpu_ioctl cpu_index (\d+), type 0x([0-9a-f]+)", re.ASCII)
KVM_RUN = "ae80"


def plain_or_pieces(block: str) -> tuple[array[int] | array[float], ...] | EventPieces:
    """The columns of a block of lines, if all are changes that need no closer look, else its KVM_RUNs put together."""
    rows = ROW.findall(block)
    columns = list(zip(*rows, strict=True))
    plain = None if any(columns[OTHER]) or not all(columns[CHANGE]) else plain_of(columns)
    if plain is not None:
        return tuple(plain)
    made = PieceMaker(plain_of)
    times = made.times
    lanes: dict[EventKey, tuple[Lane, int]] = {}
    callers = set(map(int, set(itertools.compress(columns[0], columns[CALL]))))
    for row in rows:
        call, word = row[CALL], row[0]
        if not call:
            if row[CHANGE]:
                thread = int(word)
                made.change(row, made.lane(thread) if thread in callers else None, thread, float(row[1]))
            else:
                made.other()
            continue
        key = word, call
        found = lanes.get(key)
        if found is None:
            event = _word_of(call)
            if event is None:
                made.other()
                continue
            found = lanes[key] = made.lane(int(word)), event
        lane, event = found
        time, at = float(row[1]), len(times)
        if event == BEGIN_WORD and lane.words and lane.words[-1] & KIND != RETURNED:
            lane.rows.append(at)  # it had returned by now
            lane.times.append(time)
            lane.words.append(ELSEWHERE_WORD)
        lane.rows.append(at)
        lane.times.append(time)
        lane.words.append(event)
        times.append(time)
    return made.made(list(lanes))


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
