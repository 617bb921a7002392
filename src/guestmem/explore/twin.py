"""A second, interpreted copy of the package from the same files, in the same process; and mutants of it.

Rooms import each other relatively, so the whole package can be imported again under another name. There,
``compiled.INTERPRETED`` is true, and every atomic is a schedule point. Errors and plain result types are shared with
the compiled copy, so that results can be compared and exceptions caught. A mutant is the same load with exact
replacements in the source text: each must match exactly once in what those before it left, else the load fails.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from ..errors import UsageError
from .probes import PROBE, UNPROBED, Branch, Probe, probed

__all__ = ["Mutation", "Twin", "load"]

_PACKAGE = Path(__file__).parents[1]
_REAL = "guestmem"
_numbers = itertools.count(1)

SHARED = (
    *("errors", "units", "slot_key", "memslots.slot", "memslots.changes", "stage2.descriptor", "stage2.geometry"),
    *("traces", "check", "report", "cli", "explore"),
)
"""Modules (and all below them) that a twin takes from the compiled copy: they hold no words that threads share."""


_COMPILED_ONLY = ("_intrinsics.py", "_vectors.py", "_numba.py")


class Mutation(NamedTuple):
    """One exact text replacement in one file, named relative to the package, such as ``rcu/srcu.py``."""

    file: str
    old: str
    new: str


def _shared(module: str) -> bool:
    return any(module == shared or module.startswith(shared + ".") for shared in SHARED)


@lru_cache(maxsize=512)
def _code(path: Path, text: str | None, _changed: int) -> CodeType:
    """What a file compiles to, or a text in its place: once for all twins."""
    if text is not None:
        return compile(text, str(path), "exec", dont_inherit=True)
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))  # it takes what Python keeps of the real import
    code = loader.get_code(path.stem)
    assert code is not None
    return code


@lru_cache(maxsize=512)
def _probed(path: Path, text: str | None, _changed: int) -> tuple[CodeType, tuple[Branch, ...]]:
    """The same with calls in it that say which branches are taken."""
    tree, branches = probed(path.read_text() if text is None else text, path.relative_to(_PACKAGE).as_posix())
    return compile(tree, str(path), "exec", dont_inherit=True), branches


def _sum(values: Iterable[Any], /, start: Any = 0) -> Any:
    """``sum``, in Python: how far it is can be seen from its frame (``continuation.py``)."""
    for value in values:
        start = start + value
    return start


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``NAME.room.module`` in the package's own folder; ``texts`` holds the sources of mutated files.

    ``probe`` makes what modules call at each branch.
    """

    def __init__(self, name: str, texts: Mapping[str, str], probe: Probe | None) -> None:
        self.name, self.texts, self.probe = name, texts, probe

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self.name and not fullname.startswith(self.name + "."):
            return None
        base = _PACKAGE.joinpath(*fullname.split(".")[1:])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.is_file():
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(file), is_package=base.is_dir())
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        assert spec.origin is not None
        below = spec.name.removeprefix(self.name)
        if _shared(below[1:]):
            sys.modules[spec.name] = importlib.import_module(_REAL + below)  # the import system takes what it finds
            return
        path = Path(spec.origin)
        file = path.relative_to(_PACKAGE).as_posix()
        text = self.texts.get(file)
        vars(module)["sum"] = _sum
        if self.probe is not None and file not in UNPROBED:
            code, branches = _probed(path, text, path.stat().st_mtime_ns)
            vars(module)[PROBE] = self.probe(branches)
            exec(code, module.__dict__)  # noqa: S102 - as below
            return
        exec(_code(path, text, path.stat().st_mtime_ns), module.__dict__)  # noqa: S102 - this is an import


class Twin:
    """An interpreted copy of the package. ``twin.room("rcu.srcu")`` is the copy of ``guestmem.rcu.srcu``."""

    def __init__(self, name: str, finder: _Finder) -> None:
        self.name, self._finder = name, finder

    def room(self, module: str) -> ModuleType:
        """Import a module of the copy by its name below the package. About 1 ms for the first."""
        return importlib.import_module(f"{self.name}.{module}")

    def close(self) -> None:
        """Forget the copy: its modules leave ``sys.modules``."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for name in [name for name in sys.modules if name == self.name or name.startswith(self.name + ".")]:
            del sys.modules[name]

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _mutated(mutations: Iterable[Mutation]) -> dict[str, str]:
    """The texts of the mutated files. Each mutation must match once in what the ones before it left."""
    texts: dict[str, str] = {}
    for file, old, new in mutations:
        path = _PACKAGE / file
        where = f"mutation of {file}"
        inside = path.is_relative_to(_PACKAGE) and ".." not in path.parts and path.suffix == ".py"
        if not inside or path.relative_to(_PACKAGE).as_posix() != file or not path.is_file():
            raise UsageError(f"{where}: no such file in the package")
        if _shared(file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")):
            raise UsageError(f"{where}: this module is shared with the compiled form")
        if file in _COMPILED_ONLY:
            raise UsageError(f"{where}: this module is no part of the interpreted form")
        if old == new:
            raise UsageError(f"{where} changes nothing: {old!r}")
        text = texts[file] if file in texts else path.read_text()
        if (count := text.count(old)) != 1 or not old:
            raise UsageError(f"{where}: text found {count} times, not once: {old!r}")
        texts[file] = text.replace(old, new)
    return texts


def load(mutations: Iterable[Mutation | tuple[str, str, str]] = (), *, probe: Probe | None = None) -> Twin:
    """Import the package a second time, in its interpreted form, with ``mutations`` applied.

    ``probe`` makes, of a module's branches (``probes.py``), what it calls with the number of each that is taken.
    Raises UsageError for a mutation whose file does not exist or whose text is not there exactly once.

    >>> with load() as twin:
    ...     twin.room("compiled").INTERPRETED
    True
    """
    texts = _mutated(Mutation(*mutation) for mutation in mutations)
    name = f"{_REAL}_twin_{next(_numbers)}"
    finder = _Finder(name, texts, probe)
    sys.meta_path.insert(0, finder)
    return Twin(name, finder)
