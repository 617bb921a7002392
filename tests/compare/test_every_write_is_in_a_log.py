"""With dirty logging on, every write is in a log that the caller was handed, by each design that claims it.

What others lose is made to happen: between the taking of a log and the call that frees it, the test waits until a vCPU
has written. Where a design keeps bits, vCPUs write and then stand, so that no later write names the page again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from guestmem.abi import model, take_over
from guestmem.compare import Comparison, compare
from guestmem.compare.logs import Copied, LoggedEngine
from guestmem.compare.plan import Plan, Step, plan
from guestmem.designs import DESIGNS, LOGS, find
from guestmem.dirty.bitmap import DirtyBitmap
from guestmem.engines import Access, Load
from guestmem.engines.soft import SoftEngine
from guestmem.errors import CapabilityError
from guestmem.memslots import Change, SlotKey
from guestmem.report.compare import print_comparison
from guestmem.traces import read

pytestmark = pytest.mark.compiled_only
LINE = "kvm_set_user_memory Slot#{0} flags=0x0 gpa={1:#x} size={2:#x} ua={3:#x} ret=0"
HOST = 0x7F1000000000
DEADLINE_S = 60
CLAIM = [design.name for design in DESIGNS if design.claims_logs and not design.broken]
LOSE = [design.name for design in DESIGNS if not design.claims_logs]


def steps_of(path: Path, transactions: Iterable[Iterable[tuple[int, int, int, int]]]) -> Plan:
    """A plan with logging of transactions of (slot, gpa, size, host offset)."""
    lines = []
    for number, changes in enumerate(transactions):
        for place, (slot, gpa, size, offset) in enumerate(changes):
            stamp = f"7@{1795228977 + number}.{place:06}:"
            lines.append(stamp + LINE.format(slot, gpa, size, HOST + offset) + "\n")
    path.write_text("".join(lines))
    return plan(read(path), dirty_log=True)


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Plan]:
    """A slot of 8 pages; it is split, a page in the middle is given other memory, and the upper half goes."""
    made = steps_of(
        tmp_path / "trace.log",
        [
            [(0, 0, 0x8000, 0)],
            [(0, 0, 0, 0), (0, 0, 0x3000, 0), (1, 0x3000, 0x1000, 0x9000), (2, 0x4000, 0x4000, 0x4000)],
            [(2, 0, 0, 0)],
        ],
    )
    yield made
    made.close()


def written(steps: Plan, step: Step, since: dict[int, int]) -> None:
    """Wait until every word that vCPUs may write before ``step`` has been."""
    words = [target.old for target in step.load.targets if target.old]
    end = time.monotonic() + DEADLINE_S
    while any(steps.memory.word(word) == since[word] for word in words):
        assert time.monotonic() < end, "vCPUs write nothing"
        time.sleep(0.0005)


class WritesInBetween(LoggedEngine):
    """In the last transaction vCPUs write between the taking of the log and the call that frees it."""

    def _take(self, keys: Iterable[SlotKey]) -> None:
        keys = list(keys)
        super()._take(keys)
        if len(self._changes) != 1 or not keys:
            return
        bitmaps = [self._engine.dirty.bitmap(key.slot, key.as_id) for key in keys]
        end = time.monotonic() + DEADLINE_S
        while not any(bitmap is not None and bitmap.array().any() for bitmap in bitmaps):
            assert time.monotonic() < end, "vCPUs write nothing"
            time.sleep(0.0005)


def logged_by(steps: Plan, name: str, engine_type: type[LoggedEngine] = LoggedEngine, *, still: bool) -> LoggedEngine:
    """Apply all steps by a design, each when all words before it are written; ``still``: vCPUs stand meanwhile."""
    design = find(name)
    with SoftEngine(1) as engine:
        apply = design.prepare(engine)
        engine.set_access(Access(writes=1.0, fetches=0.0))
        logged = engine_type(engine, Copied(steps), keeps=design.keeps_logs)
        engine.start()
        for step in steps.steps:
            since = {word: steps.memory.word(word) for word in steps.words}
            engine.set_load(step.load)
            written(steps, step, since)
            if still:
                engine.pause()
            apply(logged.of(step.changes), step.changes)
            engine.set_load(Load())
            if still:
                engine.resume()
        engine.pause()
        for slot in list(engine.memslots):
            logged.of([]).set_memory_region(Change(slot.id))
        engine.resume()
    return logged


def test_who_claims_it_stops_vcpus_or_keeps_bits() -> None:
    assert CLAIM == ["pause", "kick_all", "atomic"]
    assert {design.logs for design in DESIGNS} == set(LOGS)


@pytest.mark.parametrize("name", [*CLAIM, *LOSE])
def test_what_was_written_before_an_update_is_in_a_log(steps: Plan, name: str) -> None:
    """By every design: nobody writes meanwhile, so only bits can get lost."""
    found = logged_by(steps, name, still=True)
    assert (found.dropped, found.copied.missing()) == (0, 0)
    assert found.copied.pages >= 8, "little was logged, so little was shown"


@pytest.mark.parametrize("name", CLAIM)
def test_what_is_written_beside_an_update_is_in_a_log(steps: Plan, name: str) -> None:
    found = logged_by(steps, name, WritesOn if find(name).logs == "kept" else LoggedEngine, still=False)
    assert (found.dropped, found.copied.missing()) == (0, 0)


class WritesOn(LoggedEngine):
    """Of a design that keeps bits, no log is taken before: what vCPUs write until the instant has to be handed back."""

    def _take(self, keys: Iterable[SlotKey]) -> None:
        assert not self._changes, "only the last logs, when all is over"
        super()._take(keys)


@pytest.mark.parametrize("name", LOSE)
def test_a_log_that_is_taken_before_lacks_what_is_written_in_between(steps: Plan, name: str) -> None:
    assert logged_by(steps, name, WritesInBetween, still=False).dropped > 0


def test_pages_that_are_not_handed_back_are_missed(steps: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(vm: model.KvmModel, keys: list[SlotKey], _ended: list[take_over.DirtyPage]) -> None:
        take_over.take_over(vm, keys, [])

    monkeypatch.setattr(model, "take_over", forgets)
    assert logged_by(steps, "atomic", still=True).copied.missing() >= 4


def test_bits_that_do_not_go_with_their_pages_are_missed(steps: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirtyBitmap, "merge", lambda _self, _bits: None)
    assert logged_by(steps, "atomic", still=True).copied.missing() > 0


def test_slots_log_and_changes_that_are_none_are_left_out(tmp_path: Path) -> None:
    trace = Path(__file__).parents[2] / "examples" / "traces" / "pc-migration.log"
    made = plan(read(trace), dirty_log=True)
    try:
        creates = [change for step in made.steps for change in step.changes if not change.deletes]
        assert all(change.flags & 1 for change in creates)
        flags_only = len(read(trace).changes) - sum(len(step.changes) for step in made.steps)
        assert flags_only > 0
        assert made.notes[-1] == "dirty logging on: all slots log"
    finally:
        made.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    trace = Path(__file__).parents[2] / "examples" / "traces" / "synthetic-open.txt"
    return compare(read(trace), vcpus=(1,), designs=("pause", "sequential"), repeat=1, interval_ms=0.5, dirty_log=True)


def test_table_and_json_say_the_same(small: Comparison) -> None:
    stream = io.StringIO()
    print_comparison(small, stream=stream)
    lines = stream.getvalue().splitlines()
    below = lines[lines.index("What logs had") :]
    figures = json.loads(json.dumps(small.as_dict()))
    assert figures["dirty_log"] is True
    assert figures["logs_strong_enough"] in {True, False}
    for row in figures["rows"]:
        cells = next(line.split() for line in below if line.split()[:1] == [row["design"]])
        wanted = [row[name] for name in ("logged", "handed_back", "dropped", "unlogged")]
        assert [str(value) for value in wanted] == [cell for cell in cells if cell.isdigit()][1:5], cells
        assert row["log_ns"]["count"] == row["transactions"]
    assert "logs: every write was in a log handed to the caller, as claimed: pause" in lines


def test_what_a_claim_is_worth_is_said(small: Comparison) -> None:
    from copy import deepcopy

    made = deepcopy(small)
    made.rows[0].unlogged = 3
    stream = io.StringIO()
    print_comparison(made, stream=stream)
    assert "logs: pause claims that every write is in a log: 3 pages are not\n" in stream.getvalue()
    assert "wrong: pause: 3 pages written and in no log\n" in stream.getvalue()
    for row in made.rows:
        row.unlogged = row.dropped = 0
    stream = io.StringIO()
    print_comparison(made, stream=stream)
    assert "logs: no design lost a write, so this run shows nothing of those that claim it" in stream.getvalue()


def test_an_engine_whose_logs_cannot_be_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from guestmem.engines import Capability

    monkeypatch.setattr(SoftEngine, "capabilities", SoftEngine.capabilities & ~Capability.DIRTY_LOGS)
    with pytest.raises(CapabilityError, match="dirty log: engine soft has no logs that can be read"):
        compare(read(Path(__file__).parents[2] / "examples/traces/synthetic-open.txt"), vcpus=(1,), dirty_log=True)
