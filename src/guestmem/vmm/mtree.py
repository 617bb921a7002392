"""QEMU's ``info mtree`` and ``info mtree -f``, from QEMU 5 to 10, read into a map.

A tree (``info mtree``, better with ``-D``, which shows disabled regions, too) has the regions themselves; a flat view
(``-f``) has only what is seen. Neither says where host memory is: addresses are made up, one piece for each region. A
tree does not say which region answers accesses itself and which only holds others, nor which alias is read-only: the
former is taken from a flat view in the same text if there is one; of the latter only QEMU's "pam-rom" is known.

Source: ``mtree_print_mr()``, ``mtree_print_flatview()``, QEMU 5.2, 7.2 and 10.0 ``system/memory.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import TraceError, UsageError
from .hosts import Hosts
from .map import MemoryMap
from .region import MemoryRegion, RegionKind

__all__ = ["FlatLine", "FlatText", "has_trees", "is_mtree", "parse_flat", "read_mtree"]

READONLY_ALIASES = frozenset({"pam-rom"})

_FLAT = re.compile(r"FlatView #\d+$")
_SPACE = re.compile(r"address-space(?: \(shared \d+ times\))?: (.*?)(?: owner:.*)?$")
_REGION = re.compile(r"memory-region: (.*?)(?: owner:.*)?$")
_AS = re.compile(r' AS "(.*?)", root: (.*)$')
_LINE = re.compile(
    r"(?P<indent> +)(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) "
    r"\(prio (?P<prio>-?\d+), (?P<nv>nv-)?(?P<type>ramd|romd|ram|rom|i/o)\): (?P<rest>.*)$"
)
_ALIAS = re.compile(r"alias (?P<name>.*) @(?P<target>.*) (?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16})$")
_OFFSET = re.compile(r"^(?P<name>.*) @(?P<offset>[0-9a-f]{16})$")
_OWNER = re.compile(r" (?:owner|parent):(?:\{.*\}|.*)$")


class FlatLine(NamedTuple):
    """One range of ``info mtree -f``; ``end`` is exclusive. ``kvm``: QEMU says that a slot has exactly this range."""

    start: int
    end: int
    priority: int
    type: str
    nonvolatile: bool
    name: str
    offset: int
    kvm: bool
    line: int


@dataclass
class FlatText:
    """One flat view and the address spaces that share it, each with its root's name."""

    spaces: list[tuple[str, str]] = field(default_factory=list)
    root: str = "(none)"
    ranges: list[FlatLine] = field(default_factory=list)


@dataclass
class _Node:
    start: int
    end: int
    priority: int
    type: str
    nonvolatile: bool
    name: str
    enabled: bool
    line: int
    alias: tuple[str, int, int] | None = None
    children: list[_Node] = field(default_factory=list)


def is_mtree(text: str) -> bool:
    """Whether a text has a block of ``info mtree`` in it."""
    return any(
        _FLAT.match(line) or _SPACE.match(line) or _REGION.match(line)
        for line in (each.rstrip("\r") for each in text.split("\n"))
    )


def has_trees(text: str) -> bool:
    """Whether a text shows regions, and not only flat views."""
    return any(_SPACE.match(line.rstrip("\r")) for line in text.split("\n"))


def parse_flat(text: str, path: str = "") -> list[FlatText]:
    """The flat views of a text; TraceError for a line of one that cannot be read. O(n)."""
    return _Reader(text, path).flats


def read_mtree(text: str, path: str = "", hosts: Hosts | None = None) -> MemoryMap:
    """A map with the address spaces of the text; TraceError, with file and line, for what cannot be. O(n log n).

    From trees where there are any, else from flat views: then each range is an alias of the region that it shows.
    ``hosts`` makes up host addresses, the same for several recordings of one machine.
    """
    reader = _Reader(text, path)
    if not (reader.spaces or reader.flats):
        raise TraceError("no address space of info mtree is in it", path=path)
    hosts = Hosts() if hosts is None else hosts
    hosts.begin()
    try:
        return _from_trees(reader, hosts) if reader.spaces else _from_flats(reader, hosts)
    except RecursionError:
        raise TraceError("regions are nested too deep", path=path) from None
    except UsageError as error:
        raise TraceError(str(error), path=path) from None


