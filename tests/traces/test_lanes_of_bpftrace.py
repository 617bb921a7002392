"""KVM_RUNs that go straight to where they are kept leave behind what one event after the other does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guestmem.traces import bpf, events, lines, recorder
from left_behind import SMALL, damaged, left_behind

if TYPE_CHECKING:
    import random
    from pathlib import Path

    import pytest

CHANGE = "memslot vm={} request=4020ae46 slot={} flags=0 gpa={:x} size={:x} hva=7f0000000000"
OTHER = (
    "Lost 7 events\n",
    "noise\n",
    "1000000500 100/23 [0] run\n",
    "1000000600 100/23 [0] run_end ret=-4\n",
    "1000000600 200/31 [0] run\n",
    "1000000600 100/20 [0] kvm_entry vcpu=0\n",
    f"1000000800 100/20 [1] {CHANGE.format(4, 8, 8 << 20, 4096)}\n1000000900 100/20 [1] memslot_end ret=0\n",
    f"1000000700 200/9 [1] {CHANGE.format(4, 9, 9 << 20, 4096)}\n1000000800 200/9 [1] memslot_end ret=0\n",
)


def bpftrace(rng: random.Random, count: int) -> list[str]:
    """KVM_RUNs of three threads, and changes by two of another process' threads or by one of them; some lines late."""
    there: set[int] = set()
    time, found = 1_000_000_000, []
    for _ in range(count):
        time += rng.choice((0, 500, 3000, 100_000, 20_000_000))
        if rng.random() < 0.1:
            slot, thread = rng.randrange(6), rng.choice((7, 7, 8, 20))
            change = CHANGE.format(9, slot, slot << 20, 0 if slot in there else 4096)
            there ^= {slot}
            found.append(f"{time} 100/{thread} [1] {change}\n{time + 300} 100/{thread} [1] memslot_end ret=0\n")
        else:
            event = rng.choice(("run", "run", "run_end ret=0", "run_end ret=0", "run_end ret=-4"))
            found.append(f"{time} 100/{rng.choice((20, 21, 22))} [{rng.randrange(2)}] {event}\n")
    for _ in range(count // 20):
        at = rng.randrange(len(found))
        found.insert(rng.randrange(max(at - 9, 0), at + 1), found.pop(at))
    return found


def test_as_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    for room in (events, recorder):
        for name, value in SMALL.items():
            monkeypatch.setattr(room, name, value, raising=False)
    monkeypatch.setattr(bpf, "BUFFER", 60)
    path, passed = tmp_path / "trace", bpf.BpfReader._passed
    taken = refused = 0

    def counted(*arguments: Any) -> None:
        nonlocal taken
        taken += 1
        passed(*arguments)

    monkeypatch.setattr(bpf.BpfReader, "_passed", counted)
    for turn in range(60):
        found = damaged(rng, bpftrace(rng, rng.choice((100, 300, 700))), OTHER)
        if turn % 3 == 1:  # two VMs, of which one is asked for
            for each in OTHER:
                found.insert(rng.randrange(len(found)), each.replace("1000000", "1000001"))
        if turn % 10 == 0:
            late = next((at for at, line in enumerate(found) if "memslot" in line), 0)
            found.append(found.pop(late))
        path.write_text("".join(found))
        monkeypatch.setattr(lines, "BLOCK", rng.choice((1500, 1 << 16)))
        options: dict[str, Any] = {"wants_changes": True, "vm": "100:9" if turn % 3 == 1 else None}
        if turn % 3 == 2:
            options = {"wants_changes": False, "changes_at": [1.0 + rng.random() * 3 for _ in range(40)]}
        together = left_behind(path, **options)
        with monkeypatch.context() as patch:
            patch.setattr(bpf, "MOST_LANES", 0)
            assert left_behind(path, **options) == together, turn
        refused += isinstance(together, str)
    assert taken > 1000
    assert refused < 40


def test_a_change_that_comes_too_late_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after nothing but KVM_RUNs, of which as many are kept as of any vCPU."""
    for room in (events, recorder):
        for name, value in SMALL.items():
            monkeypatch.setattr(room, name, value, raising=False)
    monkeypatch.setattr(bpf, "BUFFER", 60)
    first, late = (
        f"{at} 100/7 [1] {CHANGE.format(9, slot, slot << 20, 4096)}\n{at}9 100/7 [1] memslot_end ret=0\n"
        for slot, at in ((0, 1000), (1, 10**9 + 5 * 10**7))
    )
    runs = [f"{10**9 + 10**7 * i} 100/20 [0] {('run', 'run_end ret=0')[i % 2]}\n" for i in range(900)]
    path = tmp_path / "trace"
    path.write_text(first + "".join(runs))
    recording = left_behind(path, wants_changes=True)
    assert max(len(words) for _, words, *_ in recording[0].values()) < 200
    path.write_text(first + "".join(runs) + late)
    assert "lines too late" in left_behind(path, wants_changes=True)
