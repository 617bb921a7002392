"""A line that is damaged in any way is read, skipped or refused in one line, by every reader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz_traces.py"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_traces", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_traces"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["qemu", "strace", "ftrace", "perf trace", "bpftrace", "simpletrace"])
def test_a_slice_of_the_campaign(fuzz: Any, name: str) -> None:
    used, refused = fuzz.campaign(name, 2000, seed=3)
    assert used > 200
    assert refused > 20, "what names an event and cannot be read is refused"


def test_a_reader_that_raises_something_else_is_caught(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.traces.qemu.read_prefix", int)
    with pytest.raises(AssertionError, match="qemu, seed 3, line"):
        fuzz.campaign("qemu", 2000, seed=3)
