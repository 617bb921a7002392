"""A conform run: sequences of random calls, both sides, the first divergence shrunk and explained.

What a call is, Hypothesis, which draws them (``draw``), does not know, so shrinking is done here, over calls.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from ..abi.checks import Host
from ..abi.versions import DIFFERENCES, VERSIONS
from ..errors import UsageError
from .calls import Answer, Call
from .draw import drawn
from .modelled import ModelledVm
from .promises import PROMISES, Promise, Seen, only_promise, promise_of
from .shrink import shrink

__all__ = [
    "Answers",
    "Divergence",
    "Outcome",
    "Side",
    "ask_model",
    "ask_why",
    "compare",
    "conform",
    "difference",
    "explain",
    "explained",
    "shortest_of",
    "without_numbers",
]

_ROUND = 100
_LEAST = 10
"""VMs drawn at once. The first of a round are the simplest, and empty."""
_CALLS = 150
"""Calls on a VM, about."""
_TRIES = 5
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
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
    why: str = ""
    """The model's words for its answer."""
    other: str = "guestmem's model of KVM"
    """Whose answers ``expected`` are."""
    repeats: bool = True
    """Whether it was there again when the calls were made again."""
    interrupted: bool = False
    """Whether Ctrl-C ended the search for a shorter one, or for a known difference that explains it."""

    @property
    def at(self) -> int:
        """Index of the first call that is answered otherwise."""
        return next(i for i, (a, b) in enumerate(zip(self.expected, self.answered, strict=True)) if a != b)

    @property
    def promise(self) -> str:
        """The promise that the answer breaks, with its source; "" if there is none for it."""
        call, expected = self.calls[self.at], self.expected[self.at]
        answered = self.answered[self.at]
        said = promise_of((call.kind, -min(expected.result if expected else 0, 0), without_numbers(self.why)))
        return said or only_promise(call.kind, -min(answered.result if answered else 0, 0))


@dataclasses.dataclass(slots=True)
class Outcome:
    """What a run did. ``seen``: how often each answer was given, by the model's words for it."""

    name: str
    calls: int = 0
    blocks: int = 0
    seen: Counter[Seen] = dataclasses.field(default_factory=Counter)
    seconds: float = 0.0
    model_seconds: float = 0.0
    """Processor time of the model."""
    kernel_seconds: float = 0.0
    divergence: Divergence | None = None
    known: Counter[str] = dataclasses.field(default_factory=Counter)
    """Differences between versions that were met, by name, and in how many blocks."""
    interrupted: bool = False

    def checks(self, promise: Promise) -> int:
        """How many answers of this run spoke of ``promise``; 0 if not all of its cases were met."""
        return promise.checks(self.seen)

    def count(self, calls: Sequence[Call], answers: Answers, words: Sequence[str]) -> None:
        """Note what was answered on a VM, and the model's words for it."""
        self.calls += len(calls)
        self.blocks += 1
        for call, answer, why in zip(calls, answers, words, strict=True):
            if answer is not None:
                self.seen[call.kind, -min(answer.result, 0), without_numbers(why)] += 1

    @property
    def unchecked(self) -> list[str]:
        """Promises of which not every case was met."""
        return [promise.name for promise in PROMISES if not self.checks(promise)]


def without_numbers(why: str) -> str:
    """The model's words with # for each number.

    >>> without_numbers("slot 3: memory_size 0x1800 is not a multiple of 0x1000")
    'slot #: memory_size # is not a multiple of #'
    """
    return _NUMBERS.sub("#", why) if ":" in why else why


def ask_model(host: Host, calls: Sequence[Call]) -> Answers:
    """The model's answers on a new VM."""
    return ask_why(host, calls)[0]


def ask_why(host: Host, calls: Sequence[Call]) -> tuple[Answers, list[str]]:
    """The model's answers on a new VM, and its words for each."""
    vm = ModelledVm(host)
    answers: Answers = []
    words = []
    for call in calls:
        answers.append(vm.answer(call))
        words.append(vm.why)
    return answers, words


def compare(host: Host, side: Side, calls: Sequence[Call]) -> tuple[Answers, Answers]:
    """Both sides' answers to ``calls``, each on a new VM."""
    expected = ask_model(host, calls)
    return expected, side.answers(calls, expected)