class _Reader:
    """Splits a text into blocks. What is between them (a monitor's prompt and echo) is passed over."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self.flats: list[FlatText] = []
        self.spaces: list[tuple[str, _Node | None]] = []
        self.sections: dict[str, _Node] = {}
        flat: FlatText | None = None
        names: list[str] = []
        section = ""
        stack: list[tuple[int, _Node]] = []
        waiting: list[str] = []
        """Address spaces that share the tree that follows."""
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.rstrip("\r \t")
            if _FLAT.match(line):
                flat, names, section, waiting = FlatText(), [], "", []
                self.flats.append(flat)
            elif found := _SPACE.match(line):
                flat, section, stack = None, "", []
                waiting.append(found[1])
                names = waiting
            elif found := _REGION.match(line):
                flat, section, stack, names, waiting = None, found[1], [], [], []
            elif flat is not None and (found := _AS.match(line)):
                flat.spaces.append((found[1], found[2].split(", alias ")[0]))
            elif flat is not None and line.startswith(" Root memory region: "):
                flat.root = line.removeprefix(" Root memory region: ")
            elif (names or section or flat is not None) and (found := _LINE.match(line)):
                if flat is not None:
                    flat.ranges.append(self._flat_line(found, number, line))
                    continue
                node = self._node(found, number, line)
                indent = len(found["indent"])
                while stack and stack[-1][0] >= indent:
                    stack.pop()
                if stack:
                    stack[-1][1].children.append(node)
                elif section:
                    self.sections.setdefault(section, node)
                else:
                    self.spaces += [(name, node) for name in names]
                    waiting = []
                stack.append((indent, node))
            elif (names or section or flat is not None) and re.match(r" +[0-9a-f]+-[0-9a-f]+ ", line):
                raise TraceError("not a line of info mtree", path=path, line=number, text=line.strip())

    def _range(self, found: re.Match[str], number: int, line: str) -> tuple[int, int]:
        start, end = int(found["start"], 16), int(found["end"], 16) + 1
        if end <= start:
            raise TraceError("a range that ends before it starts", path=self.path, line=number, text=line.strip())
        return start, end

    def _flat_line(self, found: re.Match[str], number: int, line: str) -> FlatLine:
        start, end = self._range(found, number, line)
        rest = found["rest"]
        kvm = rest.endswith(" KVM")
        rest = _OWNER.sub("", rest.removesuffix(" KVM"))
        at = _OFFSET.match(rest)
        name, offset = (at["name"], int(at["offset"], 16)) if at else (rest, 0)
        return FlatLine(start, end, int(found["prio"]), found["type"], bool(found["nv"]), name, offset, kvm, number)

    def _node(self, found: re.Match[str], number: int, line: str) -> _Node:
        start, end = self._range(found, number, line)
        rest = _OWNER.sub("", found["rest"])
        enabled = not rest.endswith(" [disabled]")
        rest = rest.removesuffix(" [disabled]")
        node = _Node(start, end, int(found["prio"]), found["type"], bool(found["nv"]), rest, enabled, number)
        if alias := _ALIAS.match(rest):
            node.name = alias["name"]
            node.alias = alias["target"], int(alias["start"], 16), int(alias["end"], 16) + 1
        return node


_KINDS = {"ram": RegionKind.RAM, "rom": RegionKind.ROM, "romd": RegionKind.ROM_DEVICE, "ramd": RegionKind.RAM_DEVICE}


class _Builder:
    """Regions from nodes: what has a section of its own is one region wherever it is printed."""

    def __init__(self, reader: _Reader, hosts: Hosts) -> None:
        self.reader, self.map, self.hosts = reader, MemoryMap(), hosts
        self.leaves = {line.name for flat in reader.flats for line in flat.ranges}
        self.sections: dict[str, MemoryRegion] = {}

    def wrong(self, message: str, line: int) -> TraceError:
        return TraceError(message, path=self.reader.path, line=line)

    def section(self, name: str, line: int, above: tuple[str, ...] = ()) -> MemoryRegion:
        """The region that has a block ``memory-region: NAME``."""
        if name in above:
            raise self.wrong(f"region {name}: it contains itself ({' > '.join([*above, name])})", line)
        if name not in self.sections:
            node = self.reader.sections.get(name)
            if node is None:
                raise self.wrong(f"alias of {name}, which has no block 'memory-region: {name}'", line)
            self.sections[name] = self.build(node, (*above, name))
        return self.sections[name]

    def build(self, root: _Node, above: tuple[str, ...]) -> MemoryRegion:
        region = self.region(root, above)
        for child in reversed(root.children):  # of equal ones the first printed is seen: it was added last
            try:
                made = self.child(child, above)
                region.add_subregion(child.start - root.start, made, child.priority)
            except (UsageError, RecursionError) as error:
                why = error if isinstance(error, UsageError) else "regions are nested too deep"
                raise self.wrong(str(why), child.line) from None
        return region

    def child(self, node: _Node, above: tuple[str, ...]) -> MemoryRegion:
        if node.alias is None and node.name in self.reader.sections:
            same = self.reader.sections[node.name]
            if same.end - same.start == node.end - node.start and same.type == node.type:
                region = self.section(node.name, node.line, above)
                if region.container is None:
                    return region
        return self.build(node, above)

    def region(self, node: _Node, above: tuple[str, ...]) -> MemoryRegion:
        size = node.end - node.start
        if node.alias is not None:
            target, start, end = node.alias
            if end - start != size:
                raise self.wrong(f"alias {node.name}: it has {size:#x} bytes and shows {end - start:#x}", node.line)
            readonly = node.name in READONLY_ALIASES
            whole = self.section(target, node.line, above)
            try:
                region = self.map.alias(node.name, whole, start, size, readonly=readonly, nonvolatile=node.nonvolatile)
            except UsageError as error:
                raise self.wrong(str(error), node.line) from None
        elif node.type == "i/o":
            holds = bool(node.children) if not self.leaves else True
            kind = self.map.container if holds and node.name not in self.leaves else self.map.mmio
            region = kind(node.name, size)
        else:
            made = {"ram": self.map.ram, "rom": self.map.rom, "romd": self.map.rom_device, "ramd": self.map.ram_device}
            region = made[node.type](
                node.name, size, userspace_addr=self.hosts.take(node.name, size), nonvolatile=node.nonvolatile
            )
        region.set_enabled(node.enabled)
        return region


def _from_trees(reader: _Reader, hosts: Hosts) -> MemoryMap:
    builder = _Builder(reader, hosts)
    for name in reader.sections:
        builder.section(name, reader.sections[name].line)
    shared: dict[int, MemoryRegion] = {}
    for space, node in reader.spaces:
        if node is None:
            continue
        if id(node) not in shared:
            section = reader.sections.get(node.name)
            if section is not None and _same(section, node):
                shared[id(node)] = builder.section(node.name, node.line)
            else:
                shared[id(node)] = builder.build(node, ())
                if shared[id(node)].container is None:
                    shared[id(node)].addr = node.start  # it is in a container of another tree: as QEMU, at that address
        builder.map.address_space(space, shared[id(node)])
    return builder.map


def _same(a: _Node, b: _Node) -> bool:
    return (a.start, a.end, a.type, len(a.children)) == (b.start, b.end, b.type, len(b.children))


def _from_flats(reader: _Reader, hosts: Hosts) -> MemoryMap:
    memory_map = MemoryMap()
    lines = [line for flat in reader.flats for line in flat.ranges]
    sizes: dict[str, int] = {}
    kinds: dict[str, set[str]] = {}
    for line in lines:
        sizes[line.name] = max(sizes.get(line.name, 0), line.offset + line.end - line.start)
        kinds.setdefault(line.name, set()).add(line.type)
    regions = {}
    for name, size in sizes.items():
        if size > 1 << 64:
            worst = next(line for line in lines if line.name == name)
            raise TraceError(f"region {name}: it reaches past 2^64", path=reader.path, line=worst.line)
        kind = next(each for each in ("ram", "ramd", "romd", "rom", "i/o") if each in kinds[name])
        if kind == "i/o":
            regions[name] = memory_map.mmio(name, size)
        else:
            made = {"ram": memory_map.ram, "ramd": memory_map.ram_device, "romd": memory_map.rom_device}
            regions[name] = made.get(kind, memory_map.rom)(name, size, userspace_addr=hosts.take(name, size))
    for flat in reader.flats:
        root = memory_map.container(flat.root)
        before: FlatLine | None = None
        for line in flat.ranges:
            if before is not None and line.start < before.end:
                raise TraceError(f"it overlaps line {before.line}", path=reader.path, line=line.line)
            before = line
            target = regions[line.name]
            readonly = line.type == "rom" and target.kind is not RegionKind.ROM
            alias = memory_map.alias(
                line.name, target, line.offset, line.end - line.start, readonly=readonly, nonvolatile=line.nonvolatile
            )
            root.add_subregion(line.start, alias, line.priority)
        for space, _ in flat.spaces:
            memory_map.address_space(space, root)
    return memory_map
