"""Blocks of strace's lines: what most of them are, and the KVM_RUNs of a block put together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .bundles import Bundler
from .recorder import BEGIN_WORD, end_word

if TYPE_CHECKING:
    from .bundles import Made

__all__ = ["ENDS", "FIELDS", "OUTCOME", "ROW", "bundles_of"]

MOST_ENDS = 1024
ROW = re.compile(
    r"(?:(\d{1,7}) {1,6}(\d{9,12}\.\d{6,9}) ioctl\((\d{1,6}(?:<[^>\n]{0,80}>)?), KVM_(?:RUN, 0\) {1,80}= "
    r"(-1 E[A-Z]{1,20} \([^)\n]{0,80}\)|0(?: \(KVM_EXIT_\w{1,40}\))?) <(\d{1,9}\.\d{1,9})>"
    r"|SET_USER_MEMORY_REGION, \{slot=(\d{1,9}, flags=[\w|]{1,90}, guest_phys_addr=(?:0|0x[0-9a-f]{1,16}), "
    r"memory_size=\d{1,19}, userspace_addr=(?:0|0x[0-9a-f]{1,16})\}\) {1,80}= 0 <\d{1,9}\.\d{1,9})>)|(.*))\n",
    re.ASCII,
)
"""A KVM_RUN and a change as ``strace -f -ttt -T -o FILE`` prints them: in groups process, stamp, file descriptor with
what decorates it, how the KVM_RUN ended and what it took, the fields of the change; else the whole line."""
FIELDS = re.compile(
    r"(\d+), flags=([^,]+), guest_phys_addr=(\w+), memory_size=(\d+), userspace_addr=(\w+)\}\) += 0 <([\d.]+)", re.ASCII
)
OUTCOME = re.compile(r"-1 (E[A-Z]+) |0 \((KVM_EXIT_\w+)", re.ASCII)


class _Ends(dict[str, int]):
    """The word of a KVM_RUN's end, by what strace prints of it; few, since a made-up one is not kept."""

    def __missing__(self, outcome: str) -> int:
        match = OUTCOME.match(outcome)
        failed, reason = match.groups() if match else (None, None)
        event = end_word(reason, failed or "")
        if len(self) < MOST_ENDS:
            self[outcome] = event
        return event


ENDS = _Ends()


def bundles_of(block: str) -> Made:
    """The KVM_RUNs of a block put together."""
    made = Bundler()
    for row in ROW.findall(block):
        word, stamp, fd, outcome, took, _, _ = row
        if took:
            begin = float(stamp)
            made.add((word, fd), int(word), stamp, [begin, begin + float(took)], [BEGIN_WORD, ENDS[outcome]])
        else:
            made.other(row)
    return made.made()
