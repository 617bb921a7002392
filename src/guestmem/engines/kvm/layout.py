"""Where everything is in the words that vCPU threads and updaters share, and in those that each vCPU owns.

Words that are written often and read by others have a cache line each.
"""

from __future__ import annotations

from ...compiled import INTERPRETED, const
from ...structure import Structure, name_fields
from ..stalls import HISTOGRAM_SIZE

LOOKS = const(1 if INTERPRETED else 20_000)
"""How often an updater looks before it sleeps: some 50 µs, longer than a vCPU takes to answer an exit or to leave.

Sleeping at once hands its core to a vCPU, for a whole slice of the scheduler where vCPUs keep every core busy: a median
update under exit_retry took 1.8 ms then, and 0.11 to 0.27 ms so, in most runs (two vCPUs that use the slot, two cores).
"""

VCPU_BLOCK = Structure("vCPU", "what a vCPU's thread and those who want it to leave share", size=3 * 8)
TID = VCPU_BLOCK.word("its thread, 0 for none, or STARTING and the like; who changes it from 0 has the vCPU")
RUN_PAGE = VCPU_BLOCK.word("host address of its kvm_run")
STATE = VCPU_BLOCK.word("OUTSIDE, IN_KVM_RUN or HOLDING")
REQUESTED = VCPU_BLOCK.line("kicks asked for so far")
DONE = VCPU_BLOCK.line("the last of them that it has seen")
VCPU = const(VCPU_BLOCK.size)

OUTSIDE, IN_KVM_RUN, HOLDING = const(0), const(1), const(2)
"""STATE. HOLDING: out of KVM_RUN, with an exit that is still to be answered; a pause waits for that."""

VM = Structure("VM", "what vCPU threads and updaters of a VM of /dev/kvm share")
STOP = VM.line("non-zero: vCPU threads leave for good")
STOPS = VM.word("how often it was stopped: a call of run() that began before ends")
PAUSED = VM.line("how many pauses are in force; futex")
ACKS = VM.line("acknowledgements that somebody waited for; futex")
WAITING = VM.line("updaters that wait for acknowledgements")
UPDATES = VM.line("odd while an update holds exits; futex for vCPUs that wait for its end")
ANSWERING = VM.line("vCPUs that answer an exit and must not meet an update; futex for the updater")
HOLES = VM.line("what becomes of MMIO and failed fetches: below")
PID = VM.word("of this process, read-only; for tgkill")
SIGNAL = VM.word("the signal of a kick, read-only")
REDELIVERS = VM.word("non-zero: an event whose delivery failed is delivered again by the next KVM_RUN")
VCPUS = VM.array(VCPU_BLOCK, "a block a vCPU")

STARTING, AT_REGISTERS, CLOSED = const(1), const(2), const(3)
"""TID where no thread runs it: one is about to; registers are read or set; never again. No thread's is that low."""

REPORT, ANSWER, RETRY = const(0), const(1), const(2)
"""HOLES: give exits to whoever runs the vCPU; answer data from the memory behind it, at once, as QEMU does; retry."""


def vm_words(vcpus: int) -> int:
    """Words that a VM of ``vcpus`` vCPUs takes."""
    return int(VCPUS) + int(VCPU) * vcpus


OWN = Structure("own", "the words of one vCPU; only its thread touches them while it runs")
FD = OWN.word("its file")
RUN = OWN.word("host address of its kvm_run")
BEGAN = OWN.word("UPDATES when this KVM_RUN began")
ACKED = OWN.word("copy of DONE")
ERRNO = OWN.word("of a KVM_RUN that failed")
STALL_BEGUN = OWN.word("when the wait in progress began, 0 for none")
GUEST = OWN.word("host address of the load guest's block, 0: exits go back to Python")
GUEST_HOST = OWN.word("host address of the load guest's area")
GUEST_GPA = OWN.word("guest address of the load guest's area")
RESET_SREGS = OWN.word("host address of the sregs that a killed load guest starts again with")
RESET_REGS = OWN.word("of its registers")
RESET_EVENTS = OWN.word("of its events")
PENDING = OWN.word("non-zero: kvm_run holds an exit that a stop, a signal or a fault kept from being answered")
DEVICE = OWN.word("non-zero: an MMIO exit was left to a device, and its instruction is not complete yet")
DEVICE_START = OWN.word("guest addresses that this instruction has read from devices")
DEVICE_END = OWN.word("and their end")
KNOWN = OWN.word("of the instruction in progress: 0, 1 can be answered, 2 has its effect undone (instructions.AGAIN)")
LISTED = OWN.word("host address of the list of instructions that are answered")
COUNTERS = OWN.mark()
EXITS = OWN.counter("KVM_RUN returned")
INTERRUPTED = OWN.counter("of these, with EINTR: a kick or a signal")
MMIO_EXITS = OWN.counter("exits for MMIO")
RETRIED_ANSWERS = OWN.counter("fragments answered under the update lock")
RETRIED_FETCHES = OWN.counter("failed fetches run again, since an update was in flight")
HELD = OWN.counter("exits that had to wait for the end of an update")
CROSSINGS = OWN.counter("accesses that crossed a page and were carried out as two")
KILLED_FETCHES = OWN.counter("fetches from memory that should be there: the guest was dead, and was reset")
INTERNAL_ERRORS = OWN.counter("legitimate: from where there is no memory before or after")
SHUTDOWNS = OWN.counter("triple faults")
STRANGE = OWN.counter("exits that the load guest cannot have caused")
PAUSES = OWN.counter("pauses obeyed")
STALL_WORST = OWN.counter("longest wait, ns")
STALL_TOTAL = OWN.counter("all waits together, ns")
WIDE = OWN.counter("pairs of fragments answered as one access of 16 bytes")
REFUSED = OWN.counter("instructions that cannot be answered rightly: the vCPU stopped")
AGAIN = OWN.counter("instructions that the emulator does otherwise: undone, and run natively after the update")
WRITES_FIRST = OWN.counter("first exits that are the write of an instruction which has read before: refused")
OWN.new_line()
STAGED = OWN.word("bytes of a store that waits for its second fragment, 0 for none; they are in kvm_run")
STAGED_HOST = OWN.word("where the store goes: host address")
STAGED_ENTRY = OWN.word("where the store goes: entry of the map")
STAGED_PLACE = OWN.word("where the store goes: guest address and space")
AHEAD = OWN.word("guest address and space of the 8 bytes that were read together with those before; 0 for none")
UNTAKEN = OWN.word("non-zero: kvm_run holds an exit that nobody was given yet")
AFTER_FETCH = OWN.word("non-zero: a failed fetch waits for the end of an update")
OWN.new_line()
HISTOGRAM = OWN.words(int(HISTOGRAM_SIZE), "waits by duration: see ``stall_bucket``")
OWN_WORDS = OWN.words_taken

# What vcpu_run returns; GO_ON stays inside it.
GO_ON = const(0)
STOPPED = const(1)
EXIT = const(2)  # kvm_run says why
SIGNALLED = const(3)  # nothing happened: the caller may look for signals, and runs it again
FAILED = const(4)  # KVM_RUN failed: ERRNO
TAKEN = const(5)  # another thread has the vCPU

LOOK_NS = const((1 << 64) - 1 if INTERPRETED else 50_000_000)
"""How long a vCPU waits before it looks whether a signal came just before it began to; explored, it is never woken by
time alone, which would hide a wake-up that is lost."""

name_fields(globals())
COUNTER_NAMES = OWN.counter_names
