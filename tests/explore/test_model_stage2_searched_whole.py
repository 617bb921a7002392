"""The stage-2 models are clean in every schedule, both searches come to the same ends, and the bounds are as said."""

from __future__ import annotations

import pytest

from guestmem.explore import explore
from guestmem.explore.models import find, models
from slices import one_in

pytestmark = pytest.mark.slow

NAMES = [model.name for model in models() if model.name.startswith("stage2-")]
LARGE = {
    "stage2-collapse-rcu",
    "stage2-collapse-lock",
    "stage2-collapse-rwlock-3",
    "stage2-unmap-tlb",
    "stage2-unmap-defer",
    "stage2-bbm1-split",
    "stage2-bbm1-collapse",
    "stage2-bbm2-split",
    "stage2-bbm2-collapse",
    "stage2-bbm2-recover",
}
"""Those of some seconds: random runs here; `guestmem explore --all` searches them whole."""
WEAK = (
    "stage2-map",
    "stage2-map-refs",
    "stage2-look-refs",
    "stage2-relax",
    "stage2-relax-block",
    "stage2-split",
    "stage2-unmap-fills",
)
EXHAUSTIVE = [name for name in NAMES if find(name).exhaustive]


@pytest.mark.parametrize("name", one_in(4, (name for name in EXHAUSTIVE if name not in LARGE)))
def test_clean_and_complete(name: str) -> None:
    report = explore(find(name), weak=False)
    assert report.clean, report.counterexamples[0].story
    assert report.complete
    assert report.agree or not find(name).dpor


@pytest.mark.parametrize("name", WEAK)
def test_clean_under_weak_memory(name: str) -> None:
    report = explore(find(name))
    assert report.clean, report.counterexamples[0].story
    assert report.complete


@pytest.mark.parametrize("name", sorted(LARGE | {name for name in NAMES if not find(name).exhaustive}))
def test_clean_in_random_runs(name: str, seed: int) -> None:
    report = explore(find(name), weak=False, random=40, seed=seed)
    assert report.clean, report.counterexamples[0].story
