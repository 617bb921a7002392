"""A design that pauses lets vCPUs go on, though a change is refused; one that does not pause never does."""

from __future__ import annotations

import pytest

from guestmem.atomics import peek
from guestmem.designs import DESIGNS, find
from guestmem.engines import Access
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.errors import MemslotError
from soft_guest import Guest

PAUSES = {"pause": 1, "pause_if_overlap": 1, "kick_all": 1}


@pytest.mark.parametrize("name", [design.name for design in DESIGNS if not design.needs & ~SoftEngine.capabilities])
def test_after_a_refused_change(name: str) -> None:
    with Guest(2, access=Access()) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))
        apply = find(name).prepare(guest.engine)
        before = guest.engine.counts.copy()
        with pytest.raises(MemslotError, match="slot 9"):
            apply(guest.engine, [guest.change(0), guest.change(0, 0, 8, 0), guest.change(9)])
        assert (guest.engine.counts - before).pauses == PAUSES.get(name, 0)
        assert peek(guest.engine._vm, int(at.PAUSED)) == 0
        assert not guest.engine.memslots.slots_lock.locked()
        assert guest.engine.slot(0) is not None
        guest.all_move()
