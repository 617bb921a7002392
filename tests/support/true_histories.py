"""What truly happened in a VM: vCPUs in and out of the guest, and slots that went and came, in whole nanoseconds.

A simulator of vCPUs as KVM runs them, for tests of ``check``, of which it knows nothing (it imports nothing of
guestmem). It knows the moment at which each change took effect, and where each vCPU was at every moment; ``renderings``
writes down what a recorder would have seen of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

US = 1000
"""Nanoseconds in a microsecond."""
RETURN_WITHIN = 18 * US
"""KVM_RUN returns that long after the guest was left, at most."""

GUEST_REASONS = {"IO_INSTRUCTION": 2, "EPT_VIOLATION": 6, "HLT": 5, "CPUID": None, "EPT_MISCONFIG": 6, "VMCALL": None}
"""kvm_exit's reasons that an instruction causes, and the KVM_EXIT_* that it can end in."""
NEEDS_NO_MEMORY = {"EXTERNAL_INTERRUPT", "PREEMPTION_TIMER", "HLT", "CPUID"}


@dataclass(slots=True)
class Event:
    """What a tracer could see of a vCPU: when, what, on which CPU, and why (reason or errno, KVM_EXIT_* number)."""

    time: int
    kind: str
    cpu: int
    reason: str = ""
    number: int | None = None


