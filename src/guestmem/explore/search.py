"""The front of the room: search a model in every way that was asked for, shrink what is found, tell and replay it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import operations as op
from .finding import Finding, follow, schedule_json
from .machine import Machine, State
from .outcome import Budget, Outcome
from .scene import Model
from .store import Store, stamp
from .story import trace_events, whole_story
from .switches import count_switches, shrink
from .tale import story
from .task import Task, machine, run
from .twin import Mutation
from .world import Reshaped, World

__all__ = ["Counterexample", "Report", "explore", "replay", "tasks"]

FORMAT = 1
_PACKAGE = Path(__file__).parents[1]
_NAMED = 4
"""Files that an error names."""


@dataclass(frozen=True)
class Counterexample:
    """A finding with what it takes to show it: its story, its schedule as JSON, its trace events."""

    finding: Finding
    switches: int
    story: str
    schedule: dict[str, Any]
    trace: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the schedule, for ``guestmem replay``."""
        Path(path).write_text(json.dumps(self.schedule, indent=1) + "\n")

    def save_trace(self, path: str | Path) -> None:
        """Write the trace events, for Perfetto."""
        Path(path).write_text(json.dumps(self.trace) + "\n")


@dataclass
class Report:
    """What the searches of one model came to."""

    model: Model
    outcomes: list[Outcome] = field(default_factory=list)
    counterexamples: list[Counterexample] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.counterexamples

    @property
    def complete(self) -> bool:
        """Whether every search was complete within its bounds."""
        return all(outcome.complete for outcome in self.outcomes)

    @property
    def agree(self) -> bool | None:
        """Whether the two exhaustive searches came to the same ends; None unless both are complete and clean."""
        pair = [o for o in self.outcomes if o.memory == "sc" and o.search in {"states", "dpor"} and o.bound is None]
        if len(pair) != 2 or not all(o.complete and not o.findings for o in pair):
            return None
        return pair[0].finals == pair[1].finals

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model.name,
            "proves": self.model.proves,
            "size": self.model.bounds,
            "clean": self.clean,
            "complete": self.complete,
            "searches_agree": self.agree,
            "searches": [outcome.as_dict() for outcome in self.outcomes],
            "findings": [{"text": str(c.finding), "switches": c.switches, **c.schedule} for c in self.counterexamples],
        }


def tasks(
    model: Model,
    *,
    mutations: Iterable[Mutation | tuple[str, str, str]] = (),
    weak: bool = True,
    random: int | None = None,
    pct: int | None = None,
    runs: int = 10_000,
    bound: int | None = None,
    compact: int | None = None,
    seed: int = 1,
) -> list[Task]:
    """The searches of a model: exhaustive (states, and DPOR), or ``random`` runs, or ``runs`` of ``pct`` depth.

    Each but DPOR is done again for each weak memory model, if ``weak``: ``relaxed`` only if stores can overtake in the
    model's buffers, ``stale`` only if it asks. A ``bound`` on preemptions has no DPOR. ``compact``: searches over
    states keep hashes, each in a table of so many MiB; without a bound, up to the first finding.
    """
    memories = ["sc"]
    if weak:
        memories += ["tso", *(["relaxed"] if model.buffer > 1 else []), *(["stale"] if model.stale else [])]
    whole = Task(model, "states", mutations=tuple(Mutation(*each) for each in mutations), seed=seed)
    if random is not None:
        return [replace(whole, search="random", memory=memory, last=random) for memory in memories]
    if pct is not None:
        return [replace(whole, search="pct", memory=memory, last=runs, depth=pct) for memory in memories]
    found = [replace(whole, memory=memory, bound=bound, compact=compact) for memory in memories]
    if bound is None and model.dpor and not model.spurious:
        found.insert(1, replace(whole, search="dpor"))
    return found


