"""A pass writes to every frame of each vCPU's part, once, and to no other."""

from __future__ import annotations

import pytest

from guestmem.engines.soft.write_pass import counter_offset, write_pass
from guestmem.errors import GuestmemError, UsageError
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES
from soft_guest import PAGE, Guest

PAGES = 24


def counters(guest: Guest) -> list[int]:
    return [guest.memory.word(guest.hva(page) + counter_offset(page)) for page in range(PAGES)]


def test_each_frame_is_written_once_a_pass() -> None:
    with Guest(3, PAGES, strict=True) as guest:
        guest.create(0, 0, PAGES, 0)
        wanted = [0] * PAGES
        for parts in ([(0, 8), (8, 9), (9, 24)], [(0, 24), (3, 7), (24, 24)], [(5, 5), (5, 6), (0, 24)]):
            assert write_pass(guest.engine, parts) > 0
            for start, end in parts:
                for page in range(start, end):
                    wanted[page] += 1
            assert counters(guest) == wanted
        assert guest.total("writes") == sum(wanted)
        write_pass(guest.engine, [(0, 9), (10, 10), (10, 24)], step=8)
        assert [now - before for now, before in zip(counters(guest), wanted, strict=True)] == [
            int(page in {0, 8, 10, 18}) for page in range(PAGES)
        ]
        wanted = counters(guest)
        guest.run(guest.same({0: 0}))  # vCPU threads after a pass, and a pass after them
        guest.engine.stop()
        write_pass(guest.engine, [(1, 2)] * 3)
        assert counters(guest)[1] == wanted[1] + 3
        assert guest.engine.stage2 is not None
        assert guest.engine.stage2.findings == 0
        guest.engine.stage2.check()


def test_a_page_that_may_not_be_written_any_more_faults_in_the_next_pass() -> None:
    """As after a look at the dirty log: the pass translates for a write, and not as what is there allows."""
    with Guest(1, PAGES, strict=True) as guest:
        guest.engine.set_memory_region(guest.change(0, 0, PAGES, 0, KVM_MEM_LOG_DIRTY_PAGES))
        write_pass(guest.engine, [(0, PAGES)])
        assert guest.engine.stage2 is not None
        assert (guest.total("dirty_marks"), guest.total("relaxed")) == (PAGES, 0)
        guest.engine.stage2.protect(0, [(0, PAGES)])
        write_pass(guest.engine, [(0, PAGES)])
        assert (guest.total("relaxed"), counters(guest)) == (PAGES, [2] * PAGES)


def test_counters_of_neighbours_share_no_line_of_words() -> None:
    assert len({counter_offset(gfn) for gfn in range(512)}) == 512
    assert all(counter_offset(gfn) % 8 == 0 and counter_offset(gfn) < PAGE for gfn in range(2048))


def test_what_cannot_be_written_is_an_error() -> None:
    with Guest(1, PAGES) as guest:
        guest.create(0, 0, 4, 0)
        with pytest.raises(GuestmemError, match="frame 0x4 cannot be written"):
            write_pass(guest.engine, [(0, 8)])
        with pytest.raises(UsageError, match="2 for 1 vCPUs"):
            write_pass(guest.engine, [(0, 1), (1, 2)])
        guest.run(guest.same({0: 0}))
        with pytest.raises(GuestmemError, match="vCPUs are running"):
            write_pass(guest.engine, [(0, 1)])
