"""The house stands: no import goes up a floor, the package imports itself relatively, pure rooms load no NumPy."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import guestmem
from two_forms import imports, package, sources

ROOT = Path(__file__).parents[1]
PACKAGE = Path(guestmem.__file__).parent

# From the roof to the ground. A room imports from rooms on lower floors only; what shares a floor stands apart.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["report"],
    ["compare", "check", "demo"],
    ["explore", "conform"],
    ["__init__"],  # names only: everything they come from is below
    ["vm"],
    ["vmm", "traces"],
    ["designs"],
    ["engines"],
    ["abi"],
    ["stage2", "gmem"],
    ["memslots"],
    ["dirty", "ranges", "history"],
    ["rcu"],
    ["patience"],
    ["system", "process_memory", "cache_lines"],
    ["atomics", "clock", "structure"],
    ["entries"],
    ["compiled"],
    ["_intrinsics", "_vectors", "_numba", "_packages", "low_memory"],
    ["futex", "units", "errors", "interrupts", "notebook", "slot_key", "_face"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LAZY = {
    ("__init__", "check"),  # check_trace, found when it is first asked for
    ("check", "report"),  # how a Report looks when it is printed
}

PURE = ["vmm", "history", "traces", "check", "report", "cli", "errors", "units"]
"""Rooms that work without NumPy and Numba."""


def room(path: str) -> str:
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(path: str, text: str) -> list[tuple[int, str]]:
    """Line and room of each relative import."""
    found = []
    base = Path(path)
    for node in imports(text):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = base.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [target.as_posix()] if target != Path() else [alias.name for alias in node.names]
            found += [(node.lineno, room(name)) for name in names]
    return found


def upward(texts: dict[str, str]) -> list[str]:
    return [
        f"{path}:{line}: {room(path)} imports {target}"
        for path, text in texts.items()
        for line, target in imported(path, text)
        if target != room(path) and (room(path), target) not in LAZY
        if target not in FLOOR or room(path) not in FLOOR or FLOOR[target] <= FLOOR[room(path)]
    ]


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in sources()} <= set(FLOOR)


def test_no_import_goes_up_a_floor() -> None:
    assert upward(sources()) == []


@pytest.mark.parametrize(
    "sample",
    [
        {"rcu/new.py": "from ..memslots.slot import Slot"},
        {"memslots/new.py": "def f():\n    from ..engines import soft"},
        {"check/new.py": "from ..compare.replay import replay"},
        {"units.py": "from . import compiled"},
        {"engines/soft/new.py": "from ...designs import atomic"},
    ],
)
def test_an_import_up_a_floor_is_found(sample: dict[str, str]) -> None:
    assert len(upward(sample)) == 1


def test_the_package_imports_itself_relatively() -> None:
    """So that explore.load() can import it a second time under another name."""
    absolute = [
        f"{path}:{node.lineno}"
        for path, text in sources().items()
        for node in imports(text)
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "guestmem")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "guestmem" for alias in node.names))
    ]
    assert absolute == []


SEAM = "engines/kvm/x86"
BEHIND_THE_SEAM = ["load_guest", "instructions", "instruction_bytes"]
"""Modules of it that compiled code needs, or a guest that is run: an architecture more has them, too."""


def through_the_wall(texts: dict[str, str]) -> list[str]:
    """Imports from within ``engines/kvm/x86`` by what stands elsewhere, past the names in its face."""
    found = []
    for path, text in texts.items():
        for node in imports(text):
            if isinstance(node, ast.ImportFrom) and node.level and not path.startswith(SEAM):
                target = Path(path).parents[node.level - 1].joinpath(*(node.module or "").split("."))
                if target.is_relative_to(SEAM) and target.as_posix() != SEAM and target.name not in BEHIND_THE_SEAM:
                    found.append(f"{path}:{node.lineno}: {target}")
    return found


def test_what_is_x86_is_reached_through_its_face() -> None:
    # abi.SEGMENT, which programs look for there
    assert [place for place in through_the_wall(sources()) if "kvm/abi.py" not in place] == []


def test_an_import_past_the_face_is_found() -> None:
    assert through_the_wall({"engines/kvm/new.py": "from .x86.vcpu_state import Sregs"})
    assert not through_the_wall({"engines/kvm/new.py": "from .x86 import REGS"})


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a new process has loaded after ``statement``."""
    program = f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "GUESTMEM_INTERPRET"},
    )
    return {name.split(".")[0] for name in result.stdout.rpartition("MODULES")[2].split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import guestmem",
        "import guestmem; dir(guestmem); guestmem.Slot, guestmem.Change, guestmem.GuestmemError, guestmem.__version__",
        *(f"import guestmem.{pure}" for pure in PURE),
        "from guestmem.cli import main; main(['--help'])",
        "from guestmem.cli import main; main(['check', '--help'])",
        "from guestmem.cli import main; main(['compare', '--help'])",
        "from guestmem.cli import main; main(['check', 'examples/traces/pc-seabios-smp2.log'])",
    ],
)
def test_pure_rooms_load_no_numpy_and_no_numba(statement: str) -> None:
    assert not loaded_by(statement) & {"numpy", "numba", "llvmlite"}


def test_the_measure_above_sees_numba() -> None:
    assert {"numpy", "numba"} <= loaded_by("from guestmem import Memslots; Memslots")


def test_make_runs_every_compiled_rooms_tests_in_both_forms() -> None:
    listed = re.search(r"BOTH_FORMS := \$\(wildcard (.*?)\)\n", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert listed
    tests = listed[1].replace("\\\n", " ").split()
    rooms = {room(function.path) for function in package().compiled()} - {"compiled"}
    assert {f"tests/test_{name}.py" if (PACKAGE / f"{name}.py").exists() else f"tests/{name}" for name in rooms} <= set(
        tests
    )


def test_the_lock_names_versions_only() -> None:
    """A path or an address in it would install on the machine alone on which it was written."""
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pins = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", pin)] == []
