"""Random true histories, rendered and damaged at random: is a verdict of ``check`` ever wrong?

    python tests/support/verdict_campaign.py COUNT [SEED [JOBS]]

runs COUNT histories of consecutive seeds from SEED (0) on, in JOBS processes (as many as there are cores), and prints
how many holes were said to be open, closed and unknown, by format and rule, and each wrong one with its seed. Of each
three histories one is read as a block, one in blocks of a few lines, and one in such blocks of which what a second
process would make of them (``traces.second_process.Ahead``) is made here.
"""

from __future__ import annotations

import contextlib
import marshal
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import rare_renderings
import renderings
from campaign_arguments import campaign_arguments
from guestmem import traces
from guestmem.check import check, report
from guestmem.errors import TraceError
from guestmem.traces import lines, reading
from true_histories import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guestmem.check import Report
    from true_histories import History

STEP = 2000
ONE_FILE = {
    "strace": renderings.strace,
    "strace with options": rare_renderings.strace_with_options,
    "qemu's kvm_*": renderings.qemu_kvm_log,
    "bpftrace": renderings.bpftrace,
    "simpletrace": rare_renderings.simpletrace,
}
TWO_FILES = ("qemu and tracepoints", "stap and tracepoints", "qemu and perf trace")
FORMATS = ("qemu in ftrace", *ONE_FILE, *TWO_FILES)


class AheadHere:
    """What a second process makes of blocks, without one."""

    def __init__(self, _blocks: object, work: Callable[[str], Any], _share: int) -> None:
        self._work = work

    def of(self, block: str) -> Any:
        """What it makes of ``block``, as it comes through a pipe."""
        return marshal.loads(marshal.dumps(self._work(block)))

    def close(self) -> None:
        """Nothing is left."""


@contextlib.contextmanager
def read_as(seed: int) -> Iterator[None]:
    """Read files whole, in blocks, or in blocks that are made ahead."""
    block = 500 + seed % 7 * 300 if seed % 3 else lines.BLOCK
    with (
        mock.patch.object(lines, "BLOCK", block),
        mock.patch.multiple(reading, Ahead=AheadHere, LARGE=-1, cores=lambda _: 1 + (seed % 3 == 2)),
        mock.patch.object(report, "MANY_AT_ONCE", 0 if seed % 2 else sys.maxsize),
    ):
        yield


@dataclass(slots=True)
class Tally:
    """Verdicts by word and by rule, the seeds of wrong ones, and how many histories there were."""

    histories: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    rules: Counter[tuple[str, str]] = field(default_factory=Counter)
    no_hole: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def report_of(history: History, form: str, rng: random.Random, folder: Path) -> Report:
    """Render ``history`` as ``form`` into ``folder``, and check what was written."""
    changes = folder / "changes"
    if form in ONE_FILE:
        changes.write_text(ONE_FILE[form](history, rng))
        return check(traces.read(changes, gap=1.0))
    if form == "qemu in ftrace":
        changes.write_text(renderings.tracepoints(history, rng, history.calls))
        return check(traces.read(changes, gap=1.0))
    changes.write_text((rare_renderings.stap if form.startswith("stap") else renderings.qemu_log)(history, rng))
    run_state = folder / "run"
    of_vcpus = rare_renderings.perf_trace if form.endswith("perf trace") else renderings.tracepoints
    run_state.write_text(of_vcpus(history, rng))
    return check(traces.read(changes, gap=1.0, run_state=run_state))


def one(seed: int, folder: Path, tally: Tally) -> None:
    """One history of one seed."""
    rng = random.Random(seed)
    history = simulate(rng)
    form = rng.choice(FORMATS)
    tally.histories += 1
    try:
        with read_as(seed):
            found = report_of(history, form, rng, folder)
    except TraceError as error:
        tally.no_hole[str(error).rsplit(": ", maxsplit=1)[-1][:60]] += 1
        return
    except Exception as error:  # noqa: BLE001 - one more that must not be, and the others are still to be seen
        tally.wrong.append(f"seed {seed}: {form}: {type(error).__name__}: {error}")
        return
    if not found.holes:
        tally.no_hole["no hole"] += 1
        return
    (hole,) = found.holes
    verdict = hole.verdict.value
    tally.verdicts[verdict] += 1
    tally.rules[form, hole.rule.name] += 1
    if (verdict == "open" and not history.ran_inside()) or (verdict == "closed" and history.touched_inside()):
        tally.wrong.append(f"seed {seed}: {form}: {verdict}: {hole.reason}")


def campaign(count: int, first_seed: int = 0) -> Tally:
    """``count`` histories of consecutive seeds."""
    tally = Tally()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        for seed in range(first_seed, first_seed + count):
            one(seed, Path(name), tally)
    return tally


def _part(piece: tuple[int, int]) -> Tally:
    return campaign(*piece)


def in_parallel(count: int, first_seed: int = 0, jobs: int = 0) -> Tally:
    """The same in several processes, a few thousand histories at a time.

    Every ten seconds standard error says how far it is; Ctrl-C, or SIGTERM, ends it with what was done until then.
    """
    starts = range(first_seed, first_seed + count, STEP)
    sizes = [min(STEP, first_seed + count - start) for start in starts]
    whole, told_at = Tally(), time.monotonic()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        multiprocessing.Pool(jobs or os.cpu_count(), _leave_signals_to_the_first) as pool,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for part in pool.imap(_part, zip(sizes, starts, strict=True)):
            whole.histories += part.histories
            whole.verdicts += part.verdicts
            whole.rules += part.rules
            whole.no_hole += part.no_hole
            whole.wrong += part.wrong
            if time.monotonic() > told_at + 10:
                told_at = time.monotonic()
                sys.stderr.write(f"{whole.histories} histories, up to seed {first_seed + whole.histories - 1}; ")
                sys.stderr.write(f"{len(whole.wrong)} wrong\n")
    signal.signal(signal.SIGTERM, before)
    return whole


def _leave_signals_to_the_first() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def told(tally: Tally) -> str:
    """The tally in words."""
    total = sum(tally.verdicts.values())
    shares = ", ".join(f"{number} {word} ({number / total:.1%})" for word, number in sorted(tally.verdicts.items()))
    lines = [f"  {form:22} {rule:16} {number}" for (form, rule), number in sorted(tally.rules.items())]
    lines += [f"  nothing to judge: {why}: {number}" for why, number in tally.no_hole.most_common(8)]
    summary = f"{tally.histories} histories: {shares}; {len(tally.wrong)} wrong"
    return "\n".join([*lines, *tally.wrong[:20], summary])


if __name__ == "__main__":
    given = campaign_arguments(__doc__, count=None, seed=0, jobs=True)
    done = in_parallel(given.count, given.seed, given.jobs)
    sys.stdout.write(told(done) + "\n")
    sys.exit(bool(done.wrong))
