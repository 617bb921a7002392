"""What ``guestmem map`` prints: tree, flat view, slots; and what changed between two moments. 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..memslots.changes import Change
from ..memslots.slot import Slot
from ..units import PAGE_SHIFT
from ..vmm import Cost, FlatRange, MemoryMap, MemoryRegion
from ..vmm.address_space import AddressSpace

__all__ = [
    "change_dict",
    "change_line",
    "clip",
    "cost_dict",
    "cost_rows",
    "section_dict",
    "slot_dict",
    "slot_lines",
    "tree",
    "view_lines",
]

WIDTH = 80


def clip(line: str, width: int = WIDTH) -> str:
    """A line that fits; what is cut is an ellipsis.

    >>> clip("a long line", 7)
    'a long…'
    """
    return line if len(line) <= width else line[: width - 1] + "…"


def size(nbytes: int) -> str:
    """A size in the largest unit that is not above it, to two places; below 10 000 bytes exactly.

    >>> size(0xA0000), size(1 << 64), size(0xFF10000), size(2552)
    ('640 KiB', '16 EiB', '255.06 MiB', '2552 B')
    """
    for shift, unit in ((60, "EiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >> shift and (nbytes > 9999 or nbytes % (1 << shift) == 0):
            return f"{nbytes / (1 << shift):.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{nbytes} B"


def tree(region: MemoryRegion, *, disabled: bool = True) -> Iterator[str]:
    """One line for each region below and with ``region``; ``disabled``: also those that are off."""
    skip: int | None = None
    bases: list[int] = []
    for depth, each in region.walk():
        if skip is not None and depth > skip:
            continue
        skip = None
        if not each.enabled and not disabled:
            skip = depth
            continue
        del bases[depth:]
        bases.append((bases[-1] if bases else 0) + each.addr)
        yield clip(f"  {'  ' * depth}{bases[-1]:#x} {size(each.size)} {_what(each)}{_marks(each)}")


def _what(region: MemoryRegion) -> str:
    if region.alias is not None:
        return f"{region.name} = {region.alias.name} @{region.alias_offset:#x}"
    return f"{region.name} ({region.kind.value})"


def _marks(region: MemoryRegion) -> str:
    marks = [f"priority {region.priority}"] if region.priority else []
    marks += ["off"] if not region.enabled else []
    marks += [name for name in ("nonvolatile", "unmergeable") if getattr(region, name)]
    marks += ["read-only"] if region.readonly and region.kind.value != "rom" else []
    marks += ["logged"] if region.dirty_log_mask else []
    marks += ["not as ROM"] if region.kind.value == "rom device" and not region.romd_mode else []
    return f", {', '.join(marks)}" if marks else ""


def view_lines(view: Iterable[FlatRange], slots: Sequence[Slot], fewest: Sequence[Slot]) -> Iterator[str]:
    """One line for each range, with the ids of the slots that have it: in QEMU's way, and with the fewest."""
    yield f"  {'from':>12} {'size':>10}  type  {'region':<31} {'slot':>7} {'fewest':>7}"
    for each in view:
        name = each.region.name + (f" @{each.offset:#x}" if each.offset else "")
        marks = (" log" if each.dirty_log_mask else "") + (" nv" if each.nonvolatile else "")
        one, two = (_ids(each, of) for of in (slots, fewest))
        yield clip(
            f"  {each.start:#12x} {size(each.size):>10}  {each.kind:<4}  {clip(name + marks, 31):<31} {one:>7} {two:>7}"
        )


def _ids(section: FlatRange, slots: Sequence[Slot]) -> str:
    found = [
        slot.id
        for slot in slots
        if slot.base_gfn << PAGE_SHIFT < section.end and section.start < slot.end_gfn << PAGE_SHIFT
    ]
    return ",".join(map(str, found))


