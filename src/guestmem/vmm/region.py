"""A memory region: RAM, ROM, a ROM device, MMIO, a container, an alias, a reservation; and what can be said of it.

Names and rules are those of QEMU's memory API (``docs/devel/memory.rst``, ``system/memory.c``, 10.2).
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .render import ADDRESS_END
from .subregions import Subregions

if TYPE_CHECKING:
    from .map import MemoryMap

__all__ = ["DIRTY_MEMORY_CODE", "DIRTY_MEMORY_MIGRATION", "DIRTY_MEMORY_VGA", "MemoryRegion", "RegionKind", "number"]

DIRTY_MEMORY_VGA = 1 << 0
DIRTY_MEMORY_CODE = 1 << 1
DIRTY_MEMORY_MIGRATION = 1 << 2


class RegionKind(enum.Enum):
    """What a region is."""

    RAM = "ram"
    ROM = "rom"
    """RAM for reads; writes go nowhere."""
    ROM_DEVICE = "rom device"
    """RAM for reads while ``romd_mode`` is on, callbacks for all else."""
    MMIO = "mmio"
    CONTAINER = "container"
    ALIAS = "alias"
    RESERVATION = "reservation"
    """MMIO that the guest must not see as free, answered by somebody else."""
    RAM_DEVICE = "ram device"
    """RAM that is a device's: a BAR that is mapped."""


HOST_END = 1 << 56
"""Where addresses of a process end on the widest host: x86-64 with five levels."""

_BACKED = (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE)
_CALLED = (RegionKind.MMIO, RegionKind.ROM_DEVICE)


