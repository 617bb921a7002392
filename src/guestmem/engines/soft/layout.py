"""Where everything is in the words that vCPUs and updaters share, and in the words that each vCPU owns.

Words that are written often and read by others stand a cache line (8 words) apart.
"""

from __future__ import annotations

from ...compiled import const

# The VM's words. All counts are of words.
STOP = const(0 * 8)  # non-zero: vCPUs leave for good
NEXT_TICKET = const(1 * 8)  # core tokens: tickets handed out
SERVING = const(2 * 8)  # core tokens: tickets given back; futex
PAUSED = const(3 * 8)  # how many pauses are in force; futex
ACKS = const(4 * 8)  # acknowledgements that somebody waited for; futex
WAITING = const(5 * 8)  # updaters that wait for acknowledgements
FLUX = const(6 * 8)  # number of the update << 8 | ranges in flux; futex
SWAPS = const(7 * 8)  # swaps so far; futex for vCPUs that met an INVALID slot
WINDOW = const(8 * 8)  # odd: between the start and the end of an update
FLUSHES = const(9 * 8)  # TLB flushes asked for so far
LOAD = const(10 * 8)  # which half of the load's words is in force
CORES = const(11 * 8)  # core tokens; read-only once vCPUs run
RETRIES_INVALID = const(12 * 8)  # whether an access to an INVALID slot retries (x86) or exits (arm64)
UPDATES = const(14 * 8)  # odd while an update holds exits; futex for vCPUs whose exit fell into it
ANSWERS = const(13 * 8)  # whether the VMM answers MMIO that falls into a hole from the memory behind it

FLUX_RANGES = const(16 * 8)
FLUX_RANGE = const(3)  # start_gfn, end_gfn, what waits (below)
FLUX_MAX = 64
"""Ranges that one update may have in flux; the limit is a capability."""
STALLS_WRITES, STALLS_ALL = const(1), const(2)

VCPUS = const(16 * 8 + 3 * FLUX_MAX)
VCPU = const(4 * 8)  # words a vCPU
REQUESTED = const(0)  # requests made to this vCPU so far
DONE = const(1 * 8)  # the last of them that it has carried out
MODE = const(2 * 8)
REPORT = const(3 * 8)  # for the even and the odd load: its epoch, start of the last access that saw old, end of the
REPORT_SIZE = const(3)  # first that saw new (ns on the clock)

# MODE, as vcpu->mode in KVM: who has to be waited for.
OUTSIDE = const(0)  # not in KVM_RUN, or asleep where it holds nothing: nobody waits for it
IN_GUEST = const(1)  # may use its TLB: flushes and pauses wait for it
IN_HOST = const(2)  # in KVM_RUN outside the guest (a read-side section): only pauses wait for it


def vm_words(vcpus: int) -> int:
    """Words that a VM of ``vcpus`` vCPUs takes."""
    return int(VCPUS) + int(VCPU) * vcpus


# The words of one vCPU. Only its thread touches them while it runs.
SEED = const(0)  # state of the random numbers
ACKED = const(1)  # copy of DONE
FLUSHED = const(2)  # copy of FLUSHES at the last flush
READER = const(3)  # its SRCU reader
LOADED = const(4)  # the load epoch it works on
POSITION = const(5)  # next target of the sequential pattern
CHECKSUM = const(6)  # of every value read
WRITE_SHARE = const(7)  # of 2**16 accesses, how many write
FETCH_SHARE = const(8)  # of 2**16 accesses, how many fetch
CHANGED_SHARE = const(9)  # of 2**16 accesses, how many go to ranges that the next update changes
PATTERN = const(10)
SLOW_NS = const(11)  # non-zero: stays that long in a read-side section, again and again
SLICE = const(12)  # accesses between two looks at the core tokens
AS_ID = const(13)  # address space of the load it works on
STALL_BEGUN = const(14)  # when the wait in progress began, 0 for none
WINDOW_LOADED = const(15)  # WINDOW when the load came into force: + 1 is inside the update, + 2 after it
STALL_FLUX = const(16)  # FLUX when the access found its range in flux
LOAD_BASE = const(17)  # of the load in force: where it begins, and its header
CHANGED_COUNT = const(18)
OTHERS_COUNT = const(19)
LOAD_HALF = const(20)  # words of one load
READ_ATTRIBUTES, WRITE_ATTRIBUTES = const(21), const(22)  # of stage-2 leaves: readable and executable; writable, too
BLOCK_LEVEL = const(23)  # largest leaf that a fault maps, as a level number
LOOKS = const(62)  # 1: look for requests after this access
LATE = const(63)  # not 0: its next look for requests comes late; a random number

