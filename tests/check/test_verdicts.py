"""Open is said only where a vCPU was in the guest for certain, closed only where none was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from guestmem import traces
from guestmem.check import Verdict, check
from guestmem.traces import RunState, Vcpu

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
    tmp_path: Path, *stretches: tuple[float, float], first: float = 0.0, last: float = 9.0, lost: int = 0
) -> Hole:
    path = tmp_path / "trace.log"
    path.write_text(QEMU)
    state = RunState({VCPU: stretches}, first=first, last=last, lost=lost)
    (hole,) = check(traces.read(path, run_state=state)).holes
    return hole


@pytest.mark.parametrize(
    ("stretches", "expected"),
    [
        ([(0.0, 9.0)], Verdict.OPEN),
        ([(2.0012, 2.0013)], Verdict.OPEN),
        ([(1.0, 2.0015)], Verdict.OPEN),
        ([(2.0015, 3.0)], Verdict.OPEN),
        ([(1.0, 2.001), (2.004, 3.0)], Verdict.CLOSED),
        ([(1.0, 2.0005), (2.0031, 3.0)], Verdict.CLOSED),
        ([], Verdict.CLOSED),
        ([(2.0025, 3.0)], Verdict.UNKNOWN),  # it entered after the create was issued, perhaps before it had effect
        ([(2.003, 3.0)], Verdict.UNKNOWN),
    ],
)
def test_qemu_trace(tmp_path: Path, stretches: list[tuple[float, float]], expected: Verdict) -> None:
    hole = verdict(tmp_path, *stretches)
    assert hole.verdict is expected, hole.reason
    assert hole.vcpus == ((VCPU,) if expected is Verdict.OPEN else ())


def test_an_open_hole_names_the_vcpu(tmp_path: Path) -> None:
    assert verdict(tmp_path, (0.0, 9.0)).reason == "vCPU 1 (thread 9) in the guest"


def test_outside_of_what_is_known_nothing_is_closed(tmp_path: Path) -> None:
    hole = verdict(tmp_path, (2.004, 2.005), first=2.002)
    assert (hole.verdict, "only" in hole.reason) == (Verdict.UNKNOWN, True)


def test_where_events_were_lost_nothing_is_closed(tmp_path: Path) -> None:
    assert verdict(tmp_path, (3.0, 4.0), lost=1).verdict is Verdict.UNKNOWN
    assert verdict(tmp_path, (1.0, 4.0), lost=1).verdict is Verdict.OPEN


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
        # A vCPU sits in KVM_RUN all the time.
        (["5 1.0 create", "9 1.5 run ...", "5 2.0 delete", "5 2.1 create", "9 3.0 resumed"], Verdict.OPEN),
        # It leaves before, and comes back after: what pausing all vCPUs looks like.
        (["5 1.0 create", "9 1.5 run 0.1", "5 2.0 delete", "5 2.1 create", "9 3.0 run 0.1"], Verdict.CLOSED),
        # The vCPU's own thread changes the slots.
        (["9 1.0 create", "9 1.5 run", "9 2.0 delete", "9 2.1 create", "9 3.0 run"], Verdict.CLOSED),
        # It leaves while the delete is under way.
        (["5 1.0 create", "9 1.5 run ...", "5 2.0 delete 0.05", "9 2.02 resumed", "5 2.1 create"], Verdict.UNKNOWN),
        # It leaves after the delete returned.
        (["5 1.0 create", "9 1.5 run ...", "5 2.0 delete 0.01", "9 2.02 resumed", "5 2.1 create"], Verdict.OPEN),
        # It enters while the create is under way.
        (["5 1.0 create", "5 2.0 delete", "5 2.1 create 0.05", "9 2.12 run 0.5"], Verdict.UNKNOWN),
        # No duration anywhere: until the thread's next line.
        (["5 1.0 create", "9 1.5 run", "5 2.0 delete", "5 2.1 create", "9 3.0 run"], Verdict.OPEN),
        # A move onto its own frames, with a vCPU inside throughout, and with none.
        (["5 1.0 create2", "9 1.5 run ...", "5 2.0 move 0.01", "9 3.0 resumed"], Verdict.OPEN),
        (["5 1.0 create2", "9 1.5 run 0.1", "5 2.0 move 0.01", "9 3.0 run 0.1"], Verdict.CLOSED),
        (["5 1.0 create2", "9 1.5 run ...", "5 2.0 move 0.01", "9 2.005 resumed"], Verdict.UNKNOWN),
    ],
)
def test_strace(tmp_path: Path, calls: list[str], expected: Verdict) -> None:
    path = tmp_path / "strace.txt"
    path.write_text(strace(*calls))
    (hole,) = check(traces.read(path, gap=0.2)).holes
    assert hole.verdict is expected, hole.reason
    assert [vcpu.thread for vcpu in hole.vcpus] == ([9] if expected is Verdict.OPEN else [])