def explore(
    model: Model,
    *,
    mutations: Iterable[Mutation | tuple[str, str, str]] = (),
    weak: bool = True,
    random: int | None = None,
    pct: int | None = None,
    runs: int = 10_000,
    bound: int | None = None,
    compact: int | None = None,
    seed: int = 1,
    seconds: float | None = None,
    states: int | None = None,
    go_on: bool = False,
    shrink_s: float = 20.0,
    resume: str | Path | None = None,
    checkpoint_s: float = 10.0,
    progress: Callable[[Outcome], object] | None = None,
    stopped: Callable[[], bool] | None = None,
) -> Report:
    """Search a model (see ``tasks``) and report. Stops at the first finding unless it is to ``go_on``.

    ``seconds`` are shared out among the searches; ``states`` limits each search over states. With ``resume``, a file
    that a search that was stopped or killed goes on from.
    """
    mutations = tuple(Mutation(*each) for each in mutations)
    ways: dict[str, Any] = {
        "weak": weak,
        "random": random,
        "pct": pct,
        "runs": runs,
        "bound": bound,
        "compact": compact,
    }
    todo = tasks(model, mutations=mutations, seed=seed, **ways)
    if compact is not None and (resume is not None or bound is not None):
        raise UsageError("compact: not with resume or bound: hashes tell of a state only whether it was there")
    report = Report(model)
    end = None if seconds is None else time.monotonic() + seconds
    with ExitStack() as stack:
        world = stack.enter_context(World(model, mutations))
        store = None
        if resume is not None:
            options = (model.name, model.size, mutations, random, pct, runs, bound, seed, go_on)
            store = stack.enter_context(Store(resume, stamp(options, world.sources())))
        for number, task in enumerate(todo):
            left = None if end is None else max(end - time.monotonic(), 0.01) / (len(todo) - number)
            budget = Budget(seconds=left, states=states, go_on=go_on, progress=progress, stopped=stopped)
            budget.checkpoint_s = checkpoint_s
            outcome = run(task, budget, world=world, store=store)
            report.outcomes.append(outcome)
            starved(outcome, report.outcomes)
            if (outcome.findings and not go_on) or outcome.stopped == "interrupted":
                break
        add_counterexamples(report, world, shrink_s)
    return report


def starved(outcome: Outcome, others: Iterable[Outcome]) -> None:
    """Drop a livelock that is none: of a schedule that starves a thread, where each state is known to reach an end.

    Only a search over states tells one from the other (``States``); DPOR and random runs follow a schedule for
    ``Model.steps`` points.
    """
    fair = any(o.search == "states" and o.complete and o.loops and not o.findings for o in others)
    kept = [finding for finding in outcome.findings if finding.kind != "livelock"]
    if fair and outcome.search != "states" and len(kept) < len(outcome.findings):
        outcome.findings = kept
        outcome.complete = False
        outcome.stopped = "a loop, in which a schedule may keep a thread for ever"


def add_counterexamples(report: Report, world: World, shrink_s: float = 20.0) -> None:
    """Shrink and tell the findings of a report's outcomes, each once, whichever search and memory it is of."""
    known = {c.finding.key for c in report.counterexamples}
    for outcome in report.outcomes:
        for finding in outcome.findings:
            if finding.key not in known:
                known.add(finding.key)
                found = replace(finding, found_by=outcome.search, after_runs=outcome.runs or outcome.distinct)
                report.counterexamples.append(counterexample(world, found, shrink_s))


def counterexample(world: World, finding: Finding, shrink_s: float) -> Counterexample:
    """Shrink a finding, unless ``shrink_s`` is 0, and tell it."""
    shown = finding
    if shrink_s:
        shown = _again(
            machine(world, finding.memory, finding.points, merged=finding.kind != "livelock"), finding, shrink_s
        )
    its = machine(world, finding.memory, finding.points)
    switches = count_switches(its, shown.moves)
    schedule = _schedule(world, its, shown, switches)
    return Counterexample(shown, switches, story(its, shown.moves, shown), schedule, trace_events(its, shown.moves))


def _again(its: Machine, finding: Finding, shrink_s: float) -> Finding:
    """Shrink; but shorter schedules may need more points than those of a search that stopped at the first finding."""
    try:
        with its.tree.world.aside():
            return shrink(its, finding, seconds=shrink_s)
    except Reshaped:
        return finding


