"""How quickly schedules are searched, on one core: `python benchmarks/bench_explore.py [--threads] [--all]`.

Rates are of whole searches, start and thread code included; the processor's seconds stand beside the clock's, for a
machine that others use too. The second table compares with frontrun's explorer, DPOR over threads of plain Python
(`pip install 'guestmem[bench]'`), on the same threads in the same run; the third partial-order reduction with plain
enumeration on a table of two levels: map against collapse. With --threads, nothing but a search over states by one
thread and by two, in turn; only on two idle cores do the clock's seconds say how much quicker two are.
With --all, every exhaustive model is searched whole under every memory model.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guestmem.explore.machine import Machine, State
from guestmem.explore.models import find, models
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import explore
from guestmem.explore.task import Task, machine, run
from guestmem.explore.world import Reshaped, World

ALLOCATED, FREED = 60, 61
PEER = "frontrun"
SOME = 8_000_000
"""States of a search that threads share."""
ALIKE = ((2, 2, 2), (3, 2, 2), (3, 3, 2))
"""Steps of three threads that frontrun gets through; ten points take it minutes."""


def adds(*counts: int) -> Model:
    """Threads that add to, and load, one word: nothing commutes but loads."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("word", 1)

        def body(count: int) -> None:
            for step in range(count):
                if step % 2:
                    atomics.load_acquire(words, 0)
                else:
                    atomics.fetch_add(words, 0, 1)

        for number, count in enumerate(counts):
            scene.thread(f"thread {number}", body, count)

    return Model("adds", "nothing", f"{counts} steps", build)


def stores(*counts: int) -> Model:
    """Threads that store to, and load, one word: what `peer` has frontrun search."""

    def build(scene: Scene) -> None:
        atomics, words = scene.room("atomics"), scene.words("word", 1)

        def body(count: int) -> None:
            for step in range(count):
                if step % 2:
                    atomics.load_acquire(words, 0)
                else:
                    atomics.store_release(words, 0, step)

        for number, count in enumerate(counts):
            scene.thread(f"thread {number}", body, count)

    return Model("stores", "nothing", f"{counts} steps", build)


def peer() -> None:
    """In frontrun's own environment: print runs, seconds and the processor's seconds of each of ALIKE as JSON."""
    import frontrun

    class Word:
        def __init__(self) -> None:
            self.value = 0

    def body(count: int) -> Callable[[Word], None]:
        def steps(word: Word) -> None:
            for step in range(count):
                if step % 2:
                    word.value  # noqa: B018 - a load
                else:
                    word.value = step

        return steps

    rows = []
    for counts in (ALIKE[0], *ALIKE):  # the first twice: it imports
        begun, used = time.perf_counter(), time.process_time()
        found = frontrun.explore(
            Word, [body(count) for count in counts], lambda _: True, preemption_bound=None, detect_io=False
        )
        rows.append((found.num_explored, time.perf_counter() - begun, time.process_time() - used))
    print(json.dumps(rows[1:]))


