"""Every write is in the page it was made to: counted at the end, with one that is lost or misplaced found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.engines import Access
from guestmem.engines.soft import layout as at
from guestmem.explore import load
from guestmem.memslots import Change
from soft_guest import HVA, PAGE, Guest, Inline, until

WRITE = 1


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_a_quiet_run_loses_nothing(vcpus: int, sized: Callable[[int, int], int]) -> None:
    with Guest(vcpus, access=Access(writes=0.6)) as guest:
        guest.create(0, 0, 8, 0)
        guest.create(1, 100, 8, 4)  # an alias of the upper half
        frames = {gfn: gfn for gfn in range(8)} | {gfn + 100: gfn + 4 for gfn in range(8)}
        guest.run(guest.same(frames))
        while guest.total("accesses") < sized(200_000, 3_000):
            guest.all_move()
        guest.engine.stop()
        assert guest.written() == guest.total("writes") > 0
        assert guest.total("writes") + guest.total("reads") + guest.total("fetches") == guest.total("accesses")


def test_a_planted_loss_is_seen() -> None:
    with Guest(2, access=Access(writes=1, fetches=0)) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))
        guest.engine.pause()
        page = next(page for page in range(8) if guest.word(page))
        guest.put(page, guest.word(page) - 1)
        guest.engine.resume()
        guest.all_move()
        guest.engine.stop()
        assert guest.total("writes") - guest.written() == 1


def most_lost(mutations: list[tuple[str, str, str]]) -> int:
    """Writes lost at worst when another vCPU writes between two operations of a write."""
    worst = 0
    with load(mutations) as twin, Guest(1) as guest:
        perform, own = twin.room("engines.soft.accesses").perform, twin.room("compiled").own
        mine, others = own(at.OWN_WORDS), own(at.OWN_WORDS)
        for moment in range(3):
            guest.put(0, 0)
            wrote: list[int] = []

            def between(operation: int, moment: int = moment, wrote: list[int] = wrote) -> None:
                if operation == moment:
                    perform(others, guest.hva(0), WRITE)
                    wrote.append(1)

            with twin.room("atomics").schedule(Inline(between)):
                perform(mine, guest.hva(0), WRITE)
            worst = max(worst, 1 + len(wrote) - guest.word(0))
    return worst


def test_a_write_that_is_no_locked_operation_is_seen() -> None:
    """The mutant: load, then store; what another vCPU wrote in between is overwritten."""
    locked, plain = "host_fetch_add(host, _ONE)\n", "host_store(host, wrapping(host_load(host) + _ONE))\n"
    assert most_lost([]) == 0
    assert most_lost([("engines/soft/accesses.py", locked, plain)]) == 1


def test_a_write_to_the_wrong_page_is_seen() -> None:
    """Old memory that a vCPU still writes after an update is not in the sum of the new."""
    with Guest(1, access=Access(writes=1, fetches=0)) as guest:
        guest.create(0, 0, 1, 0)
        guest.run(guest.same({0: 0}))
        with guest.engine.update() as update:  # re-hosted without flux and flush
            update.stage_all([Change(0), Change(0, 0, 1, guest.hva(1))])
            update.publish()
            update.settle()
        before = guest.word(0)
        until(lambda: guest.word(0) != before, "a write through the old translation")
        assert guest.memory.translate(HVA + PAGE) == guest.hva(1)
