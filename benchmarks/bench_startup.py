"""How long a person waits before anything happens: import, help, the twin; beside a bare start and the peers' imports.

Each figure is the median of several new processes (the twin: of several loads in one).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from guestmem import explore

RUNS = 9


def process(*arguments: str) -> float:
    """Milliseconds of one new process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
    return (time.perf_counter() - begun) * 1e3


def load(mutations: tuple[tuple[str, str, str], ...] = ()) -> float:
    """Milliseconds to load a twin and the room that most others stand on."""
    begun = time.perf_counter()
    with explore.load(mutations) as twin:
        twin.room("rcu.deferred")
    return (time.perf_counter() - begun) * 1e3


MUTATION = (("rcu/srcu.py", "slept += ONE", "slept += ONE + ONE"),)
ROWS: dict[str, tuple[Callable[[], float], str]] = {
    "python -c pass": (lambda: process("-c", "pass"), ""),
    "import guestmem": (lambda: process("-c", "import guestmem"), "at most 300 ms"),
    "guestmem --help": (lambda: process("-m", "guestmem", "--help"), ""),
    "from guestmem import Memslots": (lambda: process("-c", "from guestmem import Memslots; Memslots"), ""),
    "import numpy": (lambda: process("-c", "import numpy"), "peer"),
    "import numba": (lambda: process("-c", "import numba"), "peer"),
    "explore.load(), a room": (load, ""),
    "explore.load() of a mutant": (lambda: load(MUTATION), ""),
}


def main() -> None:
    """Print the table."""
    bare = 0.0
    print(f"{'':34}{'median ms':>10}{'of a bare start':>17}")
    for name, (measure, note) in ROWS.items():
        measure()  # files in the page cache, byte code written
        median = statistics.median(measure() for _ in range(RUNS))
        bare = bare or median
        print(f"{name:34}{median:10.1f}{median / bare:16.1f}x  {note}".rstrip())


if __name__ == "__main__":
    main()
