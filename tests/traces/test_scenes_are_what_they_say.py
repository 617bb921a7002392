"""Made-up traces: KVM would take each call, and slots show what a dict a page says, in the fewest pieces."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from guestmem.errors import UsageError
from guestmem.memslots import Change, Memslots
from guestmem.traces import read
from guestmem.traces.scenes import SCENES, SLOTS_MOST, Call, scene_lines, transactions
from guestmem.units import PAGE_SHIFT

NAMES = [scene.name for scene in SCENES]
STEPS = 150


def change_of(call: Call) -> Change:
    return Change(call.slot, call.gpa >> PAGE_SHIFT, call.size >> PAGE_SHIFT, call.host, call.flags)


@pytest.mark.parametrize("name", NAMES)
def test_kvm_takes_every_call(name: str) -> None:
    slots = Memslots()
    for calls in transactions(name, steps=STEPS):
        for call in calls:
            slots.apply(change_of(call))
        assert [not call.size for call in calls] == sorted((not call.size for call in calls), reverse=True)
    slots.check()
    assert len(list(slots)) <= SLOTS_MOST


@pytest.mark.parametrize("name", ["virtio-mem", "pam", "poison", "vsm"])
def test_neighbours_with_the_same_flags_are_one_slot(name: str) -> None:
    slots = Memslots()
    for calls in transactions(name, steps=STEPS):
        for call in calls:
            slots.apply(change_of(call))
        ordered = sorted(slots, key=lambda slot: slot.base_gfn)
        for low, high in itertools.pairwise(ordered):
            touch = low.end_gfn == high.base_gfn and low.hva(low.base_gfn) + (low.npages << 12) == high.userspace_addr
            assert not (touch and low.flags == high.flags)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "scene.log"
    path.write_text("".join(f"{line}\n" for line in scene_lines(name, steps=STEPS)))
    made = list(transactions(name, steps=STEPS))
    read_back = read(path).transactions
    assert [len(each.changes) for each in read_back] == [len(calls) for calls in made]
    for transaction, calls in zip(read_back, made, strict=True):
        assert [(each.change.slot, each.change.npages) for each in transaction.changes] == [
            (call.slot, call.size >> PAGE_SHIFT) for call in calls
        ]


def lines(name: str, **options: int) -> Sequence[str]:
    return list(scene_lines(name, **options))


def test_seeds_tell() -> None:
    assert lines("vsm", steps=20, seed=1) == lines("vsm", steps=20, seed=1) != lines("vsm", steps=20, seed=2)
    with pytest.raises(UsageError, match="scene: 'x' is not one of virtio-mem, pam"):
        lines("x")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from guestmem.cli import main

    assert main(["scene", "bar", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert len(list(io.StringIO(out))) == 6
    assert main(["scene", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    assert main(["scene", "nothing"]) == 2
    assert "not one of" in capsys.readouterr().err
