"""A compiled function has the one signature that its annotations declare, whatever it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem.atomics import load_relaxed, peek, store_release
from guestmem.compiled import U64, Own, Words, compiled, words

pytestmark = pytest.mark.compiled_only


def fresh() -> Any:
    """A function that was never called."""

    @compiled
    def read(words: Words, index: U64) -> U64:
        return load_relaxed(words, index)

    return read


def arrays() -> dict[str, Callable[[], Any]]:
    import numpy as np

    def read_only() -> Any:
        array = np.zeros(4, np.uint64)
        array.flags.writeable = False
        return array

    return {
        "int64": lambda: np.zeros(8, np.int64),
        "float64": lambda: np.zeros(8),
        "uint32": lambda: np.zeros(8, np.uint32),
        "every other word": lambda: np.zeros(8, np.uint64)[::2],
        "two dimensions": lambda: np.zeros((4, 4), np.uint64),
        "read-only": read_only,
        "a list": lambda: [1, 2, 3, 4],
        "bytes": lambda: bytearray(64),
        "a number": lambda: 5,
    }


def test_one_signature_whatever_the_integers() -> None:
    import numpy as np

    function, shared = fresh(), words(8)
    store: Any = compiled(_store)
    index: Any
    for value, index in enumerate((1, np.int8(2), np.uint16(3), np.int64(4), np.uint64(5), True)):
        store(shared, index, value)
        assert function(shared, index) == value
    assert [len(each.signatures) for each in (function, store)] == [1, 1]


def _store(words: Words, index: U64, value: U64) -> None:
    store_release(words, index, value)


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_word_keeps_all_its_bits(value: int) -> None:
    shared = words(1)
    compiled(_store)(shared, 0, value)
    assert int(peek(shared, 0)) == value


@pytest.mark.parametrize("value", [-1, 2**64, -(2**63)])
def test_what_is_no_word_is_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        peek(words(1), value)


@pytest.mark.parametrize("first", [True, False], ids=["first call", "later call"])
@pytest.mark.parametrize("name", arrays())
def test_another_array_is_a_type_error(name: str, first: bool) -> None:
    function = fresh()
    if not first:
        function(words(4), 0)
    with pytest.raises(TypeError):
        function(arrays()[name](), 0)


def test_an_annotation_that_is_no_word_type_is_refused() -> None:
    def function(words: Words, index: int) -> U64:
        return load_relaxed(words, index)

    with pytest.raises(TypeError, match="index is annotated 'int', not one of"):
        compiled(function)


def test_a_missing_annotation_is_refused() -> None:
    def function(own: Own, index) -> U64:  # type: ignore[no-untyped-def] # noqa: ANN001 - the subject
        return own[index]

    with pytest.raises(TypeError, match="index is annotated None"):
        compiled(function)
