"""Rust's ``rangemap`` beside ours, where cargo and the crate are: the program in ``rangemap_peer/``, built offline.

The crate is no part of the project. Its sources come from a directory that is named, or from wherever cargo finds
crates without a network: its own cache or what its configuration puts in place of the registry.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "GUESTMEM_RANGEMAP"
SOURCES = Path(__file__).with_name("rangemap_peer")
TO_GET_IT = f"""\
It needs cargo and the crate. Name a directory with the crate's sources by
--rangemap DIR or {VARIABLE}, or fetch it once, with a network:
  cargo fetch --manifest-path benchmarks/rangemap_peer/Cargo.toml"""


class NotRun(Exception):  # noqa: N818 - a state of this machine
    """There is no cargo here, or no crate: why, in one line."""


class Figures(NamedTuple):
    """Nanoseconds a load and a store; the sum of all loads before and after the stores; ranges at the end."""

    load: float
    store: float
    before: int
    after: int
    ranges: int


class Rangemap:
    """``rangemap`` in a program of its own, which is built in the folder."""

    def __init__(self, folder: Path, crate: str | None = None) -> None:
        """NotRun where it cannot be built; ValueError of a ``crate`` (or ``GUESTMEM_RANGEMAP``) that is none."""
        given, said = (crate, "--rangemap") if crate else (os.environ.get(VARIABLE), VARIABLE)
        if given and not (Path(given) / "Cargo.toml").is_file():
            raise ValueError(f"{said}: {given} is no crate's directory: it has no Cargo.toml")
        cargo = shutil.which("cargo")
        if cargo is None:
            raise NotRun("cargo is not installed")
        self.folder = folder
        shutil.copytree(SOURCES, folder / "rangemap_peer", ignore=shutil.ignore_patterns("target", "Cargo.lock"))
        manifest = folder / "rangemap_peer" / "Cargo.toml"
        build = [cargo, "build", "--offline", "--release", "--quiet", "--manifest-path", str(manifest)]
        build += ["--target-dir", str(folder / "target")]
        if given:
            build += ["--config", f"patch.crates-io.rangemap.path={json.dumps(str(Path(given).absolute()))}"]
        done = subprocess.run(build, check=False, capture_output=True, text=True)  # noqa: S603 - cargo, without a shell
        if done.returncode:
            raise NotRun("cargo build --offline: " + _error_of(done.stderr))
        lock = tomllib.loads(manifest.with_name("Cargo.lock").read_text())
        self.version = next(each["version"] for each in lock["package"] if each["name"] == "rangemap")
        self.name = f"rangemap {self.version} (Rust)"

    def run(self, rows: Any, changes: Any, indices: Any, rounds: int) -> Figures:
        """The ranges to begin with, the stores and the indices, each an array of words; the least of so many rounds."""
        paths = []
        for name, array in (("rows", rows), ("changes", changes), ("indices", indices)):
            paths.append(self.folder / name)
            array.astype("<u8").tofile(paths[-1])
        program = self.folder / "target" / "release" / "rangemap_peer"
        done = subprocess.run([program, *paths, str(rounds)], check=True, capture_output=True)  # noqa: S603 - built above
        return Figures(**json.loads(done.stdout))


def _error_of(text: str) -> str:
    """The first line that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error")), "it failed")
