"""A twin is the same source in interpreted form beside the compiled one; a mutant differs by exactly what was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

import guestmem
from guestmem import errors, explore
from guestmem.explore import Mutation
from guestmem.rcu import srcu

SRCU = Path(srcu.__file__).read_text()


def loaded(name: str) -> list[str]:
    return [each for each in sys.modules if each == name or each.startswith(name + ".")]


def test_a_twin_is_interpreted_and_from_the_same_files() -> None:
    with explore.load() as twin:
        assert twin.room("compiled").INTERPRETED
        copy = twin.room("rcu.srcu")
        assert copy is not srcu
        assert copy.__file__ == srcu.__file__
        assert twin.room("rcu.srcu") is copy
        assert type(copy.srcu_enter).__name__ == "function"


def test_rooms_of_a_twin_import_each_other_not_the_original() -> None:
    with explore.load() as twin:
        atomics = twin.room("atomics")
        assert twin.room("rcu.srcu").fetch_add is atomics.fetch_add
        assert twin.room("rcu").Srcu is twin.room("rcu.srcu").Srcu is not srcu.Srcu


def test_two_twins_are_two_copies() -> None:
    with explore.load() as one, explore.load() as other:
        assert one.name != other.name
        assert one.room("atomics") is not other.room("atomics")


def test_a_closed_twin_leaves_nothing_behind() -> None:
    finders = list(sys.meta_path)
    twin = explore.load()
    twin.room("rcu.deferred")
    assert loaded(twin.name)
    twin.close()
    twin.close()
    assert not loaded(twin.name)
    assert sys.meta_path == finders
    with pytest.raises(ModuleNotFoundError):
        twin.room("rcu.srcu")


def test_a_twin_is_closed_when_its_block_fails() -> None:
    twin = explore.load()
    with pytest.raises(errors.UsageError), twin:
        twin.room("rcu").Srcu(-1)
    assert not loaded(twin.name)


@pytest.mark.parametrize("room", ["errors", "units", "memslots.slot", "memslots.changes", "explore.twin"])
def test_errors_and_plain_values_are_shared(room: str) -> None:
    def below(package: ModuleType, path: str) -> object:
        for name in path.split("."):
            package = getattr(package, name)
        return package

    with explore.load() as twin:
        twin.room(room)
        original = below(guestmem, room)
        assert twin.room(room) is original
        assert original.__name__ == f"guestmem.{room}"


def test_an_error_of_a_twin_is_caught_as_an_error_of_the_package() -> None:
    with explore.load() as twin, pytest.raises(errors.UsageError, match="readers: 0"):
        twin.room("rcu.srcu").Srcu(0)


def test_a_module_that_does_not_exist_is_not_found() -> None:
    with explore.load() as twin, pytest.raises(ModuleNotFoundError):
        twin.room("rcu.nothing")


def test_a_mutant_differs_and_the_original_stays() -> None:
    mutation = Mutation("rcu/srcu.py", "slept += ONE", "slept += ONE + ONE")
    with explore.load([mutation]) as mutant, explore.load() as twin:
        assert mutant.room("rcu.srcu").srcu_words.__code__.co_code == twin.room("rcu.srcu").srcu_words.__code__.co_code
        changed = (mutant.room("rcu.srcu").srcu_wait_for, twin.room("rcu.srcu").srcu_wait_for)
        assert changed[0].__code__.co_code != changed[1].__code__.co_code
    assert Path(srcu.__file__).read_text() == SRCU


def test_several_mutations_of_one_file_and_of_several() -> None:
    mutations = [
        ("rcu/srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", "_EVERYBODY = const(1)"),
        ("rcu/srcu.py", "_NEVER = const((1 << 64) - 1)", "_NEVER = const(17)"),
        ("rcu/deferred.py", "_PLACES = const(8)", "_PLACES = const(16)"),
    ]
    with explore.load(mutations) as mutant:
        changed = mutant.room("rcu.srcu")
        assert (changed._EVERYBODY, changed._NEVER, mutant.room("rcu.deferred")._PLACES) == (1, 17, 16)


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        (("rcu/srcu.py", "no such text", "x"), "text found 0 times, not once: 'no such text'"),
        (("rcu/srcu.py", "fence()", "pass"), r"text found \d+ times, not once: 'fence\(\)'"),
        (("rcu/srcu.py", "", "x"), r"text found \d+ times, not once: ''"),
        (("rcu/srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", "_EVERYBODY = const(0x7FFFFFFF)"), "changes nothing"),
        (("rcu/nothing.py", "a", "b"), "mutation of rcu/nothing.py: no such file in the package"),
        (("rcu", "a", "b"), "no such file"),
        (("./rcu/srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", ""), "no such file"),
        (("rcu//srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", ""), "no such file"),
        (("../guestmem/rcu/srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", ""), "no such file"),
        (("/etc/passwd", "root", ""), "no such file"),
        (("py.typed", "a", "b"), "no such file"),
        (("errors.py", "class", ""), "this module is shared with the compiled form"),
        (("memslots/slot.py", "class Slot", ""), "this module is shared"),
        (("traces/__init__.py", "a", "b"), "this module is shared"),
        (("_intrinsics.py", "_I64 = ir", "x"), "no part of the interpreted form"),
    ],
)
def test_a_mutation_that_cannot_be_meant_is_refused(mutation: tuple[str, str, str], message: str) -> None:
    finders = list(sys.meta_path)
    with pytest.raises(errors.UsageError, match=message):
        explore.load([mutation])
    assert sys.meta_path == finders


def test_a_mutation_that_another_one_removed_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="text found 0 times"):
        explore.load(
            [
                ("rcu/srcu.py", "_EVERYBODY = const(0x7FFFFFFF)", "_EVERYBODY = const(1)"),
                ("rcu/srcu.py", "const(0x7FFFFFFF)\n_NEVER", "x"),
            ]
        )
