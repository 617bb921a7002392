"""Where everything lies: one array of words for all slots of a VM, and the updater's own words.

The shared array (``memslots`` in all compiled functions) holds, from word 0: a header, a block per address space (the
active set, then two sets), slot records, tree nodes, and a table id -> record per set. Readers only read it. What
only the one updater needs (free lists, touched ids, its path in a tree) lies in ``desk``.

Idea: ``struct kvm_memslots`` and ``__kvm_memslots[2]``, Linux 6.18, ``include/linux/kvm_host.h``. There, slots are
objects with two sets of tree links; here they are shared immutable records, and each set has nodes of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from ..atomics import load_acquire, load_relaxed, store_relaxed
from ..compiled import U64, Own, Words, compiled, const, own, u64, words
from ..entries import flat
from ..errors import UsageError
from ..structure import Structure, name_fields

__all__ = [
    "KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS",
    "KVM_MEMSLOT_INVALID",
    "KVM_MEM_MAX_NR_PAGES",
    "MAX_ADDRESS_SPACES",
    "RECORD_WORDS",
    "SLOT_WORDS",
    "Geometry",
    "active_set",
    "format_memslots",
    "generation",
    "geometry",
    "new_memslots",
    "slot_as_id",
    "slot_base_gfn",
    "slot_flags",
    "slot_id",
    "slot_npages",
    "slot_userspace_addr",
]

KVM_MEMSLOT_INVALID = const(1 << 16)
"""Flag of a slot that is about to be deleted or moved: a vCPU that finds it retries (x86) or sees no slot (arm64)."""
KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS = const(1 << 63)
"""Bit of a generation: from the swap to the end of its grace period."""
KVM_MEM_MAX_NR_PAGES = const((1 << 31) - 1)
"""Largest slot, in pages."""
MAX_ADDRESS_SPACES = 2
"""As x86 with SMM."""

# The fields of ``Slot``, in its order, are one piece; what a vCPU's lookup reads is in the first cache line.
RECORD_SHIFT = const(4)
RECORD = Structure("record", "a slot; record r starts at word r << RECORD_SHIFT", size=1 << int(RECORD_SHIFT))
ORIGIN = RECORD.word("of an INVALID copy, the record it stands for; of a free record, the next free one")
DIRTY_BITMAP = RECORD.word("host address of the bitmap that vCPUs mark, or 0; written before the record is published")
AS_ID = RECORD.word("address space")
ID = RECORD.word("slot id")
BASE_GFN = RECORD.word("first frame")
NPAGES = RECORD.word("number of frames")
USERSPACE_ADDR = RECORD.word("host address of its first byte")
FLAGS = RECORD.word("KVM_MEM_…, KVM_MEMSLOT_INVALID")
GUEST_MEMFD = RECORD.word("number of the guest_memfd that is bound to it, or 0")
GUEST_MEMFD_OFFSET = RECORD.word("of the first frame in the guest_memfd, in bytes")
ATTRIBUTES = RECORD.word("a number that is another for memory with other attributes")
RECORD_WORDS = RECORD.size
FIRST_FIELD = const(int(AS_ID))
SLOT_WORDS = const(int(ATTRIBUTES) + 1 - int(AS_ID))
"""Words that are Slot's fields, from ``FIRST_FIELD`` on."""

TREE = Structure("tree", "slots by gfn or by hva", size=4)
ROOT = TREE.word("word index of the root node")
HEIGHT = TREE.word("0: the root is a leaf")
FANOUT = TREE.word("entries of a node")
COLUMNS = TREE.word("3: key, value, largest end below; 4: also the slot id that orders equal keys")

SET = Structure("set", "a set of slots", size=16)
GFN_TREE = SET.words(TREE.size, "its tree by gfn")
GENERATION = SET.word("see ``generation``")
COUNT = SET.word("number of slots")
TABLE = SET.word("where the record of each id stands")
SET.new_line()
HVA_TREE = SET.words(TREE.size, "its tree by hva")
SET_WORDS = const(SET.size)

