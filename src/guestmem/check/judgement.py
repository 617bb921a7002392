"""What a judgement is, and how it is said: of proofs, of doubts, of a death."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .rules import RULES, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..traces.columns import Changes
    from ..traces.timeline import Vcpu
    from .rules import Rule

__all__ = [
    "DIED",
    "RANKS",
    "TEXTS",
    "Finding",
    "Judgement",
    "Worst",
    "closed",
    "death",
    "guest_exit",
    "in_guest",
    "opened",
]


class Judgement(NamedTuple):
    """A verdict, the rule it rests on, the vCPUs that the rule is about, and the same in words."""

    verdict: Verdict
    rule: Rule
    vcpus: tuple[Vcpu, ...]
    reason: str


class Finding(NamedTuple):
    """What proves that guest code ran on a vCPU."""

    rule: str
    vcpu: Vcpu
    text: str


TEXTS = {
    "run-no-irqchip": "{} in KVM_RUN throughout, with no irqchip in the kernel: likely in the guest",
    "kvm-run": "{} in KVM_RUN, which is not the guest",
    "served": "{} left the guest, and KVM may have looked at memory for it",
    "begin-unknown": "{} was inside before the delete had returned",
    "edge": "{} came or went too close to the edge to tell",
}
"""What is said of a vCPU by each rule about a place that is known."""


RANKS = {name: rank for rank, name in enumerate(RULES)}
"""The place of each rule in the table: the more telling first."""
DIED = RANKS["died"]


class Worst:
    """The most telling doubt so far, in words, the first of its rule, and the vCPUs of which it is said."""

    __slots__ = ("about", "rank", "rule", "text")

    def __init__(self) -> None:
        self.rule = self.text = ""
        self.rank = len(RANKS)
        self.about: dict[Vcpu, None] = {}

    def take(self, rule: str, text: str, vcpu: Vcpu | None = None) -> None:
        """One more doubt; ``{}`` in the text stands for the vCPU."""
        rank = RANKS[rule]
        if rank > self.rank:
            return
        if rank < self.rank:
            self.rule, self.rank = rule, rank
            self.text = text.replace("{}", str(vcpu))
            self.about.clear()
        if vcpu is not None:
            self.about[vcpu] = None

    def judgement(self) -> Judgement:
        """The verdict where there are doubts."""
        rule = RULES[self.rule]
        return Judgement(Verdict.UNKNOWN, rule, tuple(self.about), f"{self.text}; {rule.record}")


def opened(proofs: Mapping[Vcpu, Finding]) -> Judgement:
    """The verdict where guest code ran on these vCPUs."""
    found = min(proofs.values(), key=lambda each: RANKS[each.rule])
    about = tuple(sorted(proofs, key=lambda vcpu: (vcpu.thread, vcpu.index or 0)))
    return Judgement(Verdict.OPEN, RULES[found.rule], about, "; ".join(each.text for each in proofs.values()))


def closed(vcpus: tuple[Vcpu, ...]) -> Judgement:
    """The verdict where all were outside."""
    about = ", ".join(map(str, vcpus))
    return Judgement(Verdict.CLOSED, RULES["outside"], vcpus, f"{about} outside KVM from before to after")


def in_guest(vcpu: Vcpu) -> Finding:
    """It was in the guest while the memory was missing."""
    return Finding("in-guest", vcpu, f"{vcpu} in the guest")


def guest_exit(vcpu: Vcpu, time: float) -> Finding:
    """It left the guest at ``time``, while the memory was missing, as only guest code makes it."""
    return Finding("guest-exit", vcpu, f"{vcpu} left the guest inside the hole, at {time:.6f}")


def death(changes: Changes, removed: Iterable[int], time: float, fatal: str = "") -> str:
    """What is said of a vCPU that left KVM_RUN at ``time``, with an exit that is ``fatal``, or for good."""
    deletes = sorted(removed)
    inside = [i for i in deletes if not time > changes.ended[i] and not changes.began[i] > time]
    where = "the delete" if inside else "the hole"
    how = f"with {fatal} inside {where}: the death itself" if fatal else f"inside {where}"
    typical = "" if fatal else " and did not come back: the typical death"
    return f"{{}} left KVM_RUN {how}{typical} (line {changes.line[inside[0] if inside else deletes[0]]})"
