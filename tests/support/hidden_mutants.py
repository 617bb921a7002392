"""Changes that are in no table, against the models that reach the code: what is caught, and what survives.

    python tests/support/hidden_mutants.py FILE [--seconds 60] [--only NAME ...] [--models NAME ...] [--cache FILE]

FILE is Python with ``TRIED``: (name, file, old text, new text, what is known of it) each; what is known to be
equivalent or invalid says so. Each change is made to the twin's source in memory, and hunted over states on the models
whose threads run its function (as a profile of random runs and of a first search says), the smallest first, under
every memory model that each asks for, until something is found; a change of a module's constants on all of them.
Only models that are searched whole count. A change that names what is not there is none, whatever it raises, and
counts as moved. ``--cache`` keeps what models reach, for the next time.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import guestmem
from guestmem.errors import UsageError
from guestmem.explore.models import find, models
from guestmem.explore.outcome import Budget
from guestmem.explore.scene import Model
from guestmem.explore.search import tasks
from guestmem.explore.task import run
from guestmem.explore.trial import NO_CODE
from guestmem.explore.world import World

_PACKAGE = Path(guestmem.__file__).parent
_KNOWN = ("survived, equivalent", "equivalent", "invalid")


class Reach(NamedTuple):
    """What a model's threads run, as "file:function", and how long a first search took."""

    functions: list[str]
    seconds: float
    states: int


def reach(model: Model) -> Reach:
    """Watch random runs, and a first search over states."""
    seen: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    begun = time.monotonic()
    with World(model) as world:
        todo = tasks(model, weak=False)[0]
        sys.setprofile(watch)
        try:
            run(replace(todo, search="random", last=60), Budget(seconds=3, go_on=True), world=world)
            found = run(todo, Budget(seconds=5, states=20_000), world=world) if model.exhaustive else None
        finally:
            sys.setprofile(None)
    inside = {(name.removeprefix(f"{_PACKAGE}/"), function) for name, function in seen if str(_PACKAGE) in name}
    functions = sorted(f"{name}:{function}" for name, function in inside if not name.startswith("explore/"))
    return Reach(functions, time.monotonic() - begun, found.distinct if found else 0)


def function_of(file: str, old: str) -> str | None:
    """The function that a text is in; None for a module's own line. UsageError if it is not there once."""
    text = (_PACKAGE / file).read_text()
    if text.count(old) != 1:
        raise UsageError(f"{file}: text found {text.count(old)} times")
    line = text[: text.index(old)].count("\n") + 1 + old[: len(old) - len(old.lstrip())].count("\n")

    def within(body: list[ast.stmt], outer: str) -> str | None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if first <= line <= (node.end_lineno or 0):
                    name = f"{outer}{node.name}"
                    return name if isinstance(node, ast.FunctionDef) else within(node.body, f"{name}.")
        return None

    return within(ast.parse(text).body, "")


def shifted(change: tuple[str, str, str]) -> tuple[str, str, str]:
    """The change as it is, or moved in or out by some levels if that is where its text now is.

    What names in it were called before they moved to a module that many import is made what they are called there.
    """
    file, old, new = change
    text = (_PACKAGE / file).read_text()
    for name in ("ONE",):
        if re.search(rf"\b_{name}\b", text) is None:
            old, new = (re.sub(rf"\b_{name}\b", name, part) for part in (old, new))
    for columns in (0, 4, 8):
        for inward in (True, False):
            both = [_indented(part, columns if inward else -columns) for part in (old, new)]
            if text.count(both[0]) == 1:
                return file, both[0], both[1]
    return file, old, new


def _indented(text: str, columns: int) -> str:
    lines = text.split("\n")
    if columns >= 0:
        return "\n".join(" " * columns + line if line else line for line in lines)
    return "\n".join(line[-columns:] if line.startswith(" " * -columns) else line for line in lines)


def hunt(change: tuple[str, str, str], model: Model, seconds: float, states: int) -> str:
    """What finds the change first; empty if nothing does."""
    try:
        with World(model, [change]) as world:
            end = time.monotonic() + seconds
            for task in tasks(model, mutations=[change]):
                left = end - time.monotonic()
                if task.search == "dpor" or left <= 0:
                    continue
                found = run(task, Budget(seconds=left, states=states), world=world).findings
                if found and found[0].kind == "error" and found[0].name in NO_CODE:
                    raise UsageError(f"is no code that could run: {found[0].name}: {found[0].message}")
                if found:
                    return f"{model.name}, {task.memory}: {found[0].kind}: {found[0].name} {found[0].message}"[:200]
    except (AssertionError, IndexError, OverflowError, RuntimeError) as error:
        return f"{model.name}: not set up: {type(error).__name__} {error}"[:200]
    return ""


def _reaches(chosen: list[Model], cache: Path | None) -> dict[str, Reach]:
    known: dict[str, Any] = json.loads(cache.read_text()) if cache is not None and cache.exists() else {}
    for model in chosen:
        if model.name not in known:
            known[model.name] = reach(model)
            sys.stderr.write(f"{model.name}: {len(known[model.name][0])} functions, {known[model.name][1]:.1f} s\n")
            if cache is not None:
                cache.write_text(json.dumps(known))
    return {name: Reach(*each) for name, each in known.items()}


def main() -> int:
    """Try them all; exit status 1 if any survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each change on each model")
    parser.add_argument("--states", type=int, default=1_000_000, help="for each search")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("tried", args.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chosen = [m for m in models() if m.exhaustive and not m.finds and (not args.models or m.name in args.models)]
    reaches = _reaches(chosen, args.cache)
    chosen.sort(key=lambda model: reaches[model.name].seconds)
    tally = {"caught": 0, "survived": 0, "not run": 0, "known": 0, "moved": 0}
    for name, file, old, new, known in module.TRIED:
        if args.only and name not in args.only:
            continue
        if known.lower().startswith(_KNOWN):
            verdict, said = "known", known
        else:
            verdict, said = _verdict((file, old, new), chosen, reaches, args)
        tally[verdict] += 1
        sys.stdout.write(f"{verdict:8} {name}: {said}\n")
        sys.stdout.flush()
    asked = tally["caught"] + tally["survived"] + tally["not run"]
    sys.stdout.write(f"caught {tally['caught']} of {asked} that are no equivalents; {tally}\n")
    return int(tally["caught"] < asked)


def _verdict(
    change: tuple[str, str, str], chosen: list[Model], reaches: dict[str, Reach], args: argparse.Namespace
) -> tuple[str, str]:
    change = shifted(change)
    try:
        function = function_of(change[0], change[1])
    except UsageError as error:
        return "moved", str(error)
    where = f"{change[0]}:{function}"
    able = [find(m.name) for m in chosen if function is None or where in reaches[m.name].functions]
    if not able:
        return "not run", f"no model runs {where}"
    begun = time.monotonic()
    for model in able:
        try:
            found = hunt(change, model, args.seconds, args.states)
        except UsageError as error:
            return "moved", str(error)
        if found:
            return "caught", f"{found} ({time.monotonic() - begun:.1f} s)"
    return "survived", f"{where}, {len(able)} models: {' '.join(m.name for m in able)}"


if __name__ == "__main__":
    sys.exit(main())
