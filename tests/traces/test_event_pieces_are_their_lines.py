"""A piece of events and changes leaves the same behind as its lines, taken one after the other."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from guestmem.traces import dispatch, event_pieces, events, ftrace_block, lines, reading, recorder
from left_behind import SMALL, damaged, left_behind

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

FIELDS = "kvm_set_user_memory AddrSpace#0 Slot#{} flags={:#x} gpa={:#x} size={:#x} ua=0x7f0000000000 ret=0"


def steps(rng: random.Random, count: int) -> Iterator[tuple[float, str]]:
    """Times, and what is there: an event, or a change in a burst of them."""
    time, left = 1_700_000_000.0, 0
    for _ in range(count):
        time += rng.choice((0.0, 1e-6, 3e-6, 1e-4, 0.02))
        if not left and rng.random() < 0.08:
            left = rng.choice((1, 2, 4, 12))
        is_change = left and rng.random() < 0.7
        left -= bool(is_change)
        yield time, FIELDS if is_change else ""


def changed(rng: random.Random, there: dict[int, int]) -> str:
    """A slot comes or goes, or only its flags change, which is not plain; ``there`` has the flags of each."""
    slot = rng.randrange(8)
    if slot in there and rng.random() < 0.1:
        there[slot] ^= 1
        return FIELDS.format(slot, there[slot], slot << 20, 4096)
    if slot in there:
        return FIELDS.format(slot, there.pop(slot), slot << 20, 0)
    there[slot] = rng.choice((0, 0, 1))
    return FIELDS.format(slot, there[slot], slot << 20, 4096)


def ftrace(rng: random.Random, count: int) -> list[str]:
    """Entries, exits and returns of three vCPUs on two CPUs, and QEMU's changes by two threads."""
    there: dict[int, int] = {}
    found, places, immediate = [], 6, rng.choice(("", " [immediate exit]"))
    for time, change in steps(rng, count):
        places = rng.choice((6, 9)) if rng.random() < 0.01 else places
        vcpu, cpu = rng.choice((0, 0, 0, 1, 2)), rng.choice((2, 2, 2, 3))
        event = rng.choice(
            (
                f"kvm_entry: vcpu {vcpu}, rip 0xfff0",
                f"kvm_entry: vcpu {vcpu}, rip 0xfff0" + rng.choice(("", "", immediate)),
                f"kvm_exit: vcpu {vcpu} reason {rng.choice(('IO_INSTRUCTION', 'HLT', 'EXTERNAL_INTERRUPT'))} rip 0xff",
                rng.choice(("kvm_userspace_exit: reason KVM_EXIT_IO (2)", "kvm_userspace_exit: reason restart (4)")),
            )
        )
        if change:
            lead, event = f" qemu-{rng.choice((7, 7, 8))}", f"tracing_mark_write: {changed(rng, there)}"
        else:
            lead = f" CPU {vcpu}/KVM-{20 + vcpu}"
        found.append(f"{lead}    [{cpu:03}] d..1. {time:.{places}f}: {event}\n")
    return found


def tracepoints(rng: random.Random, count: int) -> list[str]:
    """The same without changes."""
    return [line for line in ftrace(rng, count) if "kvm_set" not in line]


def kvm_log(rng: random.Random, count: int) -> list[str]:
    """KVM_RUNs of three threads, of which one makes changes too, as a fourth does."""
    there: dict[int, int] = {}
    found = []
    for time, change in steps(rng, count):
        thread = rng.choice((20, 21, 22))
        if change:
            event = changed(rng, there)
            thread = rng.choice((7, 7, 20))
        elif rng.random() < 0.5:
            event = (
                f"kvm_vcpu_ioctl cpu_index {thread - 20}, type {rng.choice((0xAE80,) * 9 + (0xAE81,)):#x}, arg (nil)"
            )
        else:
            event = f"kvm_run_exit cpu_index {thread - 20}, reason {rng.choice((2, 6, 5))}"
        found.append(f"{thread}@{time:.6f}:{event}\n")
    return found


