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

# --- shape: geometry -------------------------------------------------------------------------------------------------
PAGE_SHIFT = const(0)
"""log2 of a page in bytes: of a level-3 leaf, and of a table's place in the pool."""
STRIDE = const(1)
"""Bits of address a level resolves: tables have 1 << STRIDE entries. PAGE_SHIFT - 3, or fewer to explore."""
START_LEVEL = const(2)
"""Level of the root's entries."""
LAST_LEVEL = const(3)
"""Level of pages: 3."""
ROOT_ENTRIES = const(4)
"""Entries of the root, all concatenated tables together; indexed by the whole address above the start level's shift."""
IPA_END = const(5)
"""First input address that the table does not cover: 1 << IPA bits."""
OUTPUT_END = const(6)
"""First output address that a descriptor cannot hold."""
MIN_BLOCK_LEVEL = const(7)
"""Lowest level number (largest size) at which a block may stand: 1 for 4K and NPT, 2 otherwise."""
POOL_BASE = const(8)
"""Address of the pool's word 0."""

# --- shape: format ---------------------------------------------------------------------------------------------------
VALID = const(9)
"""The valid bit. A descriptor without it is empty (0), LOCKED, or an owner's mark."""
TABLE_MASK, TABLE_KIND, BLOCK_KIND = const(10), const(11), const(12)
"""Above the last level, a descriptor d is a table if ``d & TABLE_MASK == TABLE_KIND``, a block if BLOCK_KIND."""
PAGE_MASK, PAGE_KIND = const(13), const(14)
"""At the last level, a descriptor d is a page if ``d & PAGE_MASK == PAGE_KIND``; any other valid one is reserved."""
TABLE_BITS = const(15)
"""All bits of a new table descriptor but its address (TABLE_KIND, on NPT also writable, user, accessed)."""
ADDRESS_MASK = const(16)
"""Bits of a descriptor that are the same bits of the output address, whole pages; of a table descriptor, too."""
ADDRESS_HIGH_MASK, ADDRESS_HIGH_SHIFT = const(17), const(18)
"""Bits that lie elsewhere: address |= (d & ADDRESS_HIGH_MASK) << ADDRESS_HIGH_SHIFT. Mask 0: none (then shift 0)."""
ATTRIBUTES_MASK = const(19)
"""Bits of a leaf that are neither address nor kind: what a block hands on to its pages when it is split."""
READ_MASK, READ_GRANTED, READ_DENIED = const(20), const(21), const(22)
"""A leaf is readable if ``d & READ_MASK == READ_GRANTED``; NPT: mask 0, always."""
WRITE_MASK, WRITE_GRANTED, WRITE_DENIED = const(23), const(24), const(25)
"""The same for writes (Arm S2AP[1], NPT bit 1)."""
EXECUTE_MASK, EXECUTE_GRANTED, EXECUTE_DENIED = const(26), const(27), const(28)
"""The same for fetches (Arm XN: 00 against 10, NPT bit 63: 0 against 1); GRANTED: for all exception levels."""
PERMISSION_MASK = const(29)
"""READ_MASK | WRITE_MASK | EXECUTE_MASK: bits that may change from valid to valid without break-before-make."""
ACCESSED = const(30)
"""The access flag (Arm bit 10, NPT bit 5)."""
DIRTY = const(31)
"""What hardware sets when it writes: NPT bit 6; Arm S2AP[1] where DBM is used, else 0."""
SOFTWARE_MASK = const(32)
"""Bits that hardware ignores in leaves (58:55 in both formats)."""
LOCKED = const(33)
"""The invalid descriptor that says: one walker is between break and make. Holds no reference."""
TYPE_MASK = const(34)
"""Bits that tell the type of an invalid descriptor (Arm, as KVM 7.1: 63:60). Owner marks have a type that is not 0 and
not LOCKED's."""
OWNER_SHIFT, OWNER_MASK = const(35), const(36)
"""Owner of an owner's mark: ``d >> OWNER_SHIFT & OWNER_MASK``; the mark's own type is in OWNER_TYPE."""
BLOCK_LEVELS = const(38)
"""Bit L: hardware takes a block at level L. A valid leaf at any other level above the last does not translate."""
OWNER_TYPE = const(37)
"""Type bits of an owner's mark: ``d & TYPE_MASK == OWNER_TYPE``."""
MODIFIER = const(39)
"""The dirty-bit-modifier (Arm bit 51) where the format uses it: hardware sets S2AP[1] of a leaf that has it. Else 0."""
NT = const(40)
"""The bit of a block that keeps hardware from caching it (Arm, FEAT_BBM level 1 or 2: bit 16); 0: there is none."""
SHAPE_WORDS = 48

