"""``guestmem explore``: search the schedules of models, of guestmem's own concurrent algorithms and of the user's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import UsageError
from . import _completion
from ._columns import counted, say
from ._coverage import coverage, list_models
from ._interrupts import interruptible
from ._litmus import litmus_table
from ._mutants import list_them, try_them

if TYPE_CHECKING:
    from ..explore.handout import Standing
    from ..explore.outcome import Outcome
    from ..explore.scene import Model
    from ..explore.search import Report
    from ..explore.twin import Mutation

__all__ = ["command"]


@click.command("explore", short_help="Is this concurrent page-table algorithm correct?")
@click.argument("names", metavar="[MODEL]…", nargs=-1, shell_complete=_completion.models)
@click.option("--all", "every", is_flag=True, help="Every model that can be searched whole, and should be clean.")
@click.option(
    "--list",
    "listed",
    is_flag=True,
    help="Say what each model proves, and its size; or each of --mutants.",
)
@click.option("--exhaustive", is_flag=True, help="Search all schedules (the default).")
@click.option("--random", "random", metavar="N", type=click.IntRange(1), help="N random schedules instead.")
@click.option("--pct", metavar="D", type=click.IntRange(1, 10), help="PCT schedules for bugs of depth D instead.")
@click.option("--runs", metavar="N", type=click.IntRange(1), default=10_000, show_default=True, help="Of --pct.")
@click.option("--bound", metavar="B", type=click.IntRange(0), help="At most B preemptions.")
@click.option(
    "--compact",
    metavar="MIB",
    type=click.IntRange(1, 16_383),
    help="Keep hashes of states, in a table of MIB MiB; says how probable it is that one is left out.",
)
@click.option("--time", "seconds", metavar="T", type=click.FloatRange(0, min_open=True), help="Seconds, at most.")
@click.option("--states", metavar="N", type=click.IntRange(1), default=10_000_000, show_default=True, help="At most.")
@click.option("--weak/--no-weak", default=True, show_default=True, help="Also under weaker memory than sequential.")
@click.option("--seed", metavar="S", type=int, default=1, show_default=True, help="Of --random and --pct.")
@click.option("--go-on", is_flag=True, help="Do not stop at the first finding.")
@click.option(
    "--jobs", metavar="N", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes, and threads."
)
@click.option("--dask", metavar="ADDRESS", help="Search on the Dask cluster whose scheduler is there: tcp://HOST:8786.")
@click.option("--resume", metavar="FILE", type=click.Path(), help="Keep the search in FILE, and go on from there.")
@click.option("--save", metavar="FILE", type=click.Path(), help="Write the first counterexample, for `replay`.")
@click.option("--perfetto", metavar="FILE", type=click.Path(), help="Write it as trace events, for ui.perfetto.dev.")
@click.option(
    "--mutants", "mutated", is_flag=True, help="Try the mutants named (all unless some are) instead of models."
)
@click.option("--mutant", metavar="NAME", help="Search the models with this mutant in them, and tell what it does.")
@click.option(
    "--coverage", "covered", is_flag=True, help="Which branches of the sources models run; all, or those named."
)
@click.option("--litmus", "litmus", is_flag=True, help="What each memory model shows of the standard litmus tests.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    names: tuple[str, ...],
    every: bool,
    listed: bool,
    exhaustive: bool,
    random: int | None,
    pct: int | None,
    runs: int,
    bound: int | None,
    compact: int | None,
    seconds: float | None,
    states: int,
    weak: bool,
    seed: int,
    go_on: bool,
    jobs: int,
    dask: str | None,
    resume: str | None,
    save: str | None,
    perfetto: str | None,
    mutated: bool,
    mutant: str | None,
    covered: bool,
    litmus: bool,
    as_json: bool,
) -> int:
    """Search the schedules of models: the functions that run, in every order of their atomic operations.

    Each model is searched twice, over states and by partial-order reduction, then under store buffers (x86, and with
    relaxed stores that overtake) and, where it asks, with loads that return old values. What is found is shrunk to the
    fewest switches and told. The bounds are part of the answer: docs/explore.md.

    A MODEL is a name of --list, or your own: FILE.py, FILE.py:NAME, a folder of such files, or a module by its dotted
    name (docs/explore.md, "A model of one's own").

    With --mutants, the code is made wrong, one change at a time, and the models must find each. --coverage says which
    functions and branches of the sources the models' threads run, and which none does; --list MODEL what one runs.

    Exit status: 0; 1 if something was found, or a mutant was not; 2 for bad input; 130 after Ctrl-C.
    """
    if mutated and listed:
        _only({"names", "mutated", "listed", "as_json"}, "--mutants --list")
        return list_them(names, as_json=as_json)
    if mutated:
        _only({"names", "mutated", "seconds", "jobs", "as_json"}, "--mutants")
        return try_them(names, seconds=seconds, jobs=jobs, as_json=as_json)
    from ..explore.models import models

    if litmus:
        _only({"names", "litmus", "as_json"}, "--litmus")
        return litmus_table(names, as_json=as_json)
    known = models()
    if covered:
        _only({"names", "every", "covered", "states", "seconds", "jobs", "resume", "as_json"}, "--coverage")
        if every and names:
            raise UsageError("MODEL: name some, or --all")
        limit = states if _given("states") else None
        chosen_models = _named(names) or known
        how: dict[str, Any] = {"states": limit, "seconds": seconds, "jobs": jobs, "resume": resume}
        return coverage(chosen_models, every=not names, as_json=as_json, **how)
    if listed:
        _only({"names", "listed", "as_json"}, "--list")
        return list_models(_named(names) or known, traced=bool(names), as_json=as_json)
    if exhaustive + (random is not None) + (pct is not None) > 1:
        raise UsageError("--exhaustive, --random and --pct: one of them")
    if pct is None and _given("runs"):
        raise UsageError("--runs: only of --pct; --random N says how many")
    if bound is not None and (random is not None or pct is not None):
        raise UsageError("--bound: only an exhaustive search has bounds")
    if compact is not None:
        others = {"--random": random, "--pct": pct, "--bound": bound, "--resume": resume, "--go-on": go_on or None}
        for option in (each for each, value in others.items() if value is not None):
            raise UsageError(f"--compact: not with {option}: hashes tell of a state only whether it was there")
    chosen = _mutated(mutant, names) if mutant else None
    if chosen is None:
        sampled = random is not None or pct is not None
        chosen = [(model, ()) for model in _chosen(known, names, every=every, sampled=sampled)]
    if resume and (len(chosen) > 1 or jobs > 1 or dask is not None):
        raise UsageError("--resume: for one model and one job")
    if dask is not None and jobs > 1:
        raise UsageError("--dask and --jobs: one of them")
    for option, file in (("--save", save), ("--perfetto", perfetto), ("--resume", resume)):
        if file and not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{option} {file}: there is no such folder")
    from ..explore.cluster import explore_on
    from ..explore.parallel import explore_in
    from ..explore.search import explore

    reports: list[Report] = []
    interrupted = False
    with interruptible() as stopped:
        for model, mutations in chosen:
            common: dict[str, Any] = {
                "mutations": mutations,
                "weak": weak,
                "random": random,
                "pct": pct,
                "runs": runs,
                "bound": bound,
                "compact": compact,
                "seed": seed,
                "seconds": None if seconds is None else seconds / len(chosen),
                "go_on": go_on,
                "states": states if compact is None or _given("states") else None,
            }
            with _progress() as progress:
                common |= {"progress": progress, "stopped": stopped}
                if dask is not None:
                    report = explore_on(dask, model, **common)
                elif jobs > 1:
                    report = explore_in(jobs, model, **common)
                else:
                    report = explore(model, resume=resume, **common)
            reports.append(report)
            if not as_json:
                _print(report)
            if interrupted := stopped():
                break
    if as_json:
        print(json.dumps([report.as_dict() for report in reports], indent=1))
    first = next((c for report in reports for c in report.counterexamples), None)
    if first is not None:
        if save:
            first.save(save)
        if perfetto:
            first.save_trace(perfetto)
        return 1
    return 130 if interrupted else 0


def _given(option: str) -> bool:
    """Whether an option was given, by its parameter's name."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _only(allowed: set[str], what: str) -> None:
    """Refuse options that would be passed over."""
    for parameter in click.get_current_context().command.params:
        if parameter.name is not None and parameter.name not in allowed and _given(parameter.name):
            raise UsageError(f"{parameter.opts[0]}: not with {what}")


