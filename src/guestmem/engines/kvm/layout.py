"""Where everything is in the words that vCPU threads and updaters share, and in those that each vCPU owns.

Words that are written often and read by others stand a cache line (8 words) apart.
"""

from __future__ import annotations

from ...compiled import INTERPRETED, const

LOOKS = const(1 if INTERPRETED else 20_000)
"""How often an updater looks before it sleeps: some 50 µs, longer than a vCPU takes to answer an exit or to leave.

Sleeping at once hands its core to a vCPU, for a whole slice of the scheduler where vCPUs keep every core busy: a median
update under exit_retry took 1.8 ms then, and 0.11 to 0.27 ms so, in most runs (two vCPUs that use the slot, two cores).
"""

# The VM's words. All counts are of words.
STOP = const(0 * 8)  # non-zero: vCPU threads leave for good
PAUSED = const(1 * 8)  # how many pauses are in force; futex
ACKS = const(2 * 8)  # acknowledgements that somebody waited for; futex
WAITING = const(3 * 8)  # updaters that wait for acknowledgements
UPDATES = const(4 * 8)  # odd while an update holds exits; futex for vCPUs that wait for its end
ANSWERING = const(5 * 8)  # vCPUs that answer an exit and must not meet an update; futex for the updater
HOLES = const(6 * 8)  # what becomes of MMIO and failed fetches: below
PID = const(7 * 8)  # of this process, read-only; for tgkill
SIGNAL = const(7 * 8 + 1)
REDELIVERS = const(7 * 8 + 2)  # non-zero: an event whose delivery failed is delivered again by the next KVM_RUN

REPORT, ANSWER, RETRY = const(0), const(1), const(2)
"""HOLES: give exits to whoever runs the vCPU; answer data from the memory behind it, at once, as QEMU does; retry."""

VCPUS = const(8 * 8)
VCPU = const(3 * 8)  # words a vCPU
TID = const(0)  # its thread, 0 for none
RUN_PAGE = const(1)  # host address of its kvm_run
STATE = const(2)
REQUESTED = const(8)  # kicks asked for so far
DONE = const(16)  # the last of them that it has seen

OUTSIDE, IN_KVM_RUN, HOLDING = const(0), const(1), const(2)
"""STATE. HOLDING: out of KVM_RUN, with an exit that is still to be answered; a pause waits for that."""


def vm_words(vcpus: int) -> int:
    """Words that a VM of ``vcpus`` vCPUs takes."""
    return int(VCPUS) + int(VCPU) * vcpus


# The words of one vCPU. Only its thread touches them while it runs.
FD = const(0)
RUN = const(1)  # host address of its kvm_run
BEGAN = const(2)  # UPDATES when this KVM_RUN began
ACKED = const(3)  # copy of DONE
ERRNO = const(4)  # of a KVM_RUN that failed
STALL_BEGUN = const(5)  # when the wait in progress began, 0 for none
GUEST = const(6)  # host address of the load guest's block, 0: exits go back to Python
GUEST_HOST = const(7)  # of the load guest's area: host address, guest address
GUEST_GPA = const(8)
RESET_SREGS = const(9)  # host addresses of the state that a killed load guest starts again with
RESET_REGS = const(10)
RESET_EVENTS = const(11)
DEVICE = const(13)  # non-zero: an MMIO exit was left to a device, and its instruction is not complete yet
DEVICE_START = const(14)  # guest addresses that this instruction has read from devices
DEVICE_END = const(15)
PENDING = const(12)  # non-zero: kvm_run holds an exit that a stop kept from being answered

COUNTERS = const(16)
EXITS = COUNTERS + const(0)  # KVM_RUN returned
INTERRUPTED = COUNTERS + const(1)  # of these, with EINTR: a kick or a signal
MMIO_EXITS = COUNTERS + const(2)
RETRIED_ANSWERS = COUNTERS + const(3)  # fragments answered under the update lock
RETRIED_FETCHES = COUNTERS + const(4)  # failed fetches run again, since an update was in flight
HELD = COUNTERS + const(5)  # exits that had to wait for the end of an update
CROSSINGS = COUNTERS + const(6)  # accesses that crossed a page and were carried out as two
KILLED_FETCHES = COUNTERS + const(7)  # fetches from memory that should be there: the guest was dead, and was reset
INTERNAL_ERRORS = COUNTERS + const(8)  # legitimate: from where there is no memory before or after
SHUTDOWNS = COUNTERS + const(9)
STRANGE = COUNTERS + const(10)  # exits that the load guest cannot have caused
PAUSES = COUNTERS + const(11)
STALL_WORST = COUNTERS + const(12)  # ns
STALL_TOTAL = COUNTERS + const(13)  # ns
WIDE = COUNTERS + const(14)  # pairs of fragments answered as one access of 16 bytes
REFUSED = COUNTERS + const(15)  # instructions that cannot be answered rightly: the vCPU stopped
COUNTER_NAMES = (
    *("exits", "interrupted", "mmio_exits", "retried_answers", "retried_fetches", "held", "crossings"),
    *("killed_fetches", "internal_errors", "shutdowns", "strange", "pauses", "stall_worst", "stall_total"),
    *("wide", "refused"),
)
"""The counters above, in order, in lower case."""

STAGED = const(40)  # bytes of a store that waits for its second fragment, 0 for none; they are in kvm_run
STAGED_HOST = const(41)
STAGED_ENTRY = const(42)  # of the map
STAGED_PLACE = const(43)  # guest address and space
AHEAD = const(44)  # guest address and space of the 8 bytes that were read together with those before; 0 for none

HISTOGRAM = const(64)  # stalls by duration
HISTOGRAM_SIZE = const(64 * 8)
OWN_WORDS = 64 + 64 * 8

# What vcpu_run returns; GO_ON stays inside it.
GO_ON = const(0)
STOPPED = const(1)
EXIT = const(2)  # kvm_run says why
SIGNALLED = const(3)  # nothing happened: the caller may look for signals, and runs it again
FAILED = const(4)  # KVM_RUN failed: ERRNO
