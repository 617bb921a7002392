"""Wheel and sdist install in a clean environment on every Python that is here, and the base does what it promises.

Needs an index to install from, and minutes: ``make installs``. Pythons are found in PATH and in pyenv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOOT = ROOT / "examples" / "traces" / "pc-seabios-smp2.log"
VERSIONS = ("3.11", "3.12", "3.13")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif("GUESTMEM_INSTALL" not in os.environ, reason="installs from an index: make installs"),
]


def python(version: str) -> str | None:
    """A Python of that version, or None."""
    known = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    return str(known[-1]) if known else shutil.which(f"python{version}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``guestmem`` of the environment in ``folder``, from a place where no source is."""
    command = [str(folder / "bin" / "guestmem"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_base_checks_writes_the_page_and_says_what_it_lacks(
    tmp_path: Path, built: dict[str, Path], version: str, kind: str
) -> None:
    interpreter = python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} is here")
    folder = tmp_path / "clean"
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "install", "--root-user-action=ignore", str(built[kind])], check=True)
    listed = subprocess.run([*pip[:-1], "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert "jinja2" in listed
    for absent in ("numpy", "numba", "greenlet"):
        assert absent not in listed
    checked = run(folder, "check", str(BOOT), "--html", "page.html")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "6 holes" in checked.stdout
    assert (folder / "page.html").read_text().rstrip().endswith("</html>")
    assert run(folder, "record", "--help").returncode == 0
    for lacking in (
        ("compare", str(BOOT)),
        ("explore", "srcu"),
        ("demo", "bios-relocation"),
        ("conform", "/dev/kvm"),
    ):
        told = run(folder, *lacking)
        assert (told.returncode, told.stdout) == (2, ""), lacking
        assert told.stderr.startswith("guestmem: "), told.stderr
        assert told.stderr.count("\n") == 1, told.stderr
        assert "is not installed: pip install 'guestmem[" in told.stderr
