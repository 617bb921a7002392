"""Memory added where vCPUs make locked increments of nothing: how often one overwrites what was in it.

    python benchmarks/add_beside_increments.py --adds 10000 --vcpus 4

A locked increment of an address without memory leaves as an MMIO read. Once that is answered, KVM's emulator looks for
the memory to compare and exchange; where there is none it falls back to a plain write, and that write looks again
(``emulator_cmpxchg_emulated()``, arch/x86/kvm/x86.c, Linux 6.18). A slot published between the two looks gets the
write: eight bytes computed from what the device answered, over whatever was there. Designs that add memory beside
running vCPUs, QEMU's among them, can meet this; those that stop the vCPUs, or complete the instruction before the
change, cannot. It is a race of the kernel's, so a count of 0 shows nothing by itself: run more.

Words hold a tag, and a word that has lost it was overwritten. Exit status 1 if a design that cannot meet this did.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from guestmem.designs import find
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.kvm import KvmLoadEngine
from guestmem.engines.load_words import TAG_BYTE
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from guestmem.units import PAGE_SHIFT, PAGE_SIZE

DESIGNS = ("sequential", "pause_if_overlap", "pause", "exit_retry")
SAFE = frozenset({"pause", "exit_retry"})
PAGES = 16
SLOT = 3
GPA = 0xFD000000
TAG, RET = 5, 0xC3


def overwritten(design: str, adds: int, vcpus: int, each_s: float) -> dict[str, object]:
    """``adds`` times: the range is a device's, then memory. Which word lost its tag is counted, and has it back."""
    place = int(TAG_BYTE)
    memory = HostMemory([(0x7F0000000000, 0x7F0000000000 + PAGES * PAGE_SIZE)])
    words = [memory.address + (PAGE_SIZE + 8) * page for page in range(PAGES)]
    spoilt = 0

    def tag(word: int) -> None:
        memory.write(word + place, bytes([TAG, RET]))

    for word in words:
        tag(word)
    with KvmLoadEngine(vcpus) as engine:
        apply = find(design).prepare(engine)
        engine.set_access(Access(writes=1.0, fetches=0.0))
        engine.start()
        engine.set_load(Load([Target(GPA + word - memory.address, word, word) for word in words]))
        told = begun = time.monotonic()
        for done in range(adds):
            time.sleep(each_s)  # vCPUs are at their exits
            apply(engine, [Change(SLOT, GPA >> PAGE_SHIFT, PAGES, memory.address)])
            time.sleep(each_s / 4)
            apply(engine, [Change(SLOT)])
            for word in words:  # that nobody can reach now
                if memory.word(word) >> 8 * place != RET << 8 | TAG:
                    spoilt += 1
                    tag(word)
            if sys.stderr.isatty() and time.monotonic() - told > 1:
                told = time.monotonic()
                print(f"\r{design}: {done + 1} of {adds} adds, {spoilt} overwritten ", end="", file=sys.stderr)
        seconds = time.monotonic() - begun
        engine.set_load(Load())
        engine.stop()
        exits = sum(int(counts["mmio_exits"]) for counts in engine.vcpu_counts())
    memory.close()
    return {"design": design, "adds": adds, "overwritten": spoilt, "mmio_exits": exits, "seconds": round(seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adds", type=int, default=2000, help="of each design (default: 2000)")
    parser.add_argument("--vcpus", type=int, default=4, help="more than cores make the race likelier (default: 4)")
    parser.add_argument("--each-ms", type=float, default=1.0, help="time without the memory (default: 1)")
    parser.add_argument("--design", action="append", choices=DESIGNS, help="only this one; may be given several times")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.adds < 1 or given.vcpus < 1 or given.each_ms <= 0:
        parser.error("--adds, --vcpus and --each-ms: more than 0")
    rows = []
    try:
        for design in given.design or DESIGNS:
            rows.append(overwritten(design, given.adds, given.vcpus, given.each_ms / 1000))
            if not given.json:
                row = rows[-1]
                if len(rows) == 1:
                    print(f"{'design':18}{'adds':>8}{'overwritten':>13}{'MMIO exits':>12}{'seconds':>9}")
                print(
                    f"{design:18}{row['adds']:>8}{row['overwritten']:>13}{row['mmio_exits']:>12}{row['seconds']:>9}",
                    flush=True,
                )
    except GuestmemError as error:
        print(f"add_beside_increments: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(rows))
    return int(any(row["overwritten"] and row["design"] in SAFE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
