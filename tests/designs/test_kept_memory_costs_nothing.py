"""Split, merge, grow, truncate and new ids under ``atomic``: what keeps its memory is not flushed, nobody stalls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.designs import find
from guestmem.engines import Access
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Change
from soft_guest import Guest

Program = Callable[[Guest], list[Change]]

FREE: dict[str, Program] = {
    "split": lambda guest: [guest.change(0), guest.change(0, 0, 3, 0), guest.change(1, 3, 5, 3)],
    "split with a hole filled again": lambda guest: [
        guest.change(0),
        *(guest.change(slot, 2 * slot, 2, 2 * slot) for slot in range(4)),
    ],
    "merge": lambda guest: [guest.change(0), guest.change(8), guest.change(0, 0, 16, 0)],
    "grow": lambda guest: [guest.change(8), guest.change(8, 8, 12, 8)],
    "new id": lambda guest: [guest.change(0), guest.change(5, 0, 8, 0)],
    "new memory": lambda guest: [guest.change(5, 100, 8, 30)],
    "there and back": lambda guest: [
        guest.change(0),
        guest.change(0, 0, 8, 30),
        guest.change(0),
        guest.change(0, 0, 8, 0),
    ],
    "moved and moved back": lambda guest: [guest.change(0, 200, 8, 0), guest.change(0, 0, 8, 0)],
    "writable again": lambda guest: [guest.change(9), guest.change(9, 40, 4, 40)],
    "logging ends": lambda guest: [guest.change(10, 50, 4, 50)],
}

STALLED: dict[str, tuple[Program, list[tuple[int, int]]]] = {
    "truncate: what is cut off": (lambda guest: [guest.change(0), guest.change(0, 0, 3, 0)], [(3, 8)]),
    "hole punched": (
        lambda guest: [guest.change(0), guest.change(0, 0, 3, 0), guest.change(1, 5, 3, 5)],
        [(3, 5)],
    ),
    "other memory": (lambda guest: [guest.change(0), guest.change(0, 0, 8, 30)], [(0, 8)]),
    "read-only": (lambda guest: [guest.change(0), guest.change(0, 0, 8, 0, KVM_MEM_READONLY)], [(0, 8)]),
    "logging begins": (lambda guest: [guest.change(0, 0, 8, 0, KVM_MEM_LOG_DIRTY_PAGES)], [(0, 8)]),
    "moved": (lambda guest: [guest.change(0, 200, 8, 0)], [(0, 8)]),
}


def world() -> Guest:
    guest = Guest(2, access=Access(changed=1.0))
    guest.create(0, 0, 8, 0)
    guest.create(8, 8, 8, 8)
    guest.create(9, 40, 4, 40, KVM_MEM_READONLY)
    guest.create(10, 50, 4, 50, KVM_MEM_LOG_DIRTY_PAGES)
    return guest


@pytest.mark.parametrize("name", FREE)
def test_this_flushes_nothing_and_stalls_nobody(name: str) -> None:
    with world() as guest:
        guest.run(guest.same({gfn: gfn for gfn in range(16)}, changed=True))
        apply = find("atomic").prepare(guest.engine)
        before, invalidations = guest.engine.counts.copy(), guest.engine.stage2.invalidations
        apply(guest.engine, FREE[name](guest))
        done = guest.engine.counts - before
        assert (done.flushes, done.ranges_in_flux, done.kicks, done.pauses) == (0, 0, 0, 0)
        guest.all_move()
        guest.engine.stop()
        assert guest.total("flux_stalls") == guest.total("stall_total") == 0
        assert guest.engine.stage2.invalidations == invalidations
        assert guest.total("holes_read") + guest.total("holes_write") + guest.total("killed_fetches") == 0
        assert guest.written() == guest.total("writes")


@pytest.mark.parametrize("by_phases", [True, False], ids=["phases", "one call"])
@pytest.mark.parametrize("name", STALLED)
def test_this_stalls_what_changes_and_flushes_once(name: str, by_phases: bool) -> None:
    program, ranges = STALLED[name]
    with world() as guest:
        apply = find("atomic").prepare(guest.engine)
        marked: list[tuple[int, int]] = []
        real = guest.engine.mark

        def mark(parts: list[tuple[int, int, int]]) -> None:
            marked.extend(part[:2] for part in parts)
            real(parts)

        guest.engine.mark = mark  # type: ignore[method-assign, assignment]
        guest.engine.short_cut = not by_phases
        before = guest.engine.counts.copy()
        apply(guest.engine, program(guest))
        done = guest.engine.counts - before
        assert (done.flushes, done.ranges_in_flux, done.pauses) == (1, len(ranges), 0)
        assert bool(marked) == (by_phases or "logging" in name)  # a log follows the slot
        if not marked:
            words = guest.engine.room.ranges.tolist()[: 3 * done.ranges_in_flux]
            marked = list(zip(words[::3], words[1::3], strict=True))
        assert marked == ranges
