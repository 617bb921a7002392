"""The models that ``guestmem explore`` knows: each file here holds ``MODELS``, one or more ``Model``."""

from __future__ import annotations

import importlib
import pkgutil

from ..near import not_one_of
from ..scene import Model

__all__ = ["find", "models"]


def models() -> tuple[Model, ...]:
    """All models, by file and then in the file's order."""
    found: list[Model] = []
    for module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
        found += importlib.import_module(f".{module}", __name__).MODELS
    return tuple(found)


def find(name: str) -> Model:
    """The model of a name; UsageError if there is none."""
    known = models()
    for model in known:
        if model.name == name:
            return model
    raise not_one_of("model", name, (model.name for model in known), "explore --list")
