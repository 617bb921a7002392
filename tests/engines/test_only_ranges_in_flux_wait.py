"""Accesses to a range in flux wait, writes only where only writes are stalled; nobody else ever waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.compiled import own, words
from guestmem.designs import find
from guestmem.engines import Access
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.flux import flux_mark, flux_release, in_flux
from guestmem.engines.soft.update import SoftUpdate
from guestmem.explore import load
from guestmem.memslots import Effect
from soft_guest import Guest, Inline, until

ALL, WRITES = int(at.STALLS_ALL), int(at.STALLS_WRITES)


@pytest.fixture
def guest() -> Guest:
    """vCPU 0 only touches frames 0 to 7, vCPU 1 only frames 8 to 15; both at once, there are two cores."""
    guest = Guest(2, cores=2)
    guest.create(0, 0, 16, 0)
    return guest


def start(guest: Guest, access: Access = Access(writes=0.5)) -> None:  # noqa: B008 - frozen
    guest.engine.set_access(Access(writes=access.writes, fetches=access.fetches, changed=1.0), 0)
    guest.engine.set_access(Access(writes=access.writes, fetches=access.fetches, changed=0.0), 1)
    frames = {gfn: gfn for gfn in range(16)}
    changed = guest.same({gfn: page for gfn, page in frames.items() if gfn < 8}, changed=True)
    guest.run(changed + guest.same({gfn: page for gfn, page in frames.items() if gfn >= 8}))


def mark(guest: Guest, *ranges: tuple[int, int, int]) -> None:
    guest.engine.mark(ranges)
    guest.engine.flush(wait=True)


def test_who_touches_the_range_waits_and_the_other_goes_on(guest: Guest) -> None:
    with guest:
        start(guest)
        mark(guest, (0, 8, ALL))
        until(lambda: guest.total("flux_stalls") == 1, "vCPU 0 stalls")
        until(lambda: guest.mode(0) == int(at.OUTSIDE), "vCPU 0 outside")
        assert guest.engine.srcu.inside() in ([], [2]), "it waits outside any read-side section"
        before = [guest.word(page) for page in range(8)], guest.accesses(0)
        guest.moves(1)
        assert ([guest.word(page) for page in range(8)], guest.accesses(0)) == before
        guest.engine.release()
        guest.moves(0)
    counts = guest.engine.vcpu_counts()
    assert counts[0]["flux_stalls"] >= 1
    assert counts[1]["flux_stalls"] == counts[1]["stall_total"] == sum(counts[1].histogram) == 0


def test_reads_go_on_where_writes_are_stalled(guest: Guest) -> None:
    with guest:
        start(guest, Access(writes=0, fetches=0.5))
        mark(guest, (0, 8, WRITES))
        guest.all_move()
        guest.engine.release()
    assert guest.total("flux_stalls") == 0


def test_writes_wait_where_writes_are_stalled(guest: Guest) -> None:
    with guest:
        start(guest, Access(writes=1, fetches=0))
        mark(guest, (0, 8, WRITES))
        until(lambda: guest.total("flux_stalls") == 1, "vCPU 0 stalls")
        before = guest.accesses(0)
        guest.moves(1)
        assert guest.accesses(0) == before
        guest.engine.release()
        guest.moves(0)


def test_one_range_of_many_is_enough(guest: Guest) -> None:
    with guest:
        start(guest)
        mark(guest, *((1 << 20 | 2 * number, 1 << 20 | 2 * number + 1, ALL) for number in range(63)), (7, 8, ALL))
        until(lambda: guest.total("flux_stalls") == 1, "vCPU 0 stalls")
        guest.moves(1)
        guest.engine.release()
        guest.moves(0)


@pytest.mark.parametrize("by_phases", [True, False], ids=["phases", "one call"])
def test_under_atomic_only_who_touches_changed_ranges_waits(
    guest: Guest, sized: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch, by_phases: bool
) -> None:
    """By phases, each update goes on from its stall when vCPU 0 has run into it."""
    real = SoftUpdate.stall

    def met(update: SoftUpdate, effects: list[Effect], *, wait: bool = True) -> None:
        before = guest.total("flux_stalls")
        real(update, effects, wait=wait)
        until(lambda: guest.total("flux_stalls") > before, "vCPU 0 stalls")

    with guest:
        apply = find("atomic").prepare(guest.engine)
        apply(guest.engine, [guest.change(0), guest.change(0, 0, 8, 0), guest.change(1, 8, 8, 8)])
        start(guest)
        guest.engine.short_cut = not by_phases
        monkeypatch.setattr(SoftUpdate, "stall", met)
        wanted = sized(100, 5)
        for number in range(wanted):
            apply(guest.engine, [guest.change(0), guest.change(0, 0, 8, 0 if number % 2 else 24)])
            guest.moves(0)
    counts = guest.engine.vcpu_counts()
    if by_phases:
        assert counts[0]["flux_stalls"] >= wanted
    assert counts[1]["flux_stalls"] == counts[1]["stall_total"] == 0
    assert guest.total("killed_fetches") + guest.total("holes_read") + guest.total("holes_write") == 0


def test_a_range_is_half_open_and_counts_by_kind() -> None:
    vm, ranges = words(at.vm_words(1)), own(6)
    for index, word in enumerate((4, 8, ALL, 8, 10, WRITES)):
        ranges[index] = word
    flux_mark(vm, ranges, 2)
    flux = int(vm_word(vm, at.FLUX))
    assert flux & 255 == 2
    for gfn in range(12):
        assert bool(in_flux(vm, flux, gfn, False)) == (4 <= gfn < 8), gfn
        assert bool(in_flux(vm, flux, gfn, True)) == (4 <= gfn < 10), gfn
    flux_release(vm)
    assert int(vm_word(vm, at.FLUX)) & 255 == 0
    assert int(vm_word(vm, at.FLUX)) != flux


def vm_word(vm: object, index: int) -> int:
    from guestmem.atomics import peek

    return peek(vm, int(index))  # type: ignore[arg-type] # words


def rewritten(mutations: list[tuple[str, str, str]], moment: int) -> bool | None:
    """Whether a vCPU that reads the list of [0, 4) for frame 20 goes on although it was rewritten at ``moment``.

    None: the moment is after its last look.
    """
    with load(mutations) as twin:
        flux, compiled = twin.room("engines.soft.flux"), twin.room("compiled")
        vm, ranges = compiled.words(at.vm_words(1)), compiled.own(3)

        def mark_range(start: int, end: int) -> None:
            ranges[0], ranges[1], ranges[2] = start, end, ALL
            flux.flux_mark(vm, ranges, 1)

        def between(operation: int) -> None:
            if operation == moment:
                flux.flux_release(vm)
                mark_range(8, 12)

        mark_range(0, 4)
        scheduler = Inline(between)
        with twin.room("atomics").schedule(scheduler):
            waits = flux.in_flux(vm, vm.cells[int(at.FLUX)], 20, False)
        return None if scheduler.operations <= moment else not waits


def test_a_list_that_is_rewritten_while_it_is_read_is_noticed() -> None:
    moments = list(range(4))  # three words of the range, then the look at FLUX
    assert [rewritten([], moment) for moment in (*moments, 4)] == [False] * 4 + [None]
    blind = [("engines/soft/flux.py", "return load_relaxed(vm, FLUX) != flux", "return False")]
    assert any(rewritten(blind, moment) for moment in moments)
