"""Models of what hidden mutants showed to be missing (mutants/kinds.py): searched whole in a moment, and clean.

Those with fewer orders are searched whole, twice, where searches are held against each other (test_searches_agree.py),
those of stage 2 in test_model_stage2_searched_whole.py.
"""

from __future__ import annotations

import pytest

from guestmem.explore.models import find
from guestmem.explore.mutants.kinds import MUTANTS
from guestmem.explore.outcome import Budget
from guestmem.explore.task import Task, run
from slices import one_in

NAMES = [
    name
    for name in sorted({name for mutant in MUTANTS for name in mutant.models})
    if not name.startswith("stage2-") and not find(name).dpor
]


@pytest.mark.parametrize("name", one_in(3, NAMES))
def test_searched_whole(name: str) -> None:
    outcome = run(Task(find(name), "states"), Budget())
    assert outcome.complete, outcome.stopped
    assert not outcome.findings
    assert outcome.finals
