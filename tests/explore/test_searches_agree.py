"""Plain enumeration, the search over states and partial-order reduction come to the same ends, on every program."""

from __future__ import annotations

import random

import pytest

from explore_programs import every_end, model, program
from guestmem.explore.dpor import Dpor
from guestmem.explore.finding import state_after
from guestmem.explore.machine import Machine
from guestmem.explore.models import models
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.parts import split
from guestmem.explore.plain_states import PlainStates
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import Report, explore, starved, tasks
from guestmem.explore.states import States
from guestmem.explore.task import MEMORIES, Task, machine, run
from guestmem.explore.world import World
from slices import one_in, sliced

pytestmark = pytest.mark.slow

PROGRAMS = 150


def states(its: Machine) -> Outcome:
    return States(its, Outcome("", "states", its.name)).run(Budget(go_on=True))


def told(outcome: Outcome) -> tuple[object, ...]:
    """What two searches over states must have in common."""
    findings = {(finding.key, finding.message if finding.kind != "livelock" else "") for finding in outcome.findings}
    return outcome.complete, outcome.distinct, outcome.points, outcome.depth, outcome.finals, findings


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("bound", [None, 0, 1, 2])
def test_the_compiled_search_is_the_plain_one(memory: str, bound: int | None, rng: random.Random) -> None:
    """Same states, moves, depth, ends and findings, with timeouts, wakes of several, whims, and a bound."""
    compared = found = 0
    for number in range(40):
        threads = program(rng, longest=3 if memory == "stale" else 4)
        with World(model(threads, spurious=number % 3, buffer=1 + number % 3)) as world:
            whole(world)
            its = machine(world, memory)
            plain = PlainStates(its, Outcome("", "states", memory), bound=bound).run(Budget(go_on=True, states=20_000))
            if plain.complete:
                compared += 1
                search = States(its, Outcome("", "states", memory), bound=bound)
                outcome = search.run(Budget(go_on=True))
                if bound is None:
                    assert told(outcome) == told(plain), threads
                else:  # whether a state is first reached by few preemptions depends on the order
                    assert told(outcome)[4:] == told(plain)[4:], threads
                found += len(outcome.findings)
                for finding in outcome.findings:
                    state = state_after(its, finding.moves)
                    again = search.judge.arrived(state) or search.judge.ended(state)
                    assert again is not None
                    assert again.key == finding.key, "its path leads there"
    assert compared > 20
    assert found > 3


@pytest.mark.parametrize("memory", MEMORIES)
def test_merged_threads_lose_no_end_and_no_finding(memory: str, rng: random.Random) -> None:
    """Against the plain search over histories, on random programs."""
    compared = fewer = found = 0
    for number in range(36 if memory == "stale" else 24):  # shorter ones, of which fewer have states to merge
        threads = program(rng, longest=3 if memory == "stale" else 5)
        with World(model(threads, forgetful=number % 4 > 0, spurious=number % 3 % 2)) as world:
            whole(world)
            its = machine(world, memory)
            plain = PlainStates(its, Outcome("", "states", memory)).run(Budget(go_on=True, states=20_000))
            if plain.complete:
                compared += 1
                merged = states(machine(world, memory, merged=True))
                assert merged.finals == plain.finals, threads
                assert {f.key for f in merged.findings} == {f.key for f in plain.findings}, threads
                assert merged.distinct <= plain.distinct, threads
                fewer += merged.distinct < plain.distinct
                found += len(plain.findings)
    assert compared > 12
    assert fewer > 6
    assert found > 1


def whole(world: World) -> None:
    """Make every word a point: then nothing is searched twice because a word became shared."""
    world.points.update(range(len(world.places)))


def test_three_searches_find_the_same_ends_and_deadlocks(rng: random.Random) -> None:
    compared = deadlocks = 0
    for _ in range(PROGRAMS):
        threads = program(rng)
        with World(model(threads)) as world:
            whole(world)
            its = machine(world, "sc")
            by_state = states(its)
            if by_state.points > 5_000:
                continue
            by_order = Dpor(its, Outcome("", "dpor", "sc")).run(Budget(go_on=True))
            assert by_order.complete, threads
            assert by_state.finals == by_order.finals, threads
            assert {f.name for f in by_state.findings} == {f.name for f in by_order.findings}, threads
            ends = every_end(its)
            if ends is not None:
                compared += 1
                assert by_state.finals == ends, threads
            deadlocks += any(finding.kind == "deadlock" for finding in by_state.findings)
    assert compared > PROGRAMS // 3
    assert deadlocks > 5


def test_a_lock_that_is_looked_at_is_taken_before_and_after_the_look() -> None:
    """Partial-order reduction once took the look and the lock for independent."""
    with World(model([[("L", 0, 0)], [("X", 0, 0)]])) as world:
        whole(world)
        its = machine(world, "sc")
        by_order = Dpor(its, Outcome("", "dpor", "sc")).run(Budget(go_on=True))
        assert len(by_order.finals) == 2
        assert by_order.finals == states(its).finals


@pytest.mark.parametrize("memory", MEMORIES[1:])
def test_states_are_all_there_under_weak_memory(memory: str, rng: random.Random) -> None:
    compared = 0
    for _ in range(60):
        threads = program(rng, "lsrfa", threads=2, longest=3)
        with World(model(threads)) as world:
            whole(world)
            its = machine(world, memory)
            ends = every_end(its)
            if ends is not None:
                compared += 1
                assert states(its).finals == ends, threads
    assert compared > 20