def conform(
    host: Host,
    side: Side,
    *,
    steps: int = 100_000,
    seconds: float | None = None,
    seed: int = 1,
    blocks: Callable[[int, int], Iterable[list[Call]]] = drawn,
    recorder: Callable[[Sequence[Call], Answers], None] | None = None,
    pressed: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Compare until ``steps`` calls agreed, ``seconds`` are over, or an answer differs for no known reason.

    ``seed`` decides the calls; ``blocks(seed, count)`` draws them; ``recorder`` gets each block and its answers.
    Ctrl-C, or ``pressed()`` between two VMs, ends it, with what was done so far; while a divergence is made shorter,
    with the shortest found so far. UsageError if nothing is drawn.
    """
    run = _Run(host, side, recorder, pressed)
    outcome = run.outcome
    begun = time.perf_counter()
    turn = 0
    try:
        while True:
            count = _ROUND if seconds is not None else min(_ROUND, (steps - outcome.calls) // _CALLS + _LEAST)
            before = outcome.calls
            for calls in blocks(seed * 1_000_003 + turn, count):
                if pressed():
                    raise KeyboardInterrupt  # noqa: TRY301 - it ends as Ctrl-C does
                run.block(calls)
                outcome.seconds = time.perf_counter() - begun
                over = outcome.calls >= steps if seconds is None else bool(outcome.calls) and outcome.seconds >= seconds
                if outcome.divergence is not None or over:
                    return outcome
            if outcome.calls == before:
                raise UsageError("conform: no call was drawn")
            turn += 1
    except KeyboardInterrupt:
        outcome.seconds = time.perf_counter() - begun
        outcome.interrupted = True
        return outcome


class _Run:
    """A run in progress: the host as it was said to be, and as it turned out to be by known differences."""

    def __init__(
        self,
        host: Host,
        side: Side,
        recorder: Callable[[Sequence[Call], Answers], None] | None,
        pressed: Callable[[], bool],
    ) -> None:
        self.outcome = Outcome(side.name)
        self._host, self._side, self._recorder, self._pressed = host, side, recorder, pressed
        ask_model(
            host, [Call("region", (0, 1, 0, 0x1000, 0)), Call("get_log", (0, 0, 0))]
        )  # compiled once, not measured

    def block(self, calls: list[Call]) -> None:
        """Compare one sequence."""
        outcome = self.outcome
        begun = time.thread_time()
        expected, words = ask_why(self._host, calls)
        outcome.model_seconds += time.thread_time() - begun
        asked = time.perf_counter()
        answered = self._side.answers(calls, expected)
        outcome.kernel_seconds += time.perf_counter() - asked
        outcome.count(calls, answered, words)
        if self._recorder is not None:
            self._recorder(calls, answered)
        if expected != answered:
            try:
                self._differs(calls, expected, answered)
            except KeyboardInterrupt:  # the second Ctrl-C: the kernel is not asked any more
                self._divergence(self._host, calls, expected, answered, interrupted=True)

    def _differs(self, calls: list[Call], expected: Answers, answered: Answers) -> None:
        host = self._host
        for _ in range(
            1 + len(DIFFERENCES)
        ):  # a block may have several: those that are named, and then one that is not
            if expected == answered:
                return
            known, other = explained(host, calls, answered)
            if not known:
                shortest = shortest_of(calls, expected, answered, partial(compare, host, self._side), self._pressed)
                first, second = compare(host, self._side, shortest)
                if first == second:
                    self._divergence(host, calls, expected, answered, repeats=False)
                    return
                known, other = explained(host, shortest, second)
                if not known:
                    self._divergence(host, shortest, first, second, interrupted=self._pressed())
                    return
            for name in known:
                self.outcome.known[name] += 1
            host = other
            expected = ask_model(host, calls)
            answered = self._side.answers(calls, expected)

    def _divergence(
        self,
        host: Host,
        calls: Sequence[Call],
        expected: Answers,
        answered: Answers,
        *,
        repeats: bool = True,
        interrupted: bool = False,
    ) -> None:
        """Note it; what comes after the first difference is dropped."""
        at = next(i for i, (a, b) in enumerate(zip(expected, answered, strict=True)) if a != b)
        why = ask_why(host, calls)[1][at]
        end = at + 1
        self.outcome.divergence = Divergence(
            tuple(calls[:end]),
            tuple(expected[:end]),
            tuple(answered[:end]),
            why,
            repeats=repeats,
            interrupted=interrupted,
        )
        self.outcome.interrupted = interrupted


def difference(calls: Sequence[Call], expected: Answers, answered: Answers) -> tuple[str, int, int, bool, bool] | None:
    """What the first difference is: the kind of call, both results, whether logs and exits are the same."""
    for call, a, b in zip(calls, expected, answered, strict=True):
        if a is not None and b is not None and a != b:
            return call.kind, a.result, b.result, a.log == b.log, a.exits == b.exits
    return None


def shortest_of(
    calls: Sequence[Call],
    expected: Answers,
    answered: Answers,
    ask: Callable[[Sequence[Call]], tuple[Answers, Answers]],
    pressed: Callable[[], bool] = lambda: False,
) -> list[Call]:
    """The shortest sequence that diverges as ``calls`` do: in the same kind of call, with the same two results.

    ``ask`` gets both sides' answers. What comes after the first difference is dropped. Where making the calls again
    does not diverge again (in ``_TRIES`` tries), that is what is returned. Once ``pressed()`` nothing more is asked.
    """
    wanted = difference(calls, expected, answered)
    end = 1 + next(i for i, (a, b) in enumerate(zip(expected, answered, strict=True)) if a != b)
    cut = list(calls[:end])
    if not any(difference(cut, *ask(cut)) == wanted for _ in range(_TRIES)):
        return cut
    return shrink(cut, lambda tried: not pressed() and difference(tried, *ask(tried)) == wanted)


def explain(host: Host, calls: Sequence[Call], answered: Answers) -> str:
    """The known differences between versions under which the model gives these answers; "" if there are none."""
    return "; ".join(explained(host, calls, answered)[0])


def explained(host: Host, calls: Sequence[Call], answered: Answers) -> tuple[list[str], Host]:
    """The fewest known differences under which the model gives these answers, and the host that has them."""
    alternatives = {name: {getattr(version, name): version for version in reversed(VERSIONS)} for name in DIFFERENCES}
    for size in range(1, len(DIFFERENCES) + 1):
        for names in itertools.combinations(DIFFERENCES, size):
            for values in itertools.product(*(alternatives[name] for name in names)):
                if any(value == getattr(host.version, name) for name, value in zip(names, values, strict=True)):
                    continue
                version = dataclasses.replace(host.version, **dict(zip(names, values, strict=True)))
                other = dataclasses.replace(host, version=version)
                if ask_model(other, calls) == answered:
                    said = [
                        f"{name} as in {alternatives[name][value]}: {DIFFERENCES[name]}"
                        for name, value in zip(names, values, strict=True)
                    ]
                    return said, other
    return [], host
