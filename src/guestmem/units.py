"""Pages, frames and sizes: the few conversions that every room needs.

A *gfn* is a guest frame number, a *gpa* a guest physical address in bytes, an *hva* a host virtual address. Ranges
are half-open ``[start, end)``, in frames or in bytes as the name says. Source of the names: Linux
``include/linux/kvm_types.h``.
"""

from __future__ import annotations

__all__ = ["PAGE_SHIFT", "PAGE_SIZE", "U64_MAX", "format_frames", "format_ns", "format_size"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
U64_MAX = (1 << 64) - 1


def format_size(nbytes: int) -> str:
    """A size in the largest binary unit that divides it.

    >>> format_size(0x10000000), format_size(0xFF00000), format_size(0x1000), format_size(100)
    ('256 MiB', '255 MiB', '4 KiB', '100 B')
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"


def format_frames(start_gfn: int, end_gfn: int) -> str:
    """A range of frames as guest physical addresses, with its size.

    >>> format_frames(0x100, 0x10000)
    '[0x100000, 0x10000000) 255 MiB'
    """
    start, end = start_gfn << PAGE_SHIFT, end_gfn << PAGE_SHIFT
    return f"[{start:#x}, {end:#x}) {format_size(end - start)}"


def format_ns(ns: float) -> str:
    """A duration with three digits and a unit.

    >>> format_ns(850), format_ns(12_340), format_ns(3_200_000), format_ns(2.5e9)
    ('850 ns', '12.3 µs', '3.20 ms', '2.50 s')
    """
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= scale:
            value = ns / scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{ns:.0f} ns"
