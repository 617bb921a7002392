"""Random litmus tests: what searches show under each memory model, against the published axioms (axioms.py).

    python tests/support/litmus_campaign.py [COUNT [SEED]]

``sc`` and ``tso`` are to come to the very ends of SC and x86's TSO, ``relaxed`` to those of PSO with release stores
kept in order; ``stale`` to no end that RC11 does not allow. Prints how many of RC11's ends ``stale`` does not come to.
"""

from __future__ import annotations

import random
import sys

from axioms import allowed
from campaign_arguments import campaign_arguments
from guestmem.explore.litmus import outcomes

__all__ = ["compared", "drawn"]

SAME = {"sc": "sc", "tso": "tso", "relaxed": "pso"}


def drawn(rng: random.Random) -> tuple[str, ...]:
    """Two or three threads, on two words or three; few enough stores for every order of them."""
    words = rng.choice(("xy", "xy", "xyz"))
    threads = rng.choice((2, 2, 3))
    kinds = rng.choice(("WWRR", "WwRrF", "wrU", "WRFU", "WwRrFU"))
    left = dict.fromkeys(words, 3)
    found = []
    for _ in range(threads):
        steps = []
        for _ in range(rng.randrange(1, 5 if threads == 2 else 4)):
            kind, word = rng.choice(kinds), rng.choice(words)
            if kind in "WwU":
                left[word] -= 1
                if left[word] < 0:
                    continue
            value = rng.randrange(1, 4)
            steps.append(
                {"W": f"W{word}{value}", "w": f"W{word}{value}r", "R": f"R{word}", "r": f"R{word}a"}.get(
                    kind, "F" if kind == "F" else f"U{word}{value}"
                )
            )
        found.append(" ".join(steps))
    return tuple(found)


def compared(threads: tuple[str, ...]) -> tuple[int, int]:
    """How many ends RC11 allows, and how many of them ``stale`` does not come to; AssertionError if one is wrong."""
    published = allowed(threads, "sc", "tso", "pso", "rc11")
    for memory, name in SAME.items():
        mine = outcomes(threads, memory)
        assert mine == published[name], f"{threads}: {memory}: {sorted(mine ^ published[name])} in one only"
        assert mine <= published["rc11"], f"{threads}: {memory} goes past RC11: {sorted(mine - published['rc11'])}"
    mine = outcomes(threads, "stale")
    assert mine <= published["rc11"], f"{threads}: stale goes past RC11: {sorted(mine - published['rc11'])}"
    return len(published["rc11"]), len(published["rc11"] - mine)


def main() -> int:
    given = campaign_arguments(__doc__, count=10_000, seed=1)
    count, seed = given.count, given.seed
    ends = missing = programs = 0
    for number in range(count):
        threads = drawn(random.Random(f"{seed} {number}"))
        every, lacks = compared(threads)
        ends, missing, programs = ends + every, missing + lacks, programs + bool(lacks)
        if number % 1000 == 999:
            sys.stderr.write(f"{number + 1} programs\n")
    sys.stdout.write(
        f"{count} programs, seed {seed}: all as published; of {ends:,} ends that RC11 allows stale lacks {missing:,}, "
        f"in {programs:,} programs\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
