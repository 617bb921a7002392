"""One moment of memory, for ``guestmem map``: from whatever recording or description there is of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import TraceError, UsageError
from ..memslots.slot import Slot
from ..traces import read
from ..vmm import MemoryMap
from ..vmm.description import read_description
from ..vmm.hosts import Hosts
from ..vmm.mtree import has_trees, is_mtree, read_mtree

__all__ = ["Moment", "moment_of"]


@dataclass
class Moment:
    """What one file says of one moment: a map, or slots alone."""

    name: str
    format: str
    map: MemoryMap | None = None
    slots: list[Slot] = field(default_factory=list)
    path: str = ""
    at: int | None = None
    tree: bool = True
    """Whether the regions themselves are known, not only what is seen of them."""
    recorded: Sequence[Any] = ()
    """All changes of a trace."""


def moment_of(names: Sequence[str], hosts: Hosts) -> Moment:
    parts = [_parted(name) for name in names]
    texts = [_text(path) for path, _ in parts]
    (path, at), text = parts[0], texts[0]
    title = ", ".join(names)
    if any(is_mtree(each) for each in texts):
        if at is not None:
            raise UsageError(f"{names[0]}: a recording of info mtree has one moment, not {at}")
        text = "\n".join(texts)
        return Moment(title, "info mtree", read_mtree(text, path, hosts), path=path, tree=has_trees(text))
    if len(names) > 1:
        raise UsageError(f"{names[1]}: only a tree and a flat view of info mtree can be given together (or --diff)")
    if text.lstrip()[:1] == "{":
        described = read_description(text, path, hosts)
        steps = len(described.steps)
        if at is not None and at > steps:
            raise UsageError(f"{names[0]}: step {at}: there are {steps}")
        described.make(at)
        said = f"map in JSON, after step {steps if at is None else at} of {steps}" if steps else "map in JSON"
        return Moment(title, said, described.map, path=path, at=at)
    return _trace(title, path, at)


def _trace(title: str, path: str, at: int | None) -> Moment:
    timeline = read(path)
    slots: dict[tuple[int, int], Slot] = {}
    for each in timeline.changes:
        if each.applied and (at is None or each.line <= at):
            key = each.change.as_id, each.change.slot
            slots.pop(key, None)
            if not each.change.deletes:
                slots[key] = each.change.as_slot()
    when = f", after line {at}" if at is not None else ""
    return Moment(
        title, f"{timeline.format} trace{when}", None, in_order(slots.values()), path, at, recorded=timeline.changes
    )


def _parted(name: str) -> tuple[str, int | None]:
    path, mark, at = name.rpartition("@")
    if mark and not Path(name).exists():
        if not at.isdecimal() or len(at) > 18:
            raise UsageError(f"{name[:60]}: after @ stands the number of a line or step")
        return path, int(at)
    return name, None


def _text(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TraceError("not a text file", path=path) from None


def in_order(slots: Iterable[Slot]) -> list[Slot]:
    return sorted(slots, key=lambda slot: (slot.as_id, slot.base_gfn))
