"""Every fence, order, wake, condition and step of one of the concurrent functions made wrong: what models notice.

    guestmem explore --coverage --jobs 2 --resume ran.txt > coverage.txt    # which models call which function
    python tests/support/enumerated_mutants.py ran.txt [--kinds fences wakes orders] [--count 100 --seed 1]
        [--seconds 20] [--only WORD ...] [--jobs 2] [--json FILE]

Mutants are those that ``explore/operators.py`` makes of each concurrent function that some model calls, nobody having
looked at them. Each is tried on the models that call its function, those first that are soonest through, for
``--seconds`` in all, and on none that is known to be wrong, or too large to be searched whole. One that is not caught
has its reason, as far as a program can tell: there was no time for all of the models; no model that calls the function
asks for the memory model that shows such a change; or all of them were searched, and it makes no difference to what
they ask for, which does not say whether it is an equivalent.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from guestmem.errors import UsageError
from guestmem.explore import operators
from guestmem.explore.coverage import Trace
from guestmem.explore.models import find
from guestmem.explore.mutants import Mutant
from guestmem.explore.outcome import Budget
from guestmem.explore.parallel import pooled
from guestmem.explore.scene import Model
from guestmem.explore.search import tasks
from guestmem.explore.task import run
from guestmem.explore.trial import NO_CODE, STATES
from guestmem.explore.twin import Mutation
from guestmem.explore.world import World

Make = Callable[[str, str, int], tuple[str, str, str]]
KINDS: dict[str, tuple[tuple[str, Make, str], ...]] = {
    "fences": (("no fence", operators.drop_fence, "tso"),),
    "wakes": (("no wake", lambda file, name, n: operators.drop_call(file, name, "wake", n), "sc"),),
    "orders": (
        ("no release", lambda file, name, n: operators.weaken(file, name, "store_release", n), "relaxed"),
        ("no acquire", lambda file, name, n: operators.weaken(file, name, "load_acquire", n), "stale"),
    ),
    "conditions": (("never", operators.never, "sc"), ("always", operators.always, "sc")),
    "steps": (("no step of one", operators.off_by_one, "sc"),),
    "bounds": (("other bound", operators.other_bound, "sc"),),
    "statements": (("skips", operators.skip, "sc"),),
    "swaps": (("swaps", operators.swap_at, "sc"),),
}
"""By kind, what is done to the ``n``th place of a function, and the memory model that is tried first."""


class Verdict(NamedTuple):
    """What came of one mutant: ``by`` says the model and finding; ``why`` of one that was not caught, why not."""

    name: str
    room: str
    kind: str
    caught: bool
    by: str
    why: str
    tried: int
    models: int
    seconds: float


def traces(file: Path) -> list[Trace]:
    """What models ran: the lines of a file of ``explore --coverage --resume``."""
    return [Trace.from_dict(json.loads(line)) for line in file.read_text().splitlines()[1:]]


def callers(found: list[Trace]) -> dict[tuple[str, str], list[str]]:
    """By concurrent function the models that call it and can find something new, those first that took least time."""
    by: dict[tuple[str, str], list[str]] = {}
    for trace in sorted(found, key=lambda each: each.seconds):
        model = find(trace.model)
        if model.exhaustive and not model.finds:
            for branch in sorted(trace.taken):
                if branch.what == "called" and branch.shared:
                    by.setdefault((branch.file, branch.function), []).append(trace.model)
    return by


def enumerated(functions: dict[tuple[str, str], list[str]], kinds: list[str]) -> Iterator[tuple[str, Mutant]]:
    """All mutants of some kinds, each with its kind."""
    for (file, function), models in sorted(functions.items()):
        for kind in kinds:
            for what, make, memory in KINDS[kind]:
                for n in range(1000):
                    try:
                        texts = make(file, function, n)
                    except (UsageError, StopIteration, KeyError):
                        break
                    name = f"{file}:{function}: {what} {n}"
                    also = imported(file) if kind == "orders" else ()
                    yield kind, Mutant(name, what, *texts, models=tuple(models), memory=memory, also=also)


def imported(file: str) -> tuple[Mutation, ...]:
    """A change by which a file has the relaxed operations, which those without order become."""
    text = (Path(operators.__file__).parents[1] / file).read_text()
    for line in text.splitlines():
        if line.startswith("from ") and ".atomics import" in line:
            begin = "\n" + line.partition(" import")[0] + " import"
            relaxed = f"{begin} host_load, host_store, load_relaxed, store_relaxed"
            return (Mutation(file, begin, relaxed + begin),) if text.count(begin) == 1 else ()
    return ()


def hunt(mutant: Mutant, model: Model, seconds: float, stopped: Callable[[], bool]) -> tuple[str, str]:
    """What finds a mutant over states, under the memory model that shows it first; else why nothing did, if known."""
    why = ""
    begun = time.monotonic()
    todo = [task for task in tasks(model, mutations=mutant.mutations) if task.search == "states"]
    try:
        with World(model, mutant.mutations) as world:
            for task in sorted(todo, key=lambda task: task.memory != mutant.memory):
                left = begun + seconds - time.monotonic()
                if left <= 0:
                    return "", "no time for all of its models"
                outcome = run(task, Budget(seconds=left, states=STATES, stopped=stopped), world=world)
                for finding in outcome.findings:
                    if finding.kind == "error" and finding.name in NO_CODE:
                        return "", f"no mutant: {finding.name}: {finding.message}"
                    return f"{task.memory}: {finding}", ""
                why = why or ("" if outcome.complete else "no time for all of its models")
    except UsageError as error:
        return "", f"no mutant: {error}"
    except (AssertionError, IndexError, OverflowError, RuntimeError) as error:
        return f"not set up: {type(error).__name__} {error}", ""
    return "", why


def trial(seconds: float, pair: tuple[str, Mutant], stopped: Callable[[], bool]) -> Verdict:
    """One mutant against its models, until one notices."""
    kind, mutant = pair
    begun = time.monotonic()
    tried = 0
    why = ""
    models = mutant.models
    if mutant.memory == "stale":
        models = tuple(name for name in models if find(name).stale)
        why = "" if models else "no model that calls the function asks for stale, which alone shows it"
    for name in models:
        left = begun + seconds - time.monotonic()
        if left <= 0 or stopped():
            why = "no time for all of its models"
            break
        tried += 1
        found, said = hunt(mutant, find(name), left, stopped)
        if found:
            by = f"{name}, {found}"[:200]
            return Verdict(mutant.name, mutant.room, kind, True, by, "", tried, len(models), time.monotonic() - begun)
        if said.startswith("no mutant"):
            why = said
            break
        why = why or said
    why = why or "makes no difference to what its models ask for"
    return Verdict(mutant.name, mutant.room, kind, False, "", why, tried, len(models), time.monotonic() - begun)


def main() -> int:
    """Try them; exit status 1 if any survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ran", type=Path, help="file of explore --coverage --resume")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=0, help="so many of them by chance; 0: all")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="those whose names have one of these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each mutant")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, dest="file", help="write all verdicts there")
    args = parser.parse_args()
    every = list(enumerated(callers(traces(args.ran)), args.kinds))
    if args.only:
        every = [pair for pair in every if any(word in pair[1].name for word in args.only)]
    chosen = random.Random(args.seed).sample(every, min(args.count, len(every))) if args.count else every
    sys.stdout.write(f"{len(chosen)} of {len(every)} mutants\n")
    verdicts: list[Verdict] = []
    work = partial(trial, args.seconds)
    for verdict in pooled(args.jobs, work, chosen):
        verdicts.append(verdict)
        said = verdict.by if verdict.caught else verdict.why
        sys.stdout.write(f"{'caught' if verdict.caught else 'SURVIVED':8} {verdict.name}: {said}\n")
        sys.stdout.flush()
        if args.file is not None:
            args.file.write_text(json.dumps([each._asdict() for each in verdicts], indent=1) + "\n")
    summed(verdicts)
    return int(any(not verdict.caught for verdict in verdicts))


def summed(verdicts: list[Verdict]) -> None:
    """How many were caught, by room; and why the others were not."""
    rows: dict[str, Any] = {}
    for verdict in verdicts:
        if not verdict.why.startswith("no mutant"):
            row = rows.setdefault(verdict.room, [0, 0])
            row[0] += verdict.caught
            row[1] += 1
    for room, (caught, of) in sorted(rows.items()):
        sys.stdout.write(f"{room:12} {caught:4} of {of:4} caught ({caught / of:.0%})\n")
    reasons: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.caught:
            why = verdict.why.partition(":")[0]
            reasons[why] = reasons.get(why, 0) + 1
    for why, count in sorted(reasons.items()):
        sys.stdout.write(f"{count:4} {why}\n")


if __name__ == "__main__":
    sys.exit(main())
