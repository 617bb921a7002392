"""Where a TLB's things lie: the hub that all vCPUs share (in a table's words), and the words of one vCPU's TLB.

The hub starts at word mmu[TLB_BASE] (0: no TLB is attached); it holds a log of the last invalidations and a line per
walker. One TLB is ``Own``: header, counters, then three direct-mapped caches, each a power of two of entries:

- *combined*: guest virtual page to host page, tagged by the virtual page only (stage 1 and 2 together);
- *leaf*: a stage-2 leaf of any level, tagged by its level and input address;
- *walk*: a stage-2 table, tagged by the level of the entry that points to it and by input address.

Idea: what Arm's architecture lets hardware cache, DDI 0487, D8 "Translation Lookaside Buffers".
"""

from __future__ import annotations

from ..compiled import const

# --- hub, from mmu[TLB_BASE] -----------------------------------------------------------------------------------------
SEQUENCE = const(0)
"""Records ever logged; the next one's number."""
LOG_LOCK = const(8)
WAITING, ACKS = const(16), const(24)
"""Invalidators that wait; acknowledgements that somebody waited for (futex)."""
COMPLETIONS, SLEPT = const(32), const(33)
"""Waits for all vCPUs, and how often they slept."""
LINES = const(40)
LINE = const(8)
"""Line of walker w: hub + LINES + LINE w."""
IN_GUEST, APPLIED = const(0), const(1)
"""1 while it may use its TLB; number of log records that it has applied."""
LOCALS, LOCAL_IPA, LOCAL_LEVEL = const(2), const(3), const(4)
"""Invalidations that the walker asked of its own TLB so far, and the last one's address and level."""
RECORD = const(4)
"""Words of a record: what (kind | level << 8), start, end, number + 1 once completed. They follow the lines."""

KIND = const(0xFF)
BY_ADDRESS, BY_BYTES, COMBINED, EVERYTHING = const(1), const(2), const(3), const(4)
"""Kinds of record: leaf of one address (IPAS2E1IS), leaves and tables of a range of bytes (RIPAS2E1IS), all combined
entries (VMALLE1IS), all of them (VMALLS12E1IS)."""
NO_HINT = const(4)
"""Level of a record that names none."""


def hub_words(walkers: int, ring: int) -> int:
    """Words of a hub for ``walkers`` walkers with a log of ``ring`` records."""
    return int(LINES) + int(LINE) * walkers + int(RECORD) * ring


# --- one TLB: header -------------------------------------------------------------------------------------------------
WALKER = const(0)
"""The vCPU's number among the table's walkers."""
SEEN, LOCALS_SEEN = const(1), const(2)
"""Copies of APPLIED and LOCALS."""
COMBINED_MASK, LEAF_MASK, WALK_MASK = const(3), const(4), const(5)
"""Entries - 1 of each cache."""
COMBINED_BASE, LEAF_BASE, WALK_BASE = const(6), const(7), const(8)
"""Where each cache starts."""
STRICT = const(9)
"""1: look at each use whether the entry should be gone."""
BBM = const(10)
"""Level of FEAT_BBM: 0, 1 or 2."""
SETS_ACCESSED = const(11)
"""Hardware sets the access flag (NPT; Arm with VTCR_EL2.HA); else a leaf without it is an access-flag fault."""
SETS_DIRTY = const(12)
"""Mask of the dirty flag that hardware sets on a write (NPT); 0: it sets none."""
DBM = const(13)
"""Mask of the dirty-bit-modifier (Arm with VTCR_EL2.HD: bit 51): a write sets S2AP[1] where it is set; 0: not used."""
NT = const(14)
"""Mask of the nT bit of blocks, which are then not cached (Arm with FEAT_BBM >= 1: bit 16); 0: there is none."""
FORGETS = const(15)
"""1: a fault drops the entry that it came from (x86); 0: it may stay, and fault again (Arm)."""
SPECULATES = const(16)
"""1 + an input address that hardware fills between any two steps of an invalidation; 0: none."""
ADDRESS, LEVEL, FOUND = const(17), const(18), const(19)
"""Of the last translation: host address of the byte, level and descriptor. Level is also that of a fault."""
IDENTITY = const(47)
"""1: there is no stage 1, so an address is cached as itself only, and is found without a search."""
FIRST_IPA, FIRST_LEVEL, FIRST_KIND, FIRST_RECORD = const(20), const(21), const(22), const(23)
"""The first finding of the strict mode: address, level, kind (below), and the record that should have ended it."""

# Counters.
COUNTERS = const(24)
HITS, LEAF_HITS, WALK_HITS, WALKS, FILLS, SPECULATIVE = (COUNTERS + const(n) for n in range(6))
BY_ADDRESS_SEEN, BY_BYTES_SEEN, COMBINED_SEEN, EVERYTHING_SEEN = (COUNTERS + const(n) for n in range(6, 10))
LOCAL_SEEN, ENTRY_FLUSHES, OVERRUNS, DROPPED = (COUNTERS + const(n) for n in range(10, 14))
FLAGS_SET, CONFLICTS, FINDINGS, UNCHECKED = (COUNTERS + const(n) for n in range(14, 18))
COUNTER_NAMES = (
    "hits",  # in the combined cache
    "leaf_hits",
    "walk_hits",  # walks that began at a cached table
    "walks",
    "fills",
    "speculative",  # fills that no access asked for
    "by_address",  # invalidations applied, by kind
    "by_range",
    "combined",
    "everything",
    "local",
    "entry_flushes",  # everything forgotten on entry, since the log had gone too far meanwhile
    "overruns",  # the same in the guest
    "dropped",  # entries that an invalidation took
    "flags_set",  # access and dirty flags set by hardware
    "conflicts",  # conflict aborts
    "findings",  # uses of an entry that a completed invalidation covers, and broken break-before-make
    "unchecked",  # uses of an entry so old that the log no longer says
)
"""Names of the counters, in order."""
STALE_COMBINED, STALE_LEAF, STALE_WALK, TWO_SIZES = const(1), const(2), const(3), const(4)
"""Kinds of finding. TWO_SIZES: two leaves of different size at once, where FEAT_BBM's level allows none."""
HEADER = 48

ENTRY = const(4)
"""Words of an entry: tag + 1 (0: empty), target (page or table address), input address or descriptor, record number."""

OK, TRANSLATION, ACCESS_FLAG, PERMISSION, CONFLICT = const(0), const(1), const(2), const(3), const(4)
"""What a translation comes to."""
READ, WRITE, FETCH = const(1), const(2), const(4)
"""What an access needs."""


def tlb_words(combined: int, leaves: int, walks: int) -> int:
    """Words of a TLB with these numbers of entries."""
    return HEADER + int(ENTRY) * (combined + leaves + walks)
