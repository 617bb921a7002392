"""The phases of an update: marks, swap, edit, swap, mirror; out of order they are refused; the lock is always freed."""

from __future__ import annotations

import threading
import time

import pytest

from guestmem import Change, ChangeKind, Memslots, UsageError
from guestmem.atomics import peek
from guestmem.errors import MemslotError
from guestmem.memslots import KVM_MEMSLOT_INVALID, Slot, Update, classify
from guestmem.rcu.srcu import Srcu

A, B = Slot(0, 0, 10, 5, 0x10000), Slot(0, 1, 20, 5, 0x20000)


def _memslots(srcu: Srcu | None = None) -> Memslots:
    memslots = Memslots(srcu=srcu)
    for slot in (A, B):
        memslots.create(slot.id, slot.base_gfn, slot.npages, slot.userspace_addr)
    return memslots


def test_a_delete_as_kvm_does_it() -> None:
    memslots = _memslots()
    with memslots.update() as update:
        update.invalidate(0)
        assert memslots.find(12) == A
        assert update.publish()
        marked = A._replace(flags=int(KVM_MEMSLOT_INVALID))
        assert memslots.find(12) == memslots.by_id(0) == marked
        assert memslots.by_hva(0x10000, 0x10001) == [marked]
        update.synchronize()
        update.stage(Change(0))
        assert memslots.find(12) == marked
        assert update.publish()
        assert memslots.find(12) is None
        update.synchronize()
        update.mirror()
    assert list(memslots) == [B]
    memslots.check()


def test_marked_slots_that_are_kept_come_back_unmarked() -> None:
    memslots = _memslots()
    with memslots.update() as update:
        update.invalidate(0)
        update.invalidate(0)
        update.invalidate(1)
        update.publish()
        update.synchronize()
        update.stage(Change(1, 30, 5, 0x20000))
        update.publish()
    assert list(memslots) == [A, B._replace(base_gfn=30)]
    memslots.check()


def test_a_replacement_is_one_swap() -> None:
    memslots = _memslots()
    before = memslots.generation()
    memslots.replace(0, 5, 15, 0x50000, flags=2)
    assert list(memslots) == [Slot(0, 0, 5, 15, 0x50000, 2), B]
    assert memslots.generation() == before + 1
    with pytest.raises(MemslotError, match=r"EEXIST: entry 1: slot 0: .* overlaps Slot 1"):
        memslots.replace(0, 5, 16, 0x50000)
    memslots.check()


def _mark_after_staging(update: Update) -> None:
    update.stage(Change(0))
    update.invalidate(1)


def _stage_before_marks_are_published(update: Update) -> None:
    update.invalidate(0)
    update.stage(Change(0))


def _stage_between_swap_and_grace_period(update: Update) -> None:
    update.invalidate(0)
    update.publish()
    update.stage(Change(0))


def _publish_twice(update: Update) -> None:
    update.stage(Change(0))
    update.publish()
    update.publish()


def _mirror_unpublished(update: Update) -> None:
    update.stage(Change(0))
    update.mirror()


def _mirror_unsynchronized(update: Update) -> None:
    update.stage(Change(0))
    update.publish()
    update.mirror()


def _use_after_end(update: Update) -> None:
    update.abort()
    update.stage(Change(0))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (_mark_after_staging, "out of order"),
        (_stage_before_marks_are_published, "out of order"),
        (_stage_between_swap_and_grace_period, "out of order"),
        (_publish_twice, "publish: "),
        (_mirror_unpublished, "mirror: "),
        (_mirror_unsynchronized, "mirror: "),
        (_use_after_end, "it has ended"),
    ],
)
def test_out_of_order(misuse: object, message: str) -> None:
    memslots = _memslots()
    assert callable(misuse)
    with pytest.raises((UsageError, MemslotError), match=message), memslots.update() as update:
        misuse(update)
    memslots.check()  # takes the lock: it was given back
    memslots.create(7, 100, 1, 0)


def test_nothing_staged_is_no_swap() -> None:
    memslots = _memslots()
    before = memslots.generation()
    update = memslots.update()
    assert update.stage(Change(0, 10, 5, 0x10000)).value == "nothing"
    assert not update.publish()
    assert update.synchronize() == 0
    update.mirror()
    assert memslots.generation() == before
    assert not memslots.slots_lock.locked()


def test_another_address_space_is_refused() -> None:
    memslots = Memslots(2)
    with memslots.update(1) as update, pytest.raises(MemslotError, match="as_id 0 is not the update's"):
        update.stage(Change(0, 0, 1, 0, as_id=0))
    with pytest.raises(MemslotError, match="as_id: 2 is not in"):
        memslots.update(2)


def test_synchronize_waits_for_readers() -> None:
    srcu = Srcu(readers=2)
    memslots = Memslots(srcu=srcu)
    slept = []

    def change() -> None:
        with memslots.update() as update:
            update.stage(Change(0, 0, 1, 0))
            update.publish()
            slept.append(update.synchronize())

    srcu.enter(1)
    worker = threading.Thread(target=change)
    worker.start()
    end = time.monotonic() + 100
    while not peek(srcu.words, 16):  # waiting updaters
        assert time.monotonic() < end
        time.sleep(0.001)
    worker.join(0.05)
    assert worker.is_alive()
    srcu.exit(1)
    worker.join(100)
    assert not worker.is_alive()
    assert len(slept) == 1
    memslots.check()


@pytest.mark.parametrize(
    "change", [Change(0), Change(0, 50, 5, 0x10000), Change(0, 10, 5, 0x10000, 1), Change(7, 50, 1)]
)
@pytest.mark.parametrize("swap", [0, 1])
def test_an_interrupted_change_leaves_both_sets_whole(
    change: Change, swap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it waits for readers at its first or second swap; the rest is done when they have left."""
    srcu = Srcu(readers=2)
    memslots = _memslots(srcu)
    calls = iter(range(100))
    srcu.enter(1)

    def synchronize() -> int:
        call = next(calls)
        if call <= swap:
            srcu.exit(1)
        if call < swap:
            srcu.enter(1)
        if call == swap:
            raise KeyboardInterrupt
        return 1

    monkeypatch.setattr(srcu, "synchronize", synchronize)
    monkeypatch.setattr(srcu, "synchronize_within", lambda _nanoseconds: bool(synchronize()))
    if swap == 0 or classify(change, memslots.by_id(change.slot)) in {ChangeKind.DELETE, ChangeKind.MOVE}:
        with pytest.raises(KeyboardInterrupt):
            memslots.apply(change)
    else:
        memslots.apply(change)
        srcu.exit(1)
    memslots.check()
    monkeypatch.undo()
    assert not memslots.updating
    memslots.create(9, 100, 1, 0)
    assert memslots.find(22) == B


def test_one_updater_at_a_time() -> None:
    memslots = _memslots()
    update = memslots.update()
    other = threading.Thread(target=memslots.delete, args=(1,))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    update.stage(Change(0))
    update.publish()
    update.synchronize()
    update.mirror()
    other.join(100)
    assert not list(memslots)
    memslots.check()
