"""Events far from any change are forgotten, so that memory grows with changes, and what is forgotten proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem import traces
from guestmem.check import check
from guestmem.traces import Where
from guestmem.traces.events import EDGE, FEW, MANY, TAIL
from guestmem.traces.recorder import RunStateRecorder

LINES = FEW * 2


def region(time: float, size: int) -> str:
    return (
        f"100 {time:.6f} ioctl(4, KVM_SET_USER_MEMORY_REGION, {{slot=0, flags=0, guest_phys_addr=0, "
        f"memory_size={size}, userspace_addr=0x7f0000000000}}) = 0 <0.000010>\n"
    )


def test_a_long_recording_keeps_what_is_near_its_changes(tmp_path: Path) -> None:
    start = 1764400000.0
    lines = [region(start, 4096)]
    lines += [f"101 {start + i * 1e-4:.6f} ioctl(12, KVM_RUN, 0) = 0 <0.000050>\n" for i in range(1, LINES)]
    at = start + LINES * 1e-4
    lines += [region(at, 0), region(at + 2e-5, 4096)]
    lines += [f"101 {at + i * 1e-4:.6f} ioctl(12, KVM_RUN, 0) = 0 <0.000050>\n" for i in range(1, LINES)]
    path = tmp_path / "long.strace"
    path.write_text("".join(lines))
    timeline = traces.read(path)
    state = timeline.run_state
    assert state is not None
    assert state.events < FEW + 4 * MANY + 4 * TAIL < 2 * LINES
    (hole,) = check(timeline).holes
    assert hole.verdict.value == "closed", hole.reason
    (vcpu,) = state.vcpus
    middle = start + LINES * 1e-4 * 0.75
    assert {piece.where for piece in state.stretches(vcpu, middle, middle + 1e-3)} == {Where.UNKNOWN}


@pytest.mark.parametrize("marked", [True, False])
def test_what_is_forgotten_is_unknown_and_what_is_near_a_change_is_not(marked: bool) -> None:
    recorder = RunStateRecorder()
    recorder.forgets = marked
    for i in range(LINES):
        recorder.run_begin(7, float(i))
        recorder.run_end(7, i + 0.5)
        if i == LINES // 2:
            recorder.change_at(float(i))
    state = recorder.finish("x")
    assert state is not None
    (vcpu,) = state.vcpus
    near = [piece.where for piece in state.stretches(vcpu, LINES // 2 - 8.0, LINES // 2 - 4.0)]
    assert Where.UNKNOWN not in near
    far = {piece.where for piece in state.stretches(vcpu, LINES * 0.75, LINES * 0.75 + 4)}
    assert far == ({Where.UNKNOWN} if marked else {Where.RUN, Where.USER})


def test_a_trace_that_is_dense_with_changes_keeps_some_events_of_each(tmp_path: Path) -> None:
    """Ten boots' worth of changes, each with more KVM_RUNs between them than are kept, and each hole judged."""
    lines, time, runs = [region(1764400000.0, 4096)], 1764400000.0, EDGE * 3
    for _ in range(60):
        lines += [f"101 {time + i * 1e-4:.6f} ioctl(12, KVM_RUN, 0) = 0 <0.000050>\n" for i in range(1, runs)]
        time += runs * 1e-4
        lines += [region(time, 0), region(time + 2e-5, 4096)]
    lines.append(f"101 {time + 1e-4:.6f} ioctl(12, KVM_RUN, 0) = 0 <0.000050>\n")
    path = tmp_path / "dense.strace"
    path.write_text("".join(lines))
    timeline = traces.read(path)
    assert timeline.run_state is not None
    assert timeline.run_state.events < 61 * (2 * EDGE + 4) < 60 * runs * 2 / 2
    verdicts = [hole.verdict.value for hole in check(timeline).holes]
    assert verdicts == ["closed"] * 60
