"""What tests of the software engine share: a small guest on real memory, a scheduler that acts between operations."""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from guestmem.compiled import INTERPRETED
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.memslots import Change

HVA = 0x7F0000000000
PAGE = 4096
LIMIT_S = 100.0
"""After so long what was waited for will not come."""


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until ``true()``."""
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.0005)


def fault_of(room: Callable[[str], Any], engine: Any, gfn: int, *, writes: bool = False) -> int:
    """Have vCPU 0, which does not run, handle a stage-2 fault; what it came to. ``room``: of the package, or a twin."""
    slots, _load = engine.vcpu_words(0)
    table = engine.stage2.tables[0]
    fault = room("engines.soft.user_mem_abort").stage2_fault
    return int(fault(slots, table.at(1), engine.stage2.tlbs[0][0].words, gfn, writes, False))


def host_of(room: Callable[[str], Any], engine: Any, gfn: int, *, writes: bool = False) -> int:
    """Where an access of vCPU 0 goes by its TLB and the table; 0 if it exits."""
    walk, at = room("stage2.tlb_walk"), room("stage2.tlb_layout")
    shape, pool, _pages, mmu = engine.stage2.tables[0].words
    tlb = engine.stage2.tlbs[0][0].words
    walk.tlb_enter(shape, pool, mmu, tlb)
    found = walk.tlb_translate(shape, pool, mmu, tlb, gfn << 12, gfn << 12, at.WRITE if writes else at.READ) == at.OK
    walk.tlb_leave(mmu, tlb)
    return int(tlb[int(at.HOST_ADDRESS)]) if found else 0


def of_package(name: str) -> Any:
    """A room as it is, where a twin's could stand."""
    return importlib.import_module(f"guestmem.{name}")


class Guest:
    """An engine with ``pages`` pages of host memory, and what vCPUs touch in them."""

    def __init__(self, vcpus: int = 2, pages: int = 64, access: Access | None = None, **options: Any) -> None:
        self.memory = HostMemory([(HVA, HVA + pages * PAGE)])
        self.base = self.memory.translate(HVA)
        self.pages = pages
        self.engine = SoftEngine(vcpus, **options)
        if access is not None:
            self.engine.set_access(access)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.engine.stop()
        self.memory.close()

    def hva(self, page: int) -> int:
        """Real address of a host page."""
        return self.base + page * PAGE

    def change(self, slot: int, gfn: int = 0, npages: int = 0, page: int = 0, flags: int = 0) -> Change:
        """A change whose host memory begins at ``page``; with no pages, a delete."""
        return Change(slot, gfn, npages, self.hva(page) if npages else 0, flags)

    def create(self, slot: int, gfn: int, npages: int, page: int, flags: int = 0) -> None:
        """Create a slot as KVM does."""
        self.engine.set_memory_region(self.change(slot, gfn, npages, page, flags))

    def target(
        self,
        gfn: int,
        old: int | None,
        new: int | None = None,
        *,
        changed: bool = False,
        readonly: tuple[bool, bool] = (False, False),
    ) -> Target:
        """The first 8 bytes of a frame that is host page ``old`` before and ``new`` after (None: no memory)."""
        before, after = (0 if page is None else self.hva(page) for page in (old, new))
        return Target(gfn * PAGE, before, after, *readonly, changed)

    def same(self, frames: dict[int, int], *, changed: bool = False) -> list[Target]:
        """Targets of frames that keep their host page: gfn -> page."""
        return [self.target(gfn, page, page, changed=changed) for gfn, page in frames.items()]

    def run(self, targets: Sequence[Target]) -> None:
        """Start the vCPUs, have them work on ``targets``, and wait until each has made an access."""
        self.engine.start()
        self.engine.set_load(Load(targets))
        self.all_move()

    def word(self, page: int) -> int:
        """The counter in a host page."""
        return self.memory.word(self.hva(page))

    def put(self, page: int, value: int) -> None:
        """Set the counter in a host page."""
        ctypes.c_uint64.from_address(self.hva(page)).value = value

    def written(self) -> int:
        """The sum of all counters."""
        return sum(self.word(page) for page in range(self.pages))

    def accesses(self, vcpu: int) -> int:
        """Accesses that a vCPU has finished."""
        return self.engine.vcpu_counts()[vcpu]["accesses"]

    def total(self, name: str) -> int:
        """One counter, over all vCPUs."""
        return sum(counts[name] for counts in self.engine.vcpu_counts())

    def moves(self, vcpu: int) -> None:
        """Wait until a vCPU has finished another access."""
        before = self.accesses(vcpu)
        until(lambda: self.accesses(vcpu) != before, f"an access of vCPU {vcpu}")

    def all_move(self) -> None:
        """Wait until every vCPU has finished another access."""
        for vcpu in range(self.engine.vcpus):
            self.moves(vcpu)

    def rest(self) -> None:
        """Give vCPUs a moment in which they could do what they must not."""
        time.sleep(0.03 if INTERPRETED else 0.001)

    def mode(self, vcpu: int) -> int:
        """A vCPU's MODE."""
        from guestmem.atomics import peek

        return peek(self.engine._vm, int(at.VCPUS) + int(at.VCPU) * vcpu + int(at.MODE))


class WouldSleepError(Exception):
    """The operation is a wait for a word that has this value."""


class Inline:
    """A scheduler for interpreted code: carries operations out on this thread, and calls ``between`` before each.

    ``between`` gets the number of the operation; it may call interpreted code itself, which is not interrupted. ``of``:
    only operations on these words count.
    """

    def __init__(self, between: Callable[[int], None] = lambda _operation: None, of: Sequence[Any] = ()) -> None:
        self.between, self.operations, self._of, self._busy = between, 0, of, False

    def step(self, operation: str, words: Any, index: int, first: int, second: int) -> int:
        if not self._busy and (not self._of or any(words is each for each in self._of)):
            self._busy = True
            try:
                self.between(self.operations)
            finally:
                self._busy = False
            self.operations += 1
        if operation in {"fence", "wake"}:
            return 0
        cells = words.cells if words is not None else ctypes.cast(index, ctypes.POINTER(ctypes.c_uint64))
        index = index if words is not None else 0
        seen = int(cells[index])
        if operation == "wait":
            if seen == first:
                raise WouldSleepError
        elif operation.startswith(("store", "host_store", "exchange")):
            cells[index] = first
        elif operation.endswith("fetch_add"):
            cells[index] = (seen + first) % (1 << 64)
        elif operation == "compare_exchange" and seen == first:
            cells[index] = second
        else:
            assert "load" in operation, operation
        return seen
