"""An exception at any point of an update leaves nobody waiting, the lock free, and the slots either old or new."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.engines import Access
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.update import SoftUpdate
from guestmem.errors import BatchError, MemslotError
from guestmem.memslots import Change, Slot
from soft_guest import Guest, until

PHASES = ("stage_all", "net_effect", "stall", "publish", "release", "settle")


def batch(guest: Guest) -> list[Change]:
    """Frames 0 to 3 go to pages 8 to 11."""
    return [guest.change(0), guest.change(0, 0, 4, 8)]


def carry_out(update: SoftUpdate, changes: list[Change], until_phase: str) -> None:
    """An atomic update, interrupted before ``until_phase``."""
    steps: dict[str, Callable[[], object]] = {
        "stage_all": lambda: update.stage_all(changes),
        "net_effect": update.net_effect,
        "stall": lambda: update.stall(update.net_effect()),
        "publish": update.publish,
        "release": update.release,
        "settle": update.settle,
    }
    for phase, step in steps.items():
        if phase == until_phase:
            raise KeyboardInterrupt
        step()


def slots(guest: Guest) -> list[Slot]:
    guest.engine.memslots.check()
    return list(guest.engine.memslots)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("running", [False, True])
def test_interrupted_before(phase: str, running: bool) -> None:
    with Guest(2, access=Access(changed=1.0)) as guest:
        guest.create(0, 0, 4, 0)
        old, new = slots(guest), [guest.change(0, 0, 4, 8).as_slot()]
        if running:
            guest.run([guest.target(gfn, gfn, gfn + 8, changed=True) for gfn in range(4)])
        with pytest.raises(KeyboardInterrupt), guest.engine.update() as update:
            carry_out(update, batch(guest), phase)
        assert peek(guest.engine._vm, int(at.FLUX)) & 255 == 0, "still in flux"
        assert not guest.engine.memslots.slots_lock.locked()
        assert slots(guest) == (new if phase in {"release", "settle"} else old)
        assert not guest.engine.memslots.updating
        if running:
            guest.all_move()
        with guest.engine.update() as update:  # and the next one goes through
            update.stage_all([guest.change(0)])
            update.stall(update.net_effect())
            update.publish()
            update.release()
            update.settle()
        assert slots(guest) == []


def test_interrupted_while_it_marks_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the mark and whatever comes next, nobody knows yet that something is in flux."""
    with Guest(2, access=Access(changed=1.0)) as guest:
        guest.create(0, 0, 4, 0)
        guest.run([guest.target(gfn, gfn, gfn + 8, changed=True) for gfn in range(4)])
        real = guest.engine.mark

        def interrupted(ranges: list[tuple[int, int, int]]) -> None:
            real(ranges)
            raise KeyboardInterrupt

        monkeypatch.setattr(guest.engine, "mark", interrupted)
        with pytest.raises(KeyboardInterrupt), guest.engine.update() as update:
            carry_out(update, batch(guest), "never")
        assert peek(guest.engine._vm, int(at.FLUX)) & 255 == 0
        guest.all_move()


@pytest.mark.parametrize("kind", ["delete", "move"])
@pytest.mark.parametrize("swaps", [0, 1])
def test_interrupted_delete_and_move(kind: str, swaps: int) -> None:
    """INVALID marks, published or not, are taken back, and vCPUs that wait for the slot go on."""
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 4, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(4)}))
        old = slots(guest)

        def interrupted(update: SoftUpdate) -> None:
            update.invalidate(0)
            if swaps:
                update.swap()
                update.flush()
                until(lambda: guest.total("invalid_retries") >= 1, "a retry")
                if kind == "move":
                    update.stage(guest.change(0, 64, 4, 0))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), guest.engine.update() as update:
            interrupted(update)
        assert slots(guest) == old
        guest.all_move()


REFUSED_MOVES = {
    "unknown flags": lambda guest: guest.change(0, 64, 4, 0, 0x100),
    "past the last frame": lambda guest: guest.change(0, (1 << 52) - 4, 4, 0),
    "onto another slot": lambda guest: guest.change(0, 98, 4, 0),
    "another host address": lambda guest: guest.change(0, 64, 4, 1),
    "another size": lambda guest: guest.change(0, 64, 5, 0),
}


@pytest.mark.parametrize("why", REFUSED_MOVES)
def test_a_refused_move_touches_nobody(why: str) -> None:
    """KVM looks before it invalidates: a slot that is to stay is never away."""
    with Guest(2, access=Access(), arch="arm64") as guest:
        guest.create(0, 0, 4, 0)
        guest.create(1, 100, 4, 4)
        guest.run(guest.same({gfn: gfn for gfn in range(4)}))
        old, before = slots(guest), guest.engine.counts.copy()
        with pytest.raises(MemslotError):
            guest.engine.set_memory_region(REFUSED_MOVES[why](guest))
        done = guest.engine.counts - before
        assert (done.swaps, done.flushes, done.kicks) == (0, 0, 0)
        assert slots(guest) == old
        guest.all_move()
        assert guest.total("holes_read") + guest.total("holes_write") + guest.total("killed_fetches") == 0


def test_a_refused_entry_ends_the_update_at_once() -> None:
    with Guest(1) as guest:
        guest.create(0, 0, 4, 0)
        with guest.engine.update() as update, pytest.raises(BatchError, match="entry 1") as caught:
            update.stage_all([guest.change(1, 50, 4, 8), guest.change(2, 3, 4, 12)])
        assert caught.value.entry == 1
        assert not guest.engine.memslots.slots_lock.locked()
        assert [slot.id for slot in slots(guest)] == [0]


def test_updaters_take_turns() -> None:
    """The lock is held to the end of an update, and the time spent waiting for it is counted."""
    with Guest(1) as guest:
        begun = threading.Event()

        def second() -> None:
            begun.set()
            guest.create(1, 100, 4, 8)

        thread = threading.Thread(target=second, daemon=True)
        with guest.engine.update() as update:
            update.stage_all([guest.change(0, 0, 4, 0)])
            thread.start()
            begun.wait(30)
            guest.rest()
            assert guest.engine.slot(1) is None
            update.publish()
            update.settle()
        thread.join(30)
        assert [slot.id for slot in slots(guest)] == [0, 1]
        assert guest.engine.counts.lock_ns > 0
