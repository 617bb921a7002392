"""Many holes that are judged at once have the verdicts, rules and reasons that each would have by itself."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rare_renderings
import renderings
from guestmem import traces
from guestmem.check import check, report, vcpu_columns
from guestmem.check.verdict import judge
from guestmem.errors import TraceError
from guestmem.traces.columns import CREATE, DELETE, NO_SLOT, Changes
from guestmem.traces.event_words import FORGOTTEN
from guestmem.traces.evidence import Irqchip, Loss
from guestmem.traces.recorder import BEGIN_WORD, ELSEWHERE_WORD, end_word, entry_word, exit_word, user_exit_word
from guestmem.traces.run_state import RunState, Vcpu
from guestmem.traces.whereabouts import Kinds, Track
from true_histories import simulate

if TYPE_CHECKING:
    import random

    from guestmem.check.at_once import Asked
    from guestmem.check.judgement import Judgement

AtOnce = pytest.importorskip("guestmem.check.at_once").AtOnce
ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "examples" / "traces", ROOT / "tests" / "traces" / "cases")
FILES = sorted(path for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".log", ".txt", ".strace"))
FORMS = (
    renderings.strace,
    renderings.qemu_kvm_log,
    renderings.bpftrace,
    rare_renderings.strace_with_options,
    rare_renderings.simpletrace,
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many holes were judged at once, by rule, and how many were left to ``judge``; few are many here."""
    counted: Counter[str] = Counter()
    judgements = AtOnce.judgements

    def counts(self: Any, asked: Asked) -> list[Judgement | None]:
        found: list[Judgement | None] = judgements(self, asked)
        counted.update("left" if each is None else each.rule.name for each in found)
        return found

    monkeypatch.setattr(AtOnce, "judgements", counts)
    return counted


