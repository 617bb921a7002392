"""A memory map of one's own as JSON: regions, address spaces, and steps that change them.

    {"regions": [{"name": "system", "kind": "container"},
                 {"name": "pc.ram", "kind": "ram", "size": "256M"},
                 {"name": "low", "kind": "alias", "of": "pc.ram", "size": "0xa0000", "in": "system", "at": 0},
                 {"name": "vga", "kind": "mmio", "size": "128K", "in": "system", "at": "0xa0000", "priority": 1}],
     "address_spaces": [{"name": "memory", "root": "system"}],
     "steps": [{"name": "the VGA goes", "edits": [["set_enabled", "vga", false]]}]}

Numbers are whole, or strings such as "0xa0000", "640K", "1G". A region is named before it is used. Fields of a region:
``name``, ``kind`` (ram, rom, rom device, ram device, mmio, container, alias, reservation), ``size`` (an alias: the rest
of its target; a container: 2⁶⁴), ``of`` and ``offset`` of an alias; ``in``, ``at``, ``priority``; ``enabled``,
``readonly``, ``nonvolatile``, ``unmergeable``, ``log``, ``host`` (an address). An edit is a method of ``MemoryRegion``,
the region's name, and its arguments; regions among these by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import TraceError, UsageError
from .hosts import Hosts
from .map import MemoryMap
from .region import MemoryRegion, RegionKind

__all__ = ["Description", "Step", "description_of", "read_description"]

_FIELDS = {
    *("name", "kind", "size", "of", "offset", "in", "at", "priority", "enabled"),
    *("readonly", "nonvolatile", "unmergeable", "log", "host"),
}
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_NUMBER = re.compile(r"(0x[0-9a-fA-F]{1,32}|\d{1,32})\s*([KMGT]?)(?:iB|B)?$")

EDITS: dict[str, tuple[str, ...]] = {
    "add_subregion": ("number", "region", "priority?"),
    "del_subregion": ("region",),
    "set_enabled": ("bool",),
    "set_address": ("number",),
    "set_priority": ("number",),
    "set_size": ("number",),
    "set_alias_offset": ("number",),
    "set_readonly": ("bool",),
    "set_nonvolatile": ("bool",),
    "set_unmergeable": ("bool",),
    "set_romd": ("bool",),
    "set_log": ("bool",),
}
"""What a step can do to a region, and what that takes."""


@dataclass
class Step:
    """One transaction: its name and its edits, ready to be made."""

    name: str
    edits: list[Callable[[], object]]


@dataclass
class Description:
    """A map, and the steps that were described for it but not made yet."""

    map: MemoryMap
    steps: list[Step] = field(default_factory=list)

    def make(self, count: int | None = None) -> None:
        """Make the next ``count`` steps (None: all), each a transaction. UsageError names the step that cannot be."""
        for _ in range(len(self.steps) if count is None else count):
            step = self.steps.pop(0)
            try:
                with self.map.transaction():
                    for edit in step.edits:
                        edit()
            except UsageError as error:
                raise UsageError(f"step {step.name!r}: {error}") from None


def read_description(text: str, path: str = "", hosts: Hosts | None = None) -> Description:
    """A description from its JSON; TraceError, one line that names the region or step, for what cannot be."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise TraceError(f"not JSON: {error.msg}", path=path, line=error.lineno) from None
    except ValueError:
        raise TraceError("a number in it has thousands of digits", path=path) from None
    except RecursionError:
        raise TraceError("not JSON: it is nested too deep", path=path) from None
    try:
        return _Reader(Hosts() if hosts is None else hosts).read(given)
    except UsageError as error:
        raise TraceError(str(error), path=path) from None


