"""Where everything lies: the words that tell compiled code a format and geometry, pages, a table's state, a desk.

Five arrays go to most compiled functions of this room, always in this order:

- ``shape`` (Own): the words below that start with the format and geometry of a table. Written once, then only read,
  so all threads may share it.
- ``pool`` (Words): memory of table pages. A descriptor at address a is word ``(a - shape[POOL_BASE]) >> 3``; page n
  starts at word ``n << (shape[PAGE_SHIFT] - 3)`` and uses the first ``1 << shape[STRIDE]`` words (a root of several
  concatenated tables: the first ``shape[ROOT_ENTRIES]`` words from its page on, so with small tables it is one page).
- ``pages`` (Words): a side array, a header and a line per page: counts and state. It is never unmapped, so that a
  late walker may look at the count of a page that is gone. See ``free_list``.
- ``mmu`` (Words): state of one table: root, discipline, lock, SRCU, deferred pages, counters of invalidations.
- ``desk`` (Own): what one vCPU needs: its walk, its cache of table pages, results.

``free_list`` holds the functions that take pages and give them back, and a bit a page behind the lines of ``pages``.
Levels are Arm's, 0 to 3, for both formats: 3 holds pages.

Idea: ``struct kvm_pgtable``, ``kvm_pgtable_walk_data`` and ``kvm_mmu_memory_cache``, Linux.
"""

from __future__ import annotations

from ..compiled import const
from ..structure import Structure, name_fields

__all__ = [
    "ACCESSED",
    "ADDRESS",
    "ADDRESS_HIGH_MASK",
    "ADDRESS_HIGH_SHIFT",
    "ADDRESS_MASK",
    "ANNOTATE",
    "ATTRIBUTES_MASK",
    "BBM_1",
    "BBM_2",
    "BLOCK_KIND",
    "BLOCK_LEVELS",
    "CACHE",
    "CACHED",
    "CACHE_CAPACITY",
    "CACHE_COUNT",
    "CLEANED",
    "CLEANS",
    "COUNT",
    "DEAD",
    "DEFER_INVALIDATE",
    "DIRTY",
    "DISCIPLINE",
    "EAGAIN",
    "EBUSY",
    "EEXIST",
    "EINVAL",
    "END",
    "ENOENT",
    "ENOMEM",
    "ENTRY",
    "ENTRY_LEVEL",
    "EPERM",
    "ERANGE",
    "EXECUTE_DENIED",
    "EXECUTE_GRANTED",
    "EXECUTE_MASK",
    "FIND",
    "FLAGS",
    "FREE",
    "GIVEN",
    "HELD",
    "HELD_CHILD",
    "HOLDS",
    "IGNORE_EAGAIN",
    "INVALIDATE_END",
    "INVALIDATE_SEQ",
    "INVALIDATE_START",
    "INVALIDATING",
    "IPA_END",
    "KEEP_REST",
    "LAST_LEVEL",
    "LEAF",
    "LEVEL",
    "LIMIT",
    "LINKED",
    "LOCKED",
    "LOCK_BASE",
    "LOCK_SUBTREE",
    "MIN_BLOCK_LEVEL",
    "MMU_FIXED",
    "MODIFIER",
    "NEXT",
    "NEXT_STEP",
    "NT",
    "OK",
    "OLD",
    "OUTPUT_END",
    "OVER_OWNER",
    "OWNER_MASK",
    "OWNER_SHIFT",
    "OWNER_TYPE",
    "PAGES",
    "PAGE_KIND",
    "PAGE_MASK",
    "PAGE_SHIFT",
    "PAGE_WORDS",
    "PATH",
    "PERMISSION_MASK",
    "POOL_BASE",
    "PROGRESS",
    "QUEUE_BASE",
    "QUEUE_CAPACITY",
    "QUEUE_WORDS",
    "RANGE_WORDS",
    "RCU",
    "READ_DENIED",
    "READ_GRANTED",
    "READ_MASK",
    "RECLAIMED",
    "REPLACED_BY_BREAK",
    "REPLACED_BY_NT",
    "REPLACED_DIRECTLY",
    "RESULT",
    "RETRIES",
    "RETRY_WAITERS",
    "ROOT",
    "ROOT_ENTRIES",
    "RWLOCK",
    "SHAPE_WORDS",
    "SHARED",
    "SKIP_INVALIDATE",
    "SOFTWARE_MASK",
    "SRCU_BASE",
    "START_LEVEL",
    "STATE",
    "STRIDE",
    "TABLE_BITS",
    "TABLE_KIND",
    "TABLE_MASK",
    "TABLE_POST",
    "TABLE_PRE",
    "TAKEN",
    "TAKES_ALL",
    "TAKES_WRITES",
    "TLB",
    "TLB_BASE",
    "TLB_RING",
    "TREE",
    "TYPE_MASK",
    "UNSOUND",
    "VALID",
    "VCPUS",
    "WALKER",
    "WALK_REFS",
    "WRITE_DENIED",
    "WRITE_GRANTED",
    "WRITE_MASK",
]