def agrees(timeline: traces.Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MANY_AT_ONCE", 1 << 60)
    alone = check(timeline, jobs=1)
    monkeypatch.setattr(report, "MANY_AT_ONCE", 0)
    together = check(timeline, jobs=1)
    assert together.as_dict() == alone.as_dict()
    assert list(together.holes) == list(alone.holes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_of_recordings(path: Path, monkeypatch: pytest.MonkeyPatch, told: Counter[str]) -> None:
    try:
        timeline = traces.read(path)
    except TraceError:
        return
    agrees(timeline, monkeypatch)


def test_of_true_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random, told: Counter[str]
) -> None:
    path = tmp_path / "trace"
    for _ in range(30):
        for form in FORMS:
            path.write_text(form(simulate(rng), rng))
            try:
                timeline = traces.read(path)
            except TraceError:
                continue
            agrees(timeline, monkeypatch)
    assert told.total() > 60


WORDS = [
    *(entry_word(cpu, immediate) for cpu in (1, 2) for immediate in (False, False, True)),
    *(exit_word(cpu, reason) for cpu in (1, 2) for reason in ("EXTERNAL_INTERRUPT", "IO_INSTRUCTION", "WHAT", "CPUID")),
    *(user_exit_word(1, reason, errno) for reason, errno in ((2, ""), (6, ""), (5, ""), (None, ""), (None, "EINTR"))),
    *(end_word(reason, errno) for reason, errno in ((2, ""), (6, ""), (5, ""), (17, ""), (None, ""), (None, "EINTR"))),
    *(BEGIN_WORD, BEGIN_WORD, BEGIN_WORD, ELSEWHERE_WORD, FORGOTTEN),
]
IN_ORDER = {  # of one vCPU that nothing is lost of
    "tracepoints": (entry_word(1), exit_word(1, "CPUID"), entry_word(1), exit_word(1, "IO"), user_exit_word(1, 2)),
    "no guest": (entry_word(1), exit_word(1, "EXTERNAL_INTERRUPT"), user_exit_word(1, None, "EINTR")),
    "calls": (BEGIN_WORD, end_word(2), BEGIN_WORD, end_word(6), BEGIN_WORD, end_word(5), ELSEWHERE_WORD),
    "of no reason": (BEGIN_WORD, end_word()),
}


def any_track(rng: random.Random, form: str) -> Track:
    """Events in order, of which some have one stamp; or whatever there is, in any order."""
    track, now, count = (
        Track(calls=form in ("calls", "of no reason") or rng.random() < 0.2),
        0,
        rng.choice((1, 60, 120)),
    )
    words = IN_ORDER.get(form)
    pauses = rng.choice(((0, 1, 1, 2), (1, 1, 2, 5), (1, 40)))
    for i in range(count):
        now += rng.choice(pauses)
        track.add(float(now), words[i % len(words)] if words and rng.random() < 0.98 else rng.choice(WORDS))
    return track


def any_run_state(rng: random.Random) -> RunState:
    form = rng.choice((*IN_ORDER, *IN_ORDER, "any"))
    is_traced = form in ("tracepoints", "no guest")
    kinds = [is_traced, is_traced, is_traced] if rng.random() < 0.8 else [rng.random() < 0.5 for _ in range(3)]
    return RunState.of_tracks(
        {Vcpu(7 + i, i): any_track(rng, form) for i in range(rng.choice((1, 1, 2, 3)))},
        first=0.0,
        last=rng.choice((30.0, 60.0, 90.0)),
        source="",
        kinds=Kinds(*kinds),
        losses=[Loss(None, 5.0, 6.0)] if rng.random() < 0.03 else [],
        resolution=rng.choice((0.1, 0.5, 0.5, 1.0)),
        irqchip=rng.choice(list(Irqchip)),
        missing=(9,) if rng.random() < 0.03 else (),
    )


def any_changes(rng: random.Random, count: int) -> tuple[Changes, Asked]:
    """Deletes and the creates that bring back what they took, stamped at the begin, the end, or both."""
    changes, asked = Changes(), []
    for _ in range(count):
        first, now, thread = len(changes), rng.randrange(50), rng.choice((7, 8, 50, 50, None))
        parts = rng.choice((1, 1, 1, 2))
        for kind, size in (*[(DELETE, 0)] * parts, *[(CREATE, 1)] * parts):
            began, ended = now + rng.choice((0, 1)), now + rng.choice((1, 2, 6))
            times = [float(began), float(ended)]
            for i in (0, 1):
                times[i] = math.nan if rng.random() < 0.01 else times[i]
            changes.append(0, 0, size, 0, 0, kind, NO_SLOT, 1, 0, thread, float(rng.choice((began, ended))), *times)
            now = ended + rng.choice((0, 0, 1, 9))
        indices = range(first, len(changes))
        pairs = [(i, i + parts) for i in range(first, first + parts)]
        asked.append((indices, [(i, i + 1, *pair, True) for i, pair in enumerate(pairs)]))
    return changes, asked


def test_of_anything(rng: random.Random, told: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of vCPUs that fit together or not, of few stamps, and windows anywhere among them, some at once."""
    for _ in range(400):
        run_state = any_run_state(rng)
        changes, asked = any_changes(rng, 40)
        resolution = rng.choice((0.1, 0.5))
        together, portion = AtOnce(changes, run_state, resolution), rng.choice((1, 3, 40))
        monkeypatch.setattr(vcpu_columns, "_BESIDE", rng.choice((2, 3, 16)))
        monkeypatch.setattr(vcpu_columns, "_PORTION", rng.choice((1, 7, 4096)))
        found = [
            judgement
            for first in range(0, len(asked), portion)
            for judgement in together.judgements(asked[first : first + portion])
        ]
        for (indices, returned), judgement in zip(asked, found, strict=True):
            if judgement is not None:
                assert judgement == judge(changes, indices, returned, run_state, resolution)
    assert told.total() - told["left"] > 1000
    kinds = {
        "in-guest",
        "guest-exit",
        "outside",
        "kvm-run",
        "run-no-irqchip",
        "served",
        "begin-unknown",
        "edge",
        "died",
    }
    assert {name for name, count in told.items() if count > 10} >= kinds