class _Reader:
    def __init__(self, hosts: Hosts) -> None:
        self.map, self.hosts = MemoryMap(), hosts
        self.named: dict[str, MemoryRegion] = {}
        hosts.begin()

    def read(self, given: Any) -> Description:
        if not isinstance(given, dict) or not isinstance(given.get("regions"), list):
            raise UsageError("a description is an object with a list 'regions'")
        if unknown := set(given) - {"regions", "address_spaces", "steps", "comment"}:
            raise UsageError(f"{_shown(min(unknown))} is not one of regions, address_spaces, steps, comment")
        with self.map.transaction():
            for place, each in enumerate(given["regions"]):
                self.region(each, f"regions[{place}]")
        spaces = _list(given, "address_spaces")
        for place, each in enumerate(spaces):
            what = f"address_spaces[{place}]"
            if not isinstance(each, dict) or not isinstance(each.get("name"), str):
                raise UsageError(f"{what}: it is no object with a name and a root")
            self.map.address_space(each["name"], self.find(each.get("root"), what))
        if not spaces:
            roots = [each for each in self.map.regions if each.container is None and not each.aliases]
            for root in roots[:1]:
                self.map.address_space("memory", root)
        if not self.map.spaces:
            raise UsageError("there is no address space, and no region that could be the root of one")
        return Description(self.map, [self.step(each, place) for place, each in enumerate(_list(given, "steps"))])

    def region(self, given: Any, what: str) -> None:
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise UsageError(f"{what}: it is no object with a name")
        name = given["name"]
        if not name.isprintable():
            raise UsageError(f"{what}: name {_shown(name)} has characters that cannot be printed")
        what = f"region {_cut(name)}"
        if unknown := set(given) - _FIELDS:
            raise UsageError(f"{what}: {_shown(min(unknown))} is not one of {', '.join(sorted(_FIELDS))}")
        if name in self.named:
            raise UsageError(f"{what}: there is another region of that name")
        kinds = {kind.value: kind for kind in RegionKind}
        kind = kinds.get(given.get("kind", "")) if isinstance(given.get("kind", ""), str) else None
        if kind is None:
            raise UsageError(f"{what}: kind {_shown(given.get('kind'))} is not one of {', '.join(kinds)}")
        size = number_of(given["size"], f"{what}: size") if "size" in given else None
        flags = {key: _bool(given[key], f"{what}: {key}") for key in _FLAGS if key in given}
        self.named[name] = region = self.make(given, name, kind, size, flags)
        if "log" in given:
            region.set_log(_bool(given["log"], f"{what}: log"))
        region.set_enabled(_bool(given.get("enabled", True), f"{what}: enabled"))
        if "in" in given:
            at = number_of(given.get("at", 0), f"{what}: at")
            self.find(given["in"], what).add_subregion(at, region, _priority(given.get("priority", 0), what))
        elif {"at", "priority"} & set(given):
            raise UsageError(f"{what}: it has a place ('at', 'priority') but is 'in' nothing")

    def make(
        self, given: dict[str, Any], name: str, kind: RegionKind, size: int | None, flags: dict[str, bool]
    ) -> MemoryRegion:
        what = f"region {name}"
        if kind is RegionKind.ALIAS:
            offset = number_of(given.get("offset", 0), f"{what}: offset")
            return self.map.alias(name, self.find(given.get("of"), what), offset, size, **flags)
        for key in ("of", "offset"):
            if key in given:
                raise UsageError(f"{what}: {key!r} is for an alias, and it is {kind.value}")
        if kind is RegionKind.CONTAINER:
            region = self.map.container(name, *([] if size is None else [size]))
        elif size is None:
            raise UsageError(f"{what}: it has no size")
        elif kind is RegionKind.RESERVATION:
            region = self.map.reservation(name, size)
        elif kind is RegionKind.MMIO:
            region = self.map.mmio(name, size)
        else:
            host = number_of(given["host"], f"{what}: host") if "host" in given else self.hosts.take(name, size)
            made = {
                RegionKind.RAM: self.map.ram,
                RegionKind.ROM: self.map.rom,
                RegionKind.RAM_DEVICE: self.map.ram_device,
            }
            region = made.get(kind, self.map.rom_device)(name, size, userspace_addr=host)
        for key, value in flags.items():
            if value:
                getattr(region, f"set_{key}")(value)
        return region

    def find(self, name: Any, what: str) -> MemoryRegion:
        found = self.named.get(name) if isinstance(name, str) else None
        if found is None:
            raise UsageError(f"{what}: {_shown(name)} is no region that is described before it")
        return found

    def step(self, given: Any, place: int) -> Step:
        what = f"steps[{place}]"
        if not isinstance(given, dict) or not isinstance(given.get("edits"), list):
            raise UsageError(f"{what}: it is no object with a list 'edits'")
        name = _cut(str(given.get("name", place)))
        return Step(name, [self.edit(each, f"step {name!r}") for each in given["edits"]])

    def edit(self, given: Any, what: str) -> Callable[[], object]:
        if not isinstance(given, list) or len(given) < 2 or str(given[0]) not in EDITS:
            raise UsageError(f"{what}: {_shown(given)} is not [one of {', '.join(EDITS)}; a region; arguments]")
        what = f"{what}: {given[0]}"
        region, takes, arguments = self.find(given[1], what), EDITS[given[0]], given[2:]
        least = sum(not each.endswith("?") for each in takes)
        if not least <= len(arguments) <= len(takes):
            raise UsageError(f"{what}: it takes {len(takes)} arguments after the region, not {len(arguments)}")
        values: list[Any] = []
        for kind, value in zip(takes, arguments, strict=False):
            match kind:
                case "region":
                    values.append(self.find(value, what))
                case "bool":
                    values.append(_bool(value, what))
                case "priority?":
                    values.append(_priority(value, what))
                case _ if given[0] == "set_priority":
                    values.append(_priority(value, what))
                case _:
                    values.append(number_of(value, what))
        return lambda: getattr(region, given[0])(*values)


