"""Generations count swaps by address space, never collide across spaces, and carry bit 63 through a grace period."""

from __future__ import annotations

import threading
import time

import pytest

from guestmem import Change, ChangeKind, Memslots
from guestmem.memslots import Slot
from guestmem.rcu.srcu import Srcu

BIT63 = 1 << 63


def test_each_kind_of_change_costs_its_swaps() -> None:
    memslots = Memslots()
    costs = {
        ChangeKind.CREATE: (Change(1, 10, 5, 0x1000), 1),
        ChangeKind.NOTHING: (Change(1, 10, 5, 0x1000), 0),
        ChangeKind.FLAGS_ONLY: (Change(1, 10, 5, 0x1000, 1), 1),
        ChangeKind.MOVE: (Change(1, 12, 5, 0x1000), 2),
        ChangeKind.DELETE: (Change(1), 2),
    }
    for kind, (change, swaps) in costs.items():
        before = memslots.generation()
        assert memslots.apply(change) is kind
        assert memslots.generation() - before == swaps, kind


def test_spaces_take_turns() -> None:
    memslots = Memslots(2)
    assert (memslots.generation(0), memslots.generation(1)) == (0, 1)
    memslots.create(0, 0, 1, 0, as_id=1)
    memslots.create(0, 0, 1, 0, as_id=0)
    memslots.delete(0, as_id=0)
    assert (memslots.generation(0), memslots.generation(1)) == (6, 3)


def test_bit_63_lasts_from_the_swap_to_the_end_of_the_grace_period() -> None:
    memslots = Memslots()
    with memslots.update() as update:
        update.stage(Change(0, 0, 1, 0))
        assert (memslots.generation(), memslots.updating) == (0, False)
        assert update.publish()
        assert (memslots.generation(), memslots.updating) == (BIT63, True)
        update.synchronize()
        assert (memslots.generation(), memslots.updating) == (1, False)
        update.mirror()
    assert memslots.generation() == 1


def test_a_reader_inside_holds_up_the_grace_period_and_sees_the_old_set() -> None:
    srcu = Srcu(readers=2)
    memslots = Memslots(srcu=srcu)
    memslots.create(0, 0, 1, 0)
    srcu.enter(1)
    worker = threading.Thread(target=memslots.delete, args=(0,))
    worker.start()
    end = time.monotonic() + 100
    while memslots.generation() == 1:  # it has published nothing yet
        assert time.monotonic() < end
        time.sleep(0.001)
    worker.join(0.02)
    assert worker.is_alive()
    assert memslots.generation() == BIT63 | 1
    slot = memslots.find(0)
    assert slot is not None
    assert slot.flags == 1 << 16  # the INVALID copy: the first of a delete's two swaps
    srcu.exit(1)
    worker.join(100)
    assert not worker.is_alive()
    assert memslots.find(0) is None
    assert memslots.generation() == 3
    memslots.check()


@pytest.mark.parametrize("marks", [False, True])
def test_an_abort_before_the_swap_costs_no_generation(marks: bool) -> None:
    memslots = Memslots()
    memslots.create(0, 0, 1, 0)
    with memslots.update() as update:
        if marks:
            update.invalidate(0)
        else:
            update.stage(Change(0))
    assert memslots.generation() == 1


def test_taking_back_published_marks_costs_two() -> None:
    memslots = Memslots()
    memslots.create(0, 0, 1, 0)
    with memslots.update() as update:
        update.invalidate(0)
        update.publish()
        update.synchronize()
    assert memslots.generation() == 3
    assert memslots.find(0) == Slot(0, 0, 0, 1, 0)
    memslots.check()
