"""The words that EL2 keeps of a machine: one array ``el2`` (Words), beside the tables.

A header; the regions of memory; eight words a VM; a word a page of memory (Linux: ``hyp_vmemmap``); and
for each level of blocks a word a block, counting the pages in it that are not the host's own (after x86's
``lpage_info.disallow_lpage``): a block may stand where it is 0.

The header and regions are written once. All else is read under the host's lock and written under it exclusively,
but for statistics. States of guests' pages are not here: they lie in software bits of the guest's leaves, and the
other party of a page that the host has not in the host's invalid entry.
"""

from __future__ import annotations

from ...compiled import const
from ...structure import Structure, name_fields

__all__ = [
    "AWAY_BASE",
    "BLOCKS_BROKEN",
    "BLOCKS_JOINED",
    "BORROWED_PAGES",
    "E2BIG",
    "EEXIST",
    "EHWPOISON",
    "EL2_FIXED",
    "FAULTS",
    "FIRST_PAGE",
    "GUEST_BORROWED",
    "GUEST_OWNED",
    "GUEST_SHARED",
    "HOST_BORROWED",
    "HOST_MEMORY",
    "HOST_MMIO",
    "HYP_SHIFT",
    "JOIN",
    "LAST_PAGE",
    "MAX_SHARES",
    "MMIO_UNMAPPED",
    "NOPAGE",
    "OWNED",
    "OWNED_PAGES",
    "OWNER_GUEST",
    "OWNER_HYP",
    "PAGE_BASE",
    "PIN_MASK",
    "PIN_SHIFT",
    "POISON",
    "REGIONS",
    "REGION_BASE",
    "SHARED_OWNED",
    "SHARE_MASK",
    "SHARE_SHIFT",
    "STATE_MASK",
    "VMS",
    "VM_BASE",
    "VM_DYING",
    "VM_LIVE",
    "VM_NONE",
    "VM_STATE",
    "WIPED",
]

# --- header -----------------------------------------------------------------------------------------------------------
EL2 = Structure("el2", "what EL2 keeps of a machine; then regions, VMs, pages and blocks", size=40)
FIRST_PAGE = EL2.word("page number of the first page of the first region")
LAST_PAGE = EL2.word("page number after the last page of the last region")
REGIONS = EL2.word("how many regions of memory there are")
REGION_BASE = EL2.word("where they stand: start and end address each, ascending, apart")
VMS = EL2.word("greatest handle")
VM_BASE = EL2.word("where the VM with handle 0 would stand")
PAGE_BASE = EL2.word("where the word of page number FIRST_PAGE stands")
EL2.new_line()
AWAY_BASE = EL2.words(4, "of level 1, 2: where the counter of the block that FIRST_PAGE lies in stands")
MAX_SHARES = EL2.word("how often the host may share one page with guests")
JOIN = EL2.word("1: blocks are joined as soon as all pages are back; 0: only by ``join_range`` (mainline: never)")
EL2.new_line()
HOST_MEMORY = EL2.word("attributes of the host's leaves: memory")
HOST_MMIO = EL2.word("attributes of the host's leaves: anything else")
HOST_BORROWED = EL2.word("attributes of the host's leaves: a page that a guest lends it")
GUEST_OWNED = EL2.word("attributes of a guest's leaves, with the state in software bits: its own pages")
GUEST_SHARED = EL2.word("attributes of a guest's leaves: what it lends the host")
GUEST_BORROWED = EL2.word("attributes of a guest's leaves: what the host lends it")
EL2.new_line()
FAULTS = EL2.line("host faults that mapped something")
BLOCKS_BROKEN = EL2.word("blocks split for a page")
BLOCKS_JOINED = EL2.word("tables joined to a block")
WIPED = EL2.word("pages cleared before the host got them back")
MMIO_UNMAPPED = EL2.word("times that the host's other mappings made room")
EL2_FIXED = EL2.size

# --- a VM -------------------------------------------------------------------------------------------------------------
A_VM = Structure("VM", "a protected VM", size=8)
VM_STATE = A_VM.word("VM_NONE, VM_LIVE or VM_DYING")
OWNED_PAGES = A_VM.word("pages that it owns")
BORROWED_PAGES = A_VM.word("pages that the host lends it")
name_fields(globals())

VM_NONE, VM_LIVE, VM_DYING = const(0), const(1), const(2)

# --- a page -----------------------------------------------------------------------------------------------------------
OWNED, SHARED_OWNED, SHARED_BORROWED, NOPAGE = const(0), const(1), const(2), const(3)
"""States; bits 1:0 are the host's."""
STATE_MASK = const(3)
HYP_SHIFT = const(2)
"""Bits 3:2: the hypervisor's state, inverted: a word of 0 is a page of the host alone."""
SHARE_SHIFT, SHARE_MASK = const(16), const(0xFFFF)
"""Mappings in guests that borrow the page from the host."""
PIN_SHIFT, PIN_MASK = const(32), const(0xFFFF)
"""How often the hypervisor pinned a page that it borrows."""

# --- the host's mark where it has no page: owner, then handle (16 bits), then the guest's frame (40 bits) -------------
OWNER_HYP, OWNER_GUEST = const(1), const(2)
POISON = const(3 << 60)
"""A guest's mark where a page was taken from it (``InvalidType.GUEST_POISONED``)."""

# --- more status words ------------------------------------------------------------------------------------------------
E2BIG, EEXIST, EHWPOISON = const(7), const(17), const(133)
"""E2BIG: a block where a page was asked for, or the reverse. EEXIST: mapped already."""