_FLAGS = ("readonly", "nonvolatile", "unmergeable")


def number_of(value: Any, what: str) -> int:
    """A whole number, or a string of one with a unit.

    >>> number_of("0xa0000", "size"), number_of("256M", "size"), number_of(7, "at")
    (655360, 268435456, 7)
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (found := _NUMBER.match(value.strip())):
        return int(found[1], 0 if found[1].startswith("0x") else 10) << _UNITS[found[2]]
    raise UsageError(f'{what}: {_shown(value)} is not a number of bytes, such as 4096, "0x1000" or "4K"')


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    """Short enough for one line.

    >>> _cut("x" * 80)
    'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'
    """
    return text if len(text) <= 60 else text[:57] + "..."


def _bool(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{what}: {_shown(value)} is not true or false")
    return value


def _priority(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{what}: priority {_shown(value)} is not a whole number")
    return value


def _list(given: dict[str, Any], name: str) -> list[Any]:
    found = given.get(name, [])
    if not isinstance(found, list):
        raise UsageError(f"{name}: {type(found).__name__} is not a list")
    return found


def description_of(memory_map: MemoryMap) -> dict[str, Any]:
    """A map as a description, for JSON; names that several regions have are numbered. O(n log n).

    Regions come in an order in which each is described before it is used.
    """
    names: dict[MemoryRegion, str] = {}
    taken: set[str] = set()
    for region in memory_map.regions:
        name, count = region.name, 2
        while name in taken:
            name, count = f"{region.name}#{count}", count + 1
        taken.add(name)
        names[region] = name
    done: dict[MemoryRegion, dict[str, Any]] = {}
    stack = [(region, False) for region in sorted(memory_map.regions, key=lambda each: -each.serial)]
    while stack:
        region, ready = stack.pop()
        if region in done:
            continue
        needs = [each for each in (region.alias, region.container) if each is not None and each not in done]
        if needs and not ready:
            stack.append((region, True))
            stack.extend((each, False) for each in needs)
            continue
        done[region] = _described(region, names)
    return {
        "regions": list(done.values()),
        "address_spaces": [{"name": space.name, "root": names[space.root]} for space in memory_map.spaces],
    }


def _described(region: MemoryRegion, names: dict[MemoryRegion, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": names[region], "kind": region.kind.value, "size": hex(region.size)}
    if region.alias is not None:
        found |= {"of": names[region.alias], "offset": hex(region.alias_offset)}
    if region.container is not None:
        found |= {"in": names[region.container], "at": hex(region.addr)}
        if region.priority:
            found["priority"] = region.priority
    if region.userspace_addr is not None:
        found["host"] = hex(region.userspace_addr)
    if not region.enabled:
        found["enabled"] = False
    if region.dirty_log_mask:
        found["log"] = True
    found |= {
        key: True for key in _FLAGS if getattr(region, key) and not (key == "readonly" and found["kind"] == "rom")
    }
    return found
