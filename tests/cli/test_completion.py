"""Shells complete the names of designs, engines and models."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from guestmem.cli import cli

pytestmark = pytest.mark.compiled_only


def completed(*words: str) -> set[str]:
    """What a shell is offered for the last of ``words``."""
    found = ShellComplete(cli, {}, "guestmem", "_GUESTMEM_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return {each.value for each in found}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("compare", "x.log", "--design", "pau"), {"pause", "pause_if_overlap"}),
        (("dirty-log", "--design", "split+l"), {"split+lazy"}),
        (("compare", "x.log", "--engine", ""), {"soft", "kvm"}),
        (("demo", "bios-relocation", "--engine", "k"), {"kvm"}),
        (("demo", "bios-relocation", "--design", "exit"), {"exit_retry"}),
        (("explore", "stage2-coll"), {"stage2-collapse-refs"}),
    ],
)
def test_names_that_begin_so_are_offered(words: tuple[str, ...], wanted: set[str]) -> None:
    assert completed(*words) >= wanted
    assert all(each.startswith(words[-1]) for each in completed(*words))


def test_mutants_are_offered_where_they_are_meant() -> None:
    assert completed("explore", "--mutants", "") - completed("explore", "")