def _named(names: tuple[str, ...]) -> tuple[Model, ...]:
    """The models of these names, each once."""
    from ..explore.own import all_of

    return tuple(model for name in dict.fromkeys(names) for model in all_of(name))


def _mutated(mutant: str, names: tuple[str, ...]) -> list[tuple[Model, tuple[Mutation, ...]]]:
    """The models, or those that the mutant names, with the mutant in them."""
    from ..explore.own import mutants_of, with_mutant

    own = [name for name in names if name.partition(":")[0].endswith(".py")]
    target = f"{own[0].partition(':')[0]}:{mutant}" if own and ":" not in mutant else mutant
    pairs = mutants_of([target])
    wanted = {model.name for model in _named(names)} if names else {model.name for _, model in pairs}
    its = {model.name: model for _, model in pairs} | {model.name: model for model in _named(names)}
    return [with_mutant(its[name], pairs[0][0]) for name in its if name in wanted]


def _chosen(known: tuple[Model, ...], names: tuple[str, ...], *, every: bool, sampled: bool) -> list[Model]:
    """The models that were asked for; those too large to be searched whole only if chance is."""
    if every == bool(names):
        raise UsageError("MODEL: name some, or --all; --list says which there are")
    if every:
        return [model for model in known if (model.exhaustive or sampled) and not model.finds]
    return list(_named(names))


