"""How often one instant is found: batches of ``atomic`` that vCPUs saw from both sides, and what their accesses say.

A batch gives three slots other host memory, there and back, while vCPUs read and write them. Batches that nobody saw
from both sides are made, and not counted. Beside it in the same run the design without acknowledgements, which has to
be caught. Most of a batch's time is the hand-shake with every vCPU before and after it: with 8 on two cores some 4 ms,
so 100 000 take about seven minutes there; ``--resume`` adds them up over runs, each with another seed.
Run: ``python benchmarks/bench_instants.py --help``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from guestmem.compare.replay import accesses_of_reports
from guestmem.designs import BROKEN, find
from guestmem.engines import Access, HostMemory, Load, Target, measured_engine
from guestmem.engines.load_words import TAG_BYTE
from guestmem.history import Verdict, judge
from guestmem.memslots import Change

SLOTS, PAGES = 3, 8


def scenes(memory: HostMemory) -> list[tuple[list[Change], Load]]:
    """There and back: the changes, and what vCPUs touch meanwhile."""

    def page(side: int, slot: int) -> int:
        return memory.address + ((side * SLOTS + slot) * PAGES << 12)

    for side in range(2):
        for place in range(page(side, 0), page(side, SLOTS), 1 << 12):
            memory.write(place + int(TAG_BYTE), bytes([1 + side, 0xC3]))
    made = []
    for old in range(2):
        new = 1 - old
        changes = [
            change
            for slot in range(SLOTS)
            for change in (Change(slot + 1), Change(slot + 1, slot * 64, PAGES, page(new, slot)))
        ]
        targets = [
            Target(
                slot * 64 + at << 12,
                page(old, slot) + (at << 12),
                page(new, slot) + (at << 12),
                changed=True,
                old_tag=1 + old,
                new_tag=1 + new,
            )
            for slot in range(SLOTS)
            for at in range(PAGES)
        ]
        made.append((changes, Load(targets)))
    return made


def run(
    engine_name: str, design: str, vcpus: int, batches: int, seconds: float, seed: int
) -> tuple[int, int, int, int, str]:
    """Made, seen from both sides, without one instant, holes and old memory after the end; the first contradiction."""
    memory = HostMemory([(0x7F0000000000, 0x7F0000000000 + (2 * SLOTS * PAGES << 12))])
    made = seen = torn = 0
    witness = ""
    with measured_engine(engine_name, vcpus, seed=seed) as engine:
        both = scenes(memory)
        for change in both[1][0]:
            if not change.deletes:
                engine.set_memory_region(change)
        apply = find(design).prepare(engine)
        engine.set_access(Access(writes=0.3, fetches=0))
        engine.start()
        end = time.monotonic() + seconds
        while seen < batches and (made == 0 or time.monotonic() < end):
            if made == 1:  # all is compiled
                end = time.monotonic() + seconds
            changes, load = both[made & 1]
            engine.set_load(load)
            with engine.window():
                apply(engine, changes)
            judgement = judge(accesses_of_reports(engine.set_load(Load())))
            made += 1
            if judgement.verdict is not Verdict.UNKNOWN:
                seen += 1
                if judgement.verdict is Verdict.FAIL:
                    torn += 1
                    witness = witness or judgement.reason
        engine.stop()
        every = engine.vcpu_counts()
    memory.close()
    wrong = sum(counts[name] for counts in every for name in ("holes_read", "holes_write", "stale", "strange"))
    return made, seen, torn, wrong, witness


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=int, default=2000, help="seen from both sides, for each number of vCPUs")
    parser.add_argument("--vcpus", default="1,2,4,8")
    parser.add_argument("--design", default="atomic")
    parser.add_argument("--engine", default="soft", choices=("soft", "kvm"))
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for each number of vCPUs")
    parser.add_argument("--resume", type=Path, help="keep the counts in this file, and go on from those that it has")
    given = parser.parse_args()
    kept: dict[str, list[int]] = {}
    if given.resume and given.resume.exists():
        kept = json.loads(given.resume.read_text())
    print(f"{'design':<24}{'vCPUs':>6}{'batches':>10}{'both sides':>12}{'torn':>8}{'otherwise wrong':>17}{'s':>8}")
    control = BROKEN if given.engine == "soft" else "sequential"
    caught = False
    for vcpus in map(int, given.vcpus.split(",")):
        for design in (given.design, control):
            begun = time.monotonic()
            batches = given.batches if design != control else min(given.batches, 2000)
            name = f"{given.engine} {design} {vcpus}"
            runs, *before = kept.get(name, [0, 0, 0, 0, 0])
            *counts, witness = run(given.engine, design, vcpus, batches - before[1], given.seconds, 1 + runs)
            made, seen, torn, wrong = (count + was for count, was in zip(counts, before, strict=True))
            kept[name] = [runs + 1, made, seen, torn, wrong]
            if given.resume:
                given.resume.write_text(json.dumps(kept, indent=2) + "\n")
            took = time.monotonic() - begun
            print(f"{design:<24}{vcpus:>6}{made:>10}{seen:>12}{torn:>8}{wrong:>17}{took:>8.1f}", flush=True)
            if witness:
                print(f"  {witness}")
            caught |= design == control and bool(torn or wrong)
    print("control: caught" if caught else "control: NOT CAUGHT, so the zeros above mean nothing")


if __name__ == "__main__":
    main()
