"""What an access without a translation comes to: MMIO, the guest's end, a read-only exit, a retry, a wait."""

from __future__ import annotations

import threading

import pytest

from guestmem.designs import find
from guestmem.engines import Access, Load
from guestmem.engines.soft import layout as at
from guestmem.memslots import KVM_MEM_READONLY
from soft_guest import Guest, until

READS, WRITES, FETCHES = Access(writes=0, fetches=0), Access(writes=1, fetches=0), Access(writes=0, fetches=1)
HOLES = {"mmio_reads": READS, "mmio_writes": WRITES, "internal_errors": FETCHES}
MISSED = {"holes_read": READS, "holes_write": WRITES, "killed_fetches": FETCHES}
EXITS = (*HOLES, *MISSED, "readonly_writes", "answered_reads", "answered_writes", "refused_writes", "strange", "stale")


def exits(guest: Guest) -> dict[str, int]:
    """Counters of exits that are not zero."""
    return {name: guest.total(name) for name in EXITS if guest.total(name)}


@pytest.mark.parametrize("name", HOLES)
def test_where_nothing_is_or_will_be_an_exit_is_legitimate(name: str) -> None:
    with Guest(1, access=HOLES[name]) as guest:
        guest.run([guest.target(5, None, None)])
        guest.engine.stop()
        assert exits(guest) == {name: guest.accesses(0)}
        assert guest.written() == 0


@pytest.mark.parametrize("name", MISSED)
def test_where_memory_should_be_an_exit_is_a_hole(name: str) -> None:
    with Guest(1, access=MISSED[name]) as guest:
        guest.run(guest.same({5: 5}))
        guest.engine.stop()
        assert exits(guest) == {name: guest.accesses(0)}
        assert guest.written() == 0


def test_a_vmm_that_answers_reads_and_writes_the_memory_behind_the_hole() -> None:
    for name, access in (("answered_reads", READS), ("answered_writes", WRITES), ("killed_fetches", FETCHES)):
        with Guest(1, access=access) as guest:
            guest.engine.answer_mmio(True)
            guest.run(guest.same({5: 5}))
            guest.engine.stop()
            assert exits(guest) == {name: guest.accesses(0)}
            assert guest.word(5) == guest.written() == guest.total("answered_writes")


def test_writes_to_a_readonly_slot_exit_and_change_nothing() -> None:
    with Guest(1, access=Access(writes=0.5, fetches=0.2)) as guest:
        guest.create(0, 0, 4, 0, KVM_MEM_READONLY)
        guest.run([guest.target(gfn, gfn, gfn, readonly=(True, True)) for gfn in range(4)])
        until(lambda: guest.total("readonly_writes") > 0, "a write")  # what comes first may be a read
        guest.engine.stop()
        assert exits(guest) == {"readonly_writes": guest.total("readonly_writes")}
        assert guest.total("reads") + guest.total("fetches") + guest.total("readonly_writes") == guest.accesses(0)
        assert guest.written() == guest.total("writes") == 0


@pytest.mark.parametrize("answers", [False, True])
def test_a_write_to_readonly_memory_is_no_hole_when_its_slot_is_away(answers: bool) -> None:
    """It exits as an MMIO write with the slot and without it; nobody may write it either way."""
    with Guest(1, access=WRITES) as guest:
        guest.engine.answer_mmio(answers)
        guest.run([guest.target(0, 0, 0, readonly=(True, True))])
        guest.engine.stop()
        assert exits(guest) == {"readonly_writes": guest.accesses(0)}
        assert guest.written() == 0


def run_on_slot_0(guest: Guest) -> None:
    """vCPUs touch slot 0, which the test makes INVALID and leaves so."""
    guest.create(0, 0, 4, 0)
    guest.run(guest.same({gfn: gfn for gfn in range(4)}))


def test_x86_retries_on_an_invalid_slot() -> None:
    with Guest(2, access=Access()) as guest:
        run_on_slot_0(guest)
        with guest.engine.update() as update:
            update.invalidate(0)
            update.swap()
            update.flush()
            until(lambda: guest.total("invalid_retries") >= 2, "both retry")
            before = guest.total("accesses")
            guest.rest()
            assert guest.total("accesses") == before
        guest.all_move()  # the marks were taken back
        guest.engine.stop()
        assert exits(guest) == {}


def test_arm64_exits_on_an_invalid_slot() -> None:
    with Guest(2, access=Access(), arch="arm64") as guest:
        run_on_slot_0(guest)
        with guest.engine.update() as update:
            update.invalidate(0)
            update.swap()
            update.flush()
            until(lambda: bool(exits(guest)), "an access that finds the slot INVALID")
        guest.engine.stop()
        assert set(exits(guest)) <= set(MISSED)
        assert guest.total("invalid_retries") == 0


def test_a_slow_vcpu_holds_up_the_grace_period_and_nobody_else() -> None:
    with Guest(2, access=Access(), slow_vcpu_ns=400_000_000) as guest:
        guest.create(0, 0, 4, 0)
        guest.engine.start()
        guest.engine.set_load(Load(guest.same({gfn: gfn for gfn in range(4)})))
        until(lambda: guest.mode(0) == int(at.IN_HOST), "the slow vCPU in its read-side section")
        over = threading.Event()

        def updates() -> None:
            guest.create(1, 100, 4, 8)
            over.set()

        def lasts() -> bool:
            """Whether it is in its first section still, and was before: this thread may have slept so long."""
            return guest.mode(0) == int(at.IN_HOST) and guest.total("slow_sections") == 1

        updater = threading.Thread(target=updates, daemon=True)
        guest.engine.flush(wait=True)  # a flush does not wait for it: it is outside the guest
        guest.engine.kick()
        inside = guest.engine.srcu.inside()
        assert inside in ([1], [1, 2]) or not lasts()
        updater.start()
        for _ in range(3):
            guest.moves(1)
        done = over.is_set()
        assert not done or not lasts()
        updater.join(100)
        assert over.is_set()
        guest.engine.srcu.check()
    assert guest.total("slow_sections") >= 1


def test_holes_that_the_last_update_left_are_filled_for_all() -> None:
    """After sequential has put a slot back, accesses find it again."""
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 4, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(4)}))
        apply = find("sequential").prepare(guest.engine)
        apply(guest.engine, [guest.change(0)])
        until(lambda: bool(exits(guest)), "a hole is met")
        apply(guest.engine, [guest.change(0, 0, 4, 0)])
        guest.engine.kick()
        guest.all_move()
        before = exits(guest)
        guest.all_move()
        assert exits(guest) == before