# --- pages: header, then a line of eight words per page ---------------------------------------------------------------
LIMIT = const(9)
"""Number of pages."""
TAKEN, GIVEN = const(16), const(24)
"""How many pages were taken from the pool and given back, ever; on lines of their own."""
PAGES = const(32)
"""Line of page n: word PAGES + 8 n."""
COUNT = const(0)
"""References to the page: one for its allocation and one for each entry that is not 0 and not LOCKED."""
HELD = const(1)
"""Discipline walk_refs: one for the link from the parent's entry, and one for each walker inside. 0: to be freed."""
NEXT = const(2)
"""Of a page being freed: page number + 1 of the next one of its chain."""
STATE = const(3)
"""FREE, CACHED (in a vCPU's cache), LINKED (reachable, or part of an unlinked tree being built), DEAD (unlinked)."""
ENTRY_LEVEL = const(4)
"""Level of the entry that points, or pointed, here; for a root, start level - 1 modulo 2**64."""
FREE, CACHED, LINKED, DEAD = const(0), const(1), const(2), const(3)
PAGE_WORDS = const(8)

# --- mmu: one table ---------------------------------------------------------------------------------------------------
ROOT = const(0)
"""Page number of the root + 1; 0 once destroyed."""
DISCIPLINE = const(1)
"""Who frees what, when: RCU, LOCK_SUBTREE, RWLOCK or WALK_REFS."""
VCPUS = const(2)
"""Number of walkers (vCPUs and, by habit walker 0, the Python thread): readers of lock and SRCU, owners of desks."""
QUEUE_CAPACITY = const(3)
"""Places of each walker's queue of deferred pages, a power of two."""
SRCU_BASE, QUEUE_BASE, QUEUE_WORDS = const(4), const(5), const(6)
"""Where the SRCU state and walker 0's queue start, and how long a queue is."""
LOCK_BASE = const(7)
"""Where the reader-writer lock starts: see ``rwlock``."""
UNSOUND = const(8)
"""How often a freed page's count was wrong (KVM would warn); check() reports it."""
TLB_BASE, TLB_RING = const(9), const(10)
"""Where the hub of the TLBs starts, 0 while none is attached; records in its log, a power of two: ``tlb_layout``."""
RETRIES, RETRY_WAITERS = const(16), const(24)
"""Discipline lock_subtree: a makes' count to wait on, and how many wait."""
TLB = const(32)
"""Counters of invalidations: see ``invalidate``."""
CLEANS, CLEANED = const(40), const(41)
"""How often data caches were cleaned for a leaf, and how many bytes: see ``flush``."""
INVALIDATE_SEQ, INVALIDATING, INVALIDATE_START, INVALIDATE_END = (const(word) for word in range(48, 52))
"""Invalidations that have ended; how many are under way, and the range of all of them, in bytes: see ``retry``."""
REPLACED_BY_BREAK, REPLACED_BY_NT, REPLACED_DIRECTLY = const(56), const(57), const(58)
"""How often a split or a collapse replaced an entry by break-before-make, by way of nT, or at once: see ``bbm``."""
MMU_FIXED = 64
"""Words before the lock."""
RCU, LOCK_SUBTREE, RWLOCK, WALK_REFS = const(0), const(1), const(2), const(3)
"""Those below RWLOCK put pages aside for a grace period, and shared walks are SRCU sections."""

# --- desk: one vCPU ---------------------------------------------------------------------------------------------------
RECLAIMED = const(0)
"""Where ``rcu.reclaim`` puts the page whose grace period is over."""
WALKER = const(30)
"""Number of this vCPU."""
ADDRESS, END = const(1), const(2)
"""The walk: where it is, and where it ends."""
LEVEL, ENTRY, OLD = const(3), const(4), const(5)
"""The visit: level, word index in the pool and observed value of the entry."""
FLAGS, NEXT_STEP = const(6), const(7)
"""Flags of the walk; what the next step starts with."""
PROGRESS = const(8)
"""First address that an operation did not finish; END of its range if it did."""
RESULT = const(9)
"""A count or value that an operation returns beside its status."""
HELD_CHILD, HOLDS = const(10), const(11)
"""Discipline walk_refs: page number + 1 of the table that the walk comes up from; 1 if the walk holds pages."""
PATH = const(12)
"""Of each level above the visit's: word index of the entry on the way (walk_refs: the tables they lie in are held)."""
TREE = const(16)
"""Of each level 0 to 3: page number of the table that ``create_unlinked`` fills."""
FIND = const(20)
"""Words for a lookup: descriptor, level, address, see ``walk.lookup``."""
CACHE_COUNT, CACHE_CAPACITY = const(28), const(29)
"""Table pages in this vCPU's cache, and how many there may be."""
CACHE = const(32)
"""The cached pages' numbers; zeroed."""

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

# --- status words -----------------------------------------------------------------------------------------------------
OK = const(0)
EPERM, EAGAIN, ENOMEM, EBUSY, EEXIST, EINVAL, ERANGE, ENOENT = (
    const(number) for number in (1, 11, 12, 16, 17, 22, 34, 2)
)
"""Linux's numbers. EBUSY: only exclusively (discipline rwlock: a collapse). ENOENT: nothing there."""
