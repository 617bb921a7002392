"""The look at a whole window at once names the doubt that a look at each of its pieces names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from guestmem import traces
from guestmem.check import Verdict, check, judgement, verdict
from guestmem.traces import Irqchip
from guestmem.traces.recorder import RunStateRecorder

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from guestmem.traces import RunState


def recorded(rng: random.Random) -> RunState:
    """One vCPU, in whole microseconds, of one kind of recording."""
    run = RunStateRecorder()
    run.irqchip = rng.choice(list(Irqchip))
    calls, points = rng.choice(((True, False), (False, True), (True, True)))
    time = 0

    def step() -> float:
        nonlocal time
        time += rng.choice((0, 1, 1, 2, 5, rng.choice((5, 60))))
        return time / 1e6

    while time < 120:
        if rng.random() < 0.3:
            run.elsewhere(9, step())
        if calls:
            run.run_begin(9, step())
        for _ in range(rng.randrange(1, 3) * points):
            run.entry(9, step(), 1)
            run.exit(9, step(), 1, reason=rng.choice(("HLT", "EPT_VIOLATION", "EXTERNAL_INTERRUPT")))
        if points:
            run.user_exit(9, step(), 1, reason="KVM_EXIT_IO")
        if calls:
            run.run_end(9, step(), reason=rng.choice(("KVM_EXIT_IO", None)))
        if rng.random() < 0.02:
            run.exit(9, step(), 1)
    state = run.finish("")
    assert state is not None
    return state


def test_the_same_doubt(rng: random.Random) -> None:
    looked, seen = 0, set()
    for _ in range(1500):
        state = recorded(rng)
        (vcpu,) = state.vcpus
        start, *rest = sorted(rng.randrange(2, 110) for _ in range(4))
        core_start, core_end, end = rest if rng.random() < 0.8 else (float("nan"), float("nan"), rest[-1])
        off = rng.choice((0.5e-6, 2.5e-6))
        window = verdict.Window(start / 1e6, core_start / 1e6, core_end / 1e6, end / 1e6, off, None)
        margin = off if rng.random() < 0.8 else -off
        low, high = window.start - margin, window.end + margin
        gaps = state.gaps(vcpu, low, high)
        if gaps is None:
            continue
        rule = verdict._worst_of_gaps(*gaps, low, high, window, state.irqchip)
        if rule is None:
            continue
        doubts = [
            verdict._doubt(each.where, max(each.start, low), min(each.end, high), window, vcpu, state)[0]
            for each in state.inside(vcpu, low, high)
            if each.end > low and each.start < high
        ]
        assert rule == min(doubts, key=judgement.RANKS.__getitem__, default=""), (window, state.stretches(vcpu))
        looked += 1
        seen.add(rule)
    assert looked > 300
    assert seen >= {"", "kvm-run", "run-no-irqchip", "served", "begin-unknown", "edge"}, seen


def test_who_is_not_asked_for_a_death_has_none(rng: random.Random) -> None:
    """The quick look says yes wherever the long one finds a return that may be the death."""
    found = 0
    for _ in range(600):
        run, time = RunStateRecorder(), 0
        for _ in range(30):
            time += rng.choice((0, 1, 1, 3))
            kind, at = rng.randrange(5), time / 1e6
            if kind == 0:
                run.run_begin(9, at)
            elif kind == 1:
                run.run_end(9, at, reason=rng.choice((None, "KVM_EXIT_IO", "KVM_EXIT_SHUTDOWN")))
            elif kind == 2:
                run.entry(9, at, 1)
            elif kind == 3:
                run.exit(9, at, 1, reason="HLT")
            else:
                run.user_exit(9, at, 1, reason=rng.choice((None, "KVM_EXIT_IO")))
        state = run.finish("")
        assert state is not None
        (vcpu,) = state.vcpus
        for _ in range(5):
            start, end = sorted(min(rng.randrange(60) / 1e6, state.last) for _ in range(2))
            if rng.random() < 0.5:
                state.gaps(vcpu, start - 1e-6, end + 1e-6)
            returns = [*state.fatal_returns(vcpu, start, end), *state.last_returns(vcpu, start, end)]
            if any(start < each.time < end for each in returns):
                found += 1
                assert state.may_die(vcpu, start, end), (start, end)
    assert found > 300


def test_two_returns_at_one_stamp_of_which_one_has_no_beginning() -> None:
    """On a coarse clock, or one that was cut: which of the two is named does not matter, but one is."""
    run = RunStateRecorder()
    for vcpu in (9, 10):
        run.run_begin(vcpu, 1.0)
        run.run_end(vcpu, 2.0, reason=None)
        run.run_end(vcpu, 2.0, reason=None)
    run.elsewhere(10, 9.0)
    state = run.finish("")
    assert state is not None
    assert {each.began is None for each in state.last_returns(state.vcpus[0], 0.0, 5.0)} == {True, False}
    changes: Any = SimpleNamespace(ended=[1.5], began=[1.4], line=[7])
    worst = judgement.Worst()
    verdict._deaths(changes, [0], verdict.Window(1.4, 1.5, 4.0, 4.1, 0.0, None), state, worst)
    assert worst.rule == "died"


REGION = "KVM_SET_USER_MEMORY_REGION, {slot=%d, flags=0, guest_phys_addr=%s, memory_size=%d, userspace_addr=%s}"
GONE, BACK = (REGION % (0, "0x0", size, "0x7f0000000000") for size in (0, 32768))
BEFORE_THE_FIRST_SPLIT = f"""\
7 1000.000001 ioctl(3, KVM_CREATE_VM, 0) = 4
7 1000.000003 ioctl(4, KVM_CREATE_IRQCHIP, 0) = 0
7 1000.000006 ioctl(4, KVM_CREATE_VCPU, 0) = 5
7 1000.000020 ioctl(4, {BACK}) = 0
100 1000.000147 ioctl(5, KVM_RUN, 0) = -1 EINTR (Interrupted system call)
100 1000.000184 ioctl(5, KVM_RUN, 0) = 0 (KVM_EXIT_IO)
7 1000.000579 ioctl(4, {GONE}) = 0
7 1000.000607 ioctl(4, {REGION % (1, "0x100000", 32768, "0x7f0000100000")} <unfinished ...>
100 1000.000647 ioctl(5, KVM_RUN, 0) = -1 EINTR (Interrupted system call)
7 1000.000757 <... ioctl resumed>) = 0
100 1000.000778 ioctl(5, KVM_RUN, 0) = -1 EINTR (Interrupted system call)
7 1000.000957 ioctl(4, {BACK}) = 0
100 1000.001367 ioctl(5, KVM_RUN, 0) = -1 EINTR (Interrupted system call)
"""


def test_a_call_without_duration_before_the_first_split_is_no_proof(tmp_path: Path) -> None:
    """It returned at the thread's next line at the latest, which is in the hole; here before the delete began."""
    path = tmp_path / "strace"
    path.write_text(BEFORE_THE_FIRST_SPLIT)
    (hole,) = check(traces.read(path, gap=1.0)).holes
    assert hole.verdict is Verdict.UNKNOWN
