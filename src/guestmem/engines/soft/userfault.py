"""KVM Userfault: a slot's bitmap says which pages a vCPU may not touch yet; the fault exits instead of mapping them.

User space owns the bitmap: bit n is page n of the slot; set, and an access of a vCPU is KVM_EXIT_MEMORY_FAULT with
KVM_MEMORY_EXIT_FLAG_USERFAULT. It fills the page, then clears the bit with release. A bit that is set has no effect on
what is mapped already: switching KVM_MEM_USERFAULT on zaps the slot, and leaves are pages while it is on.
Source: "KVM: Introduce KVM Userfault" v3, linux-kvm, June 2025 (not merged; a vendor's tree has it).
"""

from __future__ import annotations

from ...atomics import fetch_and, fetch_or, load_acquire, store_release
from ...compiled import U64, Words, compiled, const
from ...stage2.layout import IPA_END, LAST_LEVEL, OK
from ...stage2.locked import refill
from ...stage2.retry import invalidate_seq
from ...stage2.words import Table
from ...stage2.zap import zap
from ...structure import Structure, name_fields
from .gmem_abort import map_page

__all__ = [
    "KVM_MEMORY_EXIT_FLAG_USERFAULT",
    "KVM_MEM_USERFAULT",
    "USERFAULT",
    "userfault_abort",
    "userfault_bit",
    "userfault_clear",
    "userfault_enable",
    "userfault_set",
    "userfault_words",
]

KVM_MEM_USERFAULT = 1 << 3
KVM_MEMORY_EXIT_FLAG_USERFAULT = 1 << 4

SLOT = Structure("slot", "the slot's flag, and the bitmap that user space owns")
ENABLED = SLOT.line("KVM_MEM_USERFAULT is on")
BITMAP = SLOT.line("a bit a page, set: it is not there yet")
name_fields(globals())

USERFAULT = const(64)
"""Status of a fault on a page whose bit is set: the exit."""
_ZERO, _ONE = const(0), const(1)
_PAGE_SHIFT = const(12)
_IN_WORD = const(63)
_ALL = const((1 << 64) - 1)


def userfault_words(npages: int) -> int:
    """Words of the flag and of a bitmap for ``npages`` pages: DIV_ROUND_UP(npages, 64) of these, in whole lines."""
    return int(BITMAP) + (npages + 511) // 512 * 8


@compiled
def userfault_bit(slot: Words, page: U64) -> bool:
    """Whether a page's bit is set. Acquire: who finds it clear sees the page as it was filled."""
    return (load_acquire(slot, BITMAP + (page >> 6)) >> (page & _IN_WORD)) & _ONE != 0


@compiled
def userfault_clear(slot: Words, page: U64) -> None:
    """User space has filled the page: vCPUs may map it. Release, by the exchange: the bytes come before."""
    fetch_and(slot, BITMAP + (page >> 6), _ALL ^ (_ONE << (page & _IN_WORD)))


@compiled
def userfault_set(slot: Words, page: U64) -> None:
    """Set a page's bit. No effect on a page that is mapped, until the flag is switched on anew."""
    fetch_or(slot, BITMAP + (page >> 6), _ONE << (page & _IN_WORD))


@compiled(nogil=True)
def userfault_enable(slot: Words, table: Table, npages: U64, zaps: bool) -> None:
    """Switch the flag on, then zap the slot. A fault that saw it off, and maps later, sees the zap's sequence.

    ``zaps`` false leaves what is mapped, which is wrong.
    """
    store_release(slot, ENABLED, _ONE)
    if zaps:
        zap(table, _ZERO, npages << _PAGE_SHIFT, True)


@compiled(nogil=True)
def userfault_abort(slot: Words, table: Table, gfn: U64, memory: U64, attributes: U64) -> U64:
    """Handle a vCPU's fault of frame ``gfn``, which is page ``gfn`` of the slot, outside the guest.

    OK: the leaf is there, or an invalidation ran meanwhile: enter and try again. USERFAULT: the exit, and nothing was
    mapped. ``memory``: host address of page 0. In KVM's order: the invalidation sequence, then the flag and the bit,
    then the leaf under the table's lock, unless an invalidation ran meanwhile.
    """
    shape, mmu = table.shape, table.mmu
    if refill(table) != OK:
        zap(table, _ZERO, shape[IPA_END], True)
        return OK
    seq = invalidate_seq(mmu)
    if load_acquire(slot, ENABLED) != 0 and userfault_bit(slot, gfn):
        return USERFAULT
    ipa = gfn << _PAGE_SHIFT
    map_page(table, ipa, _ONE << _PAGE_SHIFT, memory + ipa, attributes, shape[LAST_LEVEL], seq)
    return OK
