"""The load guest's own memory: code, the targets it works on, tables, one block a vCPU. Offsets are in bytes.

It lies in two slots of its own that no update touches, above all other memory; the host sees it at another address.
A guest that was killed in a hole may have run wild first, with any code that its counters spell. So all but the blocks
is read-only for it, and what the host reads from its block is checked (``load_exits.find_target``).
"""

from __future__ import annotations

from ...compiled import const
from ...structure import Structure, name_fields
from ..load_words import LOAD_HEADER, ONE_REPORT, TARGET

__all__ = [
    "ANSWERED",
    "AREA_BYTES",
    "BLOCKS",
    "BLOCK_BYTES",
    "BLOCK_COUNTS",
    "BLOCK_INSIDE",
    "BLOCK_INSIDE_CHANGED",
    "BLOCK_KIND",
    "BLOCK_LOADED",
    "BLOCK_OUTCOME",
    "BLOCK_REPORTS",
    "BLOCK_SEED",
    "BLOCK_SHARES",
    "BLOCK_STACK",
    "BLOCK_STALE",
    "BLOCK_STRANGE",
    "BLOCK_TARGET",
    "CODE",
    "COMMON",
    "COMMON_LOAD",
    "COMMON_WINDOW",
    "DEVICE",
    "HOLE",
    "KINDS",
    "LANDED",
    "LOADS",
    "LOAD_BYTES",
    "MEMORY",
    "OUTCOMES",
    "READONLY_WRITE",
    "TABLES",
    "TABLE_PAGES",
    "VCPUS_MAX",
]

CODE = 0x0
COMMON = 0x1000
COMMON_WINDOW, COMMON_LOAD = 0x0, 0x40
"""Odd while an update runs; the number of the load in force."""
LOADS, LOAD_BYTES = const(0x40000), const(0x40000)
"""Two loads, as ``Load.words``: the one in force has the parity of its number, the other counts no targets."""
TABLES, TABLE_PAGES = 0xC0000, 1024
"""The root, then tables as they are needed: one for 512 GiB, one for each GiB in it (2 MiB pages)."""
BLOCKS, BLOCK_BYTES = TABLES + TABLE_PAGES * 0x1000, 0x2000
"""Two pages a vCPU: its block, its stack. What is before is read-only for the guest."""
VCPUS_MAX = 256
AREA_BYTES = BLOCKS + VCPUS_MAX * BLOCK_BYTES

KINDS, OUTCOMES = 3, 8
"""Kinds of access: read, write, fetch; outcomes: below."""
BLOCK = Structure("block", "what the load guest and the host share of a vCPU, in words of a page", size=512)
_OUTCOME = BLOCK.word("what the access met; written by one side and read by the other, in turn, by one thread")
_TARGET = BLOCK.word("address of the access's target in the load; the same")
_KIND = BLOCK.word("of the access: 0 read, 1 write, 2 fetch")
_SEED = BLOCK.word("state of the random numbers")
_LOADED = BLOCK.word("number of the load that the guest works on")
_SHARES = BLOCK.words(4, "shares of writes, fetches and changed targets, of 2**16; the pattern", at=6)
_POSITION = BLOCK.word("next target of the sequential pattern")
_INSIDE = BLOCK.word("accesses to memory that should be there, in or across a window")
_INSIDE_CHANGED = BLOCK.word("of these, to ranges that the update changes")
_COUNTS = BLOCK.words(KINDS * OUTCOMES, "accesses by kind and outcome", at=16)
_STALE = BLOCK.word("accesses begun after the update that saw the old memory")
_STRANGE = BLOCK.word("accesses that saw neither the old nor the new memory, by their tags")
_REPORTS = BLOCK.words(2 * ONE_REPORT.size, "of the even and of the odd load: ``load_words.ONE_REPORT``", at=48)
name_fields(globals())

BLOCK_OUTCOME, BLOCK_TARGET, BLOCK_KIND = (const(8 * int(word)) for word in (_OUTCOME, _TARGET, _KIND))
BLOCK_SEED, BLOCK_LOADED, BLOCK_SHARES = (8 * int(word) for word in (_SEED, _LOADED, _SHARES))
BLOCK_INSIDE, BLOCK_INSIDE_CHANGED, BLOCK_COUNTS = (8 * int(word) for word in (_INSIDE, _INSIDE_CHANGED, _COUNTS))
BLOCK_STALE, BLOCK_STRANGE, BLOCK_REPORTS = (8 * int(word) for word in (_STALE, _STRANGE, _REPORTS))
"""Places in the block, in bytes."""
BLOCK_STACK = 0x2000

# What an access met.
MEMORY = const(0)
HOLE = const(1)  # there should have been memory
ANSWERED = const(2)  # the same, and the VMM answered
DEVICE = const(3)  # rightly no memory
READONLY_WRITE = const(4)  # rightly not written
LANDED = const(4)  # added to HOLE, ANSWERED, DEVICE: an increment that read there, and then met memory after all

assert int(LOAD_HEADER) == 8
assert int(TARGET) == 4
