"""A search that keeps hashes of states comes to the same ends, and says how probable it is that it does not."""

from __future__ import annotations

import pytest

from guestmem.explore.compact import CompactStates
from guestmem.explore.finding import state_after
from guestmem.explore.judge import Judge
from guestmem.explore.machine import Machine
from guestmem.explore.models import find
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.states import States
from guestmem.explore.task import MEMORIES, Task, machine, run
from guestmem.explore.world import World

KIB = 1 / 1024


def compact(its: Machine, mib: float, bits: int = 32) -> Outcome:
    return CompactStates(its, Outcome("", "states", its.name), mib=mib, bits=bits).run(Budget())


@pytest.fixture
def points() -> tuple[int, ...]:
    """The shared words of srcu."""
    with World(find("srcu")) as world:
        run(Task(find("srcu"), "states", "relaxed"), Budget(), world=world)
        return tuple(sorted(world.points))


@pytest.mark.parametrize("memory", MEMORIES)
def test_same_states_and_ends(memory: str, points: tuple[int, ...]) -> None:
    with World(find("srcu")) as world:
        world.points.update(points)
        whole = States(machine(world, memory, merged=True), Outcome("", "states", memory)).run(Budget())
        hashed = compact(machine(world, memory, merged=True), 4096 * KIB)
    assert whole.complete
    assert not hashed.complete
    assert hashed.stopped.startswith("by hashes: some state was left out with a probability of at most ")
    assert 0 < float(hashed.stopped.split()[-1]) < 1e-6
    for name in ("distinct", "points", "depth", "finals"):
        assert getattr(hashed, name) == getattr(whole, name), name


def test_hashes_that_are_too_short_leave_states_out_and_say_so(points: tuple[int, ...]) -> None:
    with World(find("srcu")) as world:
        world.points.update(points)
        its = machine(world, "relaxed", merged=True)
        whole = States(its, Outcome("", "states", "relaxed")).run(Budget())
        hashed = compact(its, 4 * KIB, bits=4)
    assert hashed.distinct < whole.distinct
    assert hashed.stopped.endswith(" 1"), "that is certain"


def test_a_table_that_is_full_ends_the_search(points: tuple[int, ...]) -> None:
    with World(find("srcu")) as world:
        world.points.update(points)
        search = CompactStates(machine(world, "stale", merged=True), Outcome("", "states", "stale"), mib=4 * KIB)
        outcome = search.run(Budget())
    assert outcome.stopped == "the table of hashes is full"
    assert outcome.distinct <= 0.85 * 1024


def test_what_is_found_is_told_with_its_schedule() -> None:
    model = find("sequential")
    found = run(Task(model, "states", compact=1), Budget())
    usual = run(Task(model, "states"), Budget())
    assert found.stopped == usual.stopped == "finding"
    assert [finding.key for finding in found.findings] == [finding.key for finding in usual.findings]
    finding = found.findings[0]
    with World(model) as world:
        its = machine(world, "sc", finding.points)
        again = Judge(its).arrived(state_after(its, finding.moves))
        assert again is not None
        assert again.key == finding.key
