"""A structure with a field that does not fit it, or bytes of another length, is one line of this package's errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from guestmem import UsageError
from guestmem.abi.structures import ClearDirtyLog, CreateGuestMemfd, DirtyLog, EnableCap, MemoryRegion

WRONG: tuple[Any, ...] = ("1", "", 1.5, -1, 1 << 64, -(1 << 70), None, b"x", [1], float("nan"), float("inf"))
FORMS: tuple[tuple[Any, Callable[[Any], bytes], int], ...] = (
    (MemoryRegion(0), MemoryRegion.pack, 5),
    (MemoryRegion(0), MemoryRegion.pack2, 7),
    (DirtyLog(0), DirtyLog.pack, 3),
    (ClearDirtyLog(0), ClearDirtyLog.pack, 4),
    (EnableCap(0), EnableCap.pack, 6),
    (CreateGuestMemfd(0), CreateGuestMemfd.pack, 2),
)
NARROW = {"slot", "flags", "guest_memfd", "num_pages", "padding", "cap"}
"""Fields of 32 bits; the rest have 64, and so has the one called flags of CreateGuestMemfd."""


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(("made", "pack", "fields"), FORMS, ids=lambda part: getattr(part, "__qualname__", ""))
def test_a_field_that_does_not_fit_is_named(
    made: Any, pack: Callable[[Any], bytes], fields: int, value: object
) -> None:
    for name in made._fields[:fields]:
        with pytest.raises(UsageError) as caught:
            pack(made._replace(**{name: value}))
        assert str(caught.value).startswith(f"{name}: {value!r} is not a whole number in 0..0xffffffff")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("made", "pack", "fields"), FORMS, ids=lambda part: getattr(part, "__qualname__", ""))
def test_fields_have_their_width(made: Any, pack: Callable[[Any], bytes], fields: int) -> None:
    for name in made._fields[:fields]:
        width = 32 if name in NARROW and type(made) is not CreateGuestMemfd else 64
        most = (1 << width) - 1
        assert getattr(type(made).unpack(pack(made._replace(**{name: most}))), name) == most
        with pytest.raises(UsageError, match=f"{name}: {most + 1} is not"):
            pack(made._replace(**{name: most + 1}))


def test_numbers_of_numpy_are_numbers() -> None:
    region = MemoryRegion(np.int32(3), np.uint8(1), np.uint64(0x1000), np.int64(0x2000))  # type: ignore[arg-type]
    assert MemoryRegion.unpack(region.pack()) == (3, 1, 0x1000, 0x2000, 0, 0, 0)


@pytest.mark.parametrize("form", [MemoryRegion, DirtyLog, ClearDirtyLog, EnableCap, CreateGuestMemfd])
@pytest.mark.parametrize("argument", [b"", bytes(31), bytes(33), bytes(159), bytes(200), "x" * 32, None, 32, 1.5, [0]])
def test_bytes_that_are_no_structure(form: Any, argument: Any) -> None:
    with pytest.raises(UsageError, match=f"^{form.__name__}: .*the structure has .*bytes$") as caught:
        form.unpack(argument)
    assert "\n" not in str(caught.value)
