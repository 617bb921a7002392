"""All that must hold of the words of a VM's slots: what ``Memslots.check()`` proves.

Both sets of each address space (trees, tables, generations), the update in progress, and that each record and node
is in exactly one place: in use, or free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress, pairwise
from typing import NamedTuple

from ..compiled import Own
from ..errors import InvariantError
from . import layout, phases
from .layout import Geometry
from .slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMSLOT_NR, KVM_MEMSLOT_NX

__all__ = ["check_memslots"]

_INVALID = int(layout.KVM_MEMSLOT_INVALID)
_KNOWN = int(
    _INVALID | KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD | KVM_MEMSLOT_NR | KVM_MEMSLOT_NX
)
_BIT63 = int(layout.KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS)
_SHIFT, _FLAGS, _ORIGIN = (int(word) for word in (layout.RECORD_SHIFT, layout.FLAGS, layout.ORIGIN))
_GENERATION, _COUNT, _TABLE = (int(word) for word in (layout.GENERATION, layout.COUNT, layout.TABLE))
_PHASE, _EDITED, _OTHER, _SPACE = (int(word) for word in (layout.PHASE, layout.EDITED, layout.OTHER, layout.SPACE))
_TOUCHED, _TOUCHED_COUNT, _CHAIN = (int(word) for word in (layout.TOUCHED, layout.TOUCHED_COUNT, layout.CHAIN))


class _Entry(NamedTuple):
    key: int
    tie: int
    value: int
    end: int


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise InvariantError("memslots: " + broken)


def _slot(cells: memoryview, record: int) -> list[int]:
    """A record's words that are Slot's fields."""
    words = (record << _SHIFT) + int(layout.FIRST_FIELD)
    return cells[words : words + int(layout.SLOT_WORDS)].tolist()


def _entries(cells: memoryview, node: int, fanout: int, columns: int) -> list[_Entry]:
    """A node's entries."""
    count = cells[node]
    column = [cells[node + 1 + fanout * c : node + 1 + fanout * c + count].tolist() for c in range(columns)]
    nothing = [0] * count
    return [
        _Entry(*entry)
        for entry in zip(column[0], *(column[3:] or [nothing]), column[1], *(column[2:3] or [nothing]), strict=True)
    ]


