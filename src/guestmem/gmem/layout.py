"""Words of a guest_memfd's inode: its lock, what bars whom, host page tables, and one word a page for its folio.

A folio's word stands at its first page, and its other pages are TAIL: their word has its order, too, so that the
first is found from any. References counted here are those from outside: of host mappings (one a page), of pins, and
of whoever has just looked the page up. The page cache's own, which the kernel counts as well, go without saying: where
the kernel expects ``folio_nr_pages() + 1``, this expects 0. Source: Linux ``virt/kvm/guest_memfd.c``, ``struct folio``.
"""

from __future__ import annotations

from ..compiled import const
from ..rcu import srcu_words
from ..structure import Structure, name_fields

__all__: list[str] = []

HOSTS_MAX = 16
"""Host threads that access a file's mapping in compiled code at once; 0 is Python's."""

PAGE = Structure("page", "a page of the file", size=2)
FOLIO = PAGE.word("its folio: references, and below")
PTE = PAGE.word("host page tables: 1 mapped; the mapping holds a reference")

INODE = Structure("inode", "a guest_memfd's memory")
LOCK = INODE.line("the mapping's invalidate lock: readers, WRITER; futex")
NPAGES = INODE.word("pages of the file")
HOST_BARS = INODE.word("bits of a state with which the host may not fault")
GUEST_BARS = INODE.word("bits of a state with which the guest may not fault")
PRIVATE = INODE.word("bits of a state that only private accesses go with; 0: accesses have no kind")
ADDRESS = INODE.word("host address of the memory, as the engine maps it: never protected")
HOSTS = INODE.word("readers of HOST_TLB")
MAPPED = INODE.line("pages that the host has mapped")
HOST_FAULTS = INODE.counter("faults of the host that mapped a page")
GUEST_FAULTS = INODE.counter("pages handed to the guest")
SPLITS = INODE.counter("huge folios split")
JOINS = INODE.counter("huge folios joined")
CONVERSIONS = INODE.counter("conversions that changed something")
REFUSALS = INODE.counter("conversions refused because a page was in use")
INODE.new_line()
HOST_TLB = INODE.words(srcu_words(HOSTS_MAX), "SRCU: host threads inside an access; who unmaps waits for them")
PAGES = INODE.array(PAGE, "two words a page")

name_fields(globals())

REFS = const((1 << 32) - 1)
PRESENT = const(1 << 32)
UPTODATE = const(1 << 33)  # zeroed once
POISONED = const(1 << 34)
TYPED = const(1 << 35)  # mappability: the last put calls back
TAIL = const(1 << 36)
ORDER_SHIFT = 40
ORDER_MASK = const(63)

OK = const(0)
SAME = const(1)  # every page has the value already
IN_USE = const(2)  # a page has references from outside
END_OF_FILE = const(3)
BARRED = const(4)  # the page's state bars the access
LARGE = const(5)  # a host fault met a huge folio
POISON = const(6)
WRONG_KIND = const(7)  # a private access to a shared page, or the other way round
ABSENT = const(8)
LAST = const(9)  # the last reference of a TYPED folio was dropped
"""What functions of this room answer."""

NONE = const((1 << 64) - 1)


def inode_words(npages: int) -> int:
    """Words of an inode of ``npages`` pages."""
    return int(PAGES) + PAGE.size * npages