def _schedule(world: World, its: Machine, finding: Finding, switches: int) -> dict[str, Any]:
    points: dict[str, list[int]] = {}
    for place in its.tree.points:
        points.setdefault(world.places[place].region.name, []).append(world.places[place].index)
    return {
        "format": FORMAT,
        "model": world.model.name,
        "size": world.model.size,
        "source": world.model.source,
        "edits": [list(edit) for edit in world.model.edits],
        "mutations": [list(mutation) for mutation in world.mutations],
        "memory": its.name,
        "finding": {
            "kind": finding.kind,
            "name": finding.name,
            "message": finding.message,
            "thread": finding.thread,
            "where": str(finding.where) if finding.where else "",
        },
        "switches": switches,
        "fewest": finding.minimal,
        "points": points,
        "sources": _sources(world),
        "schedule": schedule_json(world, its, finding.moves),
    }


def _sources(world: World) -> dict[str, str]:
    """Of each file that the model's code was loaded from, what tells one text from another."""
    found = {}
    for path in sorted(set(world.sources())):
        name = path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def _changed(world: World, schedule: dict[str, Any]) -> tuple[str, ...]:
    """The files that are other ones than when a schedule was found; none where it does not say."""
    then: dict[str, str] = schedule.get("sources") or {}
    now = _sources(world) if then else {}
    return tuple(name for name in sorted({*then, *now}) if then.get(name) != now.get(name))


def _not_possible(its: Machine, state: State, move: int, step: int) -> str:
    """Why a move of a schedule cannot be made: what its thread is at."""
    thread, what, _ = its.shown(move)
    node, world = its.nodes(state)[thread], its.tree.world
    name, place = world.threads[thread].name, world.places[its.tree.points[node.at]]
    if what == "flush":
        at = "has no such store in its buffer"
    elif node.code == op.ENDED:
        at = "has ended"
    elif node.code == op.FAILED:
        at = f"has failed: {node.outcome.error} {node.outcome.message}"
    else:
        at = f"is at {'a sleep' if node.code == op.ASLEEP else op.NAMES[node.code]} of {place}, {node.where}"
    return f"schedule: step {step} ({name}) is not possible, {name} {at}: the code is another one"


def _since(changed: Sequence[str]) -> str:
    """Which files changed, for an error."""
    some = ", ".join(changed[:_NAMED]) + (f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else "")
    return f"; since it was found these changed: {some}" if changed else ""


@dataclass(frozen=True)
class Replayed:
    """What a schedule shows now: ``finding``, or None; ``steps`` of it could be followed; ``story`` tells them.

    ``changed``: files that are other ones than when it was found, as far as it says.
    """

    finding: Finding | None
    same: bool
    steps: int
    story: str
    trace: dict[str, Any]
    changed: tuple[str, ...] = ()


def replay(schedule: dict[str, Any], model: Model, *, whole: bool = False) -> Replayed:
    """Follow a counterexample's schedule; ``whole``: and tell every step of it.

    Raises UsageError for one that is malformed or does not fit the model.

    A schedule fits as long as every move of it is possible; after a change of the code it need not be.
    """
    from .judge import Judge

    changed: tuple[str, ...] = ()
    try:
        if schedule["format"] != FORMAT:
            raise UsageError(f"format: {schedule['format']!r} is not {FORMAT}")
        rows, points = schedule["schedule"], schedule["points"]
        memory, wanted = schedule["memory"], schedule["finding"]
        mutations = [Mutation(*each) for each in schedule["mutations"]]
        with World(model, mutations) as world:
            changed = _changed(world, schedule)
            its = machine(world, memory, [world.number(name, i) for name, all_of in points.items() for i in all_of])
            moves = follow(world, its, rows)
            judge, state = Judge(its), its.start()
            for step, move in enumerate(moves):
                if move not in its.moves(state) and move not in its.whims(state):
                    raise UsageError(_not_possible(its, state, move, step + 1) + _since(changed))
                state = its.move(state, move)
            found = judge.arrived(state)
            if found is None and not its.moves(state):
                found = judge.ended(state)
            told = whole_story(its, moves) if whole or found is None else story(its, moves, found)
            same = found is not None and (found.kind, found.name) == (wanted["kind"], wanted["name"])
            return Replayed(found, same, len(moves), told, trace_events(its, moves), changed)
    except Reshaped:
        why = "schedule: a word is shared that was not: the code is another one"
        raise UsageError(why + _since(changed)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"schedule: malformed: {type(error).__name__} {error}") from None
