"""What a vCPU's state says against ``exit_retry``: its mode, its tables, its ways into the kernel, pages KVM writes.

The verdict is ``engines/kvm/safety.py``'s. Source: Intel SDM volume 3; ``arch/x86/include/uapi/asm/kvm_para.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ....errors import MemslotError
from ....process_memory import read_memory
from ....units import PAGE_SHIFT, PAGE_SIZE
from ..guest_frames import GuestFrames, UnknownTables
from .guest_tables import table_frames
from .vcpu_state import VcpuState, read_msrs, read_state, translate

if TYPE_CHECKING:
    from ..safety import Ranges
    from ..vcpu import KvmVcpu

__all__ = ["reasons_of_a_vcpu"]

_IDT_BYTES, _TSS_BYTES = 4096, 0x68
_STACKS = (*range(4, 28, 8), *range(36, 92, 8))
"""Places of RSP0 to RSP2 and IST1 to IST7 in a 64-bit TSS."""
_STACK_BYTES = 16384
"""Looked at below each stack pointer that a TSS names: a kernel stack of Linux. How deep handlers go, nobody sees."""
_APIC_BASE, _APIC_ENABLED = ~0xFFF, 1 << 11

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


def reasons_of_a_vcpu(
    vcpu: KvmVcpu, ranges: Ranges, frames: GuestFrames, roots: set[tuple[int, ...]], tdp: bool, remarks: list[str]
) -> Iterator[str]:
    """Each reason against ``exit_retry`` that a stopped vCPU gives; ``roots``: tables that were looked at already."""
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


def _pages_of_kvm(fd: int, ranges: Ranges, remarks: list[str]) -> Iterator[str]:
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
    state: VcpuState, ranges: Ranges, frames: GuestFrames, roots: set[tuple[int, ...]], tdp: bool
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


def _ways_into_the_kernel(fd: int, state: VcpuState, ranges: Ranges, frames: GuestFrames) -> Iterator[str]:
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
