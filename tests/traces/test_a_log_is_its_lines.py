"""A block of a log with QEMU's changes in it leaves the same behind as its lines, taken one after the other."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guestmem.traces import dispatch, lines, qemu_log
from guestmem.traces.replay import Replay
from left_behind import left_behind

if TYPE_CHECKING:
    import random
    from pathlib import Path

    import pytest

EVENT = "kvm_set_user_memory AddrSpace#{} Slot#{} flags=0x{} gpa={:#x} size={:#x} ua=0x7f0000000000{} ret={}\n"
SILENT = (
    "memory_region_ops_write cpu 0 mr 0x55d0c0ff addr 0x3 size 4\n",
    "qemu_mutex_lock taking mutex 0x55d0\n",
    "\n",
    "x" * (lines.LONGEST_LINE - 1) + "\n",
    "x" * lines.LONGEST_LINE + "\n",
)
SPEAKING = (
    "kvm_vm_ioctl type 0x4020ae46, arg 0x7ffc\n",
    "kvm_vcpu_ioctl cpu_index 0, type 0xae80, arg (nil)\n",
    "kvm_run_exit cpu_index 0, reason 2\n",
    "global_dirty_changed bitmask 0x1\n",
    "vfio_listener_region_del region_del 0x0 - 0xfff\n",
    "is lost, or dropped, # kvm_ \n",
    "starting up libvirt version: 9\n",
)
MEMFD = " guest_memfd=-1 guest_memfd_offset=0x0"


def log(rng: random.Random, count: int) -> list[str]:
    """Changes in bursts, among lines that say nothing, and some that do."""
    there: set[tuple[int, int]] = set()
    time, found, left = 1_700_000_000.0, [], 0
    zone = rng.choice(("Z", "Z", "+01:00", "-0530", ""))
    for _ in range(count):
        time += rng.choice((0.0, 1e-6, 1e-4, 0.02, 40.0)) if rng.random() < 0.98 else -0.01
        stamp = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + zone + " "
        if rng.random() < 0.1:
            left = rng.randrange(1, 9)
        if left:
            left -= 1
            slot, as_id = rng.randrange(8), int(rng.random() < 0.2)
            size = 0 if (as_id, slot) in there else 4096
            there ^= {(as_id, slot)}
            flags = rng.choice("0" * 30 + "124")
            found.append(stamp + EVENT.format(as_id, slot, flags, slot << 20, size, rng.choice(("", MEMFD)), 0))
        else:
            other = rng.choice(SILENT) if rng.random() < 0.97 else rng.choice(SPEAKING)
            found.append(rng.choice((stamp, "")) + other)
    return found


def damaged(rng: random.Random, found: list[str]) -> list[str]:
    """With lines that are cut, doubled, changed by a character, or late."""
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(found))
        line = found[at]
        place = rng.randrange(min(len(line), 150))
        found[at : at + 1] = rng.choice(
            (
                [],
                [line, line],
                [line[:place] + "\n"],
                [line[:place] + rng.choice("0123456789abcx=#,()<>. -Z_\u00e9\0") + line[place + 1 :]],
                [*found[at + 1 : at + 4], line],
                [line.replace("ret=0", "ret=-17")],
            )
        )
    return found


def test_as_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    path = tmp_path / "trace"
    taken = blocks = refused = 0
    take, log_block_of = Replay.take, qemu_log.log_block_of

    def counted(*arguments: Any) -> int:
        nonlocal taken
        done = take(*arguments)
        taken += done
        return done

    def block_of(block: str, words: tuple[str, ...]) -> Any:
        nonlocal blocks
        made = log_block_of(block, words)
        blocks += made is not None
        return made

    monkeypatch.setattr(Replay, "take", counted)
    monkeypatch.setattr(dispatch, "log_block_of", block_of)
    for turn in range(40):
        path.write_text("".join(damaged(rng, log(rng, rng.choice((40, 200, 400))))))
        monkeypatch.setattr(lines, "BLOCK", rng.choice((1500, 5000, 1 << 16)))
        for wants_changes in (True, False):
            together = left_behind(path, wants_changes=wants_changes)
            with monkeypatch.context() as patch:
                patch.setattr(dispatch, "log_block_of", lambda block, words: None)
                assert left_behind(path, wants_changes=wants_changes) == together, turn
            refused += isinstance(together, str)
    assert min(taken, blocks) > 150, (taken, blocks)
    assert refused < 40, refused
