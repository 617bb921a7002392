"""``guestmem explore --coverage`` and ``--list``: what models run of the sources."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._interrupts import interruptible

if TYPE_CHECKING:
    from ..explore.coverage import Coverage, FileCoverage
    from ..explore.probes import Branch
    from ..explore.scene import Model

__all__ = ["coverage", "list_models"]

_COLUMNS = 79


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
    print(f"{model.name}: {model.proves}")
    size = model.bounds + ("" if model.exhaustive else "; too large to be searched whole: --random, --pct")
    print(f"    {size}" + (f"; known to be wrong: {model.finds}" if model.finds else ""))
    if "functions" in row:
        if not row["functions"]:
            print("    its threads run no function of the package")
        for file, functions in row["functions"].items():
            _wrapped(f"    {file}: ", functions)


def coverage(
    models: tuple[Model, ...], *, every: bool, states: int | None, seconds: float | None, as_json: bool
) -> int:
    """Follow models' threads, and say which concurrent functions and branches they run, and which none does.

    Not of ``every`` model: only files of which they run something.
    """
    from ..explore.coverage import STATES, Coverage, traces

    found = Coverage()
    begun = time.monotonic()
    with interruptible() as stopped, _told(len(models)) as told:
        each = None if seconds is None else seconds / len(models)
        for trace in traces(models, seconds=each, states=states or STATES, stopped=stopped):
            found.add(trace)
            told(trace.model)
        interrupted = stopped()
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print(found, time.monotonic() - begun, every=every)
    return 130 if interrupted else 0


class _told:  # noqa: N801 - a context manager
    """A line on standard error that says how far it is, if that is a terminal."""

    def __init__(self, models: int) -> None:
        self._models, self._done = models, 0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Callable[[str], None]:
        return self._tell

    def _tell(self, model: str) -> None:
        self._done += 1
        if self._shown:
            print(f"\r\x1b[K{self._done} of {self._models} models: {model}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_exception: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _print(found: Coverage, seconds: float, *, every: bool) -> None:
    files = [each for each in found.files if each.functions[0] or every]
    width = max([len(each.file) for each in files], default=4)
    print(f"{'file':{width}}  {'functions':>9}  {'branches':>9}  {'operations':>10}")
    for each in files:
        print(f"{each.file:{width}}  {_of(each.functions):>9}  {_of(each.ways):>9}  {_of(each.atomics):>10}")
    totals = [_sum(files, part) for part in ("functions", "ways", "atomics")]
    print(f"{'all':{width}}  {_of(totals[0]):>9}  {_of(totals[1]):>9}  {_of(totals[2]):>10}")
    _print_missed(found, files)
    whole, every_one = sum(found.models.values()), len(found.models)
    print(f"\n{every_one} models followed in {seconds:.0f} s, {whole} of them searched whole (sequentially consistent)")
    if whole < every_one:
        print("of the others' branches those that are not taken are unknown; --states N follows them further")


def _of(pair: tuple[int, int]) -> str:
    return f"{pair[0]}/{pair[1]}"


def _sum(files: list[FileCoverage], part: str) -> tuple[int, int]:
    pairs = [getattr(each, part) for each in files]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _print_missed(found: Coverage, files: list[FileCoverage]) -> None:
    """Functions that no model calls, by reason; then branches of the others."""
    uncalled: dict[str, dict[str, list[str]]] = {}
    branches: list[Branch] = []
    for each in files:
        none = {branch.function for branch in each.missed if branch.what == "called"}
        for branch in each.missed:
            if branch.what == "called":
                why = found.why(branch) or "no reason is known"
                uncalled.setdefault(why, {}).setdefault(branch.file, []).append(branch.function)
            elif branch.function not in none:
                branches.append(branch)
    for why in sorted(uncalled, key=lambda why: (why.startswith("no reason"), why)):
        print()
        _wrapped(f"never called ({sum(map(len, uncalled[why].values()))}): ", why.split(" "), between="")
        for file, functions in uncalled[why].items():
            _wrapped(f"    {file}: ", functions)
    if branches:
        count = sum(branch.atomics for branch in branches)
        print(f"\nnever taken, in functions that are called: {len(branches)} branches, {count} operations in them")
        for branch in branches:
            print(f"    {branch}" + (f" ({branch.atomics} operations)" if branch.atomics else ""))


def _wrapped(begin: str, words: list[str], between: str = ",") -> None:
    """Words after another, in lines of 79 columns."""
    line = begin
    for number, word in enumerate(words):
        text = word + (between if number < len(words) - 1 else "")
        if len(line) + len(text) > _COLUMNS and line.strip():
            print(line.rstrip())
            line = " " * 8
        line += text + " "
    print(line.rstrip())
