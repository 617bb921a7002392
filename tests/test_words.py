"""Words of both forms: unsigned 64-bit, checked where the forms could differ."""

from __future__ import annotations

import pytest

from guestmem import explore
from guestmem.compiled import U64, compiled, own, u64, wrapping


@compiled
def wrap(first: U64, second: U64) -> U64:
    return wrapping(first + second)


@compiled
def difference(first: U64, second: U64) -> U64:
    return wrapping(first - second)


@pytest.mark.parametrize(("first", "second"), [(2**64 - 1, 1), (2**63, 2**63), (0, 5), (5, 0), (7, 2**64 - 1)])
def test_wrapping_is_modulo_two_to_the_64(first: int, second: int) -> None:
    assert wrap(first, second) == (first + second) % 2**64
    assert difference(first, second) == (first - second) % 2**64


@pytest.mark.parametrize("value", [-1, 2**64])
def test_the_interpreted_form_refuses_what_is_no_word(value: int) -> None:
    with explore.load() as twin:
        with pytest.raises(OverflowError, match="leaves an unsigned 64-bit word"):
            twin.room("compiled").u64(value)
        with pytest.raises(ValueError, match=r"format|range"):
            twin.room("compiled").own(1)[0] = value


OPERATIONS = [
    *((name, ()) for name in ("load_relaxed", "load_acquire")),
    *((name, (1,)) for name in ("store_relaxed", "store_release", "exchange", "fetch_add", "fetch_and", "fetch_or")),
    ("compare_exchange", (0, 1)),
]


@pytest.mark.parametrize("index", [-1, 4])
def test_the_interpreted_form_checks_bounds(index: int) -> None:
    with explore.load() as twin:
        shared = twin.room("compiled").words(4)
        for operation, operands in OPERATIONS:
            with pytest.raises(IndexError):
                getattr(twin.room("atomics"), operation)(shared, index, *operands)


def test_shared_words_cannot_be_indexed_in_the_interpreted_form() -> None:
    """A plain access fails by itself, where the lint is not run."""
    with explore.load() as twin:
        shared = twin.room("compiled").words(4)
        with pytest.raises(TypeError, match="not subscriptable"):
            shared[0]
        with pytest.raises(TypeError, match="item assignment"):
            shared[0] = 1


def test_own_words_are_plain() -> None:
    mine = own(3)
    mine[1] = u64(2**64 - 1)
    assert [int(mine[place]) for place in range(3)] == [0, 2**64 - 1, 0]
    assert len(mine) == 3
