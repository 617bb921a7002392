"""`--jobs`: when the process that hands out is killed, and can tell nobody, those that search for it end, too."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SEARCHING = """
import multiprocessing, os, time
from pathlib import Path

from guestmem.explore import Model, Scene

HERE = Path(__file__).parent


def build(scene: Scene) -> None:
    if multiprocessing.parent_process() is not None:
        (HERE / f"{os.getpid()}.begun").touch()
        time.sleep(500)  # a search without an end, were it not for the test's
    atomics, words = scene.room("atomics"), scene.words("w", 1)
    for number in range(2):
        scene.thread(f"t{number}", atomics.fetch_add, words, 0, 1)


MODELS = (Model("searching", "processes are at work", "2 threads", build),)
"""
PATIENCE_S = 240


@contextmanager
def search(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A search in two processes, once both are at work; and a file descriptor of each of these."""
    model = folder / "searching.py"
    model.write_text(SEARCHING)
    command = [sys.executable, "-m", "guestmem", "explore", str(model), "--jobs", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers: list[int] = []
    try:
        end = time.monotonic() + PATIENCE_S
        while len(begun := [*folder.glob("*.begun")]) < 2:
            assert parent.poll() is None
            assert time.monotonic() < end, "two processes never were at work"
            time.sleep(0.05)
        workers += [os.pidfd_open(int(each.stem)) for each in begun]
        yield parent, workers
    finally:
        parent.kill()
        parent.wait()
        for worker in workers:
            if not select.select([worker], [], [], 0)[0]:
                signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_stays_behind(tmp_path: Path, by: signal.Signals) -> None:
    with search(tmp_path) as (parent, workers):
        parent.send_signal(by)
        assert parent.wait(PATIENCE_S) == -by
        for worker in workers:
            assert select.select([worker], [], [], PATIENCE_S / 2)[0], "a process goes on that nobody waits for"
