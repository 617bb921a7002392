"""A piece of whole KVM_RUNs and changes leaves the same behind as its lines, taken one after the other."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from guestmem.traces import dispatch, events, lines, pieces, recorder, strace_block
from guestmem.traces.perf_trace import PerfTraceReader
from guestmem.traces.strace import StraceReader
from left_behind import SMALL, damaged, left_behind

if TYPE_CHECKING:
    import random
    from pathlib import Path

NEAR = 3 * SMALL["EDGE"] // 2


def strace(rng: random.Random, count: int) -> list[str]:
    """KVM_RUNs of three threads, one of which makes changes, as a fourth does, in bursts; now and then other lines."""
    there: set[int] = set()
    time, found = 1_700_000_000.0, []
    left, places = 0, 6
    vcpus = rng.choice(((20, 21, 22), (21,) * 20 + (22,)))
    for _ in range(count):
        if rng.random() < 0.01:
            places = rng.choice((6, 9))
            found.append("noise\n")
        time += rng.choice((0.0, 1e-6, 3e-6, 1e-4, 0.02))
        thread = rng.choice(vcpus)
        if not left and rng.random() < 0.08:
            left = rng.randrange(1, 6)
        if left and rng.random() < 0.7:
            left -= 1
            thread, slot = rng.choice((7, 7, 7, 20)), rng.randrange(8)
            size = 0 if slot in there else 4096
            there ^= {slot}
            flags = rng.choice(("0", "0", "KVM_MEM_LOG_DIRTY_PAGES", "0x2 /* KVM_MEM_READONLY */"))
            text = (
                f"KVM_SET_USER_MEMORY_REGION, {{slot={slot}, flags={flags}, guest_phys_addr={slot << 20:#x}, "
                f"memory_size={size}, userspace_addr=0x7f0000000000}}) = 0 <0.000004>"
            )
            found.append(f"{thread} {time:.{places}f} ioctl(8, {text}\n")
        else:
            result = rng.choice(("0 (KVM_EXIT_IO)", "0 (KVM_EXIT_HLT)", "0", "-1 EINTR (Interrupted system call)"))
            took = rng.choice(("0.000001", "0.000150", "0.030000"))
            found.append(f"{thread} {time:.{places}f} ioctl({thread - 8}, KVM_RUN, 0) = {result} <{took}>\n")
    return found


def perf_trace(rng: random.Random, count: int) -> list[str]:
    """KVM_RUNs of three threads."""
    time, found = 1_700_000_000_000.0, []
    for _ in range(count):
        time += rng.choice((0.0, 0.001, 0.003, 0.1, 20.0))
        vcpu, took = rng.randrange(3), rng.choice(("0.001", "0.150", "30.000"))
        result = rng.choice(("0", "0", "-1 EINTR (Interrupted system call)"))
        fd = f"12<anon_inode:kvm-vcpu:{vcpu}>"
        found.append(f"{time:.3f} ( {took} ms): CPU {vcpu}/KVM/{20 + vcpu} ioctl(fd: {fd}, cmd: KVM_RUN) = {result}\n")
    return found


OTHER = (
    "7 1700000000.000300 ioctl(9, KVM_GET_REGS, 0x7ffc) = 0 <0.000001>\n",
    "20 1700000000.000300 ioctl(12, KVM_RUN, 0 <unfinished ...>\n",
    "20 1700000000.000900 <... ioctl resumed>) = 0 (KVM_EXIT_IO) <0.000600>\n",
    "21 1700000000.000300 ioctl(13, KVM_RUN, 0) = 0\n",
    "23 1700000000.000301 ioctl(15, KVM_RUN, 0) = 0 (KVM_EXIT_IO) <0.000600>\n",
    "7 1700000000.000300 ioctl(3, KVM_CREATE_VM, 0) = 17 <0.000600>\n",
    "noise\n",
    "     0.001 ( 0.001 ms): CPU 9/KVM/29 ioctl(fd: 3, cmd: KVM_RUN) = 0\n",
    "     0.001 (         ): CPU 0/KVM/20 ioctl(fd: 12, cmd: KVM_RUN) ...\n",
)


def split(rng: random.Random, count: int) -> list[str]:
    """KVM_RUNs of three threads, on two lines, and changes of one of them and of a fourth; some have no duration."""
    runs: set[int] = set()
    first = rng.choice((0, 80))
    time, found = 1_700_000_000.0, []
    for i in range(count):
        time += rng.choice((0.0, 1e-6, 1e-4, 0.02))
        thread = rng.choice((20, 21, 22))
        if i < first or (rng.random() < 0.1 and 20 not in runs):
            text = f"guest_phys_addr={i << 12:#x}, memory_size=4096, userspace_addr=0x7f0000000000}}) = 0"
            text += " <0.000004>" if i < first else rng.choice((" <0.000004>", ""))
            text = f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {{slot={i}, flags=0, {text}"
            found.append(f"{rng.choice((7, 20))} {time:.6f} {text}\n")
        elif thread in runs:
            result = rng.choice(("0 (KVM_EXIT_IO)", "0", "-1 EINTR (Interrupted system call)", "? ERESTARTSYS (To be)"))
            took = rng.choice((" <0.000150>", " <unavailable>", ""))
            found.append(f"{thread} {time:.6f} <... ioctl resumed>) = {result}{took}\n")
            runs.discard(thread)
        elif rng.random() < 0.05:
            found.append(f"{thread} {time:.6f} ioctl({thread - 8}<kvm>, KVM_RUN, 0) = 0\n")
        else:
            call = rng.choice(("KVM_RUN, 0",) * 9 + ("KVM_GET_REGS, 0x7ffc",))
            found.append(f"{thread} {time:.6f} ioctl({thread - 8}<kvm>, {call} <unfinished ...>\n")
            runs.add(thread)
    return found


def test_a_split_run_is_what_its_lines_say(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    path = tmp_path / "trace"
    others = ("noise\n", OTHER[0], OTHER[1], OTHER[2], "20 1700000000.000300 ioctl(9, KVM_GET_REGS <unfinished ...>\n")
    split_run, taken = StraceReader._split_run, 0

    def counted(*arguments: Any) -> bool:
        nonlocal taken
        done = split_run(*arguments)
        taken += done
        return done

    def one_by_one(self: dispatch.Lines, number: int, block: str, made: object = None) -> int:
        del made
        texts = block.split("\n")[:-1]
        for i, text in enumerate(texts):
            self.take(number + i, lines.line_of(text))
        return len(texts)

    monkeypatch.setattr(StraceReader, "_split_run", counted)
    for turn in range(30):
        path.write_text("".join(damaged(rng, split(rng, rng.choice((40, 200, 400))), others)))
        monkeypatch.setattr(lines, "BLOCK", rng.choice((1500, 4000, 1 << 16)))
        together = left_behind(path, wants_changes=True)
        with monkeypatch.context() as patch:
            patch.setattr(dispatch.Lines, "take_block", one_by_one)
            assert left_behind(path, wants_changes=True) == together, turn
    assert taken > 1000, taken


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (events, recorder):
        for name, value in SMALL.items():
            monkeypatch.setattr(room, name, value, raising=False)
    monkeypatch.setattr(strace_block, "NEAR", NEAR)
    monkeypatch.setattr(pieces, "SHORTEST", 3)


def test_what_is_near_is_as_small_as_here() -> None:
    assert pieces.NEAR == 3 * events.EDGE // 2


def test_as_it_is_kept(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """With changes in the trace, beside another one's changes (marks), and with neither."""
    path = tmp_path / "trace"
    taken = {"lines": 0, "changes": 0, "marks": 0, "refused": 0}
    take, pass_marks = pieces._take, pieces._pass_marks

    def counted(*arguments: Any) -> int:
        done = take(*arguments)
        taken["lines"] += done
        taken["changes"] += done and arguments[3].changes is not None
        return done

    def passed(*arguments: Any) -> None:
        taken["marks"] += 1
        pass_marks(*arguments)

    monkeypatch.setattr(pieces, "_take", counted)
    monkeypatch.setattr(pieces, "_pass_marks", passed)
    one_by_one = {StraceReader: lambda block: [block.count("\n")], PerfTraceReader: lambda block: [block.count("\n")]}
    for turn in range(60):
        form = (strace, strace, perf_trace)[turn % 3]
        found = damaged(rng, form(rng, rng.choice((40, 200, 400))), OTHER)
        text = "".join(found)
        path.write_text(text)
        monkeypatch.setattr(lines, "BLOCK", rng.choice((1500, 4000, 1 << 16)))
        steps = itertools.accumulate(rng.choice((0.0, 1e-6, 1e-3, 0.02, 0.1)) for _ in range(60))
        marks = [1_700_000_000.0 + each for each in steps]
        there = left_behind(path, wants_changes=True)
        if not isinstance(there, str):
            marks += [rng.choice(times) for times, *_ in there[0].values() for _ in range(8)]
        for options in ({"wants_changes": True}, {"wants_changes": False, "changes_at": marks, "horizon": 1e-4}):
            together = left_behind(path, **options)
            with monkeypatch.context() as patch:
                patch.setattr(dispatch, "PIECES", one_by_one)
                assert left_behind(path, **options) == together, (turn, options)
            taken["refused"] += isinstance(together, str)
    assert taken["lines"] > 4_000, taken
    assert min(taken["changes"], taken["marks"]) > 20, taken
    assert taken["refused"] < 40, taken
