"""make night: each command of its campaigns is one that its program takes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click
import pytest

from guestmem.cli import cli

NIGHT = Path(__file__).parents[1] / "benchmarks" / "night.py"
_found = importlib.util.spec_from_file_location("night", NIGHT)
assert _found
assert _found.loader
night = importlib.util.module_from_spec(_found)
sys.modules["night"] = night
_found.loader.exec_module(night)
CAMPAIGNS = {each.name: each.command for each in night.campaigns(7)}
OURS = [name for name, command in CAMPAIGNS.items() if command[:3] == night.GUESTMEM]
SCRIPTS = [name for name, command in CAMPAIGNS.items() if command[1].endswith(".py")]


def parsed(arguments: list[str]) -> click.Context:
    """What the command line takes them for, and nothing is carried out."""
    group: click.Command = cli
    context = cli.make_context("guestmem", arguments)
    while isinstance(group, click.Group):
        name, found, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert found
        context, group = found.make_context(name, rest, parent=context), found
    return context


@pytest.mark.parametrize("name", OURS)
def test_a_command_of_guestmem_is_taken(name: str) -> None:
    assert parsed(list(CAMPAIGNS[name][3:])).params


def test_a_command_that_is_not_taken_is_seen() -> None:
    with pytest.raises(click.UsageError):
        parsed(["explore", "--all", "--no-such-option"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_takes_its_arguments(name: str) -> None:
    command = [*CAMPAIGNS[name], "--no-such-option"]
    done = subprocess.run(command, cwd=night.ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("unrecognized arguments: --no-such-option")


def test_every_campaign_is_of_a_kind_that_is_looked_at() -> None:
    others = [CAMPAIGNS[name] for name in CAMPAIGNS if name not in OURS + SCRIPTS]
    assert all(command[: len(night.PYTEST)] == night.PYTEST for command in others)