def beside_the_peer() -> None:
    print()
    if importlib.util.find_spec(PEER) is None:
        print(f"SKIPPED: {PEER} is not installed: pip install 'guestmem[bench]'")
        return
    command = [str(Path(sys.executable).with_name(PEER)), sys.executable, __file__, "--peer"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        print(f"SKIPPED: {PEER} failed: {done.stderr.splitlines()[-1:]}")
        return
    print("three threads' loads and stores of one word, DPOR; seconds are the processor's")
    print(f"{'steps':10} {'explorer':10} {'runs':>8} {'seconds':>9} {'runs a second':>14} {'times':>6}")
    for counts, (runs, _, used) in zip(ALIKE, json.loads(done.stdout.splitlines()[-1]), strict=True):
        outcome, ours = timed(Task(stores(*counts), "dpor"))
        print(f"{counts!s:10} {PEER:10} {runs:>8,} {used:>9.3f} {runs / used:>14,.0f}")
        rate = outcome.runs / ours
        print(
            f"{counts!s:10} {'guestmem':10} {outcome.runs:>8,} {ours:>9.3f} {rate:>14,.0f} {rate * used / runs:>6,.0f}"
        )


def swap(scene: Scene) -> None:
    """Two readers, one writer, two sets of one word: 26 points."""
    atomics, words = scene.room("atomics"), scene.words("word", 8)

    def reader() -> None:
        for _ in range(2):
            copy = atomics.load_acquire(words, 0) & 1
            atomics.fetch_add(words, 2 + copy, 1)
            atomics.load_acquire(words, 4 + copy)
            atomics.fetch_add(words, 2 + copy, 2**64 - 1)

    def writer() -> None:
        for turn in range(2):
            old = atomics.load_acquire(words, 0) & 1
            atomics.store_release(words, 5 - old, turn + 1)
            atomics.store_release(words, 0, turn * 2 + 1 - old)
            atomics.load_acquire(words, 2 + old)
            atomics.store_release(words, 4 + old, turn + 1)

    scene.thread("reader 0", reader)
    scene.thread("reader 1", reader)
    scene.thread("writer", writer)


def table(maps: int) -> Callable[[Scene], None]:
    """A table of two levels, four entries a page; ``maps`` threads map pages below an entry that one collapses."""

    def build(scene: Scene) -> None:
        atomics = scene.room("atomics")
        start = [0] * 64
        start[ALLOCATED], start[0], start[4], start[8] = 3, 1 << 12 | 3, 2 << 12 | 3, 0x103
        words = scene.words("table", start)

        def map_page(ipa: int, descriptor: int) -> None:
            page = 0
            for shift in (4, 2):
                index = page * 4 + (ipa >> shift & 3)
                entry = atomics.load_acquire(words, index)
                while entry & 3 != 3:
                    made = atomics.fetch_add(words, ALLOCATED, 1) << 12 | 3
                    seen = atomics.compare_exchange(words, index, entry, made)
                    entry = made if seen == entry else seen
                page = entry >> 12
            index = page * 4 + (ipa & 3)
            atomics.compare_exchange(words, index, atomics.load_acquire(words, index), descriptor | 3)

        def collapse(index: int, block: int) -> None:
            entry = atomics.load_acquire(words, index)
            below = (entry >> 12) * 4
            for child in range(4):
                atomics.load_acquire(words, below + child)
            if atomics.compare_exchange(words, index, entry, 1 << 10) == entry:
                atomics.store_release(words, index, block | 1)
                for child in range(4):
                    atomics.store_release(words, below + child, 0)
                atomics.fetch_add(words, FREED, 1)

        for number in range(maps):
            scene.thread(f"map {number}", map_page, number + 1, 0x200 + 0x100 * number)
        scene.thread("collapse", collapse, 4, 0x5000)

    return build


def timed(task: Task) -> tuple[Outcome, float]:
    """A search and the processor's seconds it took."""
    begun = time.process_time()
    outcome = run(task, Budget(go_on=True))
    return outcome, time.process_time() - begun


def plain(model: Model) -> int:
    """How many schedules plain enumeration runs: counted from the ends up, each state once."""
    with World(model) as world:
        while True:
            try:
                its = machine(world, "sc")
                return _schedules(its, its.start(), {})
            except Reshaped:
                continue


def _schedules(its: Machine, state: State, known: dict[State, int]) -> int:
    if state not in known:
        moves = its.moves(state)
        known[state] = sum(_schedules(its, its.move(state, move), known) for move in moves) if moves else 1
    return known[state]


def rates() -> None:
    print(f"{'model':28} {'search':8} {'what':>22} {'seconds':>9} {'a second':>12} {'a second of CPU':>16}")

    def row(name: str, search: str, count: int, what: str, outcome: Outcome, used: float) -> None:
        print(
            f"{name:28} {search:8} {count:>12,} {what:9} {outcome.seconds:>9.3f} {count / outcome.seconds:>12,.0f}"
            f" {count / used:>16,.0f}"
        )

    ten, large = adds(4, 3, 3), Model("swap", "nothing", "26 points", swap)
    timed(Task(ten, "dpor"))  # imports
    for name, model in (("ten points, all conflict", ten), ("26 points, some conflict", large)):
        outcome, used = timed(Task(model, "dpor"))
        row(name, "dpor", outcome.runs, "runs", outcome, used)
        row(name, "dpor", outcome.points, "points", outcome, used)
        outcome, used = timed(Task(model, "states"))
        row(name, "states", outcome.points, "moves", outcome, used)
        outcome, used = timed(Task(model, "random", last=20_000))
        row(name, "random", outcome.runs, "runs", outcome, used)
        row(name, "random", outcome.points, "points", outcome, used)


def reduction() -> None:
    print()
    print(f"{'model':28} {'plain':>20} {'dpor':>8} {'of it pruned':>13} {'reduction':>22}")
    for maps in (1, 2):
        model = Model("table", "nothing", f"{maps} maps, 1 collapse", table(maps))
        outcome, _ = timed(Task(model, "dpor"))
        all_of = plain(model)
        print(f"{model.size:28} {all_of:>20,} {outcome.runs:>8,} {outcome.pruned:>13,} {all_of / outcome.runs:>22,.0f}")


def threads() -> None:
    """One thread and two, in turn: transitions a second by the clock, and what one of two had to do alone."""
    print(
        f"{'model':28} {'threads':>7} {'transitions':>12} {'seconds':>9} {'CPU s':>8} {'alone':>8}"
        f" {'a second':>12} times"
    )
    for name, memory in (("production-atomic-vcpus", "sc"), ("production-atomic-pages", "tso")):
        model = find(name)
        with World(model) as world:
            run(Task(model, "states", memory), Budget(states=SOME), world=world)  # finds the shared words
            rates: dict[int, float] = {}
            for count in (1, 2, 1, 2):
                task = Task(model, "states", memory, threads=count)
                used, alone = time.process_time(), time.thread_time()
                outcome = run(task, Budget(states=SOME), world=world)
                used, alone = time.process_time() - used, time.thread_time() - alone
                rates[count] = outcome.points / outcome.seconds
                row = f"{name + ' ' + memory:28} {count:>7} {outcome.points:>12,} {outcome.seconds:>9.2f} {used:>8.2f}"
                times = f"{rates[2] / rates[1]:.2f}" if count == 2 else ""
                print(f"{row} {alone:>8.2f} {rates[count]:>12,.0f} {times}", flush=True)


def every_model() -> None:
    print()
    for model in models():
        if model.exhaustive:
            report = explore(model)
            seconds = sum(outcome.seconds for outcome in report.outcomes)
            states: Any = {o.memory: o.distinct for o in report.outcomes if o.search == "states"}
            runs = next((o.runs for o in report.outcomes if o.search == "dpor"), 0)
            ended = "complete" if report.complete else "NOT complete"
            print(f"{model.name:16} {seconds:7.1f} s  {ended}, clean: {report.clean}, dpor {runs:,}, states {states}")


if __name__ == "__main__":
    if "--threads" in sys.argv[1:]:
        threads()
        sys.exit()
    if "--peer" in sys.argv[1:]:
        peer()
        sys.exit()
    rates()
    beside_the_peer()
    reduction()
    if "--all" in sys.argv[1:]:
        every_model()
