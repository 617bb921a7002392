"""Whether ``exit_retry`` may be taken for one update of one guest, and if not, why: judged on vCPUs that are stopped.

Only what is known to be native is let through: 64-bit user code whose tables, and whose ways into its kernel, lie
outside what changes. A verdict is for one update: a guest that runs on changes its tables and its mode without an exit.
The argument and each case: docs/exit-retry.md. Where a reason is given, ``pause_if_overlap`` is the design to take.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import MemslotError
from ...memslots import Change
from ...process_memory import read_memory
from ...units import PAGE_SHIFT, PAGE_SIZE
from .guest_tables import GuestFrames, UnknownTables, table_frames
from .vcpu_state import VcpuState, read_msrs, read_state, translate
from .zones import Zone, has_ioapic

if TYPE_CHECKING:
    from .engine import KvmEngine
    from .vcpu import KvmVcpu

__all__ = ["MEASURED_MODULES", "Safety", "judge", "safe_for_exit_retry"]

MEASURED_MODULES = ("kvm_pvm",)
"""Backends on which exit_retry was measured. Nothing is claimed of others."""

_IDT_BYTES, _TSS_BYTES = 4096, 0x68
_STACKS = (*range(4, 28, 8), *range(36, 92, 8))
"""Places of RSP0 to RSP2 and IST1 to IST7 in a 64-bit TSS."""
_STACK_BYTES = 16384
"""Looked at below each stack pointer that a TSS names: a kernel stack of Linux. How deep handlers go, nobody sees."""
_APIC_BASE, _APIC_ENABLED = ~0xFFF, 1 << 11
_IOAPIC = Zone(0xFEC00000, 0xFEC00100, "the IOAPIC in the kernel")

_ENABLED = 1
_ASYNC_PF = 0x4B564D02
_PAGES_OF_KVM = {
    0x4B564D04: "PV EOI",
    0x40000001: "Hyper-V hypercalls",
    0x40000021: "the Hyper-V reference TSC",
    0x40000073: "the Hyper-V VP assist",
    0x40000082: "Hyper-V SIEFP",
    0x40000083: "Hyper-V SIMP",
}
_CLOCKS = {0x12: "kvmclock", 0x4B564D01: "kvmclock", 0x4B564D03: "steal time"}

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
    ranges = _Ranges(engine, changes)
    frames = GuestFrames(engine.slots())
    roots: set[tuple[int, ...]] = set()
    for vcpu in engine.vm.vcpus:
        found = [*_reasons_of_a_vcpu(vcpu, ranges, frames, roots, engine.vm.host.tdp, remarks)]
        reasons += (f"vCPU {vcpu.index} {why}" for why in found)
    return Safety(tuple(reasons), tuple(dict.fromkeys(remarks)))


class _Ranges:
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
    ranges = _Ranges(engine, changes)
    zones = [*vm.zones]
    if ranges and has_ioapic(vm.file):
        zones.append(_IOAPIC)
    for zone in zones:
        if ranges.meets(zone.start, zone.end):
            yield f"KVM takes stores itself: {zone} lies in what changes"
    if vm.file_was_taken:
        yield f"zones in which KVM takes stores itself, {_FOR_THE_CALLER}"


def _reasons_of_a_vcpu(
    vcpu: KvmVcpu, ranges: _Ranges, frames: GuestFrames, roots: set[tuple[int, ...]], tdp: bool, remarks: list[str]
) -> Iterator[str]:
    fd = vcpu.fd
    state = read_state(fd)
    yield from state.why_not_native
    if vcpu.has_local_apic:
        if state.interruptible:
            yield "can be interrupted at any time (APIC in the kernel, RFLAGS.IF), and its handlers are kernel code"
        page = state.sregs.apic_base & _APIC_BASE
        if state.sregs.apic_base & _APIC_ENABLED and ranges.meets(page, page + PAGE_SIZE):
            yield f"KVM takes stores itself: its APIC page at {page:#x} lies in what changes"
    yield from _pages_of_kvm(fd, ranges, remarks)
    if not ranges or state.sregs.mode:
        return
    yield from _tables(state, ranges, frames, roots, tdp)
    ways = state.sregs.ways
    if ways not in roots:  # those of another vCPU, looked at through the same tables
        roots.add(ways)
        yield from _ways_into_the_kernel(fd, state, ranges, frames)


def _pages_of_kvm(fd: int, ranges: _Ranges, remarks: list[str]) -> Iterator[str]:
    """Memory that KVM writes for the guest: no exit tells of it."""
    for number, value in read_msrs(fd, (_ASYNC_PF, *_PAGES_OF_KVM, *_CLOCKS)).items():
        if not value & _ENABLED:
            continue
        if number == _ASYNC_PF:
            yield "has asynchronous page faults on: an event may be delivered at any time"
        elif ranges.has(value >> PAGE_SHIFT):
            if number in _CLOCKS:
                remarks.append(f"{_CLOCKS[number]} at {value & ~1:#x} is skipped while its memory is away")
            else:
                yield f"has the page of {_PAGES_OF_KVM[number]} at {value & ~1:#x} in what changes"


def _tables(
    state: VcpuState, ranges: _Ranges, frames: GuestFrames, roots: set[tuple[int, ...]], tdp: bool
) -> Iterator[str]:
    root = state.sregs.cr3, state.sregs.levels
    if root in roots:
        return
    roots.add(root)
    try:
        found = table_frames(frames, *root)
    except UnknownTables as unknown:
        yield f"may have page tables in what changes: {unknown}"
        return
    for level in found:
        for start, end in ranges.frames:
            inside = level[(level >= start) & (level < end)]
            if len(inside):
                dies = "" if tdp else "; with shadow paging the guest may be shut down"
                yield f"has a page table at {int(inside[0]) << PAGE_SHIFT:#x}, which lies in what changes{dies}"
                return


def _ways_into_the_kernel(fd: int, state: VcpuState, ranges: _Ranges, frames: GuestFrames) -> Iterator[str]:
    """Through which an event is delivered: descriptor tables, the TSS, and the stacks that it names."""
    physical, sregs = translate(fd), state.sregs
    tss = sregs.tr.base
    places = [
        ("IDT", sregs.idt_base, min(sregs.idt_limit + 1, _IDT_BYTES)),
        ("GDT", sregs.gdt_base, sregs.gdt_limit + 1),
        ("TSS", tss, min(sregs.tr.limit + 1, _TSS_BYTES)),
    ]
    if not sregs.ldt.unusable:
        places.append(("LDT", sregs.ldt.base, min(sregs.ldt.limit + 1, 1 << 16)))
    content = _read(tss, _TSS_BYTES, physical, frames)
    for place in _STACKS if content else ():
        (top,) = struct.unpack_from("<Q", content, place)
        if top and physical(top - 1) is not None:
            places.append((f"stack below {top:#x}, which its TSS names,", top - _STACK_BYTES, _STACK_BYTES))
    for what, start, size in places:
        for page in range(start & -PAGE_SIZE, start + size, PAGE_SIZE):
            gpa = physical(page & 0xFFFFFFFFFFFFFFFF)
            if gpa is not None and ranges.has(gpa >> PAGE_SHIFT):
                yield f"has its {what} at {gpa:#x} in what changes: an event could not be delivered"
                break


def _read(linear: int, size: int, physical: Callable[[int], int | None], frames: GuestFrames) -> bytes:
    """Guest memory at a linear address; b"" where it is not there, or cannot be read."""
    content = b""
    while len(content) < size:
        at = linear + len(content)
        gpa = physical(at)
        host = None if gpa is None else frames.host(gpa >> PAGE_SHIFT)
        if host is None:
            return b""
        part = min(size - len(content), PAGE_SIZE - at % PAGE_SIZE)
        try:
            content += read_memory(host + at % PAGE_SIZE, part)
        except MemslotError:
            return b""
    return content
