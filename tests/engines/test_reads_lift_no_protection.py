"""A read in a range whose writes are stalled goes on, but leaves no translation through which a write could go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.designs import find
from guestmem.engines import Access, Load
from guestmem.engines.soft import SoftEngine
from guestmem.explore import load
from guestmem.memslots import KVM_MEM_READONLY, Change
from soft_guest import Guest, fault_of, host_of, of_package, until

HOST = 0x10000
FILLED, IN_FLUX = 0, 4


def test_a_read_fault_meanwhile_fills_no_writable_entry() -> None:
    engine = SoftEngine(1)
    engine.set_memory_region(Change(0, 0, 2, HOST))
    with engine.update() as update:
        update.stage_all([Change(0), Change(0, 0, 1, HOST, KVM_MEM_READONLY), Change(1, 1, 1, HOST + 4096)])
        update.stall(update.net_effect())
        assert fault_of(of_package, engine, 0) == FILLED
        assert [host_of(of_package, engine, 0, writes=writes) for writes in (False, True)] == [HOST, 0]
        assert fault_of(of_package, engine, 0, writes=True) == IN_FLUX
        # Its neighbour keeps its rights, and may be written meanwhile.
        assert fault_of(of_package, engine, 1) == FILLED
        assert host_of(of_package, engine, 1, writes=True) == HOST + 4096
        update.publish()
        update.release()
        assert host_of(of_package, engine, 0, writes=True) == 0
        update.settle()


def writes_after(guest: Guest, rounds: int) -> int:
    """Writes to memory after it had become read-only under ``atomic``, over many toggles."""
    apply = find("atomic").prepare(guest.engine)
    writable = [guest.target(gfn, gfn, gfn, changed=True, readonly=(False, True)) for gfn in range(8)]
    readonly = [guest.target(gfn, gfn, gfn, changed=True, readonly=(True, False)) for gfn in range(8)]
    guest.run(writable)
    wrong = 0
    for _ in range(rounds):
        guest.engine.set_load(Load(writable))
        guest.all_move()
        with guest.engine.window():
            apply(guest.engine, [guest.change(0), guest.change(0, 0, 8, 0, KVM_MEM_READONLY)])
            until(lambda: guest.total("saw_old") + guest.total("saw_new") > 0, "an access that saw an update")
        guest.engine.set_load(Load(readonly))
        before = guest.written()
        guest.all_move()
        wrong += guest.written() - before
        with guest.engine.window():
            apply(guest.engine, [guest.change(0), guest.change(0, 0, 8, 0)])
    guest.engine.stop()
    return wrong


def test_no_write_lands_after_memory_became_readonly(sized: Callable[[int, int], int]) -> None:
    with Guest(2, access=Access(writes=0.3, fetches=0, changed=1.0)) as guest:
        guest.create(0, 0, 8, 0)
        assert writes_after(guest, sized(100, 8)) == 0
        assert guest.total("stale") == guest.total("strange") == guest.total("refused_writes") == 0
        assert guest.total("writes") == guest.written()


@pytest.mark.parametrize("reads", [False, True])
def test_filling_with_the_old_rights_is_caught(reads: bool) -> None:
    """The mutant: what was in this engine's first form."""
    with load([("engines/soft/user_mem_abort.py", "not writes and in_flux(vm, flux, gfn, True)", "False")]) as twin:
        engine = twin.room("engines.soft").SoftEngine(1)
        engine.set_memory_region(Change(0, 0, 1, HOST))
        with engine.update() as update:
            update.stage_all([Change(0), Change(0, 0, 1, HOST, KVM_MEM_READONLY)])
            update.stall(update.net_effect())
            if reads:
                fault_of(twin.room, engine, 0)
            update.publish()
            update.release()
            update.settle()
        assert (host_of(twin.room, engine, 0, writes=True) != 0) == reads