@dataclass(slots=True)
class VcpuHistory:
    """One vCPU: its events in order, and when it truly was in the guest, or served in a way that reads memory."""

    index: int
    thread: int
    events: list[Event] = field(default_factory=list)
    in_guest: list[tuple[int, int]] = field(default_factory=list)
    served: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A memslot ioctl: it took effect at ``effect``, between begin and end."""

    what: str
    slot: int
    thread: int
    began: int
    effect: int
    ended: int


@dataclass(slots=True)
class History:
    """All that happened. ``missing``: from when until when the memory of slot 0 was missing."""

    vcpus: list[VcpuHistory]
    calls: list[Call]
    irqchip: bool
    missing: tuple[int, int]
    start: int
    end: int

    def ran_inside(self) -> bool:
        """Whether guest code ran on a vCPU while the memory was missing."""
        return any(_meets(each.in_guest, self.missing) for each in self.vcpus)

    def touched_inside(self) -> bool:
        """Whether a vCPU ran, or KVM may have read memory for it, while the memory was missing."""
        return self.ran_inside() or any(_meets(each.served, self.missing) for each in self.vcpus)


def _meets(spans: list[tuple[int, int]], window: tuple[int, int]) -> bool:
    return any(start < window[1] and window[0] < end for start, end in spans)


class _Vcpu:
    """Drives one vCPU through time, and writes down what happens."""

    def __init__(self, rng: random.Random, history: VcpuHistory, irqchip: bool, cpus: int) -> None:
        self.rng, self.history, self.irqchip, self.cpus = rng, history, irqchip, cpus
        self.cpu = rng.randrange(cpus)
        self.now = 0

    def note(self, kind: str, reason: str = "", number: int | None = None) -> None:
        self.history.events.append(Event(self.now, kind, self.cpu, reason, number))

    def migrate(self) -> None:
        if self.rng.random() < 0.3:
            self.cpu = self.rng.randrange(self.cpus)

    def run(self, until: int) -> None:
        """KVM_RUN again and again, until the thread is in user space at ``until`` and stays there."""
        rng = self.rng
        last: int | None = None
        while True:
            self.now += rng.choice((2, 20, 120)) * US + rng.randrange(US)  # in user space
            self.migrate()
            if self.now + 40 * US > until:
                self.now = max(self.now, until)
                return
            self.note("begin")
            if last in (2, 6) and rng.random() < 0.35:  # the instruction goes on: no guest code
                start = self.now
                self.now += rng.randrange(US, 4 * US)
                self.history.served.append((start, self.now))
                last = rng.choice((2, 6))
                self.leave("", last)
                continue
            if rng.random() < 0.08:  # immediate_exit, or a signal was pending
                self.now += rng.randrange(US, 3 * US)
                self.leave("EINTR", None)
                last = None
                continue
            if self.irqchip and rng.random() < 0.12:  # waits for SIPI
                self.now = min(self.now + rng.choice((30, 300)) * US, until - 15 * US)
                self.leave(rng.choice(("EAGAIN", "EINTR")), None)
                last = None
                continue
            last = self.guest(until)

    def guest(self, until: int) -> int | None:
        """Into the guest and out of it, until something ends KVM_RUN; the KVM_EXIT_* it ended with."""
        rng = self.rng
        while True:
            self.now += rng.randrange(200, 3 * US)
            if rng.random() < 0.05 and self.now + 60 * US < until:  # scheduled out: it holds no lock meanwhile
                self.now = min(self.now + rng.choice((50, 400)) * US, until - 50 * US)
                self.migrate()
            if self.irqchip and rng.random() < 0.05:  # enters, and is thrown out before any instruction
                self.note("entry", "[immediate exit]")
                self.now += rng.randrange(200, US)
                self.note("exit", "PREEMPTION_TIMER")
                self.now += rng.randrange(200, US)
            start = self.now
            self.note("entry")
            self.now += rng.choice((1, 10, 60, 250)) * US + rng.randrange(1, US)
            kicked = self.now + 20 * US > until
            if kicked:
                self.now = min(self.now, max(until - 20 * US, start + 1))
            self.history.in_guest.append((start, self.now))
            reason = "EXTERNAL_INTERRUPT" if kicked or rng.random() < 0.3 else rng.choice(list(GUEST_REASONS))
            self.note("exit", reason)
            number = GUEST_REASONS.get(reason)
            if kicked or (reason == "EXTERNAL_INTERRUPT" and rng.random() < 0.3):
                self.leave("EINTR", None)
                return None
            begun = self.now
            if reason == "HLT" and self.irqchip:
                self.now = min(self.now + rng.choice((5, 150)) * US, until - 25 * US)
                if self.now < begun:
                    self.now = begun + 1
                    self.leave("EINTR", None)
                    return None
                self.migrate()
                continue
            if number is not None and (reason == "HLT" or rng.random() < 0.6):
                self.leave("", number, serves=reason not in NEEDS_NO_MEMORY)
                return number
            self.now += rng.randrange(300, 8 * US)
            if reason not in NEEDS_NO_MEMORY:
                self.history.served.append((begun, self.now))
            self.migrate()
            if self.now + 30 * US > until:
                self.leave("EINTR", None)
                return None

    def leave(self, errno: str, number: int | None, *, serves: bool = False) -> None:
        """Back to user space."""
        start = self.now
        self.now += self.rng.randrange(200, 9 * US)
        if serves:
            self.history.served.append((start, self.now))
        self.note("user_exit", errno, number)
        self.now += self.rng.randrange(100, 5 * US)
        self.note("end", errno, number)


def simulate(rng: random.Random) -> History:
    """A random history: a slot is created, later deleted and created again, by a VMM that stops vCPUs, or does not."""
    irqchip = rng.random() < 0.7
    cpus = rng.choice((1, 2, 4))
    vcpus = [VcpuHistory(i, 100 + i) for i in range(rng.choice((1, 1, 2, 3)))]
    drives = [_Vcpu(rng, each, irqchip, cpus) for each in vcpus]
    for each in drives:
        each.now = rng.randrange(60, 200) * US
    stops = rng.random() < 0.45
    began = rng.randrange(500, 1500) * US
    issuer = rng.choice(vcpus).thread if rng.random() < 0.3 else 7
    first = _call(rng, "create", 0, 7, 20 * US)
    calls = [first]
    if stops:
        for each in drives:
            each.run(began)
        began = max(began, *(each.now for each in drives)) + rng.randrange(US, 20 * US)
    elif issuer != 7:
        drives[issuer - 100].run(began)
        began = max(began, drives[issuer - 100].now) + rng.randrange(US, 20 * US)
    calls.append(_call(rng, "delete", 0, issuer, began))
    if rng.random() < 0.4:
        calls.append(_call(rng, "create", 1, issuer, calls[-1].ended + rng.randrange(US, 60 * US)))
    calls.append(_call(rng, "create", 0, issuer, calls[-1].ended + rng.choice((2, 30, 200)) * US))
    ended = calls[-1].ended
    if rng.random() < 0.3:
        calls.append(_call(rng, "create", 5, issuer, ended + rng.randrange(6000, 7000) * US))
    end = ended + rng.randrange(200, 800) * US
    for each in drives:
        if stops or each.history.thread == issuer:
            each.now = max(each.now, ended + rng.randrange(US, 100 * US))
        each.run(end)
    deleted = next(each for each in calls if each.what == "delete")
    again = next(each for each in calls[2:] if each.slot == 0)
    return History(vcpus, calls, irqchip, (deleted.effect, again.effect), 0, max(end, calls[-1].ended))


def _call(rng: random.Random, what: str, slot: int, thread: int, began: int) -> Call:
    takes = rng.choice((3, 20, 150)) * US
    return Call(what, slot, thread, began, began + rng.randrange(1, takes), began + takes)