def _print(report: Report) -> None:
    model = report.model
    say(f"{model.name}: {model.proves}")
    say(model.bounds, "  ")
    for outcome in report.outcomes:
        say(_row(outcome), "  ", _ROW)
        if outcome.note:
            say(outcome.note, _ROW, _ROW)
    if report.agree is not None:
        text = "came to the same ends" if report.agree else "DISAGREE on the ends: a defect of the explorer"
        print(f"  states and dpor {text}")
    for found in report.counterexamples:
        fewest = "the fewest" if found.finding.minimal else "no fewer found"
        steps, switches = counted(len(found.finding.moves), "step"), counted(found.switches, "switch", "switches")
        print()
        say(str(found.finding), "  ")
        print(f"  memory {found.finding.memory}; {steps}, {switches} ({fewest})")
        print()
        print(found.story)
        print()
    print("  " + ("nothing found" if report.clean else f"{len(report.counterexamples)} found"))
    print()


_ROW = " " * 19
_THOUSANDS = 10_000


def _row(outcome: Outcome) -> str:
    """One search in one line, or two."""
    if outcome.search == "states":
        size = f"{counted(outcome.distinct, 'state')}"
    else:
        size = counted(outcome.runs, "run")
        more = f"{outcome.pruned:,} pruned" if outcome.search == "dpor" else counted(outcome.distinct, "distinct end")
        size += f" ({more})"
    bounds = "" if outcome.bound is None else f", at most {counted(outcome.bound, 'preemption')}"
    done = "complete" if outcome.complete else f"not complete: {outcome.stopped}"
    rate = f"{outcome.rate:,.0f}" if outcome.rate < _THOUSANDS else f"{outcome.rate / 1000:,.0f}k"
    rate += f" {'moves' if outcome.search == 'states' else 'runs'}/s"
    return (
        f"{outcome.search:7} {outcome.memory:8} {size}, depth {outcome.depth}{bounds}, "
        f"{outcome.seconds:.1f} s, {rate}: {done}"
    )


@contextmanager
def _progress() -> Iterator[Callable[[Outcome | Standing], object] | None]:
    """A line on standard error that says how far a search is, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from ..explore.outcome import Outcome

    def shown(now: Outcome | Standing) -> None:
        text = f"{now.model} {_row(now)}" if isinstance(now, Outcome) else str(now)
        live.update(Text(text, overflow="ellipsis", no_wrap=True))

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=5) as live:
        yield shown
