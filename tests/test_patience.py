"""Ctrl-C ends a wait that nobody else ends, and what was waited for is done later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from guestmem.atomics import peek, poke, wake_all
from guestmem.compiled import INTERPRETED
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.memslots import Change, Memslots
from guestmem.patience import GAVE_UP, PATIENCE_NS, deadline, patiently, time_left
from guestmem.rcu import Srcu, srcu_start, srcu_wait_for

NEVER = (1 << 64) - 1
LIMIT_S = 200.0


def interrupted(wait: Callable[[], object], release: Callable[[], None]) -> None:
    """Ctrl-C in a moment ends ``wait``; if it does not, ``release`` does, and the test fails."""
    released = []
    main = threading.main_thread().ident
    assert main is not None

    def help_out() -> None:
        released.append(True)
        release()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts with &
    ctrl_c = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    rescue = threading.Timer(LIMIT_S, help_out)
    rescue.start()

    def begin() -> None:
        ctrl_c.start()
        wait()

    try:
        with pytest.raises(KeyboardInterrupt):  # wherever in there it comes: this thread may lose its core right away
            begin()
    finally:
        rescue.cancel()
        ctrl_c.join()
        signal.signal(signal.SIGINT, before)
    assert not released, "the wait went on until it was over"


def test_a_wait_for_readers() -> None:
    srcu = Srcu(readers=2)
    srcu.synchronize()  # compiled on first use, which is not what is to be interrupted
    srcu.enter(1)
    interrupted(srcu.synchronize, lambda: srcu.exit(1))
    srcu.exit(1)
    assert srcu.synchronize() == 0


@pytest.mark.parametrize("change", [Change(0), Change(0, 64, 4, 0), Change(0, 0, 4, 0, 1), Change(1, 64, 4, 0)])
def test_a_change_of_slots(change: Change) -> None:
    """It is carried out or taken back when the reader has left, by whoever comes next."""
    srcu = Srcu(readers=2)
    memslots = Memslots(srcu=srcu)
    memslots.create(0, 0, 4, 0)
    for kept_waiting in (Change(5, 500, 4, 0), Change(5)):  # compiled on first use, which is not to be interrupted
        srcu.enter(1)
        threading.Timer(0.05, srcu.exit, (1,)).start()
        memslots.apply(kept_waiting)
    before = list(memslots)
    srcu.enter(1)
    interrupted(lambda: memslots.apply(change), lambda: srcu.exit(1))
    assert not memslots.slots_lock.locked()
    srcu.exit(1)
    memslots.create(9, 1000, 1, 0)
    memslots.check()
    assert not memslots.updating
    after = [slot for slot in memslots if slot.id != 9]
    assert after == (before if change.deletes or (change.base_gfn == 64 and change.slot == 0) else after)


def never_acknowledges(engine: SoftEngine) -> Callable[[], None]:
    """vCPU 0 is in the guest and does nothing; returns what takes it out."""
    words, mode = engine._vm, int(at.VCPUS) + int(at.MODE)
    poke(words, mode, int(at.IN_GUEST))

    def leave() -> None:
        poke(words, mode, int(at.OUTSIDE))
        poke(words, int(at.ACKS), peek(words, int(at.ACKS)) + 1)
        wake_all(words, int(at.ACKS))

    return leave


@pytest.mark.parametrize("what", ["kick", "pause"])
def test_an_acknowledgement_that_never_comes(what: str) -> None:
    engine = SoftEngine(1)
    acts: dict[str, Callable[[], None]] = {"kick": engine.kick, "pause": engine.pause}
    act = acts[what]
    act()  # compiled
    if what == "pause":
        engine.resume()
    leave = never_acknowledges(engine)
    interrupted(act, leave)
    leave()
    assert peek(engine._vm, int(at.PAUSED)) == 0
    assert INTERPRETED or peek(engine._vm, int(at.WAITING)) == 0
    act()


def test_a_region_on_a_running_vm() -> None:
    """The slot is as it was, or gone, and the next change goes through."""
    engine = SoftEngine(1)
    engine.set_memory_region(Change(0, 0, 4, 0))
    for kept_waiting in (Change(5, 500, 4, 0), Change(5)):  # compiled on first use, which is not to be interrupted
        engine.srcu.enter(1)
        threading.Timer(0.05, engine.srcu.exit, (1,)).start()
        engine.set_memory_region(kept_waiting)
    engine.srcu.enter(1)
    interrupted(lambda: engine.set_memory_region(Change(0)), lambda: engine.srcu.exit(1))
    engine.srcu.exit(1)
    assert engine.slot(0) is not None
    assert not engine.memslots.slots_lock.locked()
    engine.set_memory_region(Change(0))
    engine.memslots.check()


def test_giving_up_is_told() -> None:
    """After its time a wait returns with GAVE_UP; one that has none left gives up at once."""
    srcu = Srcu(readers=2)
    srcu.enter(1)
    cookie = srcu_start(srcu.words, 0)
    assert int(srcu_wait_for(srcu.words, 0, 2, cookie, 1)) & int(GAVE_UP)
    srcu.exit(1)
    assert int(srcu_wait_for(srcu.words, 0, 2, cookie, 1)) == 0


def test_deadlines() -> None:
    assert int(time_left(NEVER)) == NEVER
    assert int(time_left(1)) == 0
    assert (int(deadline()) == NEVER) is INTERPRETED
    assert 0 < int(time_left(deadline())) <= (NEVER if INTERPRETED else int(PATIENCE_NS))


def test_sleeps_are_added_up() -> None:
    answers = [int(GAVE_UP) | 2, int(GAVE_UP), 3]
    assert patiently(lambda: answers.pop(0)) == 5
