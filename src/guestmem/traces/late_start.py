"""Slots that were there before the trace began, as a file tells them.

``info mtree -f`` of QEMU's monitor (``system/memory.c``, ``mtree_print_flatview()``) marks each range that has a slot
with ``KVM``; it knows neither slot numbers nor host addresses, which the first change of such a slot then tells.
A JSON file is a list of objects with ``guest_phys_addr`` and ``memory_size``, and where they are known ``slot``,
``userspace_addr``, ``as_id`` and ``flags``; numbers may be strings such as "0x1000".
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..errors import TraceError
from ..memslots.slot import KVM_MEM_READONLY
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX

if TYPE_CHECKING:
    import os

__all__ = ["AssumedSlot", "read_assumed_slots"]

LARGEST_FILE = 16 << 20
VIEW = re.compile(r'^ *AS "([^"]*)"', re.MULTILINE)
RANGE = re.compile(r"^ *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([\w-]+)\): .* KVM\s*$", re.MULTILINE)
SPACES = {"memory": 0, "KVM-SMRAM": 1}
"""KVM's address space by the name of QEMU's; "cpu-memory-0" is the same view as "memory"."""
KEYS = {"slot", "guest_phys_addr", "memory_size", "userspace_addr", "as_id", "flags"}


class AssumedSlot(NamedTuple):
    """A slot that was there before the trace began; ``slot`` and ``userspace_addr`` are None where nobody knows."""

    as_id: int
    slot: int | None
    base_gfn: int
    npages: int
    userspace_addr: int | None
    flags: int


def read_assumed_slots(path: str | os.PathLike[str]) -> tuple[AssumedSlot, ...]:
    """Read ``path``: the output of ``info mtree -f``, or JSON; see the module. Raises TraceError."""
    name = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise TraceError(f"cannot be read: {getattr(error, 'strerror', None) or error}", path=name) from None
    if len(raw) > LARGEST_FILE:
        raise TraceError(f"more than {LARGEST_FILE >> 20} MiB: no list of slots is that long", path=name)
    text = raw.decode("utf-8", "replace")
    slots = _from_json(name, text) if text.lstrip()[:1] in ("[", "{") else _from_mtree(text)
    if not slots:
        message = (
            "no slot: known are the output of QEMU's info mtree -f (lines that end in KVM), and a JSON list of "
            "objects with guest_phys_addr, memory_size, slot, userspace_addr"
        )
        raise TraceError(message, path=name)
    return slots


def _from_mtree(text: str) -> tuple[AssumedSlot, ...]:
    found: dict[tuple[int, int], AssumedSlot] = {}
    for view in re.split(r"^FlatView #\d+", text, flags=re.MULTILINE):
        spaces = {SPACES[name] for name in VIEW.findall(view) if name in SPACES}
        for start, last, kind in RANGE.findall(view):
            base = (int(start, 16) + PAGE_SIZE - 1) >> PAGE_SHIFT
            end = (int(last, 16) + 1) >> PAGE_SHIFT
            flags = KVM_MEM_READONLY if kind in ("rom", "romd") else 0
            for as_id in spaces if end > base else ():
                found[as_id, base] = AssumedSlot(as_id, None, base, end - base, None, flags)
    return tuple(found[key] for key in sorted(found))


def _from_json(name: str, text: str) -> tuple[AssumedSlot, ...]:
    def refuse(message: str) -> NoReturn:
        raise TraceError(message, path=name)

    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"neither info mtree -f nor JSON: {error}")
    if isinstance(entries, dict):
        entries = entries.get("slots")
    if not isinstance(entries, list):
        refuse("a list of slots is expected, or an object with one under slots")

    def number(entry: dict[str, Any], i: int, key: str, limit: int, *, optional: bool = False) -> int | None:
        value: Any = entry.get(key)
        if value is None and optional:
            return None
        if isinstance(value, str):
            try:
                value = int(value, 0)
            except ValueError:
                refuse(f"entry {i}: {key} {value[:40]!r} is not a number")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            refuse(f"entry {i}: {key} is {str(value)[:40]}; a number from 0 to {limit:#x} is allowed")
        assert isinstance(value, int)
        return value

    slots = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            refuse(f"entry {i}: an object is expected")
        if unknown := set(entry) - KEYS:
            refuse(f"entry {i}: {min(unknown)!r} is not known; known are {', '.join(sorted(KEYS))}")
        gpa, size = number(entry, i, "guest_phys_addr", U64_MAX), number(entry, i, "memory_size", U64_MAX)
        hva = number(entry, i, "userspace_addr", U64_MAX, optional=True)
        assert gpa is not None
        assert size is not None
        for key, value in (("guest_phys_addr", gpa), ("memory_size", size), ("userspace_addr", hva or 0)):
            if value % PAGE_SIZE:
                refuse(f"entry {i}: {key} {value:#x} is not a multiple of the page size {PAGE_SIZE:#x}")
        if not size or gpa + size > U64_MAX:
            refuse(f"entry {i}: memory_size {size:#x} at {gpa:#x}: one page or more, below 2^64, is allowed")
        as_id = number(entry, i, "as_id", 0xFFFF, optional=True) or 0
        slot = number(entry, i, "slot", 0xFFFFFFFF, optional=True)
        if slot is not None and slot > 0xFFFF:
            as_id, slot = slot >> 16, slot & 0xFFFF
        flags = number(entry, i, "flags", 0xFFFFFFFF, optional=True) or 0
        slots.append(AssumedSlot(as_id, slot, gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, hva, flags))
    return tuple(slots)