# --- shape ------------------------------------------------------------------------------------------------------------
SHAPE = Structure("shape", "the format and geometry of a table", size=48)
PAGE_SHIFT = SHAPE.word("log2 of a page in bytes: of a level-3 leaf, and of a table's place in the pool")
STRIDE = SHAPE.word("bits of address a level resolves, so that tables have 1 << STRIDE entries; fewer to explore")
START_LEVEL = SHAPE.word("level of the root's entries")
LAST_LEVEL = SHAPE.word("level of pages: 3")
ROOT_ENTRIES = SHAPE.word(
    "entries of the root, all concatenated tables together, by the address from the start level on"
)
IPA_END = SHAPE.word("first input address that the table does not cover: 1 << IPA bits")
OUTPUT_END = SHAPE.word("first output address that a descriptor cannot hold")
MIN_BLOCK_LEVEL = SHAPE.word("lowest level number (largest size) of a block: 1 for 4K and NPT, 2 otherwise")
POOL_BASE = SHAPE.word("address of the pool's word 0")

VALID = SHAPE.word("the valid bit; a descriptor without it is empty (0), LOCKED, or an owner's mark")
TABLE_MASK = SHAPE.word("above the last level, a descriptor d is a table if d & TABLE_MASK == TABLE_KIND")
TABLE_KIND = SHAPE.word("see TABLE_MASK")
BLOCK_KIND = SHAPE.word("above the last level, a descriptor d is a block if d & TABLE_MASK == BLOCK_KIND")
PAGE_MASK = SHAPE.word("at the last level, d is a page if d & PAGE_MASK == PAGE_KIND; any other valid one is reserved")
PAGE_KIND = SHAPE.word("see PAGE_MASK")
TABLE_BITS = SHAPE.word("a new table descriptor but its address (TABLE_KIND; on NPT also writable, user, accessed)")
ADDRESS_MASK = SHAPE.word("bits that are the same bits of the output address, whole pages; of a table descriptor, too")
ADDRESS_HIGH_MASK = SHAPE.word("bits that lie elsewhere: address |= (d & this) << ADDRESS_HIGH_SHIFT; 0: none")
ADDRESS_HIGH_SHIFT = SHAPE.word("see ADDRESS_HIGH_MASK; 0 if there are none")
ATTRIBUTES_MASK = SHAPE.word("bits of a leaf that are neither address nor kind: what a block hands on when it is split")
READ_MASK = SHAPE.word("a leaf is readable if d & READ_MASK == READ_GRANTED; NPT: mask 0, always")
READ_GRANTED = SHAPE.word("see READ_MASK")
READ_DENIED = SHAPE.word("see READ_MASK")
WRITE_MASK = SHAPE.word("the same for writes (Arm S2AP[1], NPT bit 1)")
WRITE_GRANTED = SHAPE.word("see WRITE_MASK")
WRITE_DENIED = SHAPE.word("see WRITE_MASK")
EXECUTE_MASK = SHAPE.word("the same for fetches (Arm XN: 00 against 10, NPT bit 63: 0 against 1)")
EXECUTE_GRANTED = SHAPE.word("see EXECUTE_MASK; for all exception levels")
EXECUTE_DENIED = SHAPE.word("see EXECUTE_MASK")
PERMISSION_MASK = SHAPE.word("bits that may change from valid to valid without break-before-make: those three masks")
ACCESSED = SHAPE.word("the access flag (Arm bit 10, NPT bit 5)")
DIRTY = SHAPE.word("what hardware sets when it writes: NPT bit 6; Arm S2AP[1] where DBM is used, else 0")
SOFTWARE_MASK = SHAPE.word("bits that hardware ignores in leaves (58:55 in both formats)")
LOCKED = SHAPE.word("the invalid descriptor that says: one walker is between break and make; holds no reference")
TYPE_MASK = SHAPE.word("type of an invalid descriptor (Arm, as KVM 7.1: 63:60); an owner's mark has one, not LOCKED's")
OWNER_SHIFT = SHAPE.word("owner of an owner's mark: d >> OWNER_SHIFT & OWNER_MASK")
OWNER_MASK = SHAPE.word("see OWNER_SHIFT")
OWNER_TYPE = SHAPE.word("type bits of an owner's mark: d & TYPE_MASK == OWNER_TYPE")
BLOCK_LEVELS = SHAPE.word(
    "bit L: hardware takes a block at level L; any other valid leaf above the last is no translation"
)
MODIFIER = SHAPE.word("the dirty-bit-modifier (Arm bit 51), where used: hardware sets S2AP[1] of a leaf that has it")
NT = SHAPE.word("the bit of a block that keeps hardware from caching it (Arm, FEAT_BBM 1 or 2: bit 16); 0: none")
SHAPE_WORDS = SHAPE.size

