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
from ..structure import Structure, name_fields

# --- hub, from mmu[TLB_BASE] -----------------------------------------------------------------------------------------
WALKER_LINE = Structure("walker", "a walker whose TLB hears of invalidations", size=8)
IN_GUEST = WALKER_LINE.word("1 while it may use its TLB")
APPLIED = WALKER_LINE.word("number of log records that it has applied")
LOCALS = WALKER_LINE.word("invalidations that the walker asked of its own TLB so far")
LOCAL_IPA = WALKER_LINE.word("the last one's address")
LOCAL_LEVEL = WALKER_LINE.word("the last one's level")
LINE = const(WALKER_LINE.size)

LOG_RECORD = Structure("record", "an invalidation in the log", size=4)
RECORD_KIND = LOG_RECORD.word("what (kind | level << 8)")
RECORD_START = LOG_RECORD.word("first address")
RECORD_END = LOG_RECORD.word("end")
RECORD_DONE = LOG_RECORD.word("number + 1 once completed")
RECORD = const(LOG_RECORD.size)

HUB = Structure("log", "what all TLBs of a table share; then the log's records")
SEQUENCE = HUB.line("records ever logged; the next one's number")
LOG_LOCK = HUB.line("held while a record is written")
WAITING = HUB.line("invalidators that wait")
ACKS = HUB.line("acknowledgements that somebody waited for; futex")
COMPLETIONS = HUB.word("waits for all vCPUs")
SLEPT = HUB.word("how often they slept")
LINES = HUB.array(WALKER_LINE, "line of walker w: hub + LINES + LINE w")

KIND = const(0xFF)
BY_ADDRESS, BY_BYTES, COMBINED, EVERYTHING = const(1), const(2), const(3), const(4)
"""Kinds of record: leaf of one address (IPAS2E1IS), leaves and tables of a range of bytes (RIPAS2E1IS), all combined
entries (VMALLE1IS), all of them (VMALLS12E1IS)."""
NO_HINT = const(4)
"""Level of a record that names none."""


def hub_words(walkers: int, ring: int) -> int:
    """Words of a hub for ``walkers`` walkers with a log of ``ring`` records."""
    return int(LINES) + int(LINE) * walkers + int(RECORD) * ring


