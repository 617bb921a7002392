"""Models that are not the project's: from a file, a folder or a module of the user's own.

Such a file holds ``MODELS``, as the project's do, and if it likes ``MUTANTS``: changes to its own text (``file`` empty)
or to the package's that its models must find.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import models as project
from . import mutants as tables
from .mutants import Mutant
from .probes import PROBE, Probe, probed
from .scene import Model
from .twin import Mutation

__all__ = ["again", "all_of", "find", "mutants_of", "with_mutant"]

_numbers = itertools.count(1)
Edits = tuple[tuple[str, str], ...]


def all_of(target: str) -> tuple[Model, ...]:
    """The models that a name stands for: one of the project's, or all of FILE.py, FILE.py:NAME, a folder, a module.

    Raises UsageError, which says what the file lacks.
    """
    path, _, name = target.partition(":")
    files = _files(path)
    if not files:
        return (project.find(target),)
    found = tuple(model for file in files for model in _models(file, ()))
    if not found:
        raise UsageError(f"{path}: no MODELS in it; a model's file ends with MODELS = (Model(...),)")
    chosen = tuple(model for model in found if name in {"", model.name})
    if not chosen:
        raise UsageError(f"{path}: {name!r} is not one of its models {', '.join(model.name for model in found)}")
    return chosen


def find(name: str, source: str = "") -> Model:
    """The model of a name: the project's, or of the file ``source``."""
    if not source:
        return project.find(name)
    (model,) = all_of(f"{source}:{name}")
    return model


def again(source: str, name: str, edits: Edits, probe: Probe | None = None) -> Model:
    """A model from its file, with changes to the file's text; what a process that is handed one does.

    ``probe``: see ``twin.load``.
    """
    for model in _models(Path(source), edits, probe):
        if model.name == name:
            return model
    raise UsageError(f"{source}: {name!r} is not one of its models")


def mutants_of(targets: Sequence[str]) -> tuple[tuple[Mutant, Model], ...]:
    """The mutants that names stand for, each with each of the models that must find it: the project's, or of files."""
    found: list[tuple[Mutant, Model]] = []
    for target in targets:
        path, _, name = target.partition(":")
        files = _files(path)
        if not files:
            mutant = tables.find(target)
            found += [(mutant, project.find(model)) for model in mutant.models]
            continue
        here: list[tuple[Mutant, Model]] = []
        for file in files:
            its = {model.name: model for model in _models(file, ())}
            for mutant in getattr(_module(file, ()), "MUTANTS", ()):
                for model in mutant.models or its:
                    if model not in its:
                        raise UsageError(f"{file}: mutant {mutant.name}: {model!r} is not one of {', '.join(its)}")
                    here.append((mutant, its[model]))
        if not here:
            raise UsageError(f"{path}: no MUTANTS in it")
        chosen = [each for each in here if name in {"", each[0].name}]
        if not chosen:
            names = ", ".join(dict.fromkeys(mutant.name for mutant, _ in here))
            raise UsageError(f"{path}: {name!r} is not one of its mutants {names}")
        found += chosen
    return tuple(found)


def with_mutant(model: Model, mutant: Mutant) -> tuple[Model, tuple[Mutation, ...]]:
    """A model with a mutant in it: of its own file's text, or of the package's. UsageError if the text is not there."""
    if mutant.file:
        return model, mutant.mutations
    if not model.source:
        raise UsageError(f"mutant {mutant.name}: says no file, and model {model.name} is the project's")
    return again(model.source, model.name, (*model.edits, (mutant.old, mutant.new))), mutant.also


def _files(target: str) -> tuple[Path, ...]:
    """The files that a name means; none if it is no file, folder or module."""
    path = Path(target)
    if target.endswith(".py") or "/" in target or path.is_dir():
        if path.is_dir():
            return tuple(sorted(file for file in path.glob("*.py") if not file.name.startswith("_")))
        if not path.is_file():
            raise UsageError(f"{target}: no such file")
        return (path,)
    if "." not in target:
        return ()
    try:
        spec = importlib.util.find_spec(target)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise UsageError(f"{target}: no such module; a model's name has no dots")
    if spec.submodule_search_locations:
        return _files(next(iter(spec.submodule_search_locations)))
    return (Path(spec.origin),)


def _models(file: Path, edits: Edits, probe: Probe | None = None) -> tuple[Model, ...]:
    found = getattr(_module(file, edits, probe), "MODELS", ())
    models = (found,) if isinstance(found, Model) else tuple(found)
    for model in models:
        if not isinstance(model, Model):
            raise UsageError(f"{file}: MODELS holds {model!r}, which is no Model")
    return tuple(replace(model, source=str(file), edits=edits) for model in models)


def _module(file: Path, edits: Edits, probe: Probe | None = None) -> Any:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from None
    code, at, table = text.partition("\nMUTANTS")  # which holds the same texts
    for old, new in edits:
        if code.count(old) != 1 or not old or old == new:
            raise UsageError(f"{file}: text found {code.count(old)} times before MUTANTS, not once: {old!r}")
        code = code.replace(old, new)
    text = code + at + table
    module = types.ModuleType(f"guestmem_model_{next(_numbers)}_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(file.absolute().parent))
    try:
        source: str | ast.Module = text
        if probe is not None:
            source, branches = probed(text, file.name)
            vars(module)[PROBE] = probe(branches)
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))  # noqa: S102 - the user's own file
    except SyntaxError as error:
        raise UsageError(f"{file}:{error.lineno}: {error.msg}") from None
    except Exception as error:  # noqa: BLE001 - whatever the file does
        trace = error.__traceback__
        line = 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise UsageError(f"{file}:{line}: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(file.absolute().parent))
    return module