# --- pages: header, then a line per page ------------------------------------------------------------------------------
PAGE = Structure("page", "what is known of a page of the pool", size=8)
COUNT = PAGE.word("references: one for its allocation and one for each entry that is not 0 and not LOCKED")
HELD = PAGE.word("walk_refs: one for the link from the parent's entry, one for each walker inside; 0: to be freed")
NEXT = PAGE.word("of a page being freed: page number + 1 of the next one of its chain")
STATE = PAGE.word("FREE, CACHED, LINKED or DEAD")
ENTRY_LEVEL = PAGE.word("level of the entry that points, or pointed, here; of a root, start level - 1 modulo 2**64")
PAGE_WORDS = const(PAGE.size)
FREE, CACHED, LINKED, DEAD = const(0), const(1), const(2), const(3)
"""STATE. CACHED: in a vCPU's cache; LINKED: reachable, or part of an unlinked tree being built; DEAD: unlinked."""

HEADER = Structure("pages", "the pool's side array")
LIMIT = HEADER.word("number of pages", at=9)
TAKEN = HEADER.line("how many pages were taken from the pool, ever")
GIVEN = HEADER.line("how many pages were given back, ever")
PAGES = HEADER.array(PAGE, "line of page n: word PAGES + 8 n")

# --- mmu: one table ---------------------------------------------------------------------------------------------------
MMU = Structure("mmu", "state of one table; then the lock, SRCU, queues and the TLBs' hub", size=64)
ROOT = MMU.word("page number of the root + 1; 0 once destroyed")
DISCIPLINE = MMU.word("who frees what, when: RCU, LOCK_SUBTREE, RWLOCK or WALK_REFS")
VCPUS = MMU.word("number of walkers (vCPUs and, by habit walker 0, the Python thread): readers, owners of desks")
QUEUE_CAPACITY = MMU.word("places of each walker's queue of deferred pages, a power of two")
SRCU_BASE = MMU.word("where the SRCU state starts")
QUEUE_BASE = MMU.word("where walker 0's queue starts")
QUEUE_WORDS = MMU.word("how long a queue is")
LOCK_BASE = MMU.word("where the reader-writer lock starts: see ``rwlock``")
UNSOUND = MMU.word("how often a freed page's count was wrong (KVM would warn); check() reports it")
TLB_BASE = MMU.word("where the hub of the TLBs starts, 0 while none is attached: ``tlb_layout``")
TLB_RING = MMU.word("records in the hub's log, a power of two")
RETRIES = MMU.line("lock_subtree: a makes' count to wait on")
RETRY_WAITERS = MMU.line("lock_subtree: how many wait")
TLB = MMU.words(8, "counters of invalidations: see ``invalidate``")
CLEANS = MMU.word("how often data caches were cleaned for a leaf: see ``flush``")
CLEANED = MMU.word("how many bytes were cleaned")
MMU.new_line()
INVALIDATE_SEQ = MMU.word("invalidations that have ended: see ``retry``")
INVALIDATING = MMU.word("how many are under way")
INVALIDATE_START = MMU.word("the range of all that are under way, in bytes")
INVALIDATE_END = MMU.word("and its end")
MMU.new_line()
REPLACED_BY_BREAK = MMU.word("how often a split or a collapse replaced an entry by break-before-make: see ``bbm``")
REPLACED_BY_NT = MMU.word("how often by way of nT")
REPLACED_DIRECTLY = MMU.word("how often at once")
MMU_FIXED = MMU.size
"""Words before the lock."""
RCU, LOCK_SUBTREE, RWLOCK, WALK_REFS = const(0), const(1), const(2), const(3)
"""Those below RWLOCK put pages aside for a grace period, and shared walks are SRCU sections."""

