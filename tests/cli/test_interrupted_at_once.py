"""Ctrl-C ends a command with one line at any moment that is ours: while its modules are imported, and after it."""

from __future__ import annotations

import subprocess
import sys

import pytest

AT_IMPORT = """
import os, signal, sys
import guestmem.__main__ as command

class Presses:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Presses())
sys.argv[1:] = {arguments!r}
command.run()
"""
AT_EXIT = """
import atexit, os, signal, sys
import guestmem.__main__ as command

atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv[1:] = ["--version"]
command.run()
"""


def run(program: str, *, ignoring: bool = False) -> tuple[int, str, str]:
    # Set either way: it is ignored in what a script starts with &.
    answer = "signal.SIG_IGN" if ignoring else "signal.default_int_handler"
    program = f"import signal; signal.signal(signal.SIGINT, {answer})\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("click", ["--help"]), ("guestmem.cli", ["--help"]), ("guestmem.demo", ["demo", "bios-relocation"])],
)
def test_while_it_is_imported(module: str, arguments: list[str]) -> None:
    status, out, err = run(AT_IMPORT.format(module=module, arguments=arguments))
    assert (status, out, err.lstrip("\n")) == (130, "", "guestmem: interrupted\n")  # click begins a new line, for ^C


def test_after_its_end_without_a_word() -> None:
    status, out, err = run(AT_EXIT)
    assert (status, err) == (-2, "")
    assert out.startswith("guestmem, version ")


def test_where_it_is_ignored_it_stays_so() -> None:
    status, out, err = run(AT_IMPORT.format(module="click", arguments=["--version"]), ignoring=True)
    assert (status, err) == (0, "")
    assert out.startswith("guestmem, version ")
