"""Blocks of strace's lines: what most of them are, and the KVM_RUNs and changes of a block as pieces."""

from __future__ import annotations

import operator
import re
from array import array
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, cast

from ..memslots.slot import KVM_MEM_SLOTS_NUM
from ..units import PAGE_SHIFT, PAGE_SIZE
from .pieces import NEAR, PieceChanges, Pieces, piece_of, stretches_of
from .recorder import ELSEWHERE_WORD, end_word
from .region_fields import MAX_SIZE
from .strace_change import flags_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CALLS", "OUTCOME", "ROW", "SPLIT_RUN", "Change", "Run", "pieces_of"]

MOST_KEPT = 4096
DESCRIPTOR = r"(\d{1,6}(?:<[^>\n]{0,80}>)?)"
ENDED = r"(-1 E[A-Z]{1,20} \([^)\n]{0,80}\)|0(?: \(KVM_EXIT_\w{1,40}\))?)"
REGION = (
    r"slot=(\d{1,9}), flags=([\w|]{1,90}), guest_phys_addr=(0|0x[0-9a-f]{1,16}), memory_size=(\d{1,19}), "
    r"userspace_addr=(0|0x[0-9a-f]{1,16})\}\) {1,80}= 0"
)
OUTCOME = re.compile(r"-1 (E[A-Z]+) |0 \((KVM_EXIT_\w+)", re.ASCII)
ROW = re.compile(r"(?:(\d{1,7}) {1,6}(\d{9,12}\.\d{6,9}) (ioctl\(.*) <(\d{1,9}\.\d{1,9})>|(.*))\n", re.ASCII)
"""An ioctl as ``strace -f -ttt -T -o FILE`` prints it: process, stamp, call and result, and what it took; else the
whole line."""
WHOLE_RUN = re.compile(rf"ioctl\({DESCRIPTOR}, KVM_RUN, 0\) {{1,80}}= {ENDED}", re.ASCII)
SPLIT_RUN = re.compile(
    r"([1-9]\d{0,6}) {1,6}(\d{9,12}\.\d{6,9}) "
    rf"(?:(ioctl\({DESCRIPTOR}, KVM_RUN, 0) <unfinished \.\.\.>"
    rf"|<\.\.\. ioctl resumed>\) {{1,80}}= {ENDED}(?: <\d{{1,9}}\.\d{{1,9}}>)?)",
    re.ASCII,
)
"""A KVM_RUN that begins (the call, and its file descriptor), or a call that ends as one does."""
WHOLE_CHANGE = re.compile(
    rf"ioctl\((\d{{1,6}})(?:<[^>\n]{{0,80}}>)?, KVM_SET_USER_MEMORY_REGION, \{{{REGION}", re.ASCII
)


class _Seconds(dict[str, float]):
    """What calls took; there are few that differ."""

    def __missing__(self, text: str) -> float:
        seconds = float(text)
        if len(self) < MOST_KEPT:
            self[text] = seconds
        return seconds


class Change(NamedTuple):
    """A change that needs no closer look; its thread was in user space where it began."""

    fd: int
    word: int
    slot: int
    flags: int
    base: int
    npages: int
    hva: int


class Run(NamedTuple):
    """A KVM_RUN: by which file descriptor, with what decorates it, and the word that its end is kept as."""

    fd: str
    word: int


class _Calls(dict[str, "Run | Change | None"]):
    """What a call says: a KVM_RUN, a plain change, or something else; of KVM_RUNs there are few that differ."""

    def __missing__(self, text: str) -> Run | Change | None:
        if "KVM_SET_USER" in text:
            return _plain_change(text)
        match = WHOLE_RUN.fullmatch(text)
        found = None
        if match is not None:
            outcome = OUTCOME.match(match[2])
            failed, reason = outcome.groups() if outcome else (None, None)
            found = Run(match[1], end_word(reason, failed or ""))
        if len(self) < MOST_KEPT:
            self[text] = found
        return found


SECONDS, CALLS = _Seconds(), _Calls()


def _plain_change(text: str) -> Change | None:
    match = WHOLE_CHANGE.fullmatch(text)
    if match is None:
        return None
    fd, slot, flags, gpa, size, hva = match.groups()
    bits, number, length = flags_of(flags), int(slot), int(size)
    start, host = int(gpa, 16), int(hva, 16)
    odd = start | length | host
    if (
        bits is None
        or bits > 3  # a guest_memfd
        or odd & (PAGE_SIZE - 1)
        or odd >> 62
        or length > MAX_SIZE
        or number & 0xFFFF >= KVM_MEM_SLOTS_NUM
        or number >> 16 > 0xF
    ):
        return None
    return Change(int(fd), ELSEWHERE_WORD, number, bits, start >> PAGE_SHIFT, length >> PAGE_SHIFT, host)


def pieces_of(block: str) -> Pieces:
    """The KVM_RUNs and changes of a block put together."""
    threads, stamps, texts, took, _ = zip(*ROW.findall(block), strict=True)
    calls = list(map(CALLS.__getitem__, texts))
    found: Pieces = []
    for start, stop, plain in stretches_of(calls):
        here = slice(start, stop)
        piece = (
            _piece(threads[here], stamps[here], cast("list[Run | Change]", calls[here]), took[here]) if plain else None
        )
        found.append(stop - start if piece is None else piece)
    return found


def _piece(
    threads: Sequence[str], stamps: Sequence[str], calls: Sequence[Run | Change], took: Sequence[str]
) -> tuple[object, ...] | None:
    length = len(stamps[0])
    if set(map(len, stamps)) != {length}:
        return None
    begins = list(map(float, stamps))
    ends = list(map(operator.add, begins, map(SECONDS.__getitem__, took)))
    words = list(map(operator.itemgetter(1), calls))
    keys = {(thread, call.fd) for thread, call in set(zip(threads, calls, strict=True)) if isinstance(call, Run)}
    if ELSEWHERE_WORD not in words:
        return piece_of(threads, begins, ends, words, keys, length)
    rows = list(compress(range(len(words)), map(ELSEWHERE_WORD.__eq__, words)))
    fds, _, slots, flags, bases, npages, hvas = zip(*[calls[row] for row in rows], strict=True)
    began = array("d", [begins[row] for row in rows])
    columns = (
        *(array("I", slots), array("Q", bases), array("Q", npages), array("Q", hvas), array("I", flags)),
        *(array("q", [int(threads[row]) for row in rows]), began),
    )
    firsts = [i for i, row in enumerate(rows) if not i or row - rows[i - 1] > NEAR]
    lasts = [*(i - 1 for i in firsts[1:]), len(rows) - 1]
    changes = PieceChanges(
        tuple(rows),
        tuple(set(fds)),
        tuple([column.tobytes() for column in columns]),
        array("d", [ends[row] for row in rows]).tobytes(),
        tuple(zip(firsts, lasts, strict=True)),
    )
    return piece_of(threads, begins, ends, words, keys, length, changes)
