"""The one table of what which evidence proves. ``verdict`` decides by it, docs/traces.md shows it, a test holds both.

A rule that proves OPEN needs one vCPU; CLOSED needs its evidence for every vCPU that is known or possible. The others
say why a vCPU's whereabouts prove neither, and how to record what is missing. Verdicts are of vCPUs: DMA, vhost and
KVM's own accesses (steal time, clock pages, event delivery) are in no recording, and play no part.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["NOT_SEEN", "RULES", "Rule", "Verdict"]

NOT_SEEN = "verdicts are of vCPUs: DMA, vhost and KVM's own accesses are not seen"


class Verdict(enum.Enum):
    """Whether a vCPU could see the hole.

    OPEN: guest code ran on one while the memory was missing for certain. CLOSED: each was outside KVM from before the
    hole to after it, and nothing was lost. UNKNOWN: neither is proven.
    """

    OPEN = "open"
    CLOSED = "closed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table: ``evidence`` for a vCPU, what it ``proves``, and what would have to be recorded instead."""

    name: str
    evidence: str
    proves: Verdict
    record: str = ""


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "in-guest",
            "a kvm_entry before, and the kvm_exit that follows it after, a moment at which the memory was missing",
            Verdict.OPEN,
        ),
        Rule("guest-exit", "a kvm_exit inside the hole that only guest code can cause", Verdict.OPEN),
        Rule(
            "guest-return",
            "KVM_RUN returns inside the hole with an exit that guest code caused, and that cannot continue the exit "
            "before it",
            Verdict.OPEN,
        ),
        Rule(
            "outside",
            "entries and exits, or KVM_RUN's begin and end, recorded without loss, and the vCPU outside KVM from "
            "before the hole to after it",
            Verdict.CLOSED,
        ),
        Rule(
            "died",
            "the vCPU left KVM_RUN inside the delete or the hole, with an internal error, or without having come back",
            Verdict.UNKNOWN,
            "kvm_entry, kvm_exit and kvm_userspace_exit tell whether it ran then",
        ),
        Rule("no-run-state", "nothing is recorded of vCPUs", Verdict.UNKNOWN, "record KVM_RUN or kvm's tracepoints"),
        Rule("no-times", "the changes have no times", Verdict.UNKNOWN, "QEMU: -msg timestamp=on; strace: -ttt -T"),
        Rule(
            "lost",
            "events were lost, or overwritten, while the vCPU was last seen outside",
            Verdict.UNKNOWN,
            "larger buffers (trace-cmd record -b, perf record -m), or fewer events",
        ),
        Rule(
            "no-entries",
            "only exits are recorded: an exit says nothing of what came after it",
            Verdict.UNKNOWN,
            "record kvm_entry too",
        ),
        Rule(
            "no-exits",
            "only entries are recorded: an entry says nothing of how long it lasted",
            Verdict.UNKNOWN,
            "record kvm_exit and kvm_userspace_exit too",
        ),
        Rule(
            "run-no-irqchip",
            "one KVM_RUN from before the hole to after it, and no irqchip in the kernel since KVM_CREATE_VM: likely "
            "in the guest, but scheduled out (or halted, on other machines than x86) it is in KVM_RUN too",
            Verdict.UNKNOWN,
            "record kvm_entry and kvm_exit, which prove it",
        ),
        Rule(
            "kvm-run",
            "the vCPU is in KVM_RUN, which is not the guest: halted, waiting for SIPI or scheduled out it is there too",
            Verdict.UNKNOWN,
            "record kvm_entry, kvm_exit and kvm_userspace_exit",
        ),
        Rule(
            "served",
            "the vCPU left the guest, and KVM may have looked at memslots for it until it returned to user space",
            Verdict.UNKNOWN,
            "record kvm_userspace_exit too",
        ),
        Rule(
            "torn",
            "an entry without its exit, an exit without its entry, or a call without its return",
            Verdict.UNKNOWN,
            "record all events of all CPUs and threads",
        ),
        Rule(
            "before-first",
            "nothing is known of the vCPU before its first event",
            Verdict.UNKNOWN,
            "start recording before the VM, or earlier",
        ),
        Rule("after-last", "the recording ends before the hole does", Verdict.UNKNOWN, "record for longer"),
        Rule("missing-vcpu", "a vCPU exists of which nothing is recorded", Verdict.UNKNOWN, "record every thread (-f)"),
        Rule(
            "begin-unknown",
            "the changes are stamped when they have returned, and when the delete began is not known closely enough",
            Verdict.UNKNOWN,
            "record begins too (QEMU: -trace 'kvm_*'; strace)",
        ),
        Rule(
            "end-unknown",
            "the changes are stamped when they begin, and when the create had returned is not known",
            Verdict.UNKNOWN,
            "record durations (strace -T)",
        ),
        Rule(
            "edge",
            "the vCPU came or went closer to the edge than the stamps tell",
            Verdict.UNKNOWN,
            "stamps of more places (strace -ttt, perf script --ns), or begin and end of every change",
        ),
    )
}
"""The rules by name; those that prove something first, then those that do not, the more telling first."""
