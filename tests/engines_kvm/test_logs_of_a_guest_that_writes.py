"""A guest writes the number of the round to pages at random; logs name what it wrote, in that round, and nothing else.

Cases of the kernel's dirty_log_test, in our own words, in its modes: bitmap, bitmap cleared by hand, all ones at first,
ring. The log is taken once while the guest runs, and once after it was stopped. The memory is no multiple of 64 pages.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest

from guestmem.conform.kernel import host_of
from guestmem.vm import DirtyRingFull, Vm

PAGE = 0x1000
PAGES = 515
CODE_GPA, TABLES, SHARED = 1 << 20, (1 << 20) + PAGE, 2 << 20
TARGET = 8 << 20
WRITES = 256
LIMIT_S = 60.0
# mov rbx, TARGET; mov rcx, PAGES; mov r8, SHARED
# l: rsi = rsi * 1103515245 + 12345; rdx = (rsi >> 16) % rcx; mov rax, [r8]; mov [rbx + rdx * 4096], rax
# inc qword [r8 + 8]; jmp l
CODE = b"".join(
    bytes.fromhex(move) + struct.pack("<Q", value)
    for move, value in (("48bb", TARGET), ("48b9", PAGES), ("49b8", SHARED))
) + bytes.fromhex("4869f66d4ec641 4881c639300000 4889f0 48c1e810 31d2 48f7f1 48c1e20c 498b00 48890413 49ff4008 ebd5")
MODES: dict[str, dict[str, Any]] = {
    "bitmap": {},
    "cleared by hand": {"manual_protect": True},
    "all ones": {"initially_set": True},
    "ring": {"ring_entries": 65536},
}


class Guest:
    """A VM with the guest in it; slot 1 is what it writes, and what is logged."""

    def __init__(self, **options: Any) -> None:
        self.vm = Vm(engine="kvm", **options)
        self.manual = bool(options.keys() & {"manual_protect", "initially_set"})
        memory = self.vm.memory
        memory.create(0, gpa=CODE_GPA, size=(SHARED - CODE_GPA) + PAGE)
        memory.create(1, gpa=TARGET, size=PAGES * PAGE, flags=1)
        self.vm.vcpus[0].load_code(CODE, CODE_GPA, mode="long", tables=TABLES)
        self.shared = memory.view(SHARED, 16).view("<u8")
        self.words = memory.view(TARGET, PAGES * PAGE).view("<u8")[:: PAGE // 8]

    def wait(self, writes: int) -> None:
        goal, end = int(self.shared[1]) + writes, time.monotonic() + LIMIT_S
        while int(self.shared[1]) < goal:
            assert time.monotonic() < end, "the guest writes nothing"
            time.sleep(0.001)

    def take(self) -> set[int]:
        """Take the log, as the mode has it."""
        vm = self.vm
        if vm.rings:
            entries = vm.harvest()
            assert {(entry.slot, entry.as_id) for entry in entries} <= {(1, 0)}
            assert all(entry.offset < PAGES for entry in entries)
            assert vm.reset_dirty_rings() == len(entries)
            return {entry.offset for entry in entries}
        log = vm.dirty_log(1)
        if self.manual:  # in two pieces, the second up to the end of the slot
            vm.clear_dirty_log(1, log[:256])
            vm.clear_dirty_log(1, log[256:], first_page=256)
        return {int(page) for page in log.nonzero()[0]}


@pytest.mark.parametrize("mode", MODES)
def test_a_log_names_what_was_written_in_its_round(mode: str) -> None:
    guest = Guest(**MODES[mode])
    with guest.vm as vm:
        guest.shared[0] = 1  # before it runs: no page has the number of a round that was none
        before = guest.words.copy()
        vm.engine.vm.start()
        for turn in range(1, 17):
            guest.shared[0] = turn
            vm.engine.resume() if turn > 1 else None
            guest.wait(WRITES)
            named = guest.take()  # while it runs
            guest.wait(WRITES)
            vm.engine.pause()
            named |= guest.take()
            now = guest.words.copy()
            changed = {int(page) for page in (now != before).nonzero()[0]}
            assert changed <= named, f"round {turn}: written and in no log: {sorted(changed - named)}"
            clean = np.ones(PAGES, bool)
            clean[list(named)] = False
            assert (now[clean] < turn).all()
            late = [page for page in named if now[page] != turn]
            if turn == 1 and mode == "all ones":
                assert named == set(range(PAGES))
            else:
                # The first write may have the number that was read before it changed; the last may be entered, and the
                # guest stopped before it wrote.
                assert len(late) <= 2, f"round {turn}: in the log and not written: {late}"
                assert sum(int(now[page]) != turn - 1 for page in late) <= 1
            assert guest.take() == set()
            before = now
        assert vm.engine.vm.running == 1, vm.engine.vm.ended
        vm.engine.resume()
        vm.engine.vm.stop()


def test_a_ring_that_is_soon_full() -> None:
    """Every exit is for the full ring; in it are pages that were written, and none is left out."""
    size, soft_limit = (1024, 1024 - 64 - 512) if host_of().pml else (256, 256 - 64)
    guest = Guest(ring_entries=size)
    with guest.vm as vm:
        before = guest.words.copy()
        for turn in range(1, 17):
            guest.shared[0] = turn
            assert vm.vcpus[0].run() == DirtyRingFull()
            entries = vm.harvest()
            assert vm.vcpus[0].run() == DirtyRingFull()  # harvested is not given back
            assert vm.harvest() == []
            assert soft_limit <= len(entries) < size
            named = {entry.offset for entry in entries}
            # A page is entered again where the host takes its mapping away (it moves memory together, or out): rarely.
            assert len(named) > len(entries) // 2
            now = guest.words.copy()
            assert {int(page) for page in (now != before).nonzero()[0]} <= named
            late = {page for page in named if now[page] != turn}
            # The page that filled the ring was entered, and the guest left before it wrote: that is done, with the
            # number that it had read, first thing in the next round.
            assert late <= {entries[0].offset, entries[-1].offset}
            assert vm.reset_dirty_rings() == len(entries)
            before = now
