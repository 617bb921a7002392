"""Whether ``exit_retry`` may be taken for one update of one guest, and if not, why: judged on vCPUs that are stopped.

Only what is known to be native is let through: 64-bit user code whose tables, and whose ways into its kernel, lie
outside what changes. A verdict is for one update: a guest that runs on changes its tables and its mode without an exit.
The argument and each case: docs/exit-retry.md. Where a reason is given, ``pause_if_overlap`` is the design to take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...memslots import Change
from ...units import PAGE_SHIFT
from .guest_frames import GuestFrames
from .x86 import controller_zones, reasons_of_a_vcpu

if TYPE_CHECKING:
    from .engine import KvmEngine

__all__ = ["MEASURED_MODULES", "Ranges", "Safety", "judge", "safe_for_exit_retry"]

MEASURED_MODULES = ("kvm_pvm",)
"""Backends on which exit_retry was measured. Nothing is claimed of others."""

_UNSEEN = (
    "for guests whose code one knows: it must stay 64-bit user code on these tables until the update is over",
    "a locked operation that crosses a page is not atomic while it is emulated (counter: crossings)",
    "an access that KVM's emulator carries out itself, on memory that is back, has the width of KVM's copy",
)
_FOR_THE_CALLER = "registered through the VM's file by others: unknown (KvmVm.fd was taken; see KvmVm.declare_zones)"


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
    """Whether ``changes`` could be applied by ``exit_retry`` to the guest as it is now, and if not, why.

    vCPUs that run are paused while they are looked at, and the guest may be another when this returns: an update that
    keeps to a verdict is ``Memory.transaction(design="exit_retry")``. ``encrypted``: the guest's memory cannot be read
    by the VMM (SEV, TDX), which KVM does not tell. O(changes + slots + tables of the guest), bounded.
    """
    engine.vm.pause()
    try:
        return judge(engine, changes, encrypted=encrypted)
    finally:
        engine.vm.resume()


def judge(engine: KvmEngine, changes: Sequence[Change] = (), *, encrypted: bool = False) -> Safety:
    """The verdict while all vCPUs are stopped; it holds until they run. Without ``changes``: of the vCPUs alone."""
    with engine.vm.calls:
        return _judge(engine, changes, encrypted)


def _judge(engine: KvmEngine, changes: Sequence[Change], encrypted: bool) -> Safety:
    reasons = [*_reasons_of_the_vm(engine, changes, encrypted)]
    remarks = list(_UNSEEN)
    if engine.vm.host.module not in MEASURED_MODULES:
        remarks.append(f"not measured on {engine.vm.host.module or 'this host'}")
    ranges = Ranges(engine, changes)
    frames = GuestFrames(engine.slots())
    roots: set[tuple[int, ...]] = set()
    for vcpu in engine.vm.vcpus:
        found = [*reasons_of_a_vcpu(vcpu, ranges, frames, roots, engine.vm.host.tdp, remarks)]
        reasons += (f"vCPU {vcpu.index} {why}" for why in found)
    return Safety(tuple(reasons), tuple(dict.fromkeys(remarks)))


class Ranges:
    """Frames whose memory the changes take away or give."""

    def __init__(self, engine: KvmEngine, changes: Sequence[Change]) -> None:
        found = []
        for change in changes:
            old = engine.slot(change.slot, change.as_id)
            stays = old is not None and not change.deletes and change.base_gfn == old.base_gfn
            if old is not None and not stays:
                found.append((old.base_gfn, old.end_gfn))
            if not change.deletes and not stays:
                found.append((change.base_gfn, change.base_gfn + change.npages))
        self.frames = sorted(found)

    def __bool__(self) -> bool:
        return bool(self.frames)

    def has(self, frame: int) -> bool:
        """Whether a frame is among them."""
        return any(start <= frame < end for start, end in self.frames)

    def meets(self, start: int, end: int) -> bool:
        """Whether guest addresses ``[start, end)`` meet them."""
        return any(start < last << PAGE_SHIFT and first << PAGE_SHIFT < end for first, last in self.frames)


def _reasons_of_the_vm(engine: KvmEngine, changes: Sequence[Change], encrypted: bool) -> Iterator[str]:
    vm = engine.vm
    if encrypted:
        yield "the guest's memory is encrypted: the VMM can answer nothing from it"
    if not vm.exits_on_emulation_failure:
        yield "no KVM_CAP_EXIT_ON_EMULATION_FAILURE: a failed fetch queues #UD before it exits"
    if any(change.as_id for change in changes):
        yield "it changes the address space of SMM, where a hole may end the VM (kvm_vm_dead)"
    ranges = Ranges(engine, changes)
    zones = [*vm.zones]
    if ranges:
        zones += controller_zones(vm.file)
    for zone in zones:
        if ranges.meets(zone.start, zone.end):
            yield f"KVM takes stores itself: {zone} lies in what changes"
    if vm.file_was_taken:
        yield f"zones in which KVM takes stores itself, {_FOR_THE_CALLER}"
