"""Faces of packages whose names are imported when somebody first asks for them (PEP 562).

A face says each name once, as a stub would: ``from .module import Name as Name`` below ``if TYPE_CHECKING``. Type
checkers read that; ``face`` reads the same lines of the file, so that ``dir()``, ``help()``, completion and
``import *`` know what can be had before anything is loaded.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["face"]

_BLOCK = re.compile(r"^if TYPE_CHECKING:\n((?:    .*\n|\n)+)", re.MULTILINE)
_IMPORT = re.compile(r"^    from (\.[\w.]*) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
_NAME = re.compile(r"(\w+) as (\w+)")


def _order(name: str) -> tuple[bool, bool, str]:
    """As ruff sorts ``__all__``: constants, classes, functions."""
    return not name.isupper(), not name[0].isupper(), name


class _Face(ModuleType):
    """A package that looks its names up. Not functions of the package: ``help()`` would show them among its own."""

    def __getattr__(self, name: str) -> Any:
        inside = self.__dict__
        if name in inside["_where"]:
            path, there = inside["_where"][name]
            value = getattr(importlib.import_module(path, inside["__name__"]), there)
        elif name in inside["_made"]:
            value = inside["_made"][name]()
        else:
            raise AttributeError(f"module {inside['__name__']!r} has no attribute {name!r}")
        inside[name] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__all__} - {"TYPE_CHECKING", "annotations", "face"})


def face(module: dict[str, Any], **made: Callable[[], Any]) -> None:
    """Give the package whose ``globals()`` these are its ``__all__``, and import names when they are asked for.

    ``made``: names that no file has, and what makes them. A name is looked up once; from then on it is a global.
    """
    with open(module["__file__"], encoding="utf-8") as file:
        block = _BLOCK.search(file.read())
    found = _IMPORT.findall(block[1] if block else "")
    where = {name: (path, there) for path, several, one in found for there, name in _NAME.findall(several or one)}
    module["_where"], module["_made"] = where, made
    sys.modules[module["__name__"]].__class__ = _Face
    module["__all__"] = sorted({*where, *made}, key=_order)
