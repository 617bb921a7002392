"""The full campaigns, of which `make test` runs a slice each: at most two hours on two cores.

Writes what each was (command), its seed and count, how long it took and what it came to, to a JSON file that figures in
the docs can be quoted from; a campaign that is running when the time is over is ended, and says so.

    make night
    .venv/bin/python benchmarks/night.py --only conform mutants --hours 0.5 --seed 7 night.json

Exit status: 0; 1 if a campaign failed; 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
GUESTMEM = (sys.executable, "-m", "guestmem")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
ROOMS = ("rcu", "ranges", "dirty", "memslots", "gmem", "stage2", "engines", "designs")
TRACE = "examples/traces/pc-seabios-smp2.log"


class Campaign(NamedTuple):
    """One command; ``amount`` says how much of what, ``share`` is its part of the time."""

    name: str
    command: tuple[str, ...]
    amount: str
    share: float
    environment: tuple[tuple[str, str], ...] = ()


def campaigns(seed: int) -> list[Campaign]:
    """All of them, the cheapest first."""
    number = str(seed)
    seeded = (("GUESTMEM_SEED", number), ("GUESTMEM_WHOLE", "1"))
    return [
        Campaign("models", (*GUESTMEM, "explore", "--all", "--jobs", "2"), "every model, searched whole", 0.15),
        Campaign("mutants", (*GUESTMEM, "explore", "--mutants", "--jobs", "2"), "every mutant", 0.2),
        Campaign(
            "random schedules",
            (*GUESTMEM, "explore", "srcu-many", "--random", "200000", "--seed", number),
            "200000 schedules of srcu-many",
            0.1,
        ),
        Campaign("conform", (*GUESTMEM, "conform", "--steps", "1000000", "--seed", number), "1000000 calls", 0.2),
        Campaign(
            "replays",
            (*GUESTMEM, "compare", TRACE, "--repeat", "200", "--seed", number),
            "200 replays of a boot a design",
            0.1,
        ),
        Campaign(
            "verdicts",
            (sys.executable, "tests/support/verdict_campaign.py", "1000000", number),
            "1000000 random histories, damaged, and no wrong verdict of check",
            0.3,
        ),
        Campaign(
            "guest_memfd",
            (sys.executable, "tests/support/gmem_campaign.py", "1000000", number),
            "1000000 random operations on files, beside a dict per page",
            0.1,
        ),
        Campaign(
            "ranges",
            (sys.executable, "tests/support/ranges_campaign.py", "1000000", number),
            "1000000 random operations on range maps, beside a dict of every index",
            0.1,
        ),
        Campaign(
            "merged threads",
            (sys.executable, "tests/support/merge_campaign.py", "10000", number),
            "10000 random programs, searched with and without merging",
            0.2,
        ),
        Campaign(
            "litmus tests",
            (sys.executable, "tests/support/litmus_campaign.py", "10000", number),
            "10000 random litmus tests, beside the published axioms",
            0.2,
        ),
        Campaign("demo", (*GUESTMEM, "demo", "bios-relocation", "--updates", "20000"), "20000 updates a design", 0.05),
        Campaign(
            "slow tests",
            (*PYTEST, "-m", "slow or night", "tests"),
            "every slow test, and the cases that are for the night",
            0.2,
            seeded,
        ),
        Campaign(
            "slow interpreted tests",
            (*PYTEST, "-m", "slow and not compiled_only", *(f"tests/{room}" for room in ROOMS)),
            "every slow test that has an interpreted form",
            0.1,
            (*seeded, ("GUESTMEM_INTERPRET", "1")),
        ),
    ]


def run(campaign: Campaign, seconds: float) -> dict[str, object]:
    """Carry one out; ended after ``seconds``."""
    begun = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - commands of our own
        campaign.command,
        cwd=ROOT,
        env={**os.environ, **dict(campaign.environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ended = False
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        ended = True
        os.killpg(process.pid, signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.strip()]
    result = "time is over" if ended else "ok" if process.returncode == 0 else "failed"
    return {
        "campaign": campaign.name,
        "command": " ".join(("guestmem" if part == GUESTMEM[2] else part) for part in campaign.command[2:]),
        "count": campaign.amount,
        "seconds": round(time.monotonic() - begun, 1),
        "result": result,
        "status": process.returncode,
        "last_lines": lines[-40:] if result == "failed" else lines[-3:],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=Path("night.json"), help="where results go (night.json)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="of all that draws (the time)")
    parser.add_argument("--hours", type=float, default=2.0, help="at most, all together (2)")
    names = [campaign.name for campaign in campaigns(1)]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}")
    options = parser.parse_args()
    if options.hours <= 0:
        parser.error(f"--hours: {options.hours:g} is not more than 0")
    chosen = [each for each in campaigns(options.seed) if not options.only or each.name in options.only]
    results: list[dict[str, object]] = []
    report = {
        "seed": options.seed,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "campaigns": results,
    }
    end = time.monotonic() + 3600 * options.hours
    for place, campaign in enumerate(chosen):
        rest = sum(each.share for each in chosen[place:])
        seconds = (end - time.monotonic()) * campaign.share / rest
        print(f"{campaign.name}: {campaign.amount}, at most {max(seconds, 1) / 60:.1f} min …", flush=True)
        results.append(run(campaign, max(seconds, 1)))
        print(f"  {results[-1]['result']} after {results[-1]['seconds']} s", flush=True)
        options.file.write_text(json.dumps(report, indent=1) + "\n")
    failed = [str(each["campaign"]) for each in results if each["result"] == "failed"]
    print(f"seed {options.seed}; results: {options.file}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
