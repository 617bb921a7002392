"""What is read a block at a time is what is read line by line: changes, holes, errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import renderings
from guestmem import traces
from guestmem.check import check
from guestmem.errors import TraceError
from guestmem.traces import reading
from guestmem.traces.lines import line_of
from true_histories import simulate

if TYPE_CHECKING:
    import random

ROOT = Path(__file__).parents[2]
FILES = sorted(
    each
    for folder in ("examples/traces", "tests/traces/cases")
    for each in (ROOT / folder).iterdir()
    if each.suffix in {".txt", ".log", ".strace", ".ftrace"}
)


def line_by_line(self: Any, number: int, block: str) -> int:
    texts = block.split("\n")[:-1]
    for i, text in enumerate(texts):
        self.take(number + i, line_of(text))
    return len(texts)


def told(path: Path) -> Any:
    """All that is known of a file; of vCPUs but for how many events they have, since lines tell some twice."""
    try:
        timeline = traces.read(path)
        report = check(timeline).as_dict()
    except TraceError as error:
        return str(error)
    report.pop("run_state")
    return list(timeline.changes), report


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    at_once = told(path)
    with monkeypatch.context() as patch:
        patch.setattr(reading._Lines, "take_block", line_by_line)
        return at_once, told(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_of_each_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, one_by_one = both(path, monkeypatch)
    assert at_once == one_by_one


def test_of_damaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Renderings of true histories, and pieces of recordings, with lines that are doubled, left out or cut."""
    plain = [each.read_text(errors="replace").splitlines(keepends=True) for each in FILES]
    forms = (renderings.strace, renderings.qemu_kvm_log, renderings.qemu_log, renderings.bpftrace)
    refused = read = 0
    for i in range(150):
        if i % 2:
            lines = rng.choice(forms)(simulate(rng), rng).splitlines(keepends=True)
        else:
            whole = rng.choice(plain)
            start = rng.randrange(len(whole)) if rng.random() < 0.5 else 0
            lines = whole[start : start + 400]
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(lines))
            lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at][: rng.randrange(1, 60)] + "\n"]))
            lines = lines or ["\n"]
        if rng.random() < 0.2:
            lines = list(itertools.chain.from_iterable((each, "kvm_entry\n", "noise\n") for each in lines))
        path = tmp_path / "trace"
        path.write_text("".join(lines))
        at_once, one_by_one = both(path, monkeypatch)
        assert at_once == one_by_one, f"{i}"
        refused += isinstance(at_once, str)
        read += not isinstance(at_once, str)
    assert min(refused, read) > 20
