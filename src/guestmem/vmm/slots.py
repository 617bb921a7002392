"""From flat ranges to memslots: which bytes can be in a slot, and what a slot of them is.

Source: ``kvm_align_section()``, ``kvm_mem_flags()``, ``kvm_set_phys_mem()``, QEMU 10.2 ``accel/kvm/kvm-all.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..errors import UsageError
from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Slot
from ..units import PAGE_SHIFT, PAGE_SIZE
from .flatview import FlatRange, FlatView

__all__ = ["Piece", "fewest_pieces", "leaf_flags", "piece_of", "run_around", "section_flags"]


class Piece(NamedTuple):
    """A slot without an id: frames ``[base_gfn, base_gfn + npages)`` are host memory from ``userspace_addr`` on."""

    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int

    @property
    def end_gfn(self) -> int:
        """First frame after it."""
        return self.base_gfn + self.npages

    def as_slot(self, slot: int, as_id: int = 0) -> Slot:
        """With an id."""
        return Slot(as_id, slot, *self)


def leaf_flags(section: FlatRange) -> int:
    """Flags as QEMU gives them: from the region alone. What only an alias makes read-only, the guest can write."""
    region = section.region
    flags = KVM_MEM_LOG_DIRTY_PAGES if section.dirty_log_mask else 0
    if region.readonly or region.type_name == "romd":
        flags |= KVM_MEM_READONLY
    return flags


def section_flags(section: FlatRange) -> int:
    """Flags that keep what the view says: read-only also where an alias or a container makes it so."""
    return leaf_flags(section) | (KVM_MEM_READONLY if section.readonly else 0)


def has_slot(section: FlatRange) -> bool:
    """Whether KVM is given memory for it: RAM, ROM, and ROM devices while they are read as memory."""
    return section.region.is_ram or section.region.type_name == "romd"


def _address(section: FlatRange) -> int:
    base = section.region.userspace_addr
    if base is None:
        raise UsageError(f"region {section.region.name}: its host address is not known (userspace_addr)")
    return base + section.offset


def piece_of(section: FlatRange) -> Piece | None:
    """The whole pages of one section, as QEMU's listener makes a slot of them; None if there is no whole page.

    UsageError where the host address of its first whole page is not a multiple of the page size.
    """
    piece = _aligned(section.start, section.end, _address(section), leaf_flags(section))
    if piece is not None and piece.userspace_addr % PAGE_SIZE:
        raise UsageError(
            f"region {section.region.name}: the page at {piece.base_gfn << PAGE_SHIFT:#x} would be host memory at "
            f"{piece.userspace_addr:#x}, within a page"
        )
    return piece


def _aligned(start: int, end: int, address: int, flags: int) -> Piece | None:
    first, last = -(-start // PAGE_SIZE), end // PAGE_SIZE
    if last <= first:
        return None
    return Piece(first, last - first, address + first * PAGE_SIZE - start, flags)


def run_around(view: FlatView, low: int, high: int) -> tuple[int, int]:
    """Indices of the ranges that overlap ``[low, high)``, and of what one slot could hold with them. O(log n + k)."""
    first, last = view.place(low, high)
    while 0 < first < len(view) and _goes_on(view[first - 1], view[first]):
        first -= 1
    while 0 < last < len(view) and _goes_on(view[last - 1], view[last]):
        last += 1
    return first, last


def _goes_on(a: FlatRange, b: FlatRange) -> bool:
    return (
        a.end == b.start
        and not (a.unmergeable or b.unmergeable)
        and has_slot(a)
        and has_slot(b)
        and section_flags(a) == section_flags(b)
        and _address(a) + a.size == _address(b)
    )


def fewest_pieces(
    view: Iterable[FlatRange],
    *,
    flags: Callable[[FlatRange], int] = section_flags,
    max_pages: int = (1 << 31) - 1,
) -> list[Piece]:
    """The fewest slots that show a view: neighbours are one where host memory and flags go on. O(n).

    Unlike QEMU's, a slot may span regions whose host memory is one piece; read-only is what the view says; a page of
    two sections is in a slot if its memory goes on. What is marked unmergeable keeps a slot of its own. What has its
    host memory within pages has none: a guest's access exits, and the map answers it.
    """
    runs: list[list[int]] = []  # start, end, host address, flags
    alone = True
    for each in view:
        if not has_slot(each):
            continue
        address, wanted = _address(each), flags(each)
        last = runs[-1] if runs else None
        joins = not (alone or each.unmergeable) and last is not None and last[1] == each.start and last[3] == wanted
        if joins and last is not None and last[2] + last[1] - last[0] == address:
            last[1] = each.end
        else:
            runs.append([each.start, each.end, address, wanted])
        alone = each.unmergeable
    pieces = []
    for start, end, address, wanted in runs:
        piece = _aligned(start, end, address, wanted)
        if piece is None or piece.userspace_addr % PAGE_SIZE:
            continue
        for done in range(0, piece.npages, max_pages):
            npages = min(piece.npages - done, max_pages)
            pieces.append(Piece(piece.base_gfn + done, npages, piece.userspace_addr + (done << PAGE_SHIFT), wanted))
    return pieces