def slot_lines(slots: Iterable[Slot]) -> Iterator[str]:
    """One line for each slot."""
    for slot in slots:
        space = f"{slot.as_id}:" if slot.as_id else ""
        start, end = slot.base_gfn << PAGE_SHIFT, slot.end_gfn << PAGE_SHIFT
        flags = (" ro" if slot.readonly else "") + (" log" if slot.logs_dirty_pages else "")
        where = f"[{start:#x}, {end:#x}) {size(end - start)}"
        yield clip(f"  {space + str(slot.id):>5}  {where} -> {slot.userspace_addr:#x}{flags}")


def change_line(change: Change, before: dict[int, Slot]) -> str:
    """One change as a line; ``before`` has the slots by id, and is brought up to date."""
    old = before.pop(change.slot, None)
    if change.deletes:
        return clip(f"  delete {next(slot_lines([old])).strip() if old else change.slot}")
    new = before[change.slot] = change.as_slot()
    what = "create" if old is None else "move  " if old.base_gfn != new.base_gfn else "flags "
    return clip(f"  {what} {next(slot_lines([new])).strip()}")


ROWS = (
    ("calls", "calls"),
    ("  deletes", "deletes"),
    ("  creates", "creates"),
    ("  moves", "moves"),
    ("  flags only", "flags"),
    ("missing for a while, made one by one", "hole"),
    ("  of this unchanged after all", "hole_same"),
    ("translations dropped", "dropped"),
    ("QEMU 8 and pause_if_overlap stop vCPUs", "pauses"),
    ("atomic: accesses wait", "stalled"),
    ("atomic: writes wait", "writes_stalled"),
)
_COUNTS = {"calls", "deletes", "creates", "moves", "flags"}


def cost_rows(costs: dict[str, Cost]) -> Iterator[str]:
    """The costs of several ways side by side; frames as sizes."""
    yield f"  {'':<40}" + "".join(f"{name:>12}" for name in costs)
    for title, name in ROWS:
        cells = [getattr(cost, name) for cost in costs.values()]
        texts = [
            ("yes" if cell else "no")
            if name == "pauses"
            else str(cell)
            if name in _COUNTS
            else size(cell << PAGE_SHIFT)
            for cell in cells
        ]
        yield f"  {title:<40}" + "".join(f"{text if text != '0 B' else '-':>12}" for text in texts)


# -- JSON ------------------------------------------------------------------------------------------------------------


def slot_dict(slot: Slot) -> dict[str, Any]:
    """A slot; addresses and sizes in bytes."""
    return {
        "as_id": slot.as_id,
        "slot": slot.id,
        "gpa": slot.base_gfn << PAGE_SHIFT,
        "size": slot.npages << PAGE_SHIFT,
        "userspace_addr": slot.userspace_addr,
        "flags": slot.flags,
    }


def change_dict(change: Change) -> dict[str, Any]:
    """A change; size 0 deletes."""
    return slot_dict(
        Slot(change.as_id, change.slot, change.base_gfn, change.npages, change.userspace_addr, change.flags)
    )


def section_dict(section: FlatRange) -> dict[str, Any]:
    """A range of a flat view."""
    return {
        "start": section.start,
        "size": section.size,
        "type": section.kind,
        "region": section.region.name,
        "offset": section.offset,
        "readonly": section.readonly,
        "nonvolatile": section.nonvolatile,
        "unmergeable": section.unmergeable,
        "dirty_log_mask": section.dirty_log_mask,
    }


def cost_dict(cost: Cost) -> dict[str, Any]:
    """A cost; ``hole`` and what follows in bytes."""
    return {
        name: value if name in _COUNTS or name == "pauses" else value << PAGE_SHIFT
        for _, name in ROWS
        for value in [getattr(cost, name)]
    }


def shared(memory: MemoryMap, space: AddressSpace) -> list[str]:
    """The names of the other address spaces that share ``space``'s view."""
    return [each.name for each in memory.spaces if each.view is space.view and each is not space]
