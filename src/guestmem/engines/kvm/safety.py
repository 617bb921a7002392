"""Whether ``exit_retry`` is safe for a VM and an update, and if not, why: what can be found out from outside.

The argument and each case: docs/exit-retry.md. Where a reason is given, ``pause_if_overlap`` is the design to take.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import MemslotError
from ...memslots import Change, Slot
from ...process_memory import read_memory
from ...units import PAGE_SHIFT
from .device import Host
from .engine import KvmEngine

__all__ = ["MEASURED_MODULES", "Safety", "safe_for_exit_retry"]

MEASURED_MODULES = ("kvm_pvm",)
"""Backends on which exit_retry was measured. Nothing is claimed of others."""

_CR0, _CR3, _CR4, _EFER = 224, 240, 248, 264
_PE, _PG, _LMA = 1, 1 << 31, 1 << 10
_PSE, _PAE, _LA57 = 1 << 4, 1 << 5, 1 << 12
_SS_DPL = 24 * 5 + 8 + 4 + 2 + 2
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS, _ADDRESS_32 = 0xFFFFFFFFFF000, 0xFFFFF000
_PDPT, _PDPT_BYTES = 0xFE0, 32
"""With PAE the root is four entries, anywhere in a page."""
_UNSEEN = (
    "a locked operation that crosses a page is not atomic while it is emulated (counter: crossings)",
    "lzcnt and tzcnt of memory are emulated as bsr and bsf (hide ABM and BMI1 in CPUID)",
)


@dataclass(frozen=True, slots=True)
class Safety:
    """The verdict: ``reasons`` against, one line each; ``remarks`` that change nothing."""

    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def design(self) -> str:
        """The design to take."""
        return "pause_if_overlap" if self.reasons else "exit_retry"

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return f"{self.design}: {'; '.join(self.reasons or ('no condition of exit_retry is violated', *self.remarks))}"


def safe_for_exit_retry(engine: KvmEngine, changes: Sequence[Change] = (), *, encrypted: bool = False) -> Safety:
    """Whether ``changes`` may be applied by ``exit_retry`` to the guest as it is now, and if not, why.

    Without ``changes``, what depends on them is left out. vCPUs that run are paused while their registers are read,
    not while their tables are walked. ``encrypted``: the guest's memory cannot be read by the VMM (SEV, TDX), which KVM
    does not tell. What no look from outside can find is a remark, and a guest that goes on may come into a state that
    it was not in. O(changes + slots + tables of the guest).
    """
    host = engine.vm.host
    reasons: list[str] = []
    if encrypted:
        reasons.append("the guest's memory is encrypted: the VMM can answer nothing from it")
    if not engine.vm.exits_on_emulation_failure:
        reasons.append("no KVM_CAP_EXIT_ON_EMULATION_FAILURE: a failed fetch queues #UD before it exits")
    ranges = _ranges(engine, changes)
    slots = [slot for slot in engine.slots() if not slot.as_id]
    slots.sort(key=_base)
    engine.vm.pause()
    try:
        states = [vcpu.sregs() for vcpu in engine.vm.vcpus]
    finally:
        engine.vm.resume()
    for vcpu, sregs in enumerate(states):
        if why := _emulated(sregs, host):
            reasons.append(f"vCPU {vcpu} {why}")
        for frame in _tables(slots, sregs) if ranges else ():
            if any(start <= frame < end for start, end in ranges):
                reasons.append(
                    f"vCPU {vcpu}: a page table at {frame << PAGE_SHIFT:#x} lies in what changes"
                    + ("" if host.tdp else "; with shadow paging the guest may be shut down")
                )
                break
    remarks = list(_UNSEEN)
    if host.module not in MEASURED_MODULES:
        remarks.append(f"not measured on {host.module or 'this host'}")
    return Safety(tuple(reasons), tuple(remarks))


def _ranges(engine: KvmEngine, changes: Sequence[Change]) -> list[tuple[int, int]]:
    """Frames that the changes take away or give, in frames."""
    ranges = []
    for change in changes:
        old = engine.slot(change.slot, change.as_id)
        if old is not None:
            ranges.append((old.base_gfn, old.end_gfn))
        if not change.deletes:
            ranges.append((change.base_gfn, change.base_gfn + change.npages))
    return ranges


def _emulated(sregs: bytes, host: Host) -> str:
    """Why the host emulates the guest throughout, or ""."""
    (cr0,) = struct.unpack_from("<Q", sregs, _CR0)
    paging = cr0 & _PE and cr0 & _PG
    if not paging and (host.software or not host.unrestricted_guest):
        return f"is in real mode or without paging, which {host.module} emulates throughout"
    if host.software and not sregs[_SS_DPL]:
        return f"is in kernel mode, which {host.module} may emulate throughout"
    return ""


def _tables(slots: Sequence[Slot], sregs: bytes) -> Iterator[int]:
    """Frames of the guest's own page tables, the root first; ``slots`` by address. Source: Intel SDM volume 3, 4."""
    cr0, cr3, cr4, efer = (struct.unpack_from("<Q", sregs, place)[0] for place in (_CR0, _CR3, _CR4, _EFER))
    if not cr0 & _PG:
        return
    long_mode, wide = efer & _LMA, efer & _LMA or cr4 & _PAE
    level = (5 if cr4 & _LA57 else 4) if long_mode else 3 if wide else 2
    large = _LARGE if wide or cr4 & _PSE else 0
    root = (cr3 & (_ADDRESS if long_mode else _ADDRESS_32)) >> PAGE_SHIFT
    todo, seen = [(root, level)], {root}
    while todo:
        frame, level = todo.pop()
        yield frame
        if level == 1:
            continue
        table = _read_frame(slots, frame)
        if level == 3 and not long_mode and wide:
            table = table[cr3 & _PDPT :][:_PDPT_BYTES]
        for (entry,) in struct.iter_unpack("<Q" if wide else "<I", table):
            below = (entry & _ADDRESS) >> PAGE_SHIFT
            if entry & _PRESENT and not entry & large and below not in seen:
                seen.add(below)
                todo.append((below, level - 1))


def _read_frame(slots: Sequence[Slot], frame: int) -> bytes:
    """The 4096 bytes of a guest frame; none if no slot has it, or no memory is mapped there. O(log slots)."""
    place = bisect_right(slots, frame, key=_base) - 1
    if place >= 0 and frame < slots[place].end_gfn:
        with contextlib.suppress(MemslotError):  # a guest may point its tables anywhere
            return read_memory(slots[place].hva(frame), 1 << PAGE_SHIFT)
    return b""


def _base(slot: Slot) -> int:
    return slot.base_gfn
