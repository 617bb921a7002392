"""Whether an update has one instant is decided by what vCPUs saw, on both engines.

The interleavings that contradict are pinned: between two calls of the update the test waits until vCPUs have seen one
part of it done and then another part not done. The vCPUs are kept out of the guest during the calls before, as a
scheduler may keep them, so that no hole is met and nothing but the two accesses speaks against the update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from chance import MINUTES, until_met
from guestmem.compare.replay import accesses_of_reports
from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, MeasuredEngine, Target, measured_engine
from guestmem.engines.kvm import unusable
from guestmem.engines.load_words import TAG_BYTE
from guestmem.history import Judgement, Verdict, judge
from guestmem.memslots import Change

# The limit: an update is tried until it was seen from both sides, and that until one is caught.
pytestmark = [pytest.mark.compiled_only, pytest.mark.timeout(900)]
KVM = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
ENGINES = ["soft", pytest.param("kvm", marks=KVM)]
ENOUGH = 1_000_000
"""Accesses among which what a test waits for is certain to be, if it can be at all."""
PAGES = 4
OLD_A, NEW_A, OLD_B, NEW_B = range(0, 4 * PAGES, PAGES)
"""Pages of the host memory where each begins."""
GFN_A, GFN_B = 0, 64


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory([(0x7F0000000000, 0x7F0000000000 + (4 * PAGES << 12))])
    for page in range(4 * PAGES):
        made.write(made.address + (page << 12) + int(TAG_BYTE), bytes([1 + page // PAGES, 0xC3]))
    yield made
    made.close()


def slot(memory: HostMemory, number: int, gfn: int, page: int) -> Change:
    return Change(number, gfn, PAGES, memory.address + (page << 12))


def targets(memory: HostMemory, gfn: int, old: int | None, new: int | None) -> list[Target]:
    def word(page: int | None, place: int) -> int:
        return 0 if page is None else memory.address + (page + place << 12)

    def tag(page: int | None) -> int:
        return 0 if page is None else 1 + page // PAGES

    return [
        Target(gfn + at << 12, word(old, at), word(new, at), changed=True, old_tag=tag(old), new_tag=tag(new))
        for at in range(PAGES)
    ]


def rehost(memory: HostMemory) -> tuple[list[Change], list[Change], Load]:
    """Two slots get other host memory: what is there before, the changes, what is touched."""
    before = [slot(memory, 1, GFN_A, OLD_A), slot(memory, 2, GFN_B, OLD_B)]
    changes = [Change(1), slot(memory, 1, GFN_A, NEW_A), Change(2), slot(memory, 2, GFN_B, NEW_B)]
    return before, changes, Load(targets(memory, GFN_A, OLD_A, NEW_A) + targets(memory, GFN_B, OLD_B, NEW_B))


def give_and_take(memory: HostMemory) -> tuple[list[Change], list[Change], Load]:
    """One slot goes, another comes elsewhere: nothing overlaps."""
    before = [slot(memory, 1, GFN_A, OLD_A)]
    changes = [Change(1), slot(memory, 2, GFN_B, NEW_B)]
    return before, changes, Load(targets(memory, GFN_A, OLD_A, None) + targets(memory, GFN_B, None, NEW_B))


def looked_at(engine: MeasuredEngine) -> Judgement:
    return judge(accesses_of_reports(engine.reports()))


def accesses(engine: MeasuredEngine) -> int:
    return sum(each["accesses"] for each in engine.vcpu_counts())


def wait_until(engine: MeasuredEngine, seen: Callable[[], bool], what: str) -> None:
    """Until ``seen``: it fails once the vCPUs have made so many accesses without; if they hardly run, it is skipped."""
    end, most = time.monotonic() + 60, accesses(engine) + ENOUGH
    while True:
        made = accesses(engine)  # before the look: this thread may lose its core behind it, for any time
        if seen():
            return
        assert made < most, f"{what}: not in {ENOUGH} accesses"
        if time.monotonic() > end:
            pytest.skip(f"{what}: the vCPUs made too few accesses in a minute on this machine")
        time.sleep(1e-4)


def pinned(
    name: str,
    design: str,
    memory: HostMemory,
    scene: Callable[[HostMemory], tuple[list[Change], list[Change], Load]],
    *,
    after: int,
    kept_out: bool,
) -> Judgement:
    """Apply ``scene`` by ``design``; after so many calls wait for a contradiction, the vCPUs kept out until then."""
    before, changes, load = scene(memory)
    with measured_engine(name, 2) as engine:
        for change in before:
            engine.set_memory_region(change)
        apply = find(design).prepare(engine)
        engine.set_access(Access(writes=0, fetches=0))
        real, calls = engine.set_memory_region, 0

        def stepped(change: Change) -> object:
            nonlocal calls
            if kept_out and calls == 0:
                engine.pause()
            done = real(change)
            calls += 1
            if calls == after:
                if kept_out:
                    engine.resume()
                wait_until(engine, lambda: looked_at(engine).verdict is Verdict.FAIL, "two accesses that contradict")
            return done

        engine.set_load(load)
        engine.start()
        time.sleep(0.01)
        engine.set_memory_region = stepped  # type: ignore[method-assign, assignment]
        with engine.window():
            apply(engine, changes)
        reports = engine.set_load(Load())
        engine.stop()
        assert calls == len(changes)
    return judge(accesses_of_reports(reports))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("design", ["sequential", "sequential_answered", "exit_retry"])
def test_several_slots_one_after_another_have_no_one_instant(engine: str, design: str, memory: HostMemory) -> None:
    judgement = pinned(engine, design, memory, rehost, after=2, kept_out=True)
    assert judgement.verdict is Verdict.FAIL
    new, old = judgement.witness
    assert new.end < old.start
    assert int(new.where, 16) >> 12 in range(GFN_A, GFN_A + PAGES)
    assert int(old.where, 16) >> 12 in range(GFN_B, GFN_B + PAGES)


@pytest.mark.parametrize("engine", ENGINES)
def test_where_nothing_overlaps_nobody_is_paused_and_there_is_no_one_instant(engine: str, memory: HostMemory) -> None:
    judgement = pinned(engine, "pause_if_overlap", memory, give_and_take, after=1, kept_out=False)
    assert judgement.verdict is Verdict.FAIL


def seen_from_both_sides(
    name: str, design: str, memory: HostMemory, *, updates: int = 10, minutes: float = MINUTES
) -> Judgement:
    """Re-host two slots there and back by ``design``; what the last of so many says that were seen old and new.

    ``minutes``: for all of them together, then the test is skipped.
    """
    before, changes, load = rehost(memory)
    back = [Change(1), before[0], Change(2), before[1]]
    load_back = Load(targets(memory, GFN_A, NEW_A, OLD_A) + targets(memory, GFN_B, NEW_B, OLD_B))
    last: Judgement | None = None
    begun = time.monotonic()
    with measured_engine(name, 2) as engine:
        for change in before:
            engine.set_memory_region(change)
        apply = find(design).prepare(engine)
        engine.set_access(Access(writes=0.3, fetches=0))
        engine.start()

        def one_more(_number: int) -> Judgement | None:
            found = None
            for each, with_load in ((changes, load), (back, load_back)):
                engine.set_load(with_load)
                time.sleep(2e-4)
                with engine.window():
                    apply(engine, each)
                judgement = judge(accesses_of_reports(engine.set_load(Load())))
                if judgement.verdict is not Verdict.UNKNOWN:
                    found = judgement
                    if judgement.verdict is Verdict.FAIL:
                        return judgement
            return found

        for _ in range(updates):
            left = minutes - (time.monotonic() - begun) / 60
            last = until_met(one_more, f"an update by {design} that was seen from both sides", minutes=left)
            if last.verdict is Verdict.FAIL:
                break
        engine.stop()
        assert sum(each["holes_read"] + each["holes_write"] for each in engine.vcpu_counts()) == 0
    assert last is not None
    return last


@pytest.mark.parametrize(
    ("engine", "design"),
    [("soft", "atomic"), ("soft", "pause"), ("soft", "batch"), pytest.param("kvm", "pause", marks=KVM)],
)
def test_one_instant_is_found_where_there_is_one(engine: str, design: str, memory: HostMemory) -> None:
    """``batch`` has one where accesses to INVALID slots retry, as on x86: its second swap."""
    assert seen_from_both_sides(engine, design, memory).verdict is Verdict.PASS


def test_without_acknowledgements_there_is_none(memory: HostMemory) -> None:
    """``atomic_unacknowledged``: a vCPU goes on using its old translation after another has seen the new memory."""

    def caught(_: int) -> bool:
        judgement = seen_from_both_sides("soft", "atomic_unacknowledged", memory, updates=200, minutes=1)
        return judgement.verdict is Verdict.FAIL

    assert until_met(caught, "an old translation used after the instant")


def test_batch_has_none_where_an_access_to_an_invalid_slot_exits(memory: HostMemory) -> None:
    """arm64: between its swaps an access sees neither the old nor the new memory."""
    before, changes, load = rehost(memory)
    with measured_engine("soft", 2, arch="arm64") as engine:
        for change in before:
            engine.set_memory_region(change)
        apply = find("batch").prepare(engine)
        engine.set_access(Access(writes=0, fetches=0))
        engine.set_load(load)
        engine.start()
        real = engine.flush_shadow  # type: ignore[attr-defined]

        def flushed(*arguments: object) -> None:
            real(*arguments)
            wait_until(
                engine, lambda: any(each["holes_read"] for each in engine.vcpu_counts()), "an access that met a hole"
            )

        engine.flush_shadow = flushed  # type: ignore[attr-defined]
        with engine.window():
            apply(engine, changes)
        engine.stop()
        assert sum(each["holes_read"] for each in engine.vcpu_counts()) > 0


def test_what_nobody_looked_at_does_not_pass() -> None:
    assert judge(accesses_of_reports([None, None])).verdict is Verdict.UNKNOWN
    reports: Sequence[None] = []
    assert judge(accesses_of_reports(reports)).verdict is Verdict.UNKNOWN


def test_what_the_vmm_answers_in_a_hole_was_seen_as_old(memory: HostMemory) -> None:
    """``sequential_answered``: while the slot is away, accesses go on to see the memory that it had."""
    before, changes, load = rehost(memory)
    with measured_engine("soft", 1) as engine:
        for change in before:
            engine.set_memory_region(change)
        apply = find("sequential_answered").prepare(engine)
        engine.set_access(Access(writes=0, fetches=0))
        engine.set_load(load)
        engine.start()
        real = engine.set_memory_region

        def stepped(change: Change) -> object:
            done = real(change)
            if change == Change(2):  # both are new, or away: only an answer can show old memory from here on
                away = time.monotonic_ns()
                wait_until(
                    engine,
                    lambda: any(each is not None and each.last_old > away for each in engine.reports()),
                    "an answer from the memory behind a hole",
                )
            return done

        engine.set_memory_region = stepped  # type: ignore[method-assign, assignment]
        with engine.window():
            apply(engine, changes)
        engine.stop()
        assert sum(each["answered_reads"] for each in engine.vcpu_counts()) > 0
