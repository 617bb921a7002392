"""Where everything is in the words that vCPUs and updaters share, and in the words that each vCPU owns.

Words that are written often and read by others have a cache line each.
"""

from __future__ import annotations

from ...compiled import const
from ...stage2.layout import RANGE_WORDS, TAKES_ALL, TAKES_WRITES
from ...structure import Structure, name_fields
from ..load_words import ONE_REPORT
from ..stalls import HISTOGRAM_SIZE

FLUX_MAX = 64
"""Ranges that one update may have in flux; the limit is a capability."""

ABOVE_MAX = 64
"""Frames that overlays show other pages at, as of KVM_CAP_PLANE_MEMORY_OVERLAYS; and ranges where rights are denied."""

VCPU_BLOCK = Structure("vCPU", "what a vCPU and those who ask it for something share", size=5 * 8)
REQUESTED = VCPU_BLOCK.line("requests made to this vCPU so far")
DONE = VCPU_BLOCK.line("the last of them that it has carried out")
MODE = VCPU_BLOCK.line("who has to wait for it: below")
REPORT = VCPU_BLOCK.words(2 * ONE_REPORT.size, "of the even and of the odd load: ``load_words.ONE_REPORT``")
VCPU = const(VCPU_BLOCK.size)

VM = Structure("VM", "what vCPUs and updaters of a software engine share")
STOP = VM.line("non-zero: vCPUs leave for good")
NEXT_TICKET = VM.line("core tokens: tickets handed out")
SERVING = VM.line("core tokens: tickets given back; futex")
PAUSED = VM.line("how many pauses are in force; futex")
ACKS = VM.line("acknowledgements that somebody waited for; futex")
WAITING = VM.line("updaters that wait for acknowledgements")
FLUX = VM.line("number of the update << 8 | ranges in flux; futex")
SWAPS = VM.line("swaps so far; futex for vCPUs that met an INVALID slot")
WINDOW = VM.line("odd: between the start and the end of an update")
LOAD = VM.line("which half of the load's words is in force")
CORES = VM.line("core tokens; read-only once vCPUs run")
RETRIES_INVALID = VM.line("whether an access to an INVALID slot retries (x86) or exits (arm64)")
ANSWERS = VM.line("whether the VMM answers MMIO that falls into a hole from the memory behind it")
UPDATES = VM.line("odd while an update holds exits; futex for vCPUs whose exit fell into it")
FETCHES_ONLY = VM.line("whether it holds those of fetches alone")
ABOVE = VM.line("number of changes << 8 | entries above slots")
ABOVE_ENTRIES = VM.words(
    4 * ABOVE_MAX, "of each: start_gfn, end_gfn, host address or rights that are denied, address space"
)
FLUX_RANGE = RANGE_WORDS
FLUX_RANGES = VM.words(int(FLUX_RANGE) * FLUX_MAX, "of each range in flux: start_gfn, end_gfn, what waits (below)")
VCPUS = VM.array(VCPU_BLOCK, "a block a vCPU")

STALLS_WRITES, STALLS_ALL = TAKES_WRITES, TAKES_ALL
"""What waits for a range in flux: accesses that need what its translations lose."""

OUTSIDE = const(0)  # not in KVM_RUN, or asleep where it holds nothing: nobody waits for it
IN_GUEST = const(1)  # may use its TLB: flushes and pauses wait for it
IN_HOST = const(2)  # in KVM_RUN outside the guest (a read-side section): only pauses wait for it
"""MODE, as ``vcpu->mode`` in KVM."""


def vm_words(vcpus: int) -> int:
    """Words that a VM of ``vcpus`` vCPUs takes."""
    return int(VCPUS) + int(VCPU) * vcpus