# --- desk: one vCPU ---------------------------------------------------------------------------------------------------
DESK = Structure("desk", "what one vCPU needs: its walk, its cache of table pages, results")
RECLAIMED = DESK.word("where ``rcu.reclaim`` puts the page whose grace period is over")
ADDRESS = DESK.word("the walk: where it is")
END = DESK.word("the walk: where it ends")
LEVEL = DESK.word("the visit: level")
ENTRY = DESK.word("the visit: word index of the entry in the pool")
OLD = DESK.word("the visit: observed value of the entry")
FLAGS = DESK.word("flags of the walk")
NEXT_STEP = DESK.word("what the next step starts with")
PROGRESS = DESK.word("first address that an operation did not finish; END of its range if it did")
RESULT = DESK.word("a count or value that an operation returns beside its status")
HELD_CHILD = DESK.word("walk_refs: page number + 1 of the table that the walk comes up from")
HOLDS = DESK.word("walk_refs: 1 if the walk holds pages")
PATH = DESK.words(4, "of each level above the visit's: word index of the entry on the way (walk_refs: held)")
TREE = DESK.words(4, "of each level 0 to 3: page number of the table that ``create_unlinked`` fills")
FIND = DESK.words(8, "for a lookup: descriptor, level, address: see ``walk.lookup``")
CACHE_COUNT = DESK.word("table pages in this vCPU's cache")
CACHE_CAPACITY = DESK.word("how many there may be")
WALKER = DESK.word("number of this vCPU")
DESK.new_line()
CACHE = DESK.words(0, "the cached pages' numbers; zeroed")

name_fields(globals())

# --- walks ------------------------------------------------------------------------------------------------------------
SHARED = const(1)
"""Flag: other walkers may be active; take part in the locked-entry protocol."""
LEAF, TABLE_PRE, TABLE_POST = const(2), const(4), const(8)
"""Flags: which entries a walk visits. Entries that are no table count as leaves, empty ones too."""
IGNORE_EAGAIN = const(16)
"""Flag: skip an entry whose race was lost."""
SKIP_INVALIDATE = const(32)
"""Flag: the tree is not reachable by hardware yet."""
OVER_OWNER = const(64)
"""Flag: map may replace an owner's mark."""
DEFER_INVALIDATE = const(128)
"""Flag: unmap invalidates leaves once, by range, at its end; tables still at once."""
ANNOTATE = const(256)
"""Flag: map stores the attributes as they are, an owner's mark, in pages only."""
BBM_1, BBM_2 = const(512), const(1024)
"""Flags: collapse replaces a table, and split a block, as FEAT_BBM level 1 (by way of a block with nT) or 2 (at once)
allows: ``bbm``."""
KEEP_REST = const(2048)
"""Flag: what a block in the way of map maps beside the range stays mapped, by a full table in its place."""

# --- ranges -----------------------------------------------------------------------------------------------------------
RANGE_WORDS = const(3)
"""Words of a range as ``zap.zap_ranges`` takes it: first frame, end, what goes."""
TAKES_WRITES, TAKES_ALL = const(1), const(2)
"""What goes: the right to write, or all."""

# --- status words -----------------------------------------------------------------------------------------------------
OK = const(0)
EPERM, EAGAIN, ENOMEM, EBUSY, EEXIST, EINVAL, ERANGE, ENOENT = (
    const(number) for number in (1, 11, 12, 16, 17, 22, 34, 2)
)
"""Linux's numbers. EBUSY: only exclusively (discipline rwlock: a collapse). ENOENT: nothing there."""
