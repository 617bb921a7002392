"""The judge says of each history what a search through all orders says; its witness alone is contradictory."""

from __future__ import annotations

import random

import pytest

from guestmem.explore import load
from guestmem.history import Access, Update, Verdict, judge

BEGIN, LOOP = 'at, latest, which = float("-inf"), None, 0', "for number in range(1, count + 1):"
MUTANTS = {
    "the latest start is not the latest": ("access.start > held.start", "access.start < held.start"),
    "the earliest end is not the earliest": ("access.end < held.end", "access.end > held.end"),
    "updates before do not hold": (f"{BEGIN}\n    {LOOP}", f"{LOOP}\n        {BEGIN}"),
    "touching intervals contradict": ("high.end < at:", "high.end <= at:"),
    "an update's beginning does not count": ("if window.start > at:", "if False:"),
    "an update's end does not count": ("if window.end < at:", "if False:"),
}


def explained(accesses: list[Access], updates: list[Update]) -> bool:
    """Wing and Gong: from all that is pending take one before which nothing else must have been, and go on."""
    done: set[tuple[frozenset[int], int]] = set()

    def search(pending: frozenset[int], state: int) -> bool:
        if not pending and state == len(updates):
            return True
        if (pending, state) in done:
            return False
        done.add((pending, state))
        spans = [(accesses[i].start, accesses[i].end) for i in pending]
        spans += [(each.start, each.end) for each in updates[state:]]
        first = min(end for _, end in spans)
        if state < len(updates) and updates[state].start <= first and search(pending, state + 1):
            return True
        return any(
            accesses[i].start <= first and fits(accesses[i], state) and search(pending - {i}, state) for i in pending
        )

    return search(frozenset(range(len(accesses))), 0)


def fits(access: Access, state: int) -> bool:
    return any(
        after <= state and (before is None or state < before)
        for after, before in ((access.after, access.before), *access.others)
    )


def drawn(rng: random.Random) -> tuple[list[Access], list[Update]]:
    count = rng.choice([1, 1, 2, 3])
    updates = []
    for number in range(1, count + 1):
        start = rng.randrange(12)
        wide = rng.random() < 0.5
        updates.append(Update(number) if wide else Update(number, start, start + rng.randrange(8)))
    accesses = []
    for _ in range(rng.randrange(1, 6)):
        start = rng.randrange(12)
        after = rng.randrange(count + 1)
        before = rng.choice([None, *range(after + 1, count + 1)])
        accesses.append(Access(start, start + rng.randrange(6), after, before))
    return accesses, updates


def disagreement(rounds: int, seed: int, decide: object) -> str:
    rng = random.Random(seed)
    for _ in range(rounds):
        accesses, updates = drawn(rng)
        found = decide(accesses, updates)  # type: ignore[operator]
        if (found.verdict.value == "fail") == explained(accesses, updates):
            return f"{found}: {accesses} {updates}"
        if found.verdict.value == "fail" and found.witness and explained(list(found.witness), updates):
            return f"the witness contradicts nothing: {found}"
    return ""


def test_on_random_histories(seed: int) -> None:
    assert disagreement(4000, seed, judge) == ""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_judge_is_caught(name: str, seed: int) -> None:
    with load([("history/judge.py", *MUTANTS[name])]) as twin:
        history = twin.room("history")

        def decide(accesses: list[Access], updates: list[Update]) -> object:
            given = [history.Access(each.start, each.end, each.after, each.before) for each in accesses]
            return history.judge(given, [history.Update(each.number, each.start, each.end) for each in updates])

        assert disagreement(4000, seed, decide)


def test_instants_explain_all_accesses(rng: random.Random) -> None:
    passed = 0
    for _ in range(4000):
        accesses, updates = drawn(rng)
        found = judge(accesses, updates)
        if found.verdict is Verdict.PASS:
            passed += 1
            assert list(found.instants) == sorted(found.instants)
            exact = [Update(each.number, at, at) for each, at in zip(updates, found.instants, strict=True)]
            assert explained(accesses, exact)
    assert passed > 100


def test_what_was_not_seen_from_both_sides_is_no_pass() -> None:
    assert judge([]).verdict is Verdict.UNKNOWN
    assert judge([Access.old(0, 1)]).reason == "no access saw update 1 done, of 1"
    assert judge([Access.new(0, 1)]).reason == "no access saw update 1 not done, of 1"
    both = [Access.old(0, 1), Access.new(5, 6)]
    assert judge(both).verdict is Verdict.PASS
    assert judge(both, 2).reason == "no access saw update 2 done, of 2"


def test_one_that_saw_what_never_was_fails_alone() -> None:
    wrong = Access(1, 2, neither=True, who="vCPU 3")
    found = judge([Access.old(0, 1), wrong])
    assert (found.verdict, found.witness, found.reason) == (Verdict.FAIL, (wrong,), "vCPU 3 saw what was never there")


def test_what_can_be_explained_in_several_ways_is_never_a_failure(rng: random.Random) -> None:
    for _ in range(3000):
        accesses, updates = drawn(rng)
        spare = Access(rng.randrange(12), 20, 0, 1, ((1, None),))
        found = judge([*accesses, spare], updates)
        truth = explained([*accesses, spare], updates)
        if found.verdict is Verdict.PASS:
            assert truth
        if found.verdict is Verdict.FAIL:
            assert not truth


def test_bad_histories_are_refused() -> None:
    with pytest.raises(ValueError, match="it ends at 1, before it starts at 2"):
        Access(2, 1)
    with pytest.raises(ValueError, match="after update 2 and before update 1 cannot both be"):
        Access(0, 1, 2, 1)
    with pytest.raises(ValueError, match="it saw update 2, and there are 1"):
        judge([Access.old(0, 1, 2)])
    with pytest.raises(ValueError, match="not numbered 1, 2"):
        judge([], [Update(2)])
    with pytest.raises(ValueError, match="updates: 0 is not at least 1"):
        judge([], 0)