OWN = Structure("own", "the words of one vCPU; only its thread touches them while it runs")
SEED = OWN.word("state of the random numbers")
ACKED = OWN.word("copy of DONE")
READER = OWN.word("its SRCU reader")
LOADED = OWN.word("the load epoch it works on")
POSITION = OWN.word("next target of the sequential pattern")
CHECKSUM = OWN.word("of every value read")
WRITE_SHARE = OWN.word("of 2**16 accesses, how many write")
FETCH_SHARE = OWN.word("of 2**16 accesses, how many fetch")
CHANGED_SHARE = OWN.word("of 2**16 accesses, how many go to ranges that the next update changes")
PATTERN = OWN.word("of the load: SEQUENTIAL, RANDOM, HOT")
SLOW_NS = OWN.word("non-zero: stays that long in a read-side section, again and again")
SLICE = OWN.word("accesses between two looks at the core tokens")
AS_ID = OWN.word("address space of the load it works on")
STALL_BEGUN = OWN.word("when the wait in progress began, 0 for none")
WINDOW_LOADED = OWN.word("WINDOW when the load came into force: + 1 is inside the update, + 2 after it")
STALL_FLUX = OWN.word("FLUX when the access found its range in flux")
LOAD_BASE = OWN.word("where the load in force begins")
CHANGED_COUNT = OWN.word("its targets in ranges that the update changes")
OTHERS_COUNT = OWN.word("its other targets")
LOAD_HALF = OWN.word("words of one load")
READ_ATTRIBUTES = OWN.word("of stage-2 leaves: readable and executable")
WRITE_ATTRIBUTES = OWN.word("of stage-2 leaves: writable, too")
READ_NX_ATTRIBUTES = OWN.word("as READ_ATTRIBUTES, not executable")
WRITE_NX_ATTRIBUTES = OWN.word("as WRITE_ATTRIBUTES, not executable")
FETCHES_NOW = OWN.word("1: the fault at hand is of a fetch")
BLOCK_LEVEL = OWN.word("largest leaf that a fault maps, as a level number")
LOOKS = OWN.word("1: look for requests after this access")
LATE = OWN.word("not 0: its next look for requests comes late; a random number")
FILE = OWN.word("number of the guest_memfd whose words it has, or wants")
EXIT_FLAGS = OWN.word("of the last KVM_EXIT_MEMORY_FAULT: 8 for a private access")
EXIT_GPA = OWN.word("of the last KVM_EXIT_MEMORY_FAULT; its size is a page")
EXIT_ERRNO = OWN.word("that KVM_RUN had with it: EFAULT or EHWPOISON")
COUNTERS = OWN.mark()
ACCESSES = OWN.counter("accesses")
READS = OWN.counter("that read")
WRITES = OWN.counter("locked increments that went to memory")
FETCHES = OWN.counter("that fetched")
INSIDE = OWN.counter("accesses to memory that should be there, in or across a window")
INSIDE_CHANGED = OWN.counter("of INSIDE, to ranges that the update changes")
HOLES_READ = OWN.counter("data reads of memory that should be there that met a hole: MMIO")
HOLES_WRITE = OWN.counter("data writes of memory that should be there that met a hole: lost")
KILLED_FETCHES = OWN.counter("fetches, and private accesses, of memory that should be there that met a hole")
ANSWERED_READS = OWN.counter("in a hole, answered by the VMM from the memory behind it")
ANSWERED_WRITES = OWN.counter("the same for writes")
REFUSED_WRITES = OWN.counter("accesses refused for want of a right that is there before and after")
MMIO_READS = OWN.counter("legitimate: there is no memory before or after")
MMIO_WRITES = OWN.counter("the same for writes")
INTERNAL_ERRORS = OWN.counter("legitimate: fetches from where there is no memory before or after")
READONLY_WRITES = OWN.counter("writes to a read-only slot: MMIO write exits")
STRANGE = OWN.counter("accesses that found neither the old nor the new memory")
STALE = OWN.counter("accesses begun after the update that saw the old memory")
SAW_OLD = OWN.counter("accesses in a window that could tell old from new and saw old")
SAW_NEW = OWN.counter("accesses in a window that could tell old from new and saw new")
INVALID_RETRIES = OWN.counter("accesses that met an INVALID slot and waited for the next swap")
DENIED_READS = OWN.counter("reads for want of a right: exits")
DENIED_FETCHES = OWN.counter("the same for fetches")
FLUX_STALLS = OWN.counter("accesses that waited for a range in flux")
PAUSES = OWN.counter("pauses obeyed")
REQUESTS = OWN.counter("requests carried out")
SLOW_SECTIONS = OWN.counter("times that it stayed in a read-side section for SLOW_NS")
ABANDONED = OWN.counter("accesses that a new load cut short")
STALL_WORST = OWN.counter("longest wait, ns")
STALL_TOTAL = OWN.counter("all waits together, ns")
EXITS_HELD = OWN.counter("exits that fell into an update and were carried out after it")
STAGE2_FAULTS = OWN.counter("exits to build the stage-2 table")
REFAULTS = OWN.counter("of STAGE2_FAULTS, in or after an update, for memory that was there before and after it")
MAPPED_BLOCKS = OWN.counter("faults that mapped more than a page")
FAULT_RETRIES = OWN.counter("faults that found an invalidation when they were about to map")
RELAXED = OWN.counter("faults that only lifted write protection")
DIRTY_MARKS = OWN.counter("writes that made a page of a logged slot dirty")
MEMORY_FAULTS = OWN.counter("exits KVM_EXIT_MEMORY_FAULT: the wrong kind of access, or no page")
SAW_PRIVATE = OWN.counter("private words that a shared access read")
OUT_OF_TABLES = OWN.counter("faults that found no table page, and zapped everything")

OWN.new_line()
HISTOGRAM = OWN.words(int(HISTOGRAM_SIZE), "waits by duration: see ``stall_bucket``")
OWN_WORDS = OWN.words_taken

name_fields(globals())
COUNTER_NAMES = OWN.counter_names
