"""Guests to run: state for real mode and for 64-bit user mode, and the page tables of the latter.

A user-mode guest (CPL 3) runs natively on every backend; real mode, and kernel mode on a software backend, may be
emulated throughout. Source: Intel SDM volume 3, 4.5 (4-level paging), 3.4.5 (descriptors).
"""

from __future__ import annotations

import struct

from ....errors import UsageError
from ....units import PAGE_SIZE
from .registers import CR0, CR3, CR4, EFER, SEGMENT, SEGMENT_NAMES

__all__ = ["identity_tables", "real_mode", "user_mode"]

_REAL_CR0 = 0x60000010  # CD, NW, ET: as after reset
_PAGING = 0x80050033  # PG, AM, WP, NE, ET, MP, PE
_PAE_SSE, _OSXSAVE = 0x620, 0x40000
_LONG_MODE = 0xD00  # LMA, LME, NX
_TABLE = 0x67  # present, writable, user, accessed, dirty
_LARGE = 0x80


def user_mode(sregs: bytes, cr3: int, *, cpl: int = 3, avx: bool = False) -> bytes:
    """``struct kvm_sregs`` of a guest in 64-bit mode at ``cpl`` on the tables at ``cr3``; flat segments, no IDT.

    Without an IDT every exception is a shutdown exit. ``avx`` needs ``KvmVcpu.set_xcr0(7)`` as well.
    """
    made = bytearray(sregs)
    for place, name in enumerate(SEGMENT_NAMES[:6]):
        code = name == "cs"
        selector = (0x18 if code else 0x20) | cpl
        kind = 11 if code else 3
        SEGMENT.pack_into(
            made, SEGMENT.size * place, 0, 0xFFFFFFFF, selector, kind, 1, cpl, not code, 1, code, 1, 0, 0, 0
        )
    struct.pack_into("<Q", made, CR0, _PAGING)
    struct.pack_into("<Q", made, CR3, cr3)
    struct.pack_into("<Q", made, CR4, _PAE_SSE | (_OSXSAVE if avx else 0))
    struct.pack_into("<Q", made, EFER, _LONG_MODE)
    return bytes(made)


def real_mode(sregs: bytes) -> bytes:
    """``struct kvm_sregs`` of a guest in real mode, all segments at 0 (a vCPU begins with its code at 0xffff0000)."""
    made = bytearray(sregs)
    for place, name in enumerate(SEGMENT_NAMES[:6]):
        SEGMENT.pack_into(
            made, SEGMENT.size * place, 0, 0xFFFF, 0, 11 if name == "cs" else 3, 1, 0, 0, 1, 0, 0, 0, 0, 0
        )
    for place, value in ((CR0, _REAL_CR0), (CR3, 0), (CR4, 0), (EFER, 0)):
        struct.pack_into("<Q", made, place, value)
    return bytes(made)


def identity_tables(gpa: int, size: int) -> bytes:
    """Tables that map ``[0, size)`` to itself for user mode, in 4 KiB pages, to be put at ``gpa``; cr3 is ``gpa``.

    ``size`` is at most 1 GiB. Takes 3 + size / 2 MiB pages.
    """
    if size > 1 << 30 or size % PAGE_SIZE:
        raise UsageError(f"size: {size:#x} is not a multiple of {PAGE_SIZE:#x} up to 1 GiB")
    leaves = (size + (1 << 21) - 1) >> 21
    tables = bytearray((3 + leaves) * PAGE_SIZE)
    struct.pack_into("<Q", tables, 0, gpa + PAGE_SIZE | _TABLE)
    struct.pack_into("<Q", tables, PAGE_SIZE, gpa + 2 * PAGE_SIZE | _TABLE)
    for leaf in range(leaves):
        struct.pack_into("<Q", tables, 2 * PAGE_SIZE + 8 * leaf, gpa + (3 + leaf) * PAGE_SIZE | _TABLE)
    for page in range(size // PAGE_SIZE):
        struct.pack_into("<Q", tables, 3 * PAGE_SIZE + 8 * page, page * PAGE_SIZE | _TABLE)
    return bytes(tables)
