"""The command line: one thin file per command, found when it is first asked for."""

from __future__ import annotations

import importlib
import sys

import click

from .._packages import what_is_missing
from ..errors import GuestmemError

__all__ = ["Commands", "cli", "main"]

COMMANDS = {
    "check": "Where can a vCPU of my VMM see memory vanish?",
    "record": "Record a VMM with the tracer that is installed, and check it.",
    "compare": "Which way of updating memory is right, and what does it cost?",
    "dirty-log": "Which way of logging dirty pages is right, and what does it cost?",
    "scene": "Make a trace of a load: virtio-mem, PAM, a BAR that moves, poison, VSM.",
    "explore": "Is this concurrent page-table algorithm correct?",
    "replay": "Follow the schedule of a counterexample that explore found.",
    "map": "What does memory look like, and what does a change of it cost?",
    "history": "Does one instant explain what everybody saw of an update?",
    "conversions": "What does sharing and taking back memory cost?",
    "post-copy": "What does a page cost that comes when it is touched?",
    "conform": "Does this kernel behave as KVM documents?",
    "explain": "Which kernels take this call, and what do the others answer?",
    "demo": "Watch the failure, and what prevents it.",
    "bench": "What does it cost, beside its peers in the same run?",
}
"""Name and one-line help of each command; ``guestmem.cli.NAME`` holds ``command``."""


class Commands(click.Group):
    """A group that imports a command's file only when that command runs, so that help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table above."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of ``cmd_name`` and return its command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name.replace('-', '_')}", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="guestmem")
def cli() -> None:
    """KVM's guest-memory subsystem as a laboratory."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, a command's own, or 2 for bad input."""
    if sys.stdout is None:  # the caller has closed it
        print("guestmem: standard output is closed", file=sys.stderr)
        return 2
    try:
        result = cli.main(args=argv, prog_name="guestmem", standalone_mode=False)
    except GuestmemError as error:
        print(f"guestmem: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        missing = what_is_missing(error.name or "")
        if not missing:
            raise
        print(f"guestmem: {missing}", file=sys.stderr)
        return 2
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2: a group without a command; its message is the help
            print(error.format_message(), file=sys.stderr)
            return 2
        message = " ".join(error.format_message().split())
        print(f"guestmem: {message}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort):
        print("guestmem: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"guestmem: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0