OTHER = (
    "CPU:2 [LOST 3 EVENTS]\n",
    "noise\n",
    "7@1700000000.000300:kvm_vm_ioctl type 0x4020ae46, arg 0x7ffc\n",
    "20@1700000000.000300:kvm_vcpu_ioctl cpu_index 0, type 0xae81, arg 0x7ffc\n",
    "23@1700000000.000300:kvm_vcpu_ioctl cpu_index 3, type 0xae80, arg (nil)\n",
    f"9@1700000000.000300:{FIELDS.format(9, 0, 9 << 20, 4096)}\n",
    " lost-7    [002] d..1. 1700000000.000300: tracing_mark_write: " + FIELDS.format(9, 0, 9 << 20, 4096) + "\n",
    " CPU 9/KVM-29    [004] d..1. 1700000000.000300: kvm_entry: vcpu 9, rip 0xfff0\n",
    " CPU 0/KVM-20    [002] d..1. 1700000000.000300: kvm_entry: vcpu 1, rip 0xfff0\n",
    " kvm_run_exit -7    [002] d..1. 1700000000.000300: tracing_mark_write: "
    + FIELDS.format(9, 0, 9 << 20, 4096)
    + "\n",
    "#           entries-in-buffer/entries-written: 12/40   #P:2\n",
)
Form = Callable[["random.Random", int], list[str]]
BEFORE: dict[Form, str] = {
    ftrace: " qemu-7    [002] d..1. 1700000000.000300: tracing_mark_write: kvm_vm_ioctl type 0x4020ae46, arg 0x7ffc\n",
    kvm_log: "7@1700000000.000300:kvm_vm_ioctl type 0x4020ae46, arg 0x7ffc\n",
}
"""The begin of a change, of which the next of that thread is the end."""
FORMS: tuple[tuple[Form, bool], ...] = (
    (ftrace, True),
    (tracepoints, False),
    (kvm_log, True),
    (kvm_log, False),
)
"""Each with whether the changes are read from it, or the vCPUs alone."""


def test_as_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """With changes in the trace, and beside another one's changes (marks); whatever is in between."""
    for room in (events, recorder):
        for name, value in SMALL.items():
            monkeypatch.setattr(room, name, value, raising=False)
    monkeypatch.setattr(event_pieces, "NEAR", 3 * SMALL["EDGE"] // 2)
    path = tmp_path / "trace"
    taken: Counter[str] = Counter()
    take = event_pieces._take

    def counted(reader: Any, run: recorder.RunStateRecorder, number: int, piece: event_pieces.EventPiece) -> int:
        passes = run.next_mark < piece.last
        done = take(reader, run, number, piece)
        taken["lines"] += done
        taken["changes"] += bool(done and piece.changes)
        taken["outside"] += bool(done and piece.changes and piece.changes[3])
        taken["in part"] += 0 < done < piece.lines
        taken["marks"] += bool(passes and done)
        return done

    monkeypatch.setattr(event_pieces, "_take", counted)
    for turn in range(80):
        form, has_changes = FORMS[turn % len(FORMS)]
        found = damaged(rng, form(rng, rng.choice((100, 400, 700))), OTHER)
        for _ in range(rng.choice((0, 0, 0, 3)) if form in BEFORE else 0):
            found.insert(rng.randrange(len(found)), BEFORE[form])
        path.write_text("".join(found))
        monkeypatch.setattr(lines, "BLOCK", rng.choice((1500, 6000, 16000)))
        options: dict[str, Any] = {"wants_changes": True}
        if not has_changes:
            apart = itertools.accumulate(rng.choice((0.0, 1e-6, 1e-3, 0.02, 0.1)) for _ in range(60))
            marks = [1_700_000_000.0 + each for each in apart]
            there = left_behind(path, wants_changes=False)
            if not isinstance(there, str):
                marks += [rng.choice(times) for times, *_ in there[0].values() for _ in range(8)]
            options = {"wants_changes": False, "changes_at": marks, "horizon": 1e-4}
        together = left_behind(path, **options)
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "EVENTS", {})
            assert left_behind(path, **options) == together, (turn, options)
        taken["refused"] += isinstance(together, str)
    assert taken["lines"] > 4_000, taken
    assert min(taken[each] for each in ("changes", "outside", "in part", "marks")) > 20, taken
    assert taken["refused"] < 40, taken


def test_finer_stamps_in_a_piece_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but plain events follows."""
    monkeypatch.setattr(lines, "BLOCK", 1500)
    monkeypatch.setattr(event_pieces, "SHORTEST", 1)
    events_of = ("kvm_entry: vcpu 0, rip 0xfff0", "kvm_exit: vcpu 0 reason HLT rip 0xff")
    path = tmp_path / "trace"
    path.write_text(
        "".join(
            f" CPU 0/KVM-20    [002] d..1. {1 + i / 1e3:.{6 if i < 200 else 9}f}: {events_of[i % 2]}\n"
            for i in range(400)
        )
    )
    recording, _, _ = reading._record(path, vm=None, wants_changes=False)
    assert recording.run.resolution == 1e-9


def test_a_process_with_an_odd_name_is_looked_at_more_closely() -> None:
    lead, change = "    [002] d..1. 1.000300: tracing_mark_write: ", FIELDS.format(9, 0, 9 << 20, 4096)
    plain = f" qemu-7{lead}{change}\n" * 9
    assert ftrace_block.pieces_of(plain)[1][0][0] == 9
    for name in ("kvm_run_exit ", "LOST 3 EVENTS", "a -trace"):
        assert ftrace_block.pieces_of(plain.replace("qemu", name))[1] == [9]
