"""The public names are these, each can be had, and none but these: a change here is a change for users."""

from __future__ import annotations

import importlib
from importlib.metadata import version

import pytest

import guestmem

NAMES = [
    "BatchError",
    "CapabilityError",
    "Change",
    "ChangeKind",
    "GuestmemError",
    "InvariantError",
    "MemslotError",
    "Memslots",
    "Slot",
    "TraceError",
    "UsageError",
    "Vm",
    "__version__",
    "check_trace",
    "read_trace",
]
FACES = ["check", "explore", "history", "memslots", "rcu", "traces", "vmm"]


def test_the_public_names() -> None:
    assert guestmem.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_room_calls_it(name: str) -> None:
    value = getattr(guestmem, name)
    assert name in dir(guestmem)
    if name == "__version__":
        assert value == version("guestmem")
    else:
        module, attribute = guestmem._WHERE[name]
        assert value is getattr(importlib.import_module(f"guestmem.{module}"), attribute)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'guestmem' has no attribute 'nothing'"):
        _ = guestmem.nothing


def test_a_submodule_is_still_found() -> None:
    assert importlib.import_module("guestmem.units").PAGE_SIZE == 4096


@pytest.mark.parametrize("face", FACES)
def test_a_rooms_face_lists_its_names_in_order_and_has_them(face: str) -> None:
    module = importlib.import_module(f"guestmem.{face}")
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(hasattr(module, name) for name in module.__all__)