# --- one TLB ----------------------------------------------------------------------------------------------------------
ONE_TLB = Structure("tlb", "header and counters of one TLB; then its three caches", size=48)
TLB_WALKER = ONE_TLB.word("the vCPU's number among the table's walkers")
SEEN = ONE_TLB.word("copy of APPLIED")
LOCALS_SEEN = ONE_TLB.word("copy of LOCALS")
COMBINED_MASK = ONE_TLB.word("entries - 1 of the combined cache")
LEAF_MASK = ONE_TLB.word("entries - 1 of the leaf cache")
WALK_MASK = ONE_TLB.word("entries - 1 of the walk cache")
COMBINED_BASE = ONE_TLB.word("where the combined cache starts")
LEAF_BASE = ONE_TLB.word("where the leaf cache starts")
WALK_BASE = ONE_TLB.word("where the walk cache starts")
STRICT = ONE_TLB.word("1: look at each use whether the entry should be gone")
BBM = ONE_TLB.word("level of FEAT_BBM: 0, 1 or 2")
SETS_ACCESSED = ONE_TLB.word("hardware sets the access flag (NPT; Arm with VTCR_EL2.HA); else its absence is a fault")
SETS_DIRTY = ONE_TLB.word("mask of the dirty flag that hardware sets on a write (NPT); 0: it sets none")
DBM = ONE_TLB.word("mask of the dirty-bit-modifier (VTCR_EL2.HD: bit 51), with which a write sets S2AP[1]; 0: not used")
TLB_NT = ONE_TLB.word(
    "mask of the nT bit of blocks, which are then not cached (FEAT_BBM >= 1: bit 16); 0: there is none"
)
FORGETS = ONE_TLB.word("1: a fault drops the entry that it came from (x86); 0: it may stay, and fault again (Arm)")
SPECULATES = ONE_TLB.word("1 + an input address that hardware fills between any two steps of an invalidation; 0: none")
HOST_ADDRESS = ONE_TLB.word("of the last translation: host address of the byte")
FOUND_LEVEL = ONE_TLB.word("level of the last translation, or of a fault")
FOUND = ONE_TLB.word("descriptor of the last translation")
FIRST_IPA = ONE_TLB.word("the first finding of the strict mode: address")
FIRST_LEVEL = ONE_TLB.word("level of the first finding")
FIRST_KIND = ONE_TLB.word("kind of the first finding: below")
FIRST_RECORD = ONE_TLB.word("the record that should have ended the entry of the first finding")
COUNTERS = ONE_TLB.mark()
HITS = ONE_TLB.counter("hits in the combined cache")
LEAF_HITS = ONE_TLB.counter("hits in the leaf cache")
WALK_HITS = ONE_TLB.counter("walks that began at a cached table")
WALKS = ONE_TLB.counter("walks of the table")
FILLS = ONE_TLB.counter("translations cached")
SPECULATIVE = ONE_TLB.counter("fills that no access asked for")
BY_ADDRESS_SEEN = ONE_TLB.counter("invalidations applied, by address", shown="by_address")
BY_BYTES_SEEN = ONE_TLB.counter("invalidations applied, by range", shown="by_range")
COMBINED_SEEN = ONE_TLB.counter("invalidations applied, of combined entries", shown="combined")
EVERYTHING_SEEN = ONE_TLB.counter("invalidations applied, of everything", shown="everything")
LOCAL_SEEN = ONE_TLB.counter("invalidations of its own TLB alone", shown="local")
ENTRY_FLUSHES = ONE_TLB.counter("everything forgotten on entry, since the log had gone too far meanwhile")
OVERRUNS = ONE_TLB.counter("the same in the guest")
DROPPED = ONE_TLB.counter("entries that an invalidation took")
FLAGS_SET = ONE_TLB.counter("access and dirty flags set by hardware")
CONFLICTS = ONE_TLB.counter("conflict aborts")
FINDINGS = ONE_TLB.counter("uses of an entry that a completed invalidation covers, and broken break-before-make")
UNCHECKED = ONE_TLB.counter("uses of an entry so old that the log no longer says")
IDENTITY = ONE_TLB.word("1: there is no stage 1, so an address is cached as itself only, and is found without a search")
HEADER = ONE_TLB.size

STALE_COMBINED, STALE_LEAF, STALE_WALK, TWO_SIZES = const(1), const(2), const(3), const(4)
"""Kinds of finding. TWO_SIZES: two leaves of different size at once, where FEAT_BBM's level allows none."""

CACHED_ENTRY = Structure("entry", "of any of the three caches", size=4)
ENTRY_TAG = CACHED_ENTRY.word("tag + 1; 0: empty")
ENTRY_TARGET = CACHED_ENTRY.word("page or table address")
ENTRY_ABOUT = CACHED_ENTRY.word("input address or descriptor")
ENTRY_SEEN = CACHED_ENTRY.word("record number when it was filled")
ENTRY_WORDS = const(CACHED_ENTRY.size)

name_fields(globals())
COUNTER_NAMES = ONE_TLB.counter_names

OK, TRANSLATION, ACCESS_FLAG, PERMISSION, CONFLICT = const(0), const(1), const(2), const(3), const(4)
"""What a translation comes to."""
READ, WRITE, FETCH = const(1), const(2), const(4)
"""What an access needs."""


def tlb_words(combined: int, leaves: int, walks: int) -> int:
    """Words of a TLB with these numbers of entries."""
    return HEADER + int(ENTRY_WORDS) * (combined + leaves + walks)
