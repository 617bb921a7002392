"""No compiled function computes with int64 or float64: every value is u64 or bool, as in the interpreted form."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.compiled import U64, Own, compiled, compiled_copy, u64
from guestmem.rcu.srcu import srcu_oldest
from two_forms import Function, package

pytestmark = pytest.mark.compiled_only

FUNCTIONS = package().compiled()
REFUSED = re.compile(r"(?<!u)int(8|16|32|64)|uint(8|16|32)\b|float|complex|Tuple|list|set\(|dict|unicode")


def inferred(function: Any) -> dict[str, str]:
    """Variables whose inferred types no value may have; callees and literals are left out."""
    from numba import types

    from inference import inferred_types

    return {
        name: str(kind)
        for name, kind in inferred_types(function).items()
        if not isinstance(kind, types.Callable | types.Literal | types.Module) and REFUSED.search(str(kind))
    }


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: f"{each.path}:{each.name}")
def test_every_value_is_a_word_or_a_bool(function: Function) -> None:
    module = importlib.import_module("guestmem." + function.path.removesuffix(".py").replace("/", "."))
    checked = getattr(module, function.name)
    found = inferred(checked if hasattr(checked, "overloads") else compiled_copy(checked))
    lengths = [name for name, kind in found.items() if kind == "int64" and name.startswith("$")]
    # u64(len(own)) is allowed (see the lint) and int64 in between.
    if len(lengths) <= ast.unparse(function.node).count("u64(len("):
        found = {name: kind for name, kind in found.items() if name not in lengths}
    assert found == {}


@compiled
def _sum_with_a_literal(value: U64) -> U64:
    return value + 1


@compiled
def _literal_then_word(own: Own, value: U64) -> U64:
    total = 0
    if value > 5:
        total = own[value]
    return total


@compiled
def _range_of_words(value: U64) -> U64:
    total = u64(0)
    for each in range(0, value):  # noqa: PIE808 - the 0 is what makes it a float
        total += u64(each)
    return total


@pytest.mark.parametrize("function", [_sum_with_a_literal, _literal_then_word, _range_of_words])
def test_mixed_integers_are_found(function: Callable[..., int]) -> None:
    assert inferred(function) != {}


@pytest.mark.parametrize("function", [_sum_with_a_literal, _literal_then_word, _range_of_words, srcu_oldest])
def test_the_types_are_those_of_a_whole_compile(function: Any) -> None:
    from guestmem._numba import compile_fresh
    from inference import inferred_types

    compiled_types = compile_fresh(function).type_annotation.typemap
    assert {name: str(kind) for name, kind in inferred_types(function).items()} == {
        name: str(kind) for name, kind in compiled_types.items()
    }
