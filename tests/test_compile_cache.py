"""The cache of compiled functions: used when nothing changed, and never when a callee in another file did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import guestmem

pytestmark = [pytest.mark.slow, pytest.mark.compiled_only]

CALLEE = """
from __future__ import annotations
from .compiled import U64, compiled, u64
from .units import PAGE_SHIFT

@compiled
def callee(value: U64) -> U64:
    return value + u64({number})
"""
CALLER = """
from __future__ import annotations
from .{callee} import callee
from .compiled import U64, compiled

@compiled
def caller(value: U64) -> U64:
    return callee(value)
"""
UNRELATED = """
from __future__ import annotations
from .compiled import U64, compiled

@compiled
def unrelated(value: U64) -> U64:
    return value
"""
PROGRAM = """
from guestmem.caller import caller
from guestmem.unrelated import unrelated
print(caller(100), unrelated(7), sum(caller.stats.cache_hits.values()), sum(unrelated.stats.cache_hits.values()))
"""


class House:
    """A copy of the package with three more modules, and a cache of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.package = root, root / "guestmem"
        shutil.copytree(Path(guestmem.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("callee", CALLEE.format(number=1))
        self.write("caller", CALLER.format(callee="callee"))
        self.write("unrelated", UNRELATED)

    def write(self, module: str, text: str) -> None:
        (self.package / f"{module}.py").write_text(text)

    def run(self, program: str = PROGRAM) -> list[int]:
        """Results of caller and unrelated in a new process, and how many of each came from the cache."""
        result = subprocess.run(
            [sys.executable, "-B", "-c", program],
            env={**os.environ, "PYTHONPATH": str(self.root), "XDG_CACHE_HOME": str(self.root / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [int(word) for word in result.stdout.split()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_did_not_change_comes_from_the_cache(house: House) -> None:
    assert house.run() == [101, 7, 0, 0]
    assert house.run() == [101, 7, 1, 1]


def test_a_change_in_the_callees_file_is_noticed_and_others_stay(house: House) -> None:
    house.run()
    house.write("callee", CALLEE.format(number=2))
    assert house.run() == [102, 7, 0, 1]
    assert house.run() == [102, 7, 1, 1]


@pytest.mark.slow
def test_a_change_two_files_away_is_noticed(house: House) -> None:
    house.write("middle", "from .callee import callee\n")
    house.write("caller", CALLER.format(callee="middle"))
    house.run()
    house.write("callee", CALLEE.format(number=3))
    assert house.run() == [103, 7, 0, 1]


@pytest.mark.slow
def test_a_change_is_noticed_by_a_file_outside_the_package(house: House) -> None:
    test = house.root / "outside.py"
    test.write_text(CALLER.format(callee="callee").replace("from .", "from guestmem."))
    program = "from outside import caller; print(caller(100), sum(caller.stats.cache_hits.values()))"
    assert house.run(program) == [101, 0]
    assert house.run(program) == [101, 1]
    house.write("callee", CALLEE.format(number=4))
    assert house.run(program) == [104, 0]


@pytest.mark.slow
def test_a_file_that_is_a_script_and_a_module_is_two(house: House) -> None:
    script = house.root / "script.py"
    script.write_text(CALLER.format(callee="callee").replace("from .", "from guestmem.") + "\nprint(caller(100))\n")
    as_script = f"import runpy; runpy.run_path({str(script)!r}, run_name='elsewhere')"
    assert house.run(as_script) == [101]
    assert house.run("import script") == [101]
    assert house.run(as_script) == [101]


def test_two_copies_share_what_has_the_same_text(house: House, tmp_path: Path) -> None:
    """What a second checkout would compile again is there; what differs in it, be it far away, is its own."""
    (house.root / "cache").mkdir()
    same, other = House(tmp_path / "same"), House(tmp_path / "other")
    other.write("callee", CALLEE.format(number=5))
    for copy in (same, other):
        (copy.root / "cache").symlink_to(house.root / "cache")
    assert house.run() == [101, 7, 0, 0]
    assert same.run() == [101, 7, 1, 1]
    assert other.run() == [105, 7, 0, 1]
    assert house.run() == [101, 7, 1, 1]


def test_without_a_place_to_write_functions_are_compiled_all_the_same(house: House) -> None:
    (house.root / "cache").write_text("a file where the directory should be")
    assert house.run() == [101, 7, 0, 0]
    assert house.run() == [101, 7, 0, 0]
