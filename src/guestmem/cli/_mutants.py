"""``guestmem explore --mutants``: which models find which change to the code, by what, and in how many runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._columns import counted, say
from ._interrupts import interruptible

if TYPE_CHECKING:
    from ..explore.mutants import Mutant
    from ..explore.scene import Model
    from ..explore.trial import Verdict

__all__ = ["Told", "list_them", "try_them"]


class Told:
    """A line on standard error that says how far it is, if that is a terminal."""

    def __init__(self, every: int, what: str) -> None:
        self._every, self._what, self._done = every, what, 0
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> Callable[[str], None]:
        return self._tell

    def _tell(self, name: str) -> None:
        self._done += 1
        if self._shown:
            text = f"{self._done} of {self._every} {self._what}: {name}"
            print(f"\r\x1b[K{text[:79]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Before a line on standard output, which may be the same terminal."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_exception: object) -> None:
        self.clear()


def list_them(names: tuple[str, ...], *, as_json: bool) -> int:
    """Say what mutants change, and which models must find each."""
    from ..explore.mutants import mutants
    from ..explore.own import mutants_of

    pairs = mutants_of(names or [mutant.name for mutant in mutants()])
    models: dict[Mutant, list[str]] = {}
    for mutant, model in pairs:
        models.setdefault(mutant, []).append(model.name)
    if as_json:
        rows = [
            {"mutant": m.name, "what": m.what, "origin": m.origin, "file": m.file, "models": models[m]} for m in models
        ]
        print(json.dumps(rows, indent=1))
        return 0
    for mutant, its in models.items():
        say(f"{mutant.name}: {mutant.what} ({mutant.origin})")
        say(f"{mutant.file or 'the model'}, must be found by {', '.join(its)}", "    ")
    return 0


def try_them(names: tuple[str, ...], *, seconds: float | None, jobs: int, as_json: bool) -> int:
    """Try mutants, all unless some are named; exit status 1 if one survives."""
    from ..explore.mutants import mutants
    from ..explore.own import mutants_of
    from ..explore.trial import try_mutants

    chosen = mutants_of(names or [mutant.name for mutant in mutants()])
    verdicts: list[Verdict] = []
    line = Told(len(chosen), "trials")
    with interruptible() as stopped, line as told:
        for verdict in try_mutants(chosen, seconds=seconds or 60.0, jobs=jobs, stopped=stopped):
            if stopped() and not verdict.caught:
                break
            verdicts.append(verdict)
            if not as_json:
                line.clear()
                _print(verdict)
            told(f"{verdict.mutant.name} on {verdict.model}")
        interrupted = stopped()
    survived = [verdict for verdict in verdicts if not verdict.caught]
    if as_json:
        print(json.dumps([verdict.as_dict() for verdict in verdicts], indent=1))
    else:
        _print_sum(chosen, verdicts, survived)
    if survived:
        return 1
    return 130 if interrupted else 0


def _print(verdict: Verdict) -> None:
    say(f"{verdict.mutant.name}: {verdict.mutant.what} ({verdict.mutant.origin})")
    how = f"{counted(verdict.runs, 'run')}, {verdict.seconds:.1f} s"
    if verdict.caught:
        say(f"{verdict.model}: {verdict.search}, {how}: {verdict.finding}", "    ", "        ")
    else:
        why = f": it {verdict.why}" if verdict.why else ""
        say(f"{verdict.model}: NOT CAUGHT in {how}{why}", "    ", "        ")


def _print_sum(chosen: tuple[tuple[Mutant, Model], ...], verdicts: list[Verdict], survived: list[Verdict]) -> None:
    """How many of each room's mutants every one of their models found; then of all."""
    rooms: dict[str, set[str]] = {}
    for verdict in verdicts:
        rooms.setdefault(verdict.mutant.room, set()).add(verdict.mutant.name)
    missed = {verdict.mutant.name for verdict in survived}
    if len(rooms) > 1:
        print("\nroom              mutants  caught")
        for room, names in sorted(rooms.items()):
            print(f"{room:16}  {len(names):7}  {len(names - missed):6}")
        print()
    tried = len({verdict.mutant.name for verdict in verdicts})
    linux = sum(mutant.from_linux for mutant in {mutant for mutant, _ in chosen})
    of_linux = f"{linux} of Linux's own bugs"
    say(f"{counted(tried, 'mutant')} ({of_linux}), {counted(len(verdicts), 'trial')}, {len(survived):,} not caught")
