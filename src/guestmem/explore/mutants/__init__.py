"""Mutants: changes to the real functions that the models must notice. Each file here holds ``MUTANTS``.

A model that is clean says something only if it is not clean once the code is wrong. Mutants come from bugs that Linux
had, with the commit that fixed them, from the debates on its lists, and from this project's own mistakes.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from ..near import not_one_of
from ..twin import Mutation

__all__ = ["Mutant", "find", "mutants"]


@dataclass(frozen=True)
class Mutant:
    """One change to the sources and the models each of which must find it.

    ``what`` is wrong then, in a line; ``file``, ``old``, ``new`` are one exact replacement (``Mutation``), ``also`` are
    further ones; ``origin``: the commit that mended such a bug in Linux, the mail, or "own". ``memory``: the memory
    model that shows it, if that is worth being tried first.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    models: tuple[str, ...]
    origin: str = "own"
    also: tuple[Mutation, ...] = ()
    memory: str = "sc"

    @property
    def mutations(self) -> tuple[Mutation, ...]:
        """All replacements, in order."""
        return (Mutation(self.file, self.old, self.new), *self.also)

    @property
    def room(self) -> str:
        """The room whose code is changed; "own" for that of a user's model."""
        return self.file.partition("/")[0].removesuffix(".py") or "own"

    @property
    def from_linux(self) -> bool:
        """Whether the origin is a commit."""
        return self.origin.startswith("Linux ")


def mutants() -> tuple[Mutant, ...]:
    """All mutants, by file and then in the file's order."""
    found: list[Mutant] = []
    for module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
        found += importlib.import_module(f".{module}", __name__).MUTANTS
    return tuple(found)


def find(name: str) -> Mutant:
    """The mutant of a name; UsageError if there is none."""
    known = mutants()
    for mutant in known:
        if mutant.name == name:
            return mutant
    raise not_one_of("mutant", name, (mutant.name for mutant in known), "explore --mutants --list")
