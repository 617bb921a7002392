"""Open is said only where a vCPU was in the guest for certain, closed only where none was."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import Verdict, check
from guestmem.traces import Loss, RunState, Vcpu

if TYPE_CHECKING:
    from pathlib import Path

    from guestmem.check import Hole

# QEMU stamps a call when it has returned: memory is missing for certain from 2.001 (delete) to 2.002 (the call before
# the create), and can be until 2.003.
QEMU = """\
7@1.000000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=0
7@2.001000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x0 ua=0x1000 ret=0
7@2.002000:kvm_set_user_memory Slot#1 flags=0x0 gpa=0x90000 size=0x1000 ua=0x1000 ret=0
7@2.003000:kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x8000 ua=0x1000 ret=0
"""
VCPU = Vcpu(9, 1)


def verdict(
    tmp_path: Path,
    *stretches: tuple[float, float],
    first: float = 0.0,
    last: float = 9.0,
    losses: tuple[Loss, ...] = (),
) -> Hole:
    path = tmp_path / "trace.log"
    path.write_text(QEMU)
    state = RunState({VCPU: stretches}, first=first, last=last, losses=losses)
    (hole,) = check(traces.read(path, run_state=state)).holes
    return hole


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ([(0.0, 9.0)], Verdict.OPEN),
        ([(2.0012, 2.0013)], Verdict.OPEN),
        ([(1.0, 2.0015)], Verdict.OPEN),
        ([(2.0015, 3.0)], Verdict.OPEN),
        ([(0.5, 0.999), (2.004, 3.0)], Verdict.CLOSED),
        ([(0.5, 0.999), (2.0031, 3.0)], Verdict.CLOSED),
        ([(1.0, 2.001), (2.004, 3.0)], Verdict.UNKNOWN),  # the delete may have had effect long before it returned
        ([(1.0, 2.0005), (2.0031, 3.0)], Verdict.UNKNOWN),
        ([], Verdict.CLOSED),
        ([(2.0025, 3.0)], Verdict.UNKNOWN),  # it entered after the create was issued, perhaps before it had effect
        ([(2.003, 3.0)], Verdict.UNKNOWN),
    ],
)
def test_qemu_trace(tmp_path: Path, stretches: list[tuple[float, float]], expected: Verdict) -> None:
    hole = verdict(tmp_path, *stretches)
    assert hole.verdict is expected, hole.reason
    assert hole.vcpus == (VCPU,)


def test_an_open_hole_names_the_vcpu(tmp_path: Path) -> None:
    assert verdict(tmp_path, (0.0, 9.0)).reason == "vCPU 1 (thread 9) in the guest"


def test_outside_of_what_is_known_nothing_is_closed(tmp_path: Path) -> None:
    hole = verdict(tmp_path, (2.004, 2.005), first=2.002)
    assert (hole.verdict, hole.rule.name) == (Verdict.UNKNOWN, "before-first")
    hole = verdict(tmp_path, last=2.002)
    assert (hole.verdict, hole.rule.name) == (Verdict.UNKNOWN, "after-last")


def test_where_events_were_lost_nothing_is_closed_nor_open(tmp_path: Path) -> None:
    somewhere = (Loss(None, -math.inf, math.inf),)
    assert verdict(tmp_path, (3.0, 4.0), losses=somewhere).rule.name == "lost"
    assert verdict(tmp_path, (1.0, 4.0), losses=somewhere).verdict is Verdict.UNKNOWN
    assert verdict(tmp_path, (1.0, 4.0), losses=(Loss(None, 3.0, 3.5),)).verdict is Verdict.OPEN


def test_without_times_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "trace.log"
    path.write_text("".join(line.split(":", 1)[1] for line in QEMU.splitlines(keepends=True)))
    (hole,) = check(traces.read(path)).holes
    assert (hole.verdict, hole.duration, hole.start, hole.end) == (Verdict.UNKNOWN, None, None, None)


def strace(*calls: str) -> str:
    region = (
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=%d, flags=0, guest_phys_addr=%#x, memory_size=%d, "
        "userspace_addr=0x1000}"
    )
    words = {"create": region % (0, 0, 4096), "delete": region % (0, 0, 0), "move": region % (0, 4096, 8192)}
    words |= {"run": "ioctl(12, KVM_RUN, 0", "create2": region % (0, 0, 8192)}
    lines = []
    for call in calls:
        thread, time, what, *rest = call.split()
        shown = "<... ioctl resumed>" if what == "resumed" else words[what]
        tail = {"": ") = 0", "...": " <unfinished ...>"}.get(
            rest[0] if rest else "", f") = 0 <{rest[0] if rest else ''}>"
        )
        lines.append(f"{thread} {time} {shown}{tail}\n")
    return "".join(lines)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        # A vCPU sits in KVM_RUN all the time: in the guest, or halted.
        (["5 1.0 create", "9 1.5 run ...", "5 2.0 delete", "5 2.1 create", "9 3.0 resumed"], "kvm-run"),
        # It leaves before, and comes back after: what pausing all vCPUs looks like.
        (["5 1.0 create", "9 1.5 run 0.1", "5 2.0 delete", "5 2.1 create 0.1", "9 3.0 run 0.1"], "outside"),
        # The same, and when the create returned is not told, nor by another line.
        (["5 1.0 create", "9 1.5 run 0.1", "5 2.0 delete", "5 2.1 create", "9 3.0 run 0.1"], "end-unknown"),
        (["5 1.0 create", "9 1.5 run 0.1", "5 2.0 delete", "5 2.1 create", "5 2.5 create", "9 3.0 run 0.1"], "outside"),
        # The vCPU's own thread changes the slots.
        (["9 1.0 create", "9 1.5 run", "9 2.0 delete", "9 2.1 create", "9 3.0 run"], "outside"),
        # It leaves while the delete is under way, and goes on.
        (
            ["5 1.0 create", "9 1.5 run ...", "5 2.0 delete 0.05", "9 2.02 resumed", "9 2.06 run 0.1", "5 2.1 create"],
            "kvm-run",
        ),
        # It leaves while the delete is under way, and never comes back.
        (["5 1.0 create", "9 1.5 run ...", "5 2.0 delete 0.05", "9 2.02 resumed", "5 2.1 create"], "died"),
        # It enters while the create is under way.
        (["9 0.5 run 0.1", "5 1.0 create", "5 2.0 delete", "5 2.1 create 0.05", "9 2.12 run 0.5"], "edge"),
        # The first that is known of it is after the hole.
        (["5 1.0 create", "5 2.0 delete", "5 2.1 create 0.05", "9 2.2 run 0.5"], "before-first"),
        # No duration anywhere: until the thread's next line.
        (["5 1.0 create", "9 1.5 run", "5 2.0 delete", "5 2.1 create", "9 3.0 run"], "kvm-run"),
        # A move onto its own frames, with a vCPU inside throughout, and with none.
        (["5 1.0 create2", "9 1.5 run ...", "5 2.0 move 0.01", "9 3.0 resumed"], "kvm-run"),
        (["5 1.0 create2", "9 1.5 run 0.1", "5 2.0 move 0.01", "9 3.0 run 0.1"], "outside"),
    ],
)
def test_strace(tmp_path: Path, calls: list[str], expected: str) -> None:
    path = tmp_path / "strace.txt"
    path.write_text(strace(*calls))
    (hole,) = check(traces.read(path, gap=0.2)).holes
    assert hole.rule.name == expected, hole.reason
    assert [vcpu.thread for vcpu in hole.vcpus] == [9] or expected == "end-unknown"
