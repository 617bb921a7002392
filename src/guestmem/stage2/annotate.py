"""Write an owner's mark over a range: invalid entries that say whose the pages are.

Idea: ``kvm_pgtable_stage2_annotate()`` (before 7.1: ``kvm_pgtable_stage2_set_owner()``), Linux
``arch/arm64/kvm/hyp/pgtable.c``.
"""

from __future__ import annotations

from ..compiled import U64, compiled
from .layout import ANNOTATE, EINVAL, KEEP_REST, LAST_LEVEL, LOCKED, OVER_OWNER, VALID
from .map import map_range
from .words import Table

__all__ = ["annotate_range"]


@compiled(nogil=True)
def annotate_range(table: Table, ipa: U64, size: U64, mark: U64, flags: U64) -> U64:
    """Replace whatever ``[ipa, ipa + size)`` maps by ``mark``, page by page; returns a status word as ``map_range``.

    EINVAL: the mark has the valid bit, or is empty, or is the locked one. A block that the range only touches is lost
    beyond it, and faults in again, but with KEEP_REST in ``flags`` stays mapped there. Exclusive. O(pages + tables).
    """
    shape = table.shape
    if mark & shape[VALID] != 0 or mark == 0 or mark == shape[LOCKED]:
        return EINVAL
    flags = (flags & KEEP_REST) | ANNOTATE | OVER_OWNER
    return map_range(table, ipa, size, ipa, mark, shape[LAST_LEVEL], flags)
