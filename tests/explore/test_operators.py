"""A mutation by operation changes what it says and nothing else, or says that there is no such place."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

import pytest

import guestmem
from guestmem import UsageError
from guestmem.explore import operators as op
from guestmem.explore.mutants import mutants

ROOT = Path(guestmem.__file__).parent
SRCU, PHASES, LOCK = "rcu/srcu.py", "memslots/phases.py", "engines/kvm/update_lock.py"


def changed(texts: tuple[str, str, str]) -> list[str]:
    """Lines that go (-) and come (+)."""
    _, old, new = texts
    ast.parse(new)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    return [line[0] + line[1:].strip() for line in lines if line[:2] not in {"--", "++", "@@"}]


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (op.drop_fence(SRCU, "srcu_enter"), ["-fence()", "+pass"]),
        (
            op.weaken(PHASES, "publish", "store_release"),
            ["-store_release(memslots, desk[SPACE], edited)", "+store_relaxed(memslots, desk[SPACE], edited)"],
        ),
        (op.drop_call(PHASES, "open_change", "mark"), ["-mark(memslots, desk, desk[ASKED_SLOT])", "+pass"]),
        (op.never(PHASES, "settle"), ["-if desk[PHASE] == MARKS_SWAPPED:", "+if False:"]),
        (op.always(PHASES, "settle", 1), ["-elif desk[PHASE] == SWAPPED:", "+elif True:"]),
        (op.drop_statement(PHASES, "publish", "desk[OTHER] = edited"), ["-desk[OTHER] = edited", "+pass"]),
        (
            op.swap(PHASES, "publish", "desk[EDITED] ="),
            ["-desk[OTHER] = edited", "+desk[OTHER] = edited"],
        ),
        (
            op.drop_operand(PHASES, "open_change", 0, 0),
            ["-if create and CREATE < kind <= NOTHING:", "+if ((CREATE < kind <= NOTHING)):"],
        ),
        (op.skip(PHASES, "publish", 1), ["-desk[PHASE] = SWAPPED", "+pass"]),
        (
            op.other_bound(SRCU, "srcu_wait_for", 1),
            ["-while newest < cookie:", "+while newest <= cookie:"],
        ),
        (
            op.other_bound("memslots/lookup.py", "find_in"),
            [
                "-if load_relaxed(memslots, entry) <= gfn < load_relaxed(memslots, entry + fanout + fanout):",
                "+if load_relaxed(memslots, entry) <= gfn <= load_relaxed(memslots, entry + fanout + fanout):",
            ],
        ),
        (
            op.swap_at(SRCU, "srcu_enter"),
            ["-fence()", "+fence()"],
        ),
    ],
)
def test_an_operator_changes_what_it_says(texts: tuple[str, str, str], lines: list[str]) -> None:
    file, old, _ = texts
    assert (ROOT / file).read_text().count(old) == 1
    assert sorted(changed(texts)) == sorted(lines)


def test_a_branch_goes_with_all_that_is_in_it() -> None:
    _, old, new = op.drop_branch(PHASES, "settle")
    assert old.count("return") == new.count("return") + 1


def test_a_step_of_one_is_left_out() -> None:
    gone = changed(op.off_by_one("stage2/retry.py", "invalidate_end"))
    assert len(gone) == 2
    assert gone[0].count("ONE") == gone[1].count("ONE") + 1


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (op.drop_fence, (SRCU, "srcu_enter", 7)),
        (op.drop_call, (SRCU, "srcu_enter", "nothing")),
        (op.weaken, (PHASES, "publish", "store_release", 1)),
        (op.drop_statement, (PHASES, "publish", "x = 1")),
        (op.swap, (PHASES, "publish", "return")),
        (op.drop_operand, (PHASES, "open_change", 0, 9)),
        (op.never, (PHASES, "no_such_function")),
        (op.skip, (SRCU, "srcu_enter", 9)),
        (op.swap_at, (SRCU, "srcu_enter", 9)),
        (op.other_bound, (SRCU, "srcu_enter", 9)),
    ],
)
def test_a_place_that_is_not_there_is_said(operator: object, arguments: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="mutation: "):
        operator(*arguments)  # type: ignore[operator]


def test_every_mutant_applies() -> None:
    for mutant in mutants():
        texts: dict[str, str] = {}
        for each in mutant.mutations:
            text = texts.setdefault(each.file, (ROOT / each.file).read_text())
            assert text.count(each.old) == 1, (mutant.name, each.old)
            texts[each.file] = text.replace(each.old, each.new)
        for text in texts.values():
            ast.parse(text)
