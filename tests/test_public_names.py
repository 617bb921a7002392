"""The public names are these, each can be had, and none but these: a change here is a change for users."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from importlib.metadata import version

import pytest

import guestmem
from guestmem import ranges
from guestmem._face import face

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
LAZY = ["dirty", "explore", "gmem", "memslots", "ranges", "stage2", "stage2.pkvm", "vm"]
FACES = ["check", "history", "rcu", "traces", "vmm", *LAZY]


def test_the_public_names() -> None:
    assert vars(guestmem)["__all__"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_room_calls_it(name: str) -> None:
    value = getattr(guestmem, name)
    assert name in dir(guestmem)
    if name == "__version__":
        assert value == version("guestmem")
    elif name in {"check_trace", "read_trace"}:
        room = name.removesuffix("_trace")
        assert value is getattr(
            importlib.import_module("guestmem.check" if room == "check" else "guestmem.traces"), room
        )
    else:
        assert value.__name__ == name
        assert value.__module__.startswith("guestmem.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'guestmem' has no attribute 'nothing'"):
        _ = vars(type(guestmem))["__getattr__"](guestmem, "nothing")


def test_a_submodule_is_still_found() -> None:
    assert importlib.import_module("guestmem.units").PAGE_SIZE == 4096


@pytest.mark.parametrize("face", FACES)
def test_a_rooms_face_lists_its_names_in_order_and_has_them(face: str) -> None:
    module = importlib.import_module(f"guestmem.{face}")
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("face", LAZY)
def test_a_face_shows_what_can_be_had_before_it_is_loaded(face: str) -> None:
    code = (
        f"import guestmem.{face} as it, rlcompleter, pydoc, sys\n"
        "assert set(it.__all__) <= set(dir(it)) and '__getattr__' not in it.__all__\n"
        "assert not {'numpy', 'numba'} & set(sys.modules), 'dir() loads'\n"
        "found = rlcompleter.Completer({'it': it}).attr_matches('it.')\n"
        "assert all(any(name in each for each in found) for name in it.__all__)\n"
        "page = pydoc.render_doc(it, renderer=pydoc.plaintext)\n"
        "assert all(name in page for name in it.__all__) and '__getattr__' not in page, page\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def look(*names: str) -> types.ModuleType:
        asked.append(names)
        return ranges

    monkeypatch.setattr(importlib, "import_module", look)
    made = types.ModuleType("guestmem.made_here")
    monkeypatch.setitem(sys.modules, "guestmem.made_here", made)
    made.__file__ = ranges.__file__
    face(vars(made), thing=lambda: "made")
    assert vars(made)["__all__"] == ["RangeMap", "RangeSnapshot", "Ranges", "thing"]
    assert (made.thing, made.RangeMap, made.RangeMap) == ("made", ranges.RangeMap, ranges.RangeMap)
    assert asked == [(".range_map", "guestmem.made_here")]
    with pytest.raises(AttributeError, match=r"module 'guestmem.made_here' has no attribute 'nothing'"):
        _ = made.nothing
