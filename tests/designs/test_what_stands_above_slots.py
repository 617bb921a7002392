"""``overlay`` and ``attributes`` change what vCPUs find without a hole, where they can; else holes are as today's."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from guestmem.compare.replay import accesses_of_reports
from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.update import SoftUpdate
from guestmem.errors import BatchError, MemslotError
from guestmem.history import Verdict, judge
from guestmem.memslots import Change
from holes_held_open import count, in_the_hole, wait_until

PAGE, PAGES = 0x1000, 128
READ, WRITE = Access(writes=0, fetches=0), Access(writes=1, fetches=0)


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    """Twice as many pages as there are frames."""
    made = HostMemory([(0x7F0000000000, 0x7F0000000000 + 2 * PAGES * PAGE)])
    yield made
    made.close()


def slot(memory: HostMemory, number: int, gfn: int, npages: int, page: int, flags: int = 0) -> Change:
    return Change(number, gfn, npages, memory.address + page * PAGE, flags)


def rehost(memory: HostMemory, gfn: int, npages: int, flags: int = 0) -> list[Change]:
    """Frames [gfn, gfn + npages) of slot 0 get other pages; the slots around them keep theirs."""
    after = gfn + npages
    return [
        Change(0),
        slot(memory, 0, 0, gfn, 0, flags),
        slot(memory, 1, gfn, npages, PAGES + gfn, flags),
        slot(memory, 2, after, PAGES - after, after, flags),
    ]


def protect(memory: HostMemory, gfn: int, npages: int) -> list[Change]:
    """They become read-only."""
    changes = rehost(memory, gfn, npages)
    changes[2] = slot(memory, 1, gfn, npages, gfn, 2)
    return changes


def load(memory: HostMemory, changes: list[Change]) -> Load:
    """All frames, before and after."""
    targets = []
    for change in changes[1:]:
        for gfn in range(change.base_gfn, change.base_gfn + change.npages):
            old = memory.address + gfn * PAGE
            new = change.userspace_addr + (gfn - change.base_gfn) * PAGE
            targets.append(Target(gfn * PAGE, old, new, new_readonly=change.flags == 2, changed=True))
    return Load(targets)


def run(memory: HostMemory, engine: SoftEngine, changes: list[Change], access: Access, flags: int = 0) -> None:
    engine.set_memory_region(slot(memory, 0, 0, PAGES, 0, flags))
    engine.set_access(access)
    engine.set_load(load(memory, changes))
    engine.start()
    wait_until(engine, lambda: count(engine, "accesses") > 10_000, "ten thousand accesses")


def holes(engine: SoftEngine) -> int:
    return sum(count(engine, name) for name in ("holes_read", "holes_write", "killed_fetches", "strange", "stale"))


def published_only_at_the_end(monkeypatch: pytest.MonkeyPatch, engine: SoftEngine, seen: Callable[[], bool]) -> None:
    """Between the last entry above the slots and their publishing, wait until vCPUs have ``seen`` what that shows."""
    real = SoftUpdate.publish

    def publish(self: SoftUpdate) -> None:
        wait_until(engine, seen, "what the entries above the slots show")
        assert engine.slot(1) is None, "no slot was touched"
        real(self)

    monkeypatch.setattr(SoftUpdate, "publish", publish)


def test_overlays_show_other_memory_while_the_slots_are_as_they_were(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = rehost(memory, 40, 3)
    with SoftEngine(2) as engine:
        run(memory, engine, changes, READ)
        published_only_at_the_end(monkeypatch, engine, lambda: count(engine, "saw_new") > 0)
        with engine.window():
            find("overlay").prepare(engine)(engine, changes)
        before = count(engine, "accesses")
        wait_until(engine, lambda: count(engine, "accesses") > before + 1000, "accesses afterwards")
        engine.stop()
        assert holes(engine) == 0
        assert [(each.id, each.base_gfn) for each in engine.memslots] == [(0, 0), (1, 40), (2, 43)]
        assert engine.stage2 is not None
        engine.stage2.check()


def test_denied_writes_exit_while_the_slots_are_as_they_were(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = protect(memory, 40, 3)
    with SoftEngine(2) as engine:
        run(memory, engine, changes, WRITE)
        published_only_at_the_end(monkeypatch, engine, lambda: count(engine, "readonly_writes") > 0)
        with engine.window():
            find("attributes").prepare(engine)(engine, changes)
        engine.stop()
        assert holes(engine) == 0
        assert engine.memslots.find(41).readonly  # type: ignore[union-attr]


def test_given_back_the_right_to_write_needs_nothing(memory: HostMemory) -> None:
    with SoftEngine(1) as engine:
        apply = find("attributes").prepare(engine)
        engine.set_memory_region(slot(memory, 0, 0, PAGES, 0, 2))
        flushes = engine.counts.flushes
        apply(engine, [Change(0), slot(memory, 0, 0, PAGES, 0)])
        assert engine.counts.flushes == flushes
        assert not engine.memslots.find(1).readonly  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("design", "what"),
    [
        ("overlay", "65 frames"),
        ("overlay", "permissions"),
        ("overlay", "memory that goes"),
        ("overlay", "logged"),
        ("attributes", "other memory"),
        ("attributes", "memory that goes"),
    ],
)
def test_what_they_cannot_do_has_its_hole(memory: HostMemory, design: str, what: str) -> None:
    changes = {
        "65 frames": rehost(memory, 16, 65),
        "permissions": protect(memory, 40, 3),
        "memory that goes": [Change(0), slot(memory, 0, 0, PAGES - 1, 0)],
        "logged": rehost(memory, 40, 3, 1),
        "other memory": rehost(memory, 40, 3),
    }[what]
    with SoftEngine(1) as engine:
        run(memory, engine, changes, READ, 1 if what == "logged" else 0)
        in_the_hole(engine, lambda: count(engine, "holes_read") > 0, "an access in the hole")
        find(design).prepare(engine)(engine, changes)
        engine.stop()
        assert count(engine, "holes_read") > 0


@pytest.mark.parametrize("design", ["overlay", "attributes"])
def test_several_frames_have_no_one_instant(memory: HostMemory, monkeypatch: pytest.MonkeyPatch, design: str) -> None:
    """Two ranges; between them the vCPUs see the first done, and then the second not done."""
    first, second = (rehost if design == "overlay" else protect)(memory, 40, 1), slot(memory, 3, 90, 1, 90)
    second = second._replace(
        **({"userspace_addr": memory.address + (PAGES + 90) * PAGE} if design == "overlay" else {"flags": 2})
    )
    changes = [*first[:3], slot(memory, 2, 41, 49, 41), second, slot(memory, 4, 91, PAGES - 91, 91)]
    name = "overlay" if design == "overlay" else "deny"
    real, calls = getattr(SoftUpdate, name), 0
    with SoftEngine(2) as engine:
        run(memory, engine, changes, READ if design == "overlay" else WRITE)

        def torn() -> bool:
            return judge(accesses_of_reports(engine.reports())).verdict is Verdict.FAIL

        def put(self: SoftUpdate, *arguments: int) -> None:
            nonlocal calls
            real(self, *arguments)
            calls += 1
            if calls == 1:
                wait_until(engine, torn, "two accesses that contradict")

        monkeypatch.setattr(SoftUpdate, name, put)
        with engine.window():
            find(design).prepare(engine)(engine, changes)
        engine.stop()
        assert calls == 2
        assert holes(engine) == 0


@pytest.mark.parametrize("design", ["overlay", "attributes"])
def test_a_split_that_changes_no_frame_needs_nothing(memory: HostMemory, design: str) -> None:
    with SoftEngine(1) as engine:
        engine.set_memory_region(slot(memory, 0, 0, PAGES, 0))
        kicks, flushes = engine.counts.kicks, engine.counts.flushes
        changes = [Change(0), slot(memory, 0, 0, 40, 0), slot(memory, 1, 40, PAGES - 40, 40)]
        find(design).prepare(engine)(engine, changes)
        assert (engine.counts.kicks, engine.counts.flushes) == (kicks, flushes)
        assert [each.id for each in engine.memslots] == [0, 1]


@pytest.mark.parametrize("design", ["overlay", "attributes"])
def test_a_refused_transaction_leaves_nothing_above_the_slots(memory: HostMemory, design: str) -> None:
    with SoftEngine(1) as engine:
        engine.set_memory_region(slot(memory, 0, 0, PAGES, 0))
        with pytest.raises(BatchError, match="entry 4"):
            find(design).prepare(engine)(engine, [*rehost(memory, 40, 3), slot(memory, 9, 5, 1, 0)])
        assert [each.id for each in engine.memslots] == [0]


def test_an_update_that_is_left_takes_what_it_put_above_away(memory: HostMemory) -> None:
    changes = rehost(memory, 40, 1)
    with SoftEngine(1) as engine:
        run(memory, engine, changes, READ)

        def leave() -> None:
            with engine.update() as update:
                update.overlay(40, memory.address + (PAGES + 40) * PAGE)
                wait_until(engine, lambda: count(engine, "saw_new") > 0, "the page that the overlay shows")
                raise ZeroDivisionError

        with engine.window(), pytest.raises(ZeroDivisionError):
            leave()
        before = count(engine, "saw_new")
        engine.set_load(Load([Target(40 * PAGE, word := memory.address + 40 * PAGE, word)]))
        after = count(engine, "accesses")
        wait_until(engine, lambda: count(engine, "accesses") > after + 1000, "accesses afterwards")
        with engine.window():
            wait_until(engine, lambda: count(engine, "inside") > 1000, "accesses in a window")
        engine.stop()
        assert before
        assert count(engine, "strange") == 0, "the slot's own page is there again"


def test_more_than_64_are_too_many(memory: HostMemory) -> None:
    with SoftEngine(1) as engine:
        engine.set_memory_region(slot(memory, 0, 0, PAGES, 0))
        with engine.update() as update:
            for gfn in range(64):
                update.overlay(gfn, memory.address)
            with pytest.raises(MemslotError) as caught:
                update.overlay(64, memory.address)
        assert caught.value.errno == errno.E2BIG
