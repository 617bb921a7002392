"""With ``--engine kvm`` the logs are the kernel's: KVM_GET_DIRTY_LOG before a slot goes, and pages compared at the end.

What is lost is made to happen: between the taking of a log and the call that frees it, the test waits until a vCPU has
written to a page of the slot, which then is in no log, for the slot goes for good.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from guestmem.compare import compare
from guestmem.compare.logs import Copied, KernelLoggedEngine
from guestmem.compare.plan import Plan, plan
from guestmem.designs import find
from guestmem.engines import Access, Load
from guestmem.engines.kvm import unusable
from guestmem.engines.kvm.load_engine import KvmLoadEngine
from guestmem.memslots import Change, SlotKey
from guestmem.report.compare import print_comparison
from guestmem.traces import read

pytestmark = [
    pytest.mark.compiled_only,
    pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"),
]
LINE = "7@{0}.{1:06}:kvm_set_user_memory Slot#{2} flags=0x0 gpa={3:#x} size={4:#x} ua={5:#x} ret=0\n"
HOST = 0x7F1000000000
DEADLINE_S = 60


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Plan]:
    """A slot of 8 pages; it is split, a page in the middle is given other memory, and the upper half goes."""
    transactions = [
        [(0, 0, 0x8000, 0)],
        [(0, 0, 0, 0), (0, 0, 0x3000, 0), (1, 0x3000, 0x1000, 0x9000), (2, 0x4000, 0x4000, 0x4000)],
        [(2, 0, 0, 0)],
    ]
    trace = tmp_path / "trace.log"
    trace.write_text(
        "".join(
            LINE.format(1795228977 + number, place, slot, gpa, size, HOST + offset)
            for number, changes in enumerate(transactions)
            for place, (slot, gpa, size, offset) in enumerate(changes)
        )
    )
    made = plan(read(trace), dirty_log=True)
    yield made
    made.close()


class WritesInBetween(KernelLoggedEngine):
    """In the last transaction a vCPU writes between the taking of the log and the call that frees it."""

    waited = 0

    def _take(self, keys: Iterable[SlotKey]) -> None:
        keys = list(keys)
        super()._take(keys)
        if len(self._changes) != 1:
            return
        slot = self._engine.slot(keys[0].slot, keys[0].as_id)
        assert slot is not None
        copied = self.copied
        words = [word for word in copied._words if slot.userspace_addr <= word < slot.hva(slot.end_gfn)]
        end = time.monotonic() + DEADLINE_S
        while all(copied._read(word) == copied._words[word] for word in words):
            assert time.monotonic() < end, "no vCPU writes"
            time.sleep(0.0005)
        self.waited += 1


def logged_by(steps: Plan, name: str, engine_type: type[KernelLoggedEngine]) -> tuple[KernelLoggedEngine, int]:
    """Apply all steps by a design, each when all words before it are written; and the pages that nobody has."""
    with KvmLoadEngine(1) as engine:
        apply = find(name).prepare(engine)
        engine.set_access(Access(writes=1.0, fetches=0.0))
        logged = engine_type(engine, Copied(steps))
        engine.start()
        for step in steps.steps:
            since = {word: steps.memory.word(word) for word in steps.words}
            engine.set_load(step.load)
            words = [target.old for target in step.load.targets if target.old]
            end = time.monotonic() + DEADLINE_S
            while any(steps.memory.word(word) == since[word] for word in words):
                assert time.monotonic() < end, "no vCPU writes"
                time.sleep(0.0005)
            apply(logged.of(step.changes), step.changes)
            engine.set_load(Load())
        engine.pause()
        for slot in engine.slots():
            logged.of([]).set_memory_region(Change(slot.id))
        missing = logged.copied.missing()
        engine.resume()
        return logged, missing


def test_every_write_is_in_a_log_where_vcpus_are_stopped(steps: Plan) -> None:
    logged, missing = logged_by(steps, "pause", KernelLoggedEngine)
    assert missing == 0
    assert logged.copied.pages >= 8, "little was logged, so little was shown"


def test_logs_that_nobody_takes_are_missed(steps: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelLoggedEngine, "_log", lambda _self, _slot: None)
    assert logged_by(steps, "pause", KernelLoggedEngine)[1] >= 8


@pytest.mark.parametrize("name", ["sequential", "exit_retry"])
def test_a_log_that_is_taken_before_lacks_what_is_written_in_between(steps: Plan, name: str) -> None:
    logged, missing = logged_by(steps, name, WritesInBetween)
    assert isinstance(logged, WritesInBetween)
    assert logged.waited == 1
    assert missing >= 1


def test_what_the_kernel_frees_is_not_called_zero() -> None:
    trace = Path(__file__).parents[2] / "examples" / "traces" / "synthetic-open.txt"
    comparison = compare(
        read(trace), vcpus=(1,), designs=("pause",), repeat=1, interval_ms=0.5, engine="kvm", dirty_log=True
    )
    stream = io.StringIO()
    print_comparison(comparison, stream=stream)
    lines = stream.getvalue().splitlines()
    row = comparison.as_dict()["rows"][0]
    cells = next(line.split() for line in lines[lines.index("What logs had") :] if line.split()[:1] == ["pause"])
    assert row["dropped"] is None
    assert "every write was in a log" not in stream.getvalue(), "what the kernel frees nobody sees"
    assert cells[2:7] == ["stopped", str(row["logged"]), "0", "-", str(row["unlogged"])]
