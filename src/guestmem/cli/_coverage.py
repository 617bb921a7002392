"""``guestmem explore --coverage`` and ``--list``: what models run of the sources."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ._columns import counted, say, say_list
from ._interrupts import interruptible
from ._mutants import Told

if TYPE_CHECKING:
    from ..explore.coverage import Coverage, FileCoverage
    from ..explore.probes import Branch
    from ..explore.scene import Model

__all__ = ["coverage", "list_models"]


def list_models(models: tuple[Model, ...], *, traced: bool, as_json: bool) -> int:
    """Say what models prove and their sizes; ``traced``: and which functions their threads run."""
    rows = []
    for model in models:
        row: dict[str, Any] = {
            "model": model.name,
            "proves": model.proves,
            "size": model.bounds,
            "exhaustive": model.exhaustive,
            "stale": model.stale,
            "finds": model.finds,
        }
        if traced:
            from ..explore.coverage import trace

            found = trace(model)
            row |= {"functions": found.functions, "states": found.states, "complete": found.complete}
        rows.append(row)
        if not as_json:
            _print_model(model, row)
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def _print_model(model: Model, row: dict[str, Any]) -> None:
    say(f"{model.name}: {model.proves}")
    size = model.bounds + ("" if model.exhaustive else "; too large to be searched whole: --random, --pct")
    say(size + (f"; known to be wrong: {model.finds}" if model.finds else ""), "    ")
    if "functions" in row:
        if not row["functions"]:
            print("    its threads run no function of the package")
        for file, functions in row["functions"].items():
            say_list(f"    {file}: ", functions)


def coverage(
    models: tuple[Model, ...],
    *,
    every: bool,
    states: int | None,
    seconds: float | None,
    jobs: int,
    resume: str | None,
    as_json: bool,
) -> int:
    """Follow models' threads, and say which concurrent functions and branches they run, and which none does.

    Not of ``every`` model: only files of which they run something. ``resume``: the file that traces are kept in.
    """
    from ..explore.coverage import STATES, Coverage, Kept, traces

    found = Coverage(every=every)
    begun = time.monotonic()
    each = None if seconds is None else seconds * jobs / len(models)
    keep = None if resume is None else Kept(resume, (states or STATES, each))
    with interruptible() as stopped, Told(len(models), "models") as told:
        for trace in traces(models, seconds=each, states=states or STATES, jobs=jobs, keep=keep, stopped=stopped):
            found.add(trace)
            told(trace.model)
        interrupted = stopped()
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print(found, time.monotonic() - begun, every=every)
    return 130 if interrupted else 0


def _print(found: Coverage, seconds: float, *, every: bool) -> None:
    files = [each for each in found.files if each.functions[0] or every]
    width = max([len(each.file) for each in files], default=4)
    print(f"{'file':{width}}  {'functions':>9}  {'branches':>9}  {'operations':>10}")
    for each in files:
        print(f"{each.file:{width}}  {_of(each.functions):>9}  {_of(each.ways):>9}  {_of(each.atomics):>10}")
    totals = [_sum(files, part) for part in ("functions", "ways", "atomics")]
    print(f"{'all':{width}}  {_of(totals[0]):>9}  {_of(totals[1]):>9}  {_of(totals[2]):>10}")
    _print_missed(found, files)
    whole, followed = sum(found.models.values()), len(found.models)
    print()
    say(
        f"{counted(followed, 'model')} followed in {seconds:.0f} s, {whole} of them searched whole "
        f"(sequentially consistent)",
        rest="",
    )
    if whole < followed:
        say(
            "of the others' branches those that are not taken are unknown; --states N follows them further: "
            + ", ".join(name for name, complete in found.models.items() if not complete),
            rest="  ",
        )


def _of(pair: tuple[int, int]) -> str:
    return f"{pair[0]}/{pair[1]}"


def _sum(files: list[FileCoverage], part: str) -> tuple[int, int]:
    pairs = [getattr(each, part) for each in files]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _print_missed(found: Coverage, files: list[FileCoverage]) -> None:
    """Functions that no model calls, by reason; then branches of the others, by reason, too."""
    uncalled: dict[str, dict[str, list[str]]] = {}
    branches: dict[str, list[Branch]] = {}
    for each in files:
        none = {branch.function for branch in each.missed if branch.what == "called"}
        for branch in each.missed:
            why = found.why(branch) or "no reason is known"
            if branch.what == "called":
                uncalled.setdefault(why, {}).setdefault(branch.file, []).append(branch.function)
            elif branch.function not in none:
                branches.setdefault(why, []).append(branch)
    for why in sorted(uncalled, key=lambda why: (why.startswith("no reason"), why)):
        print()
        say(f"never called ({sum(map(len, uncalled[why].values()))}): {why}", rest="        ")
        for file, functions in uncalled[why].items():
            say_list(f"    {file}: ", functions)
    for why, its in sorted(branches.items()):
        operations = sum(branch.atomics for branch in its)
        print()
        say(
            f"never taken, in functions that are called ({counted(len(its), 'branch', 'branches')}, "
            f"{counted(operations, 'operation')} in them): {why}",
            rest="        ",
        )
        for branch in its:
            inside = f" ({counted(branch.atomics, 'operation')})" if branch.atomics else ""
            say(f"{branch}{inside}", "    ", "        ")
