"""Merged threads against histories on random programs: `python tests/support/merge_campaign.py [COUNT [SEED]]`.

Each program is searched twice under each memory model, once with histories merged that can still do the same and once
with none: both must come to the same ends and findings. Programs of more than 20 000 states are left out, and counted.
Exit status 1 for the first that differs, which is printed.
"""

from __future__ import annotations

import random
import sys
import time

from campaign_arguments import campaign_arguments
from explore_programs import Step, model, program
from guestmem.explore.outcome import Budget, Outcome
from guestmem.explore.states import States
from guestmem.explore.task import MEMORIES, machine
from guestmem.explore.world import World

MOST = 20_000


def compared(threads: list[list[Step]], memory: str, number: int) -> tuple[int, int] | None:
    """States of both searches; None if there are too many. Raises AssertionError if they differ."""
    with World(model(threads, forgetful=number % 4 > 0, spurious=number % 3 % 2)) as world:
        world.points.update(range(len(world.places)))
        plain, merged = (
            States(machine(world, memory, merged=merged), Outcome("", "states", memory)).run(
                Budget(go_on=True, states=MOST)
            )
            for merged in (False, True)
        )
        if not plain.complete:
            return None
        assert merged.finals == plain.finals, "other ends"
        assert {each.key for each in merged.findings} == {each.key for each in plain.findings}, "other findings"
        return plain.distinct, merged.distinct


def main(count: int, seed: int) -> int:
    """Carry it out; the exit status."""
    rng = random.Random(seed)
    states, left_out, begun = [0, 0], 0, time.monotonic()
    for number in range(count):
        memory = MEMORIES[number % len(MEMORIES)]
        threads = program(rng, longest=3 if memory == "stale" else 5)
        try:
            both = compared(threads, memory, number)
        except AssertionError as error:
            sys.stdout.write(f"seed {seed}, program {number}, {memory}: {error}: {threads}\n")
            return 1
        if both is None:
            left_out += 1
        else:
            states = [a + b for a, b in zip(states, both, strict=True)]
    seconds = time.monotonic() - begun
    sys.stdout.write(
        f"{count} programs, seed {seed}: the same ends and findings; {states[0]:,} states as histories, {states[1]:,} "
        f"merged; {left_out} too large, left out; {seconds:.0f} s\n"
    )
    return 0


if __name__ == "__main__":
    given = campaign_arguments(__doc__, count=10_000, seed=1)
    sys.exit(main(given.count, given.seed))