def _tree(shape: Geometry, cells: memoryview, tree: int, name: str, nodes: list[int]) -> list[_Entry]:
    """Check a tree and return its leaves' entries in order; its nodes are added to ``nodes``."""
    root, height, fanout, columns = cells[tree : tree + layout.TREE.size].tolist()
    last = shape.first_node + shape.nodes * shape.node_words
    _require(fanout == (shape.node_words - 1) // columns, f"{name}: fan-out {fanout} is not what its nodes hold")
    level = [(root, None)]
    found: list[_Entry] = []
    for depth in range(height + 1):
        found = []
        below = []
        for position, (node, summary) in enumerate(level):
            _require(
                shape.first_node <= node < last and (node - shape.first_node) % shape.node_words == 0,
                f"{name}: {node} is no node",
            )
            nodes.append(node)
            count = cells[node]
            is_last = position == len(level) - 1
            least = (0 if height == 0 else 2) if depth == 0 else 1 if is_last else fanout // 2
            _require(least <= count <= fanout, f"{name}: node {node} has {count} entries, not {least}..{fanout}")
            entries = _entries(cells, node, fanout, columns)
            if summary is not None:
                first, end = entries[0], max(entry.end for entry in entries)
                _require(
                    (summary.key, summary.tie, summary.end) == (first.key, first.tie, end),
                    f"{name}: node {node} starts at {first.key:#x}, ends to {end:#x}; its parent says {summary}",
                )
            found += entries
            below += [(entry.value, entry) for entry in entries]
        level = below  # type: ignore[assignment] # entries are summaries of the next level
    for a, b in pairwise(found):
        if (a.key, a.tie) >= (b.key, b.tie):
            _require(False, f"{name}: {b} follows {a}")
    return found


def _set(shape: Geometry, cells: memoryview, as_id: int, set_: int, nodes: list[int]) -> list[int]:
    """Check one set and return its table."""
    name = f"space {as_id}, set at {set_}"
    table = cells[cells[set_ + _TABLE] : cells[set_ + _TABLE] + shape.ids].tolist()
    by_gfn = _tree(shape, cells, set_, f"{name}, by gfn", nodes)
    by_hva = _tree(shape, cells, set_ + int(layout.HVA_TREE), f"{name}, by hva", nodes)
    stop = 0
    for entry in by_gfn:
        record = entry.value
        _require(
            shape.first_record <= record < shape.first_record + shape.records, f"{name}: {record} is no slot record"
        )
        space, id_, base, npages, _, flags, file, offset, _ = _slot(cells, record)
        _require(space == as_id, f"{name}: slot {id_} is of address space {space}")
        _require(id_ < shape.ids, f"{name}: slot id {id_} is not below {shape.ids}")
        _require(table[id_] == record, f"{name}: the table says record {table[id_]} for slot {id_}, the tree {record}")
        _require(entry.key == base, f"{name}: slot {id_} begins at {base:#x}, its key is {entry.key:#x}")
        _require(npages > 0, f"{name}: slot {id_} is empty")
        _require(base >= stop, f"{name}: slot {id_} from {base:#x} overlaps the slot before it, to {stop:#x}")
        _require(flags & ~_KNOWN == 0, f"{name}: slot {id_} has flags {flags:#x}")
        bound = bool(flags & KVM_MEM_GUEST_MEMFD)
        _require(
            bound == bool(file) and (bound or offset == 0),
            f"{name}: slot {id_} has flags {flags:#x} and guest_memfd {file} from {offset:#x} on",
        )
        stop = base + npages
        _require(entry.end == stop, f"{name}: slot {id_} ends at {stop:#x}, by gfn at {entry.end:#x}")
    for entry in by_hva:
        record = entry.value
        _, id_, _, npages, hva, *_ = _slot(cells, record)
        _require(
            entry == (hva, id_, record, hva + (npages << 12)), f"{name}: slot {id_} is at {hva:#x}, by hva {entry}"
        )
    _require(
        sorted(entry.value for entry in by_gfn) == sorted(entry.value for entry in by_hva),
        f"{name}: by gfn and by hva hold different slots",
    )
    known = len(table) - table.count(0)
    _require(
        known == len(by_gfn) == cells[set_ + _COUNT],
        f"{name}: {known} slots by id, {len(by_gfn)} by gfn, count {cells[set_ + _COUNT]}",
    )
    return table


def _chain(desk: Own, ids: int) -> set[int]:
    """The touched ids; the chain must be whole."""
    touched: set[int] = set()
    link = int(desk[_TOUCHED])
    while link:
        _require(link - 1 < ids and link - 1 not in touched, f"chain of touched ids: {link - 1} is no new id")
        touched.add(link - 1)
        link = int(desk[_CHAIN + link - 1]) - 1
        _require(link >= 0, "chain of touched ids: it leads to an untouched id")
    _require(len(touched) == int(desk[_TOUCHED_COUNT]), "chain of touched ids: its length is not its count")
    links = memoryview(desk)[_CHAIN : _CHAIN + ids].tolist()  # type: ignore[arg-type] # an ndarray or a memoryview
    _require(len(links) - links.count(0) == len(touched), "chain of touched ids: an id off the chain is touched")
    return touched


def _update(
    cells: memoryview, desk: Own, as_id: int, space: int, tables: dict[int, list[int]], touched: set[int]
) -> None:
    """Check a space's two sets against each other and against the update's phase."""
    name = f"space {as_id}"
    phase = int(desk[_PHASE])
    mine = phase != phases.IDLE and int(desk[_SPACE]) == space
    active = cells[space]
    _require(active in tables, f"{name}: the active set is {active}, not one of {[*tables]}")
    if mine:
        _require(int(desk[_OTHER]) == active, f"{name}: the update takes {int(desk[_OTHER])} for the active set")
        _require({int(desk[_EDITED]), active} == {*tables}, f"{name}: {int(desk[_EDITED])} is edited")
    swapped = mine and phase in (phases.SWAPPED, phases.MARKS_SWAPPED)
    generation = cells[active + _GENERATION]
    _require(bool(generation & _BIT63) == swapped, f"{name}: generation {generation:#x} in phase {phase}")
    spaces = cells[int(layout.ADDRESS_SPACES)]
    _require((generation & ~_BIT63) % spaces == as_id, f"{name}: generation {generation:#x} belongs to another space")
    first, second = tables.values()
    pairs = enumerate(zip(first, second, strict=True))
    differ = set() if first == second else {id_ for id_, (a, b) in pairs if a != b}  # of 32764 mostly none
    _require(
        differ <= (touched if mine else set()), f"{name}: the sets differ in slots {sorted(differ)[:5]}, phase {phase}"
    )
    for set_, table in tables.items():
        there = compress(enumerate(table), table)
        marked = [id_ for id_, record in there if cells[(record << _SHIFT) + _FLAGS] & _INVALID]
        if mine and phase in (phases.MARKING, phases.MARKS_SWAPPED, phases.EDITING_AFTER_MARKS):
            allowed = set_ == int(desk[_EDITED]) if phase == phases.MARKING else set_ == active
        else:
            allowed = mine and phase in (phases.SWAPPED, phases.SETTLED) and set_ != active
        _require(allowed or not marked, f"{name}, set at {set_}: slots {marked[:5]} are INVALID in phase {phase}")


def _free(cells: memoryview, head: int, link: Callable[[int], int], limit: int) -> Iterator[int]:
    """A free list."""
    for _ in range(limit + 1):
        if not head:
            return
        yield head
        head = cells[link(head)]


def _reclaim(name: str, used: Iterable[int], free: Iterable[int], counted: int, made: range) -> None:
    """Every piece ever made is in use once or free once."""
    in_use, spare = list(used), list(free)
    _require(len(set(spare)) == len(spare), f"{name}: one is free twice")
    _require(len(set(in_use)) == len(in_use), f"{name}: one is in use twice")
    both = set(spare) & set(in_use)
    _require(not both, f"{name}: {sorted(both)[:5]} are free and in use")
    lost = set(made) - set(spare) - set(in_use)
    _require(not lost, f"{name}: {sorted(lost)[:5]} are neither free nor in use")
    _require(len(in_use) + len(spare) == len(made), f"{name}: some were never made")
    _require(counted == len(in_use), f"{name}: {counted} are counted, {len(in_use)} are in use")


def check_memslots(shape: Geometry, cells: memoryview, desk: Own) -> None:
    """Raise InvariantError naming the first broken invariant. O(n log n) in slots and ids; no updater may run."""
    touched = _chain(desk, shape.ids)
    if int(desk[_PHASE]) == phases.IDLE:
        _require(not touched, "no update runs, yet ids are touched")
    nodes: list[int] = []
    records: set[int] = set()
    for as_id in range(shape.address_spaces):
        space = int(layout.SPACES) + int(layout.SPACE_WORDS) * as_id
        sets = [space + int(layout.SETS) + int(layout.SET_WORDS) * copy for copy in range(2)]
        tables = {set_: _set(shape, cells, as_id, set_, nodes) for set_ in sets}
        _update(cells, desk, as_id, space, tables, touched)
        for table in tables.values():
            records.update(filter(None, table))
    copies = [record << _SHIFT for record in records if cells[(record << _SHIFT) + _FLAGS] & _INVALID]
    records.update(cells[copy + _ORIGIN] for copy in copies)
    step = shape.node_words
    _reclaim(
        "nodes",
        nodes,
        _free(cells, int(desk[int(layout.NODE_FREE)]), lambda node: node + 1, shape.nodes),
        int(desk[int(layout.NODES_USED)]),
        range(shape.first_node, int(desk[int(layout.NODE_NEXT)]), step),
    )
    _reclaim(
        "records",
        records,
        _free(cells, int(desk[int(layout.RECORD_FREE)]), lambda record: (record << _SHIFT) + _ORIGIN, shape.records),
        int(desk[int(layout.RECORDS_USED)]),
        range(shape.first_record, int(desk[int(layout.RECORD_NEXT)])),
    )
