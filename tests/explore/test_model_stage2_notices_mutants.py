"""Each stage-2 mutant is found by each of its models, by the property named here."""

from __future__ import annotations

import pytest

from guestmem.explore import explore
from guestmem.explore.models import find
from guestmem.explore.mutants import Mutant
from guestmem.explore.mutants.stage2 import MUTANTS
from slices import one_in

pytestmark = pytest.mark.slow

GIVEN_BACK = "5: a table was given back before its entry was invalidated"
REACHED = "the host page was freed, and the vCPU still reaches it"
LOOKED = "nobody looks at a table page that was given back"
SOUND = "the table is sound, nothing leaked or freed twice"
PLAIN = "4: a plain store by a thread that has neither the entry nor the lock"
NO_FLAG = "the access left no flag"
AT_ONCE = "a block and a page are there at once"
FOUND_BY = {
    "stage2-range-base": GIVEN_BACK,
    "stage2-table-level-hint": GIVEN_BACK,
    "stage2-level-zero": GIVEN_BACK,
    "stage2-deferred-table": GIVEN_BACK,
    "stage2-relax-keeps-stale": "the right is in the table, and the vCPU faults again",
    "stage2-split-no-tlbi": "4: the lock is dropped before this was invalidated",
    "stage2-protect-no-flush": "no write is lost to the copy",
    "stage2-age-no-flush": "an access after the aging left no flag",
    "stage2-only-leaves": REACHED,
    "stage2-combined-first": REACHED,
    "stage2-age-one": "1 of 2 pages were young",
    "stage2-accumulated-address": "all maps to its own memory",
    "stage2-stale-child": "5: used by the thread that gave the page back",
    "stage2-eagain-swallowed": "what was mapped is there",
    "stage2-root-kept": SOUND,
    "stage2-put-twice": SOUND,
    "stage2-level-too-deep": SOUND,
    "stage2-free-at-once": LOOKED,
    "stage2-no-section": LOOKED,
    "stage2-no-read-lock": LOOKED,
    "stage2-subtree-not-waited": SOUND,
    "stage2-subtree-no-wake": "deadlock",
    "stage2-subtree-no-fence": "deadlock",
    "stage2-plain-break": PLAIN,
    "stage2-plain-rights": PLAIN,
    "stage2-refs-no-second-look": "all maps to its own memory",
    "stage2-recover-plain": NO_FLAG,
    "stage2-modifier-stays": "what was write-protected is writable again",
    "stage2-plain-change": NO_FLAG,
    "stage2-plain-break-flags": NO_FLAG,
    "stage2-split-drops-flags": NO_FLAG,
    "stage2-collapse-drops-flags": NO_FLAG,
    "stage2-bbm-drops-flags": NO_FLAG,
    "stage2-bbm1-without-nt": "what is cached is in the table",
    "stage2-bbm1-as-2": AT_ONCE,
    "stage2-bbm2-no-tlbi": "what is cached is in the table",
    "stage2-rest-not-cleared": SOUND,
    "stage2-rest-lost": "no page is lost",
    "stage2-donate-fails-late": "the donation said 12",
    "stage2-donate-unlocked": "the donation said 11",
}


@pytest.mark.parametrize("mutant", one_in(3, MUTANTS), ids=lambda mutant: mutant.name)
def test_found(mutant: Mutant) -> None:
    for name in mutant.models:
        weak = mutant.what.endswith("(weak memory)")
        report = explore(find(name), mutations=mutant.mutations, weak=weak, shrink_s=0)
        assert report.counterexamples, f"{name} does not notice {mutant.name}: {mutant.what}"
        assert FOUND_BY[mutant.name] in str(report.counterexamples[0].finding)


def test_names_and_origins() -> None:
    assert [mutant.name for mutant in MUTANTS] == list(FOUND_BY)
    assert sum(mutant.from_linux for mutant in MUTANTS) >= 8