def test_which_words_are_points_does_not_change_what_memory_ends_as(rng: random.Random) -> None:
    """Words that only one thread uses are no points; the histories are shorter, the findings the same."""
    for _ in range(40):
        threads = program(rng, "lsXwk")
        found = []
        for points in (False, True):
            with World(model(threads)) as world:
                if points:
                    whole(world)
                outcome = run(Task(world.model, "states"), Budget(go_on=True, states=20_000), world=world)
                found.append({finding.name for finding in outcome.findings} if not outcome.stopped else None)
        assert None in found or found[0] == found[1], threads


def test_parts_of_a_search_are_the_whole(rng: random.Random) -> None:
    for _ in range(40):
        threads = program(rng, rng.choice(("lsac", "XXls", "lwks")))
        with World(model(threads)) as world:
            whole(world)
            its = machine(world, "sc")
            ends: set[int] = set()
            parts = split(its, 5)
            for part in parts:
                ends |= Dpor(its, Outcome("", "dpor", "sc"), part=part).run(Budget(go_on=True)).finals
            assert ends == states(its).finals, threads


def test_a_spurious_wakeup_ends_a_wait_that_nobody_ends() -> None:
    threads = [[("w", 0, 0), ("s", 1, 0)]]
    ends = []
    for spurious in (0, 1):
        with World(model(threads, spurious=spurious)) as world:
            whole(world)
            outcome = states(machine(world, "sc"))
            ends.append(len(outcome.finals))
            assert [finding.kind for finding in outcome.findings] == ["deadlock"], "it may wake, it need not"
    assert ends == [1, 2]


def test_a_timeout_fires_when_nothing_else_can_happen() -> None:
    with World(model([[("T", 0, 0), ("s", 1, 0)], [("s", 0, 0), ("s", 2, 0)]])) as world:
        whole(world)
        outcome = states(machine(world, "sc"))
        assert outcome.findings == []
        assert len(outcome.finals) == 1


EXHAUSTIVE = [m for m in models() if m.exhaustive and not m.finds]
LARGE = {
    *("atomic", "atomic-1", "atomic-readonly", "batch", "cached-slot", "fault", "fault-flux", "fault-log"),
    *(m.name for m in EXHAUSTIVE if not m.dpor),
    *("fault-notifier", "flush-2", "flush-again", "gmem-guest-reads", "gmem-memory", "gmem-wait", "memslots-split"),
    *("kvm-pause-update", "pause-2", "update-lock-2", "userfault-enable"),
}
"""Those of seconds; `guestmem explore --all` searches them whole."""


@pytest.mark.parametrize("each", one_in(4, EXHAUSTIVE), ids=lambda m: m.name)
def test_on_the_models_too(each: Model) -> None:
    """Small ones whole, of large ones a beginning (a longer one with GUESTMEM_WHOLE=1), under weak memory
    too; `guestmem explore --all` searches all whole.

    Those of stage 2 have a file of their own for what is sequentially consistent.
    """
    with World(each) as world:
        if each.name in LARGE:
            for search, budget in (
                ("states", Budget(states=sliced(700, 5_000))),
                ("dpor", Budget(runs=sliced(20, 80))),
            ):
                outcome = run(Task(each, search), budget, world=world)
                assert not outcome.findings, outcome
                assert outcome.complete or outcome.points > sliced(150, 500)
        elif not each.name.startswith("stage2-"):
            report = Report(each)
            for task in tasks(each, weak=False):
                report.outcomes.append(run(task, Budget(), world=world))
                starved(report.outcomes[-1], report.outcomes)
                assert not report.outcomes[-1].findings, report.outcomes[-1]
            assert report.complete
            assert report.agree is (None if each.spurious else True)
        for task in tasks(each):
            if task.memory != "sc":
                # half the models ask for stale, some slow
                states = sliced(100, 400) if task.memory == "stale" else sliced(250, 1_500)
                outcome = run(task, Budget(states=states), world=world)
                assert not outcome.findings, outcome
                assert outcome.complete or outcome.distinct > 2 * states // 3


@pytest.mark.parametrize("each", [m for m in models() if not m.exhaustive and not m.finds], ids=lambda m: m.name)
def test_larger_models_are_clean_in_random_schedules(each: Model, seed: int) -> None:
    for options in ({"random": sliced(5, 15)}, {"pct": 3, "runs": sliced(4, 10), "weak": False}):
        report = explore(each, seed=seed, **options)  # type: ignore[arg-type]
        assert report.clean, report.counterexamples[0].story


def test_a_store_into_a_buffer_is_no_shortcut_past_what_an_invariant_sees() -> None:
    """Steps that nobody can see are searched alone; between two such stores this thread is where it must not be."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("w", 3)

        def inside() -> None:
            atomics.store_release(words, 0, 1)
            scene.note("inside")
            atomics.store_release(words, 0, 2)
            scene.note("inside", value=False)
            atomics.store_release(words, 0, 3)

        def other() -> None:
            atomics.load_acquire(words, 0)
            atomics.store_release(words, 1, 1)

        scene.thread("inside", inside)
        scene.thread("other", other)
        scene.invariant("alone", lambda view: not (view.note("inside", "inside") and view.word("w", 1)))

    for memory in ("tso", "relaxed"):
        outcome = run(Task(Model("seen", "", "", build), "states", memory), Budget())
        assert [finding.name for finding in outcome.findings] == ["alone"], memory
