"""A conform run: blocks of random calls from Hypothesis, both sides, the first divergence shrunk and explained.

Hypothesis draws a block at once, some 5 µs a call; drawn call by call, its rules alone would cost 150 µs each. What a
call is, Hypothesis does not know, so shrinking is done here, over calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ..errors import CapabilityError
from ..memslots.checks import Host
from ..memslots.versions import DIFFERENCES, VERSIONS
from .calls import CALL_BYTES, Answer, Call, decode_block
from .modelled import ModelledVm
from .promises import PROMISES, Promise
from .shrink import shrink

__all__ = [
    "BLOCK_CALLS",
    "Answers",
    "Divergence",
    "Outcome",
    "Side",
    "ask_model",
    "compare",
    "conform",
    "explain",
    "shortest_of",
]

BLOCK_CALLS = 256
_ROUND = 50
Answers = list[Answer | None]
"""One a call; None where a call was left out, because the model cannot say what comes of it."""


class Side(Protocol):
    """Who answers a sequence of calls on a new VM: a kernel, or a log of one."""

    name: str

    def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
        """The answers; calls whose expected answer is None are left out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """The shortest sequence found that a kernel answers otherwise than the model does."""

    calls: tuple[Call, ...]
    expected: tuple[Answer | None, ...]
    answered: tuple[Answer | None, ...]
    known: str = ""
    """The difference between kernel versions that explains it, if one does."""

    @property
    def at(self) -> int:
        """Index of the first call that is answered otherwise."""
        return next(i for i, (a, b) in enumerate(zip(self.expected, self.answered, strict=True)) if a != b)


@dataclasses.dataclass(slots=True)
class Outcome:
    """What a run did. ``seen``: how often each (call, errno) was answered, 0 for success."""

    name: str
    calls: int = 0
    blocks: int = 0
    seen: Counter[tuple[str, int]] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    model_seconds: float = 0.0
    """Processor time of the model."""
    kernel_seconds: float = 0.0
    divergence: Divergence | None = None
    known: Counter[str] = dataclasses.field(default_factory=Counter)
    """Differences between versions that were met, by name, and in how many blocks."""

    def checks(self, promise: Promise) -> int:
        """How many calls of this run spoke of ``promise``."""
        return sum(self.seen[key] for key in promise.seen_in)

    @property
    def unchecked(self) -> list[str]:
        """Promises that no call spoke of."""
        return [promise.name for promise in PROMISES if not self.checks(promise)]


def ask_model(host: Host, calls: Sequence[Call]) -> Answers:
    """The model's answers on a new VM."""
    vm = ModelledVm(host)
    return [vm.answer(call) for call in calls]


def compare(host: Host, side: Side, calls: Sequence[Call]) -> tuple[Answers, Answers]:
    """Both sides' answers to ``calls``, each on a new VM."""
    expected = ask_model(host, calls)
    return expected, side.answers(calls, expected)


def _blocks(seed: int, count: int) -> Iterator[list[Call]]:
    """``count`` blocks drawn by Hypothesis; CapabilityError if it is not installed."""
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError:
        raise CapabilityError("conform: Hypothesis is not installed; pip install 'guestmem[conform]'") from None
    drawn: list[bytes] = []
    size = CALL_BYTES * (BLOCK_CALLS + 1)
    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def collect(block: bytes) -> None:
        drawn.append(block)

    given: Any = hypothesis.given(strategies.binary(min_size=size, max_size=size))(collect)
    hypothesis.seed(seed)(settings(given))()
    for block in drawn:
        yield decode_block(block)


def conform(
    host: Host,
    side: Side,
    *,
    steps: int = 100_000,
    seconds: float | None = None,
    seed: int = 1,
    blocks: Callable[[int, int], Iterator[list[Call]]] = _blocks,
    recorder: Callable[[Sequence[Call], Answers], None] | None = None,
) -> Outcome:
    """Compare until ``steps`` calls agreed, ``seconds`` are over, or an answer differs for no known reason.

    ``seed`` decides the calls; ``blocks(seed, count)`` draws them; ``recorder`` gets each block and its answers.
    """
    outcome = Outcome(side.name)
    begun = time.perf_counter()
    turn = 0
    while True:
        count = _ROUND if seconds is not None else min(_ROUND, -(-(steps - outcome.calls) // (BLOCK_CALLS // 2)))
        for calls in blocks(seed * 1_000_003 + turn, max(count, 1)):
            _block(host, side, calls, outcome, recorder)
            outcome.seconds = time.perf_counter() - begun
            over = outcome.calls >= steps if seconds is None else bool(outcome.calls) and outcome.seconds >= seconds
            if outcome.divergence is not None or over:
                return outcome
        turn += 1


def _block(
    host: Host,
    side: Side,
    calls: list[Call],
    outcome: Outcome,
    recorder: Callable[[Sequence[Call], Answers], None] | None,
) -> None:
    begun = time.thread_time()
    expected = ask_model(host, calls)
    outcome.model_seconds += time.thread_time() - begun
    asked = time.perf_counter()
    answered = side.answers(calls, expected)
    outcome.kernel_seconds += time.perf_counter() - asked
    outcome.calls += len(calls)
    outcome.blocks += 1
    if recorder is not None:
        recorder(calls, answered)
    for call, answer in zip(calls, answered, strict=True):
        if answer is not None:
            outcome.seen[call.kind, -min(answer.result, 0)] += 1
    if expected == answered:
        return
    known = explain(host, calls, answered)
    if known:
        outcome.known[known] += 1
        return

    shortest = shortest_of(calls, expected, answered, lambda tried: compare(host, side, tried))
    first, second = compare(host, side, shortest)
    outcome.divergence = Divergence(tuple(shortest), tuple(first), tuple(second))


def shortest_of(
    calls: Sequence[Call],
    expected: Answers,
    answered: Answers,
    ask: Callable[[Sequence[Call]], tuple[Answers, Answers]],
) -> list[Call]:
    """The shortest sequence that diverges as ``calls`` do: in the same kind of call, with the same two results.

    ``ask`` gets both sides' answers. What comes after the first difference is dropped.
    """

    def difference(tried: Sequence[Call], first: Answers, second: Answers) -> tuple[str, int, int, bool] | None:
        for call, a, b in zip(tried, first, second, strict=True):
            if a is not None and b is not None and a != b:
                return call.kind, a.result, b.result, a.exits == b.exits
        return None

    wanted = difference(calls, expected, answered)
    end = 1 + next(i for i, (a, b) in enumerate(zip(expected, answered, strict=True)) if a != b)
    return shrink(calls[:end], lambda tried: difference(tried, *ask(tried)) == wanted)


def explain(host: Host, calls: Sequence[Call], answered: Answers) -> str:
    """The known difference between versions under which the model gives these answers; "" if there is none."""
    for name in DIFFERENCES:
        for version in VERSIONS:
            other = getattr(version, name)
            if other == getattr(host.version, name):
                continue
            changed = dataclasses.replace(host.version, **{name: other})
            if ask_model(dataclasses.replace(host, version=changed), calls) == answered:
                return f"{name} as in {version}: {DIFFERENCES[name]}"
    return ""
