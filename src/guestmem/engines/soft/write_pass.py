"""One pass of writes over a range by every vCPU, timed: what a guest does between two looks at its dirty log.

The loops of ``vcpu.py`` go on for ever, on a few thousand targets; this one writes a counter in each page of a range,
once, and ends. Idea: ``tools/testing/selftests/kvm/dirty_log_perf_test.c``, ``memstress_guest_code()``, Linux.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...atomics import poke
from ...compiled import U64, Own, Words, compiled, const, u64
from ...entries import flat
from ...errors import GuestmemError, UsageError
from ...stage2.tlb_layout import HOST_ADDRESS
from ...stage2.tlb_walk import tlb_enter, tlb_leave
from ...stage2.words import Table
from . import layout as at
from .accesses import WRITE, perform
from .gmem_slot import Gmem
from .stage2_vcpu import REACHED, reach, stage2_look
from .vcpu import POLL, enter_guest, leave_core
from .words import Access, Slots

if TYPE_CHECKING:
    from .engine import SoftEngine

__all__ = ["counter_offset", "write_pass"]

_ONE = const(1)


def counter_offset(gfn: int) -> int:
    """Where in a page its counter is: another cache line in the next page, another set in the next 2 MiB.

    >>> counter_offset(0), counter_offset(3), counter_offset(512 + 3)
    (0, 24, 16)
    """
    return ((gfn ^ gfn >> 9) * 8) % 4096


class Part(NamedTuple):
    """Each ``step``-th frame of ``[first, end)``."""

    first: U64
    end: U64
    step: U64


@compiled(nogil=True)
def _pass(slots: Slots, load: Words, table: Table, tlb: Own, gmem: Gmem, vcpu: U64, part: Part) -> U64:
    """One vCPU's part, each ``step``-th frame of its range; returns the first that it did not write."""
    vm, own = slots.vm, slots.own
    shape, pool, _pages, mmu, _desk = table
    first, end, step = part
    if not enter_guest(vm, load, own, vcpu):
        return first
    tlb_enter(shape, pool, mmu, tlb)
    gfn = first
    until_look = POLL
    while gfn < end:
        gpa = (gfn << 12) + (((gfn ^ (gfn >> 9)) << 3) & u64(0xFFF))
        access = Access(gfn, WRITE, False, False, False, u64(0))
        came_to = reach(slots, load, table, tlb, gmem, vcpu, gpa, access)
        if came_to != REACHED:
            if came_to != 0:
                tlb_leave(mmu, tlb)
                leave_core(vm, own, vcpu, False)
            return gfn
        perform(own, tlb[HOST_ADDRESS], WRITE)
        gfn += step
        until_look -= _ONE
        if until_look == 0:
            until_look = POLL
            if not stage2_look(slots, load, table, tlb, vcpu):
                return gfn
    tlb_leave(mmu, tlb)
    leave_core(vm, own, vcpu, False)
    return gfn


def write_pass(engine: SoftEngine, parts: Sequence[tuple[int, int]], step: int = 1) -> int:
    """Have vCPU v write once to each ``step``-th frame of ``parts[v]``; returns ns from first start to last end.

    No vCPU thread may run (``start``). GuestmemError if a frame cannot be written. O(frames).
    """
    if len(parts) != engine.vcpus:
        raise UsageError(f"parts: {len(parts)} for {engine.vcpus} vCPUs")
    if engine.running:
        raise GuestmemError("write_pass: vCPUs are running")
    poke(engine._vm, int(at.STOP), 0)  # noqa: SLF001 - this plays the vCPU threads of the engine
    meet = threading.Barrier(engine.vcpus)
    begun, ended, done = ([0] * engine.vcpus for _ in range(3))
    run_pass = flat(_pass, alone=True)
    table, tlbs = engine.stage2.tables[0], engine.stage2.tlbs[0]

    def run(vcpu: int) -> None:
        slots, load = engine.vcpu_words(vcpu)
        words = *slots, load, *table.at(1 + vcpu), tlbs[vcpu].words, *engine.file_words(vcpu), vcpu
        run_pass(*words, 0, 0, 1)  # compiled, if it was not
        meet.wait()
        begun[vcpu] = time.perf_counter_ns()
        done[vcpu] = int(run_pass(*words, *parts[vcpu], step))
        ended[vcpu] = time.perf_counter_ns()

    threads = [threading.Thread(target=run, args=(vcpu,), daemon=True) for vcpu in range(engine.vcpus)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (_, end), stopped in zip(parts, done, strict=True):
        if stopped < end:
            raise GuestmemError(f"write_pass: frame {stopped:#x} cannot be written")
    return max(ended) - min(begun)
