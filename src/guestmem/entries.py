"""Entries from Python into compiled functions that take bundles: the same function, with each field by itself.

Between compiled functions a NamedTuple of arrays costs nothing; from Python it costs a microsecond, beside 45 ns for
each array that is handed over by itself; and a bundle with numbers is taken once only, since Numba takes Python's for
int64 there. So Python calls such functions by what ``flat`` makes of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from inspect import getsource
from textwrap import dedent
from types import FunctionType
from typing import Any

from .compiled import INTERPRETED

__all__ = ["flat"]


@cache
def flat(function: Callable[..., Any], *, alone: bool = False) -> Callable[..., Any]:
    """``function`` with the fields of each bundle in its place, one by one; made once, compiled on its first call.

    It calls ``function``; all that this calls is linked into it, and LLVM goes over that once more. ``alone``: its text
    is that of ``function``, which then need not be compiled for it. That is less work where compiled functions do not
    call the same one, or only in rooms that are used without this entry; elsewhere it is as much again.

    >>> from guestmem.stage2.walk import lookup
    >>> from inspect import signature
    >>> list(signature(getattr(flat(lookup), "py_func", flat(lookup))).parameters)
    ['table_shape', 'table_pool', 'table_pages', 'table_mmu', 'table_desk', 'address']
    """
    plain: Any = getattr(function, "py_func", function)
    code, names, name = plain.__code__, plain.__globals__, f"{plain.__name__}_flat"
    takes: dict[str, str] = {}
    bundles: dict[str, str] = {}
    for given in code.co_varnames[: code.co_argcount]:
        kind = plain.__annotations__[given]
        bundle = names.get(kind)
        if not (isinstance(bundle, type) and issubclass(bundle, tuple)):
            takes[given] = kind
            continue
        kinds = {each: getattr(what, "__forward_arg__", what) for each, what in bundle.__annotations__.items()}
        fields = {f"{given}_{each}": "U64" if what in {int, "int"} else str(what) for each, what in kinds.items()}
        takes |= fields
        bundles[given] = f"{kind}({', '.join(fields)})"
    head = f"def {name}({', '.join(takes)}):"
    if alone and not INTERPRETED:
        made = ast.parse(f"{head}\n" + "".join(f"    {given} = {what}\n" for given, what in bundles.items()))
        (was,) = ast.parse(dedent(getsource(plain))).body
        assert isinstance(made.body[0], ast.FunctionDef)
        assert isinstance(was, ast.FunctionDef)
        made.body[0].body += was.body
    else:
        gives = ", ".join(bundles.get(given, given) for given in code.co_varnames[: code.co_argcount])
        made = ast.parse(f"{head} return {plain.__name__}({gives})")
    # In the place of the function itself: its module's text is what the cache of compiled functions goes by.
    ast.increment_lineno(made, code.co_firstlineno - 1)
    found: dict[str, Any] = {}
    exec(compile(made, code.co_filename, "exec"), found)  # noqa: S102 - the text is ours
    entry = FunctionType(found[name].__code__, names, name)
    entry.__annotations__ = takes | {"return": plain.__annotations__["return"]}
    entry.__module__ = plain.__module__
    if INTERPRETED:
        return entry
    from ._numba import dispatcher

    compiled: Callable[..., Any] = dispatcher(entry, nogil=function.targetoptions.get("nogil", False))  # type: ignore[attr-defined]
    return compiled