A_SPACE = Structure("space", "an address space", size=8 + 2 * SET.size)
ACTIVE_SET = A_SPACE.line("word index of the active set")
SETS = A_SPACE.array(SET, "its two sets", count=2)
SPACE_WORDS = const(A_SPACE.size)

MEMSLOTS = Structure("memslots", "all slots of a VM; then records, tree nodes, and tables", size=8 + 2 * A_SPACE.size)
IDS = MEMSLOTS.word("number of slot ids, internal ones included")
ADDRESS_SPACES = MEMSLOTS.word("number of address spaces")
SPACES = MEMSLOTS.array(A_SPACE, "its address spaces", count=MAX_ADDRESS_SPACES)
FIRST_RECORD = -(-MEMSLOTS.size // RECORD_WORDS)

DESK = Structure("desk", "what only the updater uses, under slots_lock")
PHASE = DESK.word("state of the update")
EDITED = DESK.word("the set it edits")
OTHER = DESK.word("the other set")
TOUCHED = DESK.word("head of the chain of touched ids")
TOUCHED_COUNT = DESK.word("length of the chain")
SPACE = DESK.word("where its address space is")
RECORD_FREE = DESK.word("first free record")
RECORD_NEXT = DESK.word("first record that was never used")
RECORD_END = DESK.word("end of the records")
RECORDS_USED = DESK.word("records in use")
NODE_FREE = DESK.word("first free node")
NODE_NEXT = DESK.word("first node that was never used")
NODE_END = DESK.word("end of the nodes")
NODES_USED = DESK.word("nodes in use")
NODE_WORDS = DESK.word("words of a node")
DETAIL = DESK.word("record that an error names")
ASKED_SLOT = DESK.word("the change that is asked for: Change's fields, in its order")
ASKED_BASE_GFN = DESK.word("first frame")
ASKED_NPAGES = DESK.word("number of frames; 0 deletes")
ASKED_USERSPACE_ADDR = DESK.word("host address of its first byte")
ASKED_FLAGS = DESK.word("KVM_MEM_…")
ASKED_AS_ID = DESK.word("address space")
ASKED_GUEST_MEMFD = DESK.word("number of the guest_memfd, or 0")
ASKED_OFFSET = DESK.word("of the first frame in the guest_memfd, in bytes")
ASKED_ATTRIBUTES = DESK.word("number of the memory's attributes")
ASKED_IDS = DESK.word("slot ids that may be used are below")
PATH = DESK.words(48, "the way from a root to a leaf")
CHAIN = DESK.words(0, "word CHAIN + id is 0 (untouched), 1 (last of the chain) or the next id + 2")


name_fields(globals())


@compiled
def active_set(memslots: Words, as_id: U64) -> U64:
    """The active set of an address space, for ``find_in`` and the cursors; inside one SRCU section it stays whole.

    Acquire pairs with the release in ``publish``: who sees the set's index sees its nodes, records and tables. All
    other words of the set are read relaxed, for they do not change while a reader can be in it.
    """
    return load_acquire(memslots, SPACES + SPACE_WORDS * as_id)


@compiled
def generation(memslots: Words, set_: U64) -> U64:
    """A set's generation; bit 63 is set from the swap to the end of its grace period.

    Relaxed: a generation only tells whether something remembered comes from this same set. The swap writes it before
    the release that publishes the set; when the bit falls, no slot changes, so either value is right.
    """
    return load_relaxed(memslots, set_ + GENERATION)


@compiled
def slot_as_id(memslots: Words, record: U64) -> U64:
    """Address space of a record."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + AS_ID)


@compiled
def slot_id(memslots: Words, record: U64) -> U64:
    """Slot id of a record."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + ID)


@compiled
def slot_base_gfn(memslots: Words, record: U64) -> U64:
    """First frame of a record."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + BASE_GFN)


@compiled
def slot_npages(memslots: Words, record: U64) -> U64:
    """Number of frames of a record."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + NPAGES)


@compiled
def slot_userspace_addr(memslots: Words, record: U64) -> U64:
    """Host address of the first byte of a record."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + USERSPACE_ADDR)


@compiled
def slot_flags(memslots: Words, record: U64) -> U64:
    """Flags of a record: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_INVALID."""
    return load_relaxed(memslots, (record << RECORD_SHIFT) + FLAGS)


class Geometry(NamedTuple):
    """Sizes, in words or in pieces: ``ids`` slot ids, ``records`` records from ``first_record`` on, and so on."""

    address_spaces: int
    ids: int
    node_words: int
    first_record: int
    records: int
    first_node: int
    nodes: int
    first_table: int
    words: int
    desk_words: int


def geometry(address_spaces: int, ids: int, node_words: int = 64) -> Geometry:
    """Geometry in which no update can run out of room: sized for the worst fill of all trees and one whole update.

    ``node_words`` at least 17 (fan-out 5 by gfn, 4 by hva). A tiny instance takes a few hundred words.

    >>> geometry(1, 4, node_words=17).words
    720
    """
    if not 1 <= address_spaces <= MAX_ADDRESS_SPACES:
        raise UsageError(f"address_spaces: {address_spaces} is not in 1..{MAX_ADDRESS_SPACES}")
    if not 1 <= ids <= 1 << 16:
        raise UsageError(f"max_slots: {ids} ids are not in 1..65536")
    if not 17 <= node_words <= 1 << 10:
        raise UsageError(f"node_words: {node_words} is not in 17..1024")
    # At worst an update holds, beside each space's slots, an INVALID copy and a replacement of each slot.
    records = (address_spaces + 2) * ids + 1
    nodes = 0
    for columns in (3, 4):
        least = (node_words - 1) // columns // 2
        level = ids
        while True:
            level = level // least + 1
            nodes += level
            if level <= 2:
                break
        nodes += 1
    nodes *= 2 * address_spaces
    first_node = (FIRST_RECORD + records) * RECORD_WORDS
    first_table = first_node + nodes * node_words
    total = first_table + 2 * address_spaces * ids
    first = FIRST_RECORD
    return Geometry(
        address_spaces, ids, node_words, first, records, first_node, nodes, first_table, total, int(CHAIN) + ids
    )


@compiled
def format_memslots(memslots: Words, desk: Own, shape: Geometry) -> None:
    """Write the header and empty sets into zeroed words. Before any reader: relaxed is enough."""
    address_spaces, ids, node_words, first_record, records, first_node, nodes, first_table, _words, _desk_words = shape
    one = u64(1)
    store_relaxed(memslots, IDS, ids)
    store_relaxed(memslots, ADDRESS_SPACES, address_spaces)
    desk[RECORD_NEXT] = first_record
    desk[RECORD_END] = first_record + records
    desk[NODE_WORDS] = node_words
    desk[NODE_NEXT] = first_node
    desk[NODE_END] = first_node + nodes * node_words
    table = first_table
    as_id = u64(0)
    while as_id < address_spaces:
        space = SPACES + SPACE_WORDS * as_id
        store_relaxed(memslots, space, space + SETS)
        copy = u64(0)
        while copy < 2:
            set_ = space + SETS + SET_WORDS * copy
            store_relaxed(memslots, set_ + GENERATION, as_id)
            store_relaxed(memslots, set_ + TABLE, table)
            table += ids
            columns = u64(3)
            while columns < 5:
                tree = set_ + (HVA_TREE if columns == 4 else GFN_TREE)
                store_relaxed(memslots, tree + ROOT, desk[NODE_NEXT])
                store_relaxed(memslots, tree + FANOUT, (node_words - one) // columns)
                store_relaxed(memslots, tree + COLUMNS, columns)
                desk[NODE_NEXT] += node_words
                desk[NODES_USED] += one
                columns += one
            copy += one
        as_id += one


def new_memslots(shape: Geometry) -> tuple[Words, Own]:
    """The shared words and the updater's desk of a VM without slots; pages are committed when touched."""
    memslots, desk = words(shape.words), own(shape.desk_words)
    flat(format_memslots)(memslots, desk, *shape)
    return memslots, desk
