"""Designs on the path that production takes, searched whole: SoftEngine, a vCPU that exits, ``apply``."""

from __future__ import annotations

import pytest

from guestmem.explore.models import find
from guestmem.explore.outcome import Budget
from guestmem.explore.task import Task, run
from slices import only

pytestmark = pytest.mark.slow


WHOLE = (
    *("pause", "batch", "atomic", "atomic-phases", "readonly", "truncate", "split", "split-lookups"),
    *("gmem-convert", "spaces-comes", "spaces-writable"),
)


@pytest.mark.parametrize("design", only(("pause", "gmem-convert", "spaces-comes"), WHOLE))
def test_searched_whole(design: str) -> None:
    outcome = run(Task(find(f"production-{design}"), "states"), Budget())
    assert outcome.complete, outcome.stopped
    assert not outcome.findings
    assert outcome.finals


@pytest.mark.parametrize("design", ["sequential", "unacknowledged", "unacknowledged-phases", "gmem-unacknowledged"])
def test_a_design_that_is_known_to_be_wrong_is_found_to_be(design: str) -> None:
    outcome = run(Task(find(f"production-{design}"), "states"), Budget())
    assert [finding.kind for finding in outcome.findings] == ["assertion"]


def test_two_vcpus_on_one_file_are_searched_whole() -> None:
    outcome = run(Task(find("gmem-two-vcpus"), "states"), Budget())
    assert outcome.complete, outcome.stopped
    assert not outcome.findings
    assert outcome.finals
