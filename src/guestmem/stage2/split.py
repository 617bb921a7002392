"""Split blocks into smaller leaves before a guest writes to them: eagerly, in chunks, as far as a budget goes.

Idea: ``kvm_pgtable_stage2_split()``, Linux ``arch/arm64/kvm/hyp/pgtable.c`` (KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE). The
memory type survives here; Linux writes normal memory. With break-before-make, or less of it: see ``bbm``.
"""

from __future__ import annotations

from ..compiled import ONE, U64, compiled, u64
from .bbm import replace_block
from .entry import output_address
from .layout import (
    ADDRESS,
    ATTRIBUTES_MASK,
    BBM_1,
    BBM_2,
    EAGAIN,
    END,
    ENOMEM,
    LAST_LEVEL,
    LEAF,
    LEVEL,
    MIN_BLOCK_LEVEL,
    OK,
    OLD,
    PROGRESS,
    RESULT,
    VALID,
)
from .unlinked import create_unlinked, leaf_level
from .walk import DONE, walk_begin, walk_past, walk_step
from .words import Table

__all__ = ["split_blocks", "split_range"]


@compiled(nogil=True)
def split_range(table: Table, ipa: U64, size: U64, block_level: U64, budget: U64) -> U64:
    """Split all blocks that ``[ipa, ipa + size)`` touches into leaves no larger than ``block_level`` allows (3: pages).

    OK; EAGAIN: ``budget`` blocks were split and there are more; ENOMEM: the desk's cache is too small for the next one:
    drop the lock, fill it, go on at desk[PROGRESS]; EINVAL or ERANGE. With too few pages for all of a large block it is
    split by one level first. desk[RESULT]: blocks split. Exclusive. O(entries in the range's tables).
    """
    return split_blocks(table, ipa, size, block_level, budget, u64(0))


@compiled(nogil=True)
def split_blocks(table: Table, ipa: U64, size: U64, block_level: U64, budget: U64, flags: U64) -> U64:
    """As ``split_range``; ``flags``: BBM_1 or BBM_2, how each block is replaced."""
    shape, desk = table.shape, table.desk
    status = walk_begin(table, ipa, size, (flags & (BBM_1 | BBM_2)) | LEAF)
    if status != OK:
        return status
    while True:
        if walk_step(table) == DONE:
            desk[PROGRESS] = desk[END]
            break
        old = desk[OLD]
        level = desk[LEVEL]
        if old & shape[VALID] == 0 or level >= leaf_level(shape, level, block_level):
            continue
        desk[PROGRESS] = desk[ADDRESS]
        if desk[RESULT] == budget:
            status = EAGAIN
            break
        attributes = old & shape[ATTRIBUTES_MASK]
        tree = create_unlinked(table, output_address(shape, old), level, attributes, block_level)
        whole = tree != 0
        below = level + ONE
        if not whole and below < shape[LAST_LEVEL] and below >= shape[MIN_BLOCK_LEVEL]:
            tree = create_unlinked(table, output_address(shape, old), level, attributes, below)
        if tree == 0:
            status = ENOMEM
            break
        replace_block(table, tree - ONE)
        desk[RESULT] += ONE
        if whole:
            walk_past(desk)
    return status
