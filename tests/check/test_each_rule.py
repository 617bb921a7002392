"""Each row of the table of rules, from both sides: where it holds, and where one thing is different and it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import RULES, Verdict, check
from guestmem.errors import UsageError
from guestmem.traces import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.check import Hole

# The slot is away for certain from 2.010 (the delete returned) to 2.100 (the create begins), and at the most from 2.000
# to 2.110.
REGION = (
    "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=%d, userspace_addr=0x1000})"
)
CREATE, DELETE, AGAIN = (
    f"7 {begin} {REGION % size} = 0 <0.010000>"
    for begin, size in (("1.000000", 4096), ("2.000000", 0), ("2.100000", 4096))
)
END = "7 9.000000 ioctl(3, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) = 1 <0.000001>"
NEW_VM = (
    "7 0.100000 ioctl(3, KVM_CREATE_VM, 0) = 4 <0.000010>",
    "7 0.200000 ioctl(4, KVM_CREATE_VCPU, 0) = 5 <0.000010>",
)
SECOND_VCPU = "7 0.300000 ioctl(4, KVM_CREATE_VCPU, 1) = 6 <0.000010>"
IRQCHIP = "7 0.150000 ioctl(4, KVM_CREATE_IRQCHIP, 0) = 0 <0.000010>"
OVERWRITTEN = "# entries-in-buffer/entries-written: 6/60\n"


def run(begin: float, took: float, result: str = "0") -> str:
    return f"9 {begin:.6f} ioctl(5, KVM_RUN, 0) = {result} <{took:.6f}>"


def strace(*lines: str) -> str:
    """The changes and ``lines``, in order of time, until 9.0."""
    return "\n".join(sorted([CREATE, DELETE, AGAIN, END, *lines], key=lambda line: float(line.split()[1]))) + "\n"


def changes() -> str:
    return strace()


def points(*events: str, thread: int = 9, header: str = "# tracer: nop\n") -> str:
    """Tracepoints: ``entry 1.5``, ``exit 1.6 HLT``, ``user 1.7 KVM_EXIT_IO 2``, ``@2`` for another CPU, or a marker."""
    lines = []
    for event in events:
        if event.startswith("CPU"):
            lines.append(event)
            continue
        words, _, cpu = event.partition(" @")
        kind, time, *rest = words.split()
        name, fields = {
            "entry": ("kvm_entry", f"vcpu 0, rip 0x0{' '.join(rest)}"),
            "exit": ("kvm_exit", f"vcpu 0 reason {rest[0] if rest else 'EPT_VIOLATION'} rip 0x0"),
            "user": ("kvm_userspace_exit", f"reason {rest[0] if rest else 'KVM_EXIT_IO'} ({rest[-1] if rest else 2})"),
        }[kind]
        lines.append(f"  CPU 0/KVM-{thread}  [00{cpu or 1}] d..1. {float(time):.6f}: {name}: {fields}")
    return header + "\n".join(lines) + "\n"


def judged(tmp_path: Path, trace: str, run_state: str | RunState | None = None) -> Hole:
    (tmp_path / "trace").write_text(trace)
    if isinstance(run_state, str):
        (tmp_path / "run").write_text(run_state)
        (hole,) = check(traces.read(tmp_path / "trace", gap=1.0, run_state=tmp_path / "run")).holes
    else:
        (hole,) = check(traces.read(tmp_path / "trace", gap=1.0, run_state=run_state)).holes
    return hole


BEFORE = ("entry 1.500000", "exit 1.600000", "user 1.610000")
AFTER = ("entry 3.000000", "exit 3.100000", "user 3.110000")
ALL_ALONG = ("entry 1.5", "exit 3.0")

CASES: dict[str, tuple[tuple[str, str], ...]] = {
    "in-guest": (
        ("in-guest", points("entry 1.5", "exit 2.5")),
        ("in-guest", points(*BEFORE, "entry 2.02", "exit 2.03 EXTERNAL_INTERRUPT", "user 2.031 restart -4", *AFTER)),
        ("after-last", points("entry 1.5")),  # in the guest then, and nobody saw it leave
        ("served", points("entry 1.5 [immediate exit]", "exit 2.5 PREEMPTION_TIMER", "user 2.6")),
        ("torn", points("entry 1.5 @1", "exit 2.5 @2", "user 2.6 @2")),  # a guest is left on the CPU that entered it
        ("lost", points("entry 1.5", "CPU:1 [LOST EVENTS]", "exit 2.5", "user 2.6")),
        ("in-guest", points("entry 1.5", "CPU:2 [LOST EVENTS]", "exit 2.5", "user 2.6")),  # lost elsewhere
    ),
    "guest-exit": (
        ("guest-exit", points("exit 1.5", "exit 2.05", "exit 3.0")),
        ("no-entries", points("exit 1.5", "exit 2.05 EXTERNAL_INTERRUPT", "exit 3.0")),
        ("no-entries", points("exit 1.5", "exit 2.005", "exit 3.0")),  # while the delete is under way
        ("no-entries", points("exit 1.5", "exit 2.105", "exit 3.0")),  # while the create is
    ),
    "guest-return": (
        ("guest-return", points("user 2.02 KVM_EXIT_HLT 5", "user 2.05 KVM_EXIT_IO 2", "user 3.0")),
        (
            "no-entries",
            points("user 1.5", "user 2.02 KVM_EXIT_IO 2", "user 2.05 KVM_EXIT_MMIO 6", "user 3.0"),
        ),  # the same instruction
        (
            "no-entries",
            points("user 1.5", "user 2.05 restart -4", "user 3.0"),
        ),  # immediate_exit
        ("no-entries", points("user 1.5 KVM_EXIT_HLT 5", "user 2.005 KVM_EXIT_IO 2", "user 3.0")),
    ),
    "lost": (
        ("outside", points(*BEFORE, *AFTER)),
        ("lost", points(*BEFORE, "CPU:1 [LOST EVENTS]", *AFTER)),
        ("lost", points(*BEFORE, "CPU:1 [12 EVENTS DROPPED]", *AFTER)),
        ("lost", points(*BEFORE, "CPU:3 [LOST 12 EVENTS]", *AFTER)),  # it may have been on that CPU
        ("outside", points(*BEFORE, *AFTER, "CPU:1 [LOST EVENTS]", "entry 8.0", "exit 8.1")),  # afterwards
        (
            "lost",
            points(
                *BEFORE,
                "entry 2.5 @2",
                "exit 2.6 @2",
                "user 2.7 @2",
                header=OVERWRITTEN,
            ),
        ),
        ("outside", points(*BEFORE, *AFTER, header="# entries-in-buffer/entries-written: 6/6\n")),
    ),
    "no-entries": (
        ("no-entries", points("exit 1.6", "user 1.61", "exit 3.1", "user 3.11")),
        ("no-entries", points("user 1.61", "user 3.11")),
        ("outside", points(*BEFORE, *AFTER)),
    ),
    "no-exits": (
        ("no-exits", points("entry 1.5", "entry 3.0")),
        ("outside", points("entry 1.5", "user 1.61", "entry 3.0", "user 3.11")),
    ),
    "served": (
        ("served", points("entry 1.5", "exit 1.6", "entry 3.0", "exit 3.1")),
        ("outside", points("entry 1.5", "exit 1.6 EXTERNAL_INTERRUPT", "entry 3.0", "exit 3.1")),
        ("served", points(*BEFORE, "user 3.0", *(("entry 4.0", "exit 4.1", "user 4.2")))),  # KVM_RUN, without an entry
    ),
    "torn": (
        ("torn", points(*BEFORE, "exit 3.0", "user 3.1")),
        ("torn", points("entry 1.5", "entry 3.0", "exit 3.1")),
        ("outside", points(*BEFORE, *AFTER)),
    ),
    "before-first": (
        ("before-first", points("exit 2.05 EXTERNAL_INTERRUPT", "user 2.06 restart -4", *AFTER)),
        ("outside", points(*BEFORE, *AFTER)),
    ),
    "after-last": (("after-last", points(*BEFORE)), ("outside", points(*BEFORE, *AFTER))),
    "edge": (
        ("edge", points(*BEFORE, "entry 2.105", "exit 3.1", "user 3.2")),
        ("outside", points(*BEFORE, "entry 2.111", "exit 3.1", "user 3.2")),
    ),
    "begin-unknown": (
        ("begin-unknown", points("entry 1.5", "exit 2.005 EXTERNAL_INTERRUPT", "user 2.006 restart -4", *AFTER)),
        ("outside", points("entry 1.5", "exit 1.990 EXTERNAL_INTERRUPT", "user 1.991 restart -4", *AFTER)),
    ),
}


@pytest.mark.parametrize(
    ("expected", "run_state"), [case for cases in CASES.values() for case in cases], ids=lambda value: value[:12]
)
def test_rules_of_tracepoints(tmp_path: Path, expected: str, run_state: str) -> None:
    hole = judged(tmp_path, changes(), run_state)
    assert hole.rule.name == expected, hole.reason
    assert hole.verdict is RULES[expected].proves


@pytest.mark.parametrize(
    ("expected", "lines"),
    [
        # KVM_RUN from before to after is not the guest: without an irqchip in the kernel it may be scheduled out.
        ("run-no-irqchip", [*NEW_VM, run(1.5, 1.5)]),
        ("kvm-run", [*NEW_VM, IRQCHIP, run(1.5, 1.5)]),
        ("kvm-run", [run(1.5, 1.5)]),
        ("kvm-run", [*NEW_VM, "7 0.300000 ioctl(4, KVM_ENABLE_CAP, 0x7ffde882e3c0) = 0 <0.000010>", run(1.5, 1.5)]),
        ("kvm-run", [*NEW_VM, run(1.5, 0.55), run(2.06, 1.0)]),  # not one from before to after
        ("run-no-irqchip", [*NEW_VM, run(1.5, 1.5, "-1 EAGAIN (Resource temporarily unavailable)")]),
        # An exit that guest code caused, inside the hole.
        ("guest-return", [run(1.5, 0.1, "0 (KVM_EXIT_HLT)"), run(2.02, 0.01, "0 (KVM_EXIT_IO)")]),
        ("guest-return", [run(1.5, 0.1, "0 (KVM_EXIT_HLT)"), run(1.9, 0.15, "0 (KVM_EXIT_IO)")]),
        ("kvm-run", [run(1.5, 0.1, "0 (KVM_EXIT_MMIO)"), run(2.02, 0.01, "0 (KVM_EXIT_MMIO)")]),
        ("kvm-run", [run(1.5, 0.1, "0 (KVM_EXIT_HLT)"), run(2.02, 0.01, "-1 EINTR (Interrupted system call)")]),
        ("kvm-run", [run(1.5, 0.1, "0 (KVM_EXIT_HLT)"), run(1.9, 0.110005, "0 (KVM_EXIT_IO)"), run(2.03, 1.0)]),
        # Outside.
        ("outside", [run(1.5, 0.1), run(3.0, 0.1)]),
        ("outside", [*NEW_VM, run(3.0, 0.1)]),  # made, and not run before
        ("before-first", [run(3.0, 0.1)]),
        ("edge", [run(1.5, 0.1), run(2.105, 1.0)]),
        # A vCPU of which nothing is there.
        (
            "missing-vcpu",
            [*NEW_VM, SECOND_VCPU, run(1.5, 0.1), run(3.0, 0.1)],
        ),
        # It left inside the delete, or the hole, and did not come back; or says that it died.
        ("died", [run(1.5, 0.505)]),
        ("died", [run(1.5, 0.55)]),
        ("died", [run(1.5, 0.505, "0 (KVM_EXIT_INTERNAL_ERROR)")]),
        ("begin-unknown", [run(1.5, 0.505, "0 (KVM_EXIT_IO)")]),  # a return like any other
        ("kvm-run", [run(1.5, 0.505), run(2.02, 1.0)]),
    ],
)
def test_rules_of_kvm_run(tmp_path: Path, expected: str, lines: list[str]) -> None:
    hole = judged(tmp_path, strace(*lines))
    assert hole.rule.name == expected, hole.reason
    assert hole.verdict is RULES[expected].proves
    if expected == "died":
        assert ("KVM_EXIT_INTERNAL_ERROR" in hole.reason) is ("INTERNAL" in "".join(lines))


def test_an_internal_error_inside_the_delete_is_named_as_the_death_itself(tmp_path: Path) -> None:
    hole = judged(tmp_path, strace(run(1.5, 0.505, "0 (KVM_EXIT_INTERNAL_ERROR)")))
    assert "vCPU thread 9 left KVM_RUN with KVM_EXIT_INTERNAL_ERROR inside the delete: the death itself" in hole.reason


def test_an_internal_error_inside_the_hole_is_the_guests_own(tmp_path: Path) -> None:
    hole = judged(tmp_path, strace(run(1.5, 0.1, "0 (KVM_EXIT_HLT)"), run(1.9, 0.15, "0 (KVM_EXIT_INTERNAL_ERROR)")))
    assert (hole.verdict, "KVM_EXIT_INTERNAL_ERROR" in hole.reason) == (Verdict.OPEN, True)


def test_rules_of_the_changes_themselves(tmp_path: Path) -> None:
    outside = RunState({traces.Vcpu(9): []}, first=0.0, last=10.0)
    assert judged(tmp_path, changes(), outside).rule.name == "outside"
    assert judged(tmp_path, changes()).rule.name == "no-run-state"
    no_durations = "\n".join(line.split(" <")[0] for line in (CREATE, DELETE, AGAIN)) + "\n"
    assert judged(tmp_path, no_durations, outside).rule.name == "end-unknown"
    assert judged(tmp_path, f"{no_durations}{END}\n", outside).rule.name == "outside"
    untimed = "\n".join(line.split(" ", 2)[2].split(" <")[0] for line in (CREATE, DELETE, AGAIN)) + "\n"
    assert judged(tmp_path, untimed).rule.name == "no-run-state"


def qemu(time: str, size: int, prefix: str = "1970-01-01T00:00:0{}Z ") -> str:
    event = f"kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size={size:#x} ua=0x1000 ret=0"
    return prefix.format(time) + event + "\n"


def test_a_change_without_a_time_has_no_place_among_those_with_one(tmp_path: Path) -> None:
    """One line of which a logger dropped the stamp: nothing is said of its hole, whatever the vCPUs did."""
    outside = RunState({traces.Vcpu(9): []}, first=0.0, last=10.0)
    inside = RunState({traces.Vcpu(9): [(0.5, 9.0)]}, first=0.0, last=10.0)
    end = qemu("9.000000", 4096).replace("Slot#0", "Slot#1").replace("gpa=0x0", "gpa=0x9000")
    for prefix in ("1970-01-01T00:00:0{}Z ", ""):
        trace = qemu("1.000000", 4096) + qemu("2.000000", 0) + qemu("2.100000", 4096, prefix) + end
        for run_state, expected in ((outside, "outside"), (inside, "in-guest")):
            hole = judged(tmp_path, trace, run_state)
            assert hole.rule.name == (expected if prefix else "no-times")
            assert hole.verdict is RULES[hole.rule.name].proves


def test_of_two_doubts_the_more_telling_is_named(tmp_path: Path) -> None:
    """Whoever comes first: KVM_RUN all along, with no irqchip, tells more than for a while; what is lost tells most."""
    throughout, awhile = (1.5, 1.5), (2.05, 1.0)
    for first, second in ((throughout, awhile), (awhile, throughout)):
        hole = judged(
            tmp_path,
            strace(*NEW_VM, SECOND_VCPU, run(0.9, 0.05), other_run(0.9, 0.05), run(*first), other_run(*second)),
        )
        assert hole.rule.name == "run-no-irqchip", hole.reason
        assert [each.index for each in hole.vcpus] == [0 if first is throughout else 1]
    order = list(RULES)
    assert order.index("lost") < order.index("run-no-irqchip") < order.index("kvm-run") < order.index("served")
    events = (*BEFORE, "CPU:1 [LOST EVENTS]", *AFTER)
    served = points("entry 1.5 @2", "exit 1.6 @2", "entry 3.0 @2", "exit 3.1 @2", thread=10, header="").replace(
        "vcpu 0", "vcpu 1"
    )
    for run_state in (points(*events) + served, served + points(*events)):
        assert judged(tmp_path, changes(), run_state).rule.name == "lost"


def other_run(begin: float, took: float) -> str:
    return run(begin, took).replace("9 ", "10 ", 1).replace("ioctl(5", "ioctl(6")


def test_every_rule_is_tried() -> None:
    tried = {name for cases in CASES.values() for name, _ in cases}
    tried |= {"run-no-irqchip", "guest-return", "kvm-run", "missing-vcpu", "died", "end-unknown", "no-run-state"}
    assert set(RULES) - tried == {"no-times"}, "which has a test of its own"


def test_a_vcpu_without_any_sign_can_be_told_of(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(changes())
    (tmp_path / "run").write_text(points(*BEFORE, *AFTER))
    for vcpus, expected in ((None, "outside"), (1, "outside"), (2, "missing-vcpu")):
        timeline = traces.read(tmp_path / "trace", gap=1.0, run_state=tmp_path / "run", vcpus=vcpus)
        (hole,) = check(timeline).holes
        assert hole.rule.name == expected
    with pytest.raises(UsageError, match="vcpus: 0"):
        traces.read(tmp_path / "trace", vcpus=0)