COUNTERS = const(24)

# What each vCPU counts.
ACCESSES = COUNTERS + const(0)
READS = COUNTERS + const(1)
WRITES = COUNTERS + const(2)  # locked increments that went to memory
FETCHES = COUNTERS + const(3)
TLB_MISSES = COUNTERS + const(4)
INSIDE = COUNTERS + const(5)  # accesses to memory that should be there, in or across a window
INSIDE_CHANGED = COUNTERS + const(6)  # of these, to ranges that the update changes
HOLES_READ = COUNTERS + const(7)  # data reads of memory that should be there that met a hole: MMIO
HOLES_WRITE = COUNTERS + const(8)  # the same for writes: lost
KILLED_FETCHES = COUNTERS + const(9)  # fetches from memory that should be there that met a hole: INTERNAL_ERROR
ANSWERED_READS = COUNTERS + const(10)  # in a hole, answered by the VMM from the memory behind it
ANSWERED_WRITES = COUNTERS + const(11)
REFUSED_WRITES = COUNTERS + const(12)  # writes refused as read-only although the memory is writable before and after
MMIO_READS = COUNTERS + const(13)  # legitimate: there is no memory before or after
MMIO_WRITES = COUNTERS + const(14)
INTERNAL_ERRORS = COUNTERS + const(15)  # legitimate: fetches from where there is no memory before or after
READONLY_WRITES = COUNTERS + const(16)  # writes to a read-only slot: MMIO write exits
STRANGE = COUNTERS + const(17)  # accesses that found neither the old nor the new memory
STALE = COUNTERS + const(18)  # accesses begun after the update that saw the old memory
SAW_OLD = COUNTERS + const(19)  # accesses in a window that could tell old from new and saw old
SAW_NEW = COUNTERS + const(20)
INVALID_RETRIES = COUNTERS + const(21)  # accesses that met an INVALID slot and waited for the next swap
FLUX_STALLS = COUNTERS + const(22)  # accesses that waited for a range in flux
PAUSES = COUNTERS + const(23)
FLUSHES_SEEN = COUNTERS + const(24)
REQUESTS = COUNTERS + const(25)  # requests carried out
SLOW_SECTIONS = COUNTERS + const(26)
ABANDONED = COUNTERS + const(27)  # accesses that a new load cut short
STALL_WORST = COUNTERS + const(28)  # ns
STALL_TOTAL = COUNTERS + const(29)  # ns
EXITS_HELD = COUNTERS + const(30)  # exits that fell into an update and were carried out after it
STAGE2_FAULTS = COUNTERS + const(31)  # exits to build the stage-2 table
REFAULTS = COUNTERS + const(32)  # of these, in or after an update, for memory that was there before and after it
MAPPED_BLOCKS = COUNTERS + const(33)  # faults that mapped more than a page
FAULT_RETRIES = COUNTERS + const(34)  # faults that found an invalidation when they were about to map
RELAXED = COUNTERS + const(35)  # faults that only lifted write protection
DIRTY_MARKS = COUNTERS + const(36)  # writes that made a page of a logged slot dirty
OUT_OF_TABLES = COUNTERS + const(37)  # faults that found no table page, and zapped everything

COUNTER_NAMES = (
    "accesses",
    "reads",
    "writes",
    "fetches",
    "tlb_misses",
    "inside",
    "inside_changed",
    "holes_read",
    "holes_write",
    "killed_fetches",
    "answered_reads",
    "answered_writes",
    "refused_writes",
    "mmio_reads",
    "mmio_writes",
    "internal_errors",
    "readonly_writes",
    "strange",
    "stale",
    "saw_old",
    "saw_new",
    "invalid_retries",
    "flux_stalls",
    "pauses",
    "flushes_seen",
    "requests",
    "slow_sections",
    "abandoned",
    "stall_worst",
    "stall_total",
    "exits_held",
    "stage2_faults",
    "refaults",
    "mapped_blocks",
    "fault_retries",
    "relaxed",
    "dirty_marks",
    "out_of_tables",
)
"""The counters above, in order, in lower case."""

HISTOGRAM = const(64)  # stalls by duration: 8 steps an octave of nanoseconds
HISTOGRAM_STEPS = const(8)
HISTOGRAM_SIZE = const(64 * 8)

TLB = const(64 + 512)
TLB_ENTRIES = const(256)
TLB_ENTRY = const(2)  # (gfn << 2 | writable << 1 | valid), host address of the page

OWN_WORDS = 64 + 512 + 2 * 256
assert int(COUNTERS) + len(COUNTER_NAMES) <= int(HISTOGRAM)