class MemoryRegion:
    """One region of a ``MemoryMap``, which makes it: by ``map.ram(…)``, ``map.alias(…)`` and the like.

    ``addr`` and ``priority`` are its place in its ``container``. Every change is a transaction of its own, unless it is
    made inside ``with map.transaction():``. What cannot be is UsageError, one line, and nothing has changed.

    ``userspace_addr`` is the host address of byte 0 of what has memory behind it, or None where it is not known.
    ``read(offset, size)`` and ``write(offset, value, size)`` answer accesses of MMIO and ROM devices, of at most
    ``max_access`` bytes.
    """

    __slots__ = (
        "addr",
        "alias",
        "alias_offset",
        "aliases",
        "container",
        "dirty_log_mask",
        "enabled",
        "kind",
        "map",
        "max_access",
        "name",
        "nonvolatile",
        "number",
        "priority",
        "read",
        "readonly",
        "romd_mode",
        "serial",
        "size",
        "subregions",
        "terminates",
        "unmergeable",
        "userspace_addr",
        "write",
    )

    def __init__(
        self,
        memory_map: MemoryMap,
        number: int,
        name: str,
        kind: RegionKind,
        size: int,
        *,
        alias: MemoryRegion | None = None,
        alias_offset: int = 0,
        userspace_addr: int | None = None,
        readonly: bool = False,
        nonvolatile: bool = False,
        unmergeable: bool = False,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], object] | None = None,
        max_access: int = 4,
    ) -> None:
        self.map, self.number, self.name, self.kind, self.size = memory_map, number, name, kind, size
        self.addr = self.priority = self.serial = self.dirty_log_mask = 0
        self.container: MemoryRegion | None = None
        self.subregions = Subregions()
        self.alias, self.alias_offset = alias, alias_offset
        self.aliases: list[MemoryRegion] = []
        """The aliases that show this region."""
        self.enabled = True
        self.readonly = readonly or kind is RegionKind.ROM
        self.nonvolatile, self.unmergeable, self.romd_mode = nonvolatile, unmergeable, True
        self.terminates = kind not in (RegionKind.CONTAINER, RegionKind.ALIAS)
        self.userspace_addr = None if userspace_addr is None else _in_host(name, userspace_addr, size)
        self.read, self.write = read, write
        self.max_access = _max_access(name, max_access)

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def backed(self) -> bool:
        """Whether it has memory of its own."""
        return self.kind in _BACKED

    @property
    def is_ram(self) -> bool:
        """QEMU's ``memory_region_is_ram()``: RAM, ROM and RAM of devices; not a ROM device."""
        return self.kind in (RegionKind.RAM, RegionKind.ROM, RegionKind.RAM_DEVICE)

    @property
    def type_name(self) -> str:
        """As ``info mtree`` names the type; an alias has its target's."""
        region = self
        while region.alias is not None:
            region = region.alias
        match region.kind:
            case RegionKind.RAM_DEVICE:
                return "ramd"
            case RegionKind.ROM_DEVICE:
                return "romd" if region.romd_mode else "i/o"
            case RegionKind.ROM:
                return "rom"
            case RegionKind.RAM:
                return "rom" if region.readonly else "ram"
        return "i/o"

    @property
    def effective_log_mask(self) -> int:
        """``dirty_log_mask``, with the bit of migration while the map's global log is on and there is memory."""
        mask = self.dirty_log_mask
        if self.map.global_log and self.backed and self.kind is not RegionKind.RAM_DEVICE:
            mask |= DIRTY_MEMORY_MIGRATION
        return mask

    def walk(self) -> Iterator[tuple[int, MemoryRegion]]:
        """The region and all below it, with their depth, as a tree is printed: by address, higher priority first."""
        stack = [(0, self)]
        while stack:
            depth, region = stack.pop()
            yield depth, region
            children = sorted(region.subregions, key=lambda child: (child.addr, -child.priority, -child.serial))
            stack.extend((depth + 1, child) for child in reversed(children))

    # -- children ----------------------------------------------------------------------------------------------------

    def add_subregion(self, offset: int, subregion: MemoryRegion, priority: int = 0) -> MemoryRegion:
        """Put ``subregion`` at byte ``offset`` of this region; returns it.

        Of two that overlap, the higher ``priority`` is seen, and of equal ones the one added last. What reaches past
        this region's end is not seen. UsageError: it has a container already, it would contain itself, it would reach
        past 2⁶⁴, an alias has no children.
        """
        self._mine(subregion)
        offset, priority = number("offset", offset, 0, ADDRESS_END - 1), _priority(priority)
        what = f"region {subregion.name}"
        if subregion.container is not None:
            raise UsageError(f"{what}: it is in {subregion.container.name} already; a region has one container")
        if self.kind is RegionKind.ALIAS:
            raise UsageError(f"{what}: {self.name} is an alias, which has no children of its own")
        if offset + subregion.size > ADDRESS_END:
            raise UsageError(f"{what}: {offset:#x} + {subregion.size:#x} reaches past 2^64")
        if subregion.map.leads_to(self, subregion):
            raise UsageError(f"{what}: in {self.name} it would contain itself")
        with self.map.change(self._shows(subregion)):
            self._link(subregion, offset, priority, self.map.next_serial())
        return subregion

    def del_subregion(self, subregion: MemoryRegion) -> None:
        """Take ``subregion`` out; UsageError if it is not in here."""
        self._mine(subregion)
        if subregion.container is not self:
            raise UsageError(f"region {subregion.name}: it is not in {self.name}")
        with self.map.change(self._shows(subregion)):
            self._unlink(subregion)

    def _shows(self, child: MemoryRegion) -> bool:
        """Whether the place of ``child`` matters to a view: a root is seen at its address in a disabled one, too."""
        return child.enabled and (self.enabled or child in self.map.touched.roots)

    def _link(self, child: MemoryRegion, addr: int, priority: int, serial: int) -> None:
        if child in self.map.touched.roots:  # a root is seen at its address: where it was changes, too
            self.map.touched.add(child)
        child.addr, child.priority, child.serial, child.container = addr, priority, serial, self
        self.subregions.add(child)
        self.map.touched.add(child)
        self.map.undo(lambda: self._unlink(child))

    def _unlink(self, child: MemoryRegion) -> None:
        self.map.touched.add(child)
        addr, priority, serial = child.addr, child.priority, child.serial
        self.subregions.remove(child)
        child.container, child.addr = None, 0
        if child in self.map.touched.roots:
            self.map.touched.add(child)
        self.map.undo(lambda: self._link(child, addr, priority, serial))

    # -- setters -----------------------------------------------------------------------------------------------------

    def set_enabled(self, enabled: bool) -> None:
        """A disabled region is as if it were not there, with all below it."""
        enabled = bool(enabled)
        if enabled != self.enabled:
            with self.map.change(True):
                self._set_enabled(enabled)

    def _set_enabled(self, enabled: bool) -> None:
        before, self.enabled = self.enabled, enabled
        if self.container is not None:
            self.container.subregions.enabled += enabled - before
        self.map.touched.add(self)
        self.map.undo(lambda: self._set_enabled(before))

    def set_address(self, addr: int) -> None:
        """Move within the container; as in QEMU it is the last added afterwards, if it moved at all."""
        addr = number("addr", addr, 0, ADDRESS_END - 1)
        self._readd(addr, self.priority, moved=addr != self.addr)

    def set_priority(self, priority: int) -> None:
        """Another priority in the same container; it is the last added of its new one."""
        priority = _priority(priority)
        self._readd(self.addr, priority, moved=priority != self.priority)

    def _readd(self, addr: int, priority: int, *, moved: bool) -> None:
        if self.container is None:
            raise UsageError(f"region {self.name}: it is in no container, so it has no address or priority")
        if addr + self.size > ADDRESS_END:
            raise UsageError(f"region {self.name}: {addr:#x} + {self.size:#x} reaches past 2^64")
        if moved:
            container = self.container
            with self.map.change(container._shows(self)):  # noqa: SLF001 - its own class
                container._unlink(self)  # noqa: SLF001 - its own class
                container._link(self, addr, priority, self.map.next_serial())  # noqa: SLF001

    def set_size(self, size: int) -> None:
        """Another size; its memory stays where it is. UsageError: past 2⁶⁴, or an alias would leave its target."""
        size = number(f"region {self.name}: size", size, 1, ADDRESS_END)
        if self.addr + size > ADDRESS_END:
            raise UsageError(f"region {self.name}: {self.addr:#x} + {size:#x} reaches past 2^64")
        if self.alias is not None:
            _within(self.name, self.alias, self.alias_offset, size)
        if self.userspace_addr is not None:
            _in_host(self.name, self.userspace_addr, size)
        self.map.allow_size(self, size)
        for alias in self.aliases:
            if alias.alias_offset + alias.size > size:
                raise UsageError(f"region {self.name}: alias {alias.name} would reach past its new size {size:#x}")
        if size != self.size:
            with self.map.change(True):
                self._set_size(size)

    def _set_size(self, size: int) -> None:
        before = self.size
        self.map.touched.add(self)
        if self.container is not None:
            self.container.subregions.remove(self)
        self.size = size
        if self.container is not None:
            self.container.subregions.add(self)
        self.map.touched.add(self)
        self.map.undo(lambda: self._set_size(before))

    def set_alias_offset(self, offset: int) -> None:
        """Show another part of the target. UsageError: it is no alias, or would reach past its target's end."""
        if self.alias is None:
            raise UsageError(f"region {self.name}: it is no alias")
        offset = number("offset", offset, 0, ADDRESS_END)
        _within(self.name, self.alias, offset, self.size)
        self._set("alias_offset", offset)

    def set_readonly(self, readonly: bool) -> None:
        """Writes go nowhere; holds for all that is seen through this region. A ROM stays one."""
        if self.kind is RegionKind.ROM and not readonly:
            raise UsageError(f"region {self.name}: a ROM is read-only")
        self._set("readonly", bool(readonly))

    def set_nonvolatile(self, nonvolatile: bool) -> None:
        """Holds for all that is seen through this region."""
        self._set("nonvolatile", bool(nonvolatile))

    def set_unmergeable(self, unmergeable: bool) -> None:
        """Its ranges are never merged with neighbours: for memory that comes and goes in pieces, as virtio-mem's."""
        self._set("unmergeable", bool(unmergeable))

    def set_romd(self, romd_mode: bool) -> None:
        """A ROM device's mode: True reads from its memory, False answers reads by its callback, too."""
        if self.kind is not RegionKind.ROM_DEVICE:
            raise UsageError(f"region {self.name}: it is no ROM device")
        self._set("romd_mode", bool(romd_mode))

    def set_log(self, log: bool, client: int = DIRTY_MEMORY_VGA) -> None:
        """Switch dirty logging for a client (a bit)."""
        if client not in (DIRTY_MEMORY_VGA, DIRTY_MEMORY_CODE):
            raise UsageError(f"client: {client!r} is neither DIRTY_MEMORY_VGA nor DIRTY_MEMORY_CODE")
        if not self.backed:
            raise UsageError(f"region {self.name}: it has no memory to log")
        self._set("dirty_log_mask", self.dirty_log_mask | client if log else self.dirty_log_mask & ~client)

    def _set(self, name: str, value: Any) -> None:
        if getattr(self, name) != value:
            with self.map.change(self.enabled):
                self._assign(name, value)

    def _assign(self, name: str, value: Any) -> None:
        before = getattr(self, name)
        setattr(self, name, value)
        self.map.touched.add(self)
        self.map.undo(lambda: self._assign(name, before))

    def _mine(self, other: Any) -> None:
        if not isinstance(other, MemoryRegion) or other.map is not self.map:
            raise UsageError(f"subregion: {other!r} is no region of this map")

    def __repr__(self) -> str:
        place = f" at {self.addr:#x} of {self.container.name}" if self.container is not None else ""
        shown = f" of {self.alias.name} @{self.alias_offset:#x}" if self.alias is not None else ""
        off = "" if self.enabled else ", disabled"
        return f"{self.kind.value} {self.name}{shown}, {self.size:#x} bytes{place}{off}"


def number(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in ``least..most``; UsageError for anything else."""
    try:
        found = operator.index(value)
    except TypeError:
        raise UsageError(f"{name}: {value!r} is not a whole number") from None
    if not least <= found <= most:
        raise UsageError(f"{name}: {found:#x} is not in {least:#x}..{most:#x}")
    return found


def _in_host(name: str, userspace_addr: Any, size: int) -> int:
    address = number(f"region {name}: userspace_addr", userspace_addr, 0, HOST_END - 1)
    if address + size > HOST_END:
        raise UsageError(f"region {name}: {size:#x} bytes from host address {address:#x} on reach past 2^56")
    return address


def _max_access(name: str, value: Any) -> int:
    return number(f"region {name}: max_access", value, 1, 8)


def _priority(value: Any) -> int:
    return number("priority", value, -(1 << 31), (1 << 31) - 1)


def _within(name: str, target: MemoryRegion, offset: int, size: int) -> None:
    if offset + size > target.size:
        raise UsageError(
            f"region {name}: [{offset:#x}, {offset + size:#x}) is not inside its target {target.name}, "
            f"which has {target.size:#x} bytes"
        )
