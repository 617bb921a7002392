"""Random true histories, rendered in each format and damaged at random: a verdict may be unknown, never wrong.

The whole campaign is a command, ``python tests/support/verdict_campaign.py COUNT SEED``; this is a slice of it, and
shows that it catches a wrong rule, and a renderer that leaves out what a recorder would have told.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import renderings
import verdict_campaign
from guestmem.check import judgement, verdict
from guestmem.traces import RunState, Where, returns, whereabouts
from true_histories import simulate

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from guestmem.traces import Stretch, Vcpu
    from true_histories import History

SLICE = 1500
TRUE = ("true_histories", "renderings")
"""What knows what truly happened."""


def told(tally: verdict_campaign.Tally) -> str:
    return verdict_campaign.told(tally)


def test_no_verdict_of_a_slice_is_wrong_and_each_is_given(rng: random.Random) -> None:
    tally = verdict_campaign.campaign(SLICE, rng.randrange(1 << 32))
    assert not tally.wrong, told(tally)
    total = sum(tally.verdicts.values())
    assert total > 0.9 * SLICE, told(tally)
    for word in ("open", "closed", "unknown"):
        assert tally.verdicts[word] > total / 10, told(tally)


def test_the_simulator_knows_nothing_of_what_it_tests() -> None:
    folder = Path(verdict_campaign.__file__).parent
    for name in (*TRUE, "rare_renderings"):
        modules = set()
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                modules |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module or "")
        assert modules <= {
            "__future__",
            "dataclasses",
            "typing",
            "random",
            "collections.abc",
            "true_histories",
            "renderings",
        }


def test_a_history_is_true_to_itself(rng: random.Random) -> None:
    """Guest mode lies between an entry and an exit, one vCPU does one thing at a time, and calls hold their effect."""
    for _ in range(300):
        history = simulate(rng)
        for vcpu in history.vcpus:
            times = [each.time for each in vcpu.events]
            assert times == sorted(times)
            entries = {each.time for each in vcpu.events if each.kind == "entry"}
            exits = {each.time for each in vcpu.events if each.kind == "exit"}
            spans = sorted([*vcpu.in_guest, *vcpu.served])
            assert all(start in entries and end in exits for start, end in vcpu.in_guest)
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        assert all(call.began < call.effect < call.ended for call in history.calls)


# Each a rule that is wrong in one place: what an earlier version said, or what is tempting. With it a seed from which
# on a wrong verdict is soon found.
WRONG_RULES = {
    "KVM_RUN is the guest": 0,
    "what is not known is outside": 0,
    "a delete has effect when it returns": 200,
    "losses do not matter": 1500,
    "an exit never continues the one before": 1100,
    "who is served sees nothing": 8200,
}


@pytest.mark.parametrize("wrong", WRONG_RULES)
def test_a_wrong_rule_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(before: Where, after: Where) -> None:
        for name in ("stretches", "inside"):
            told = getattr(RunState, name)

            def changed(*arguments: Any, told: Callable[..., Sequence[Stretch]] = told, **named: Any) -> Any:
                found = told(*arguments, **named)
                return tuple(each._replace(where=after) if each.where is before else each for each in found)

            monkeypatch.setattr(RunState, name, changed)

        monkeypatch.setattr(RunState, "gaps", lambda *_: None)  # piece by piece

    if wrong == "KVM_RUN is the guest":
        proves = verdict._open

        def anyhow(window: verdict.Window, vcpu: Vcpu, run_state: RunState) -> judgement.Finding | None:
            low, high = window.core_start, window.core_end
            pieces = run_state.stretches(vcpu, low, high) if window.has_core else ()
            if any(each.where is Where.RUN and each.start <= low and high <= each.end for each in pieces):
                return judgement.Finding("in-guest", vcpu, "in KVM_RUN")
            return proves(window, vcpu, run_state)

        monkeypatch.setattr(verdict, "_open", anyhow)
    elif wrong == "what is not known is outside":
        renamed(Where.UNKNOWN, Where.USER)
    elif wrong == "who is served sees nothing":
        renamed(Where.KVM, Where.USER)
    elif wrong == "losses do not matter":
        monkeypatch.setattr(whereabouts, "_with_losses", lambda piece, *_: iter([piece]))
    elif wrong == "an exit never continues the one before":
        monkeypatch.setattr(returns, "continues", lambda *_: False)
    else:
        window_of = verdict.window_of

        def late(*arguments: object) -> verdict.Window:
            window = window_of(*arguments)  # type: ignore[arg-type]
            return window._replace(start=max(window.start, window.core_start))

        monkeypatch.setattr(verdict, "window_of", late)
    assert caught(WRONG_RULES[wrong]), wrong


def test_a_wrong_renderer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that loses events and leaves no marker, so that nobody could know."""
    whole = renderings.tracepoints

    def without_markers(history: History, rng: random.Random, changes: object = ()) -> str:
        text = whole(history, rng, changes)  # type: ignore[arg-type]
        return "".join(line for line in text.splitlines(keepends=True) if "LOST" not in line and "DROPPED" not in line)

    monkeypatch.setattr(renderings, "tracepoints", without_markers)
    assert caught(1600)


def caught(seed: int = 0, most: int = 12000, step: int = 100) -> str:
    """The first wrong verdict that is found from ``seed`` on, in words; '' if there is none."""
    for first in range(seed, seed + most, step):
        wrong = verdict_campaign.campaign(step, first).wrong
        if wrong:
            return wrong[0]
    return ""
