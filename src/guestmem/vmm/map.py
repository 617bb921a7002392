"""A memory map: regions, the address spaces that show them, transactions, and listeners.

Source of the rules: QEMU 10.2 ``system/memory.c``. Two things differ. Views are not thrown away at each commit: what a
transaction touched is rendered anew and the rest taken over. And a transaction that fails (an exception in its block,
or a listener's ``prepare`` that refuses) leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InvariantError, UsageError
from .address_space import AddressSpace
from .flatview import FlatView
from .incremental import Slice, updated
from .listener import Listener, tell, topology_pass, wants_nops
from .region import MemoryRegion, RegionKind, number
from .render import ADDRESS_END, render
from .touched import Touched

__all__ = ["AddressSpace", "MemoryMap"]


class MemoryMap:
    """Regions and address spaces, with transactions. One thread at a time.

    >>> memory = MemoryMap()
    >>> system = memory.container("system")
    >>> ram = memory.ram("pc.ram", 0x100000)
    >>> _ = system.add_subregion(0, ram)
    >>> vga = system.add_subregion(0xA0000, memory.mmio("vga-lowmem", 0x20000), priority=1)
    >>> space = memory.address_space("memory", system)
    >>> list(space.view)
    [[0x0, 0xa0000) ram pc.ram @0x0, [0xa0000, 0xc0000) i/o vga-lowmem @0x0, [0xc0000, 0x100000) ram pc.ram @0xc0000]
    >>> with memory.transaction():
    ...     vga.set_enabled(False)
    ...     ram.set_readonly(True)
    >>> list(space.view)
    [[0x0, 0x100000) rom pc.ram @0x0]
    """

    def __init__(self) -> None:
        self.regions: list[MemoryRegion] = []
        self.spaces: list[AddressSpace] = []
        self.listeners: list[tuple[Listener, AddressSpace]] = []
        """All listeners, by ascending priority; equal ones in order of registration."""
        self.global_log = False
        """Whether all memory is logged, as during a migration."""
        self._views: dict[MemoryRegion | None, FlatView] = {None: FlatView(None, [])}
        self.touched = Touched(self._views)
        self._depth = 0
        self._pending = False
        self._busy = ""
        self._serial = 0
        self._journal: list[Callable[[], object]] = []

    # -- regions -----------------------------------------------------------------------------------------------------

    def container(self, name: str, size: int = ADDRESS_END) -> MemoryRegion:
        """A region that only holds others."""
        return self._region(name, RegionKind.CONTAINER, size)

    def ram(self, name: str, size: int, **options: Any) -> MemoryRegion:
        """RAM of ``size`` bytes. Options: ``userspace_addr``, ``readonly``, ``nonvolatile``, ``unmergeable``."""
        return self._region(name, RegionKind.RAM, size, **options)

    def rom(self, name: str, size: int, **options: Any) -> MemoryRegion:
        """RAM that the guest only reads."""
        return self._region(name, RegionKind.ROM, size, **options)

    def rom_device(self, name: str, size: int, **options: Any) -> MemoryRegion:
        """Read as RAM while ``romd_mode`` is on, else by ``read``; written by ``write``."""
        return self._region(name, RegionKind.ROM_DEVICE, size, **options)

    def ram_device(self, name: str, size: int, **options: Any) -> MemoryRegion:
        """A device's memory, mapped."""
        return self._region(name, RegionKind.RAM_DEVICE, size, **options)

    def mmio(self, name: str, size: int, **options: Any) -> MemoryRegion:
        """Accesses answered by ``read(offset, size)`` and ``write(offset, value, size)``."""
        return self._region(name, RegionKind.MMIO, size, **options)

    def reservation(self, name: str, size: int) -> MemoryRegion:
        """Somebody else answers here."""
        return self._region(name, RegionKind.RESERVATION, size)

    def alias(
        self, name: str, target: MemoryRegion, offset: int = 0, size: int | None = None, **options: Any
    ) -> MemoryRegion:
        """``size`` bytes of ``target`` from ``offset`` on (to its end, if None), wherever the alias is put."""
        if not isinstance(target, MemoryRegion) or target.map is not self:
            raise UsageError(f"region {name}: target {target!r} is no region of this map")
        offset = number("offset", offset, 0, ADDRESS_END)
        if size is None:
            size = target.size - offset
        if size > 0 and offset + size > target.size:
            raise UsageError(
                f"region {name}: [{offset:#x}, {offset + size:#x}) is not inside its target {target.name}, "
                f"which has {target.size:#x} bytes"
            )
        alias = self._region(name, RegionKind.ALIAS, size, alias=target, alias_offset=offset, **options)
        target.aliases.append(alias)
        return alias

    def _region(self, name: str, kind: RegionKind, size: int, **options: Any) -> MemoryRegion:
        name = _name(name)
        size = number(f"region {name}: size", size, 1, ADDRESS_END)
        region = MemoryRegion(self, len(self.regions), name, kind, size, **options)
        self.regions.append(region)
        return region

    def allow_size(self, region: MemoryRegion, size: int) -> None:
        """Raise UsageError if ``region`` cannot have ``size`` bytes; whoever makes host memory for regions says so."""

    def region(self, name: str) -> MemoryRegion:
        """The one region of that name; UsageError if there is none, or more than one. O(n)."""
        found = [each for each in self.regions if each.name == name]
        if len(found) != 1:
            raise UsageError(f"region {name}: {len(found) or 'no'} region{'s have' if found else ' has'} that name")
        return found[0]

    def leads_to(self, region: MemoryRegion, above: MemoryRegion) -> bool:
        """Whether ``region`` is seen in ``above``, or is it. O(regions above it); O(1) if nothing is in ``above``."""
        if above.alias is None and not above.subregions:
            return region is above
        stack, seen = [region], {region}
        while stack:
            at = stack.pop()
            if at is above:
                return True
            higher = [*at.aliases, at.container] if at.container is not None else at.aliases
            for each in higher:
                if each is not None and each not in seen:
                    seen.add(each)
                    stack.append(each)
        return False

    # -- address spaces ----------------------------------------------------------------------------------------------

    def address_space(self, name: str, root: MemoryRegion) -> AddressSpace:
        """A new address space that sees ``root``."""
        self.outside_a_transaction("make an address space")
        if not isinstance(root, MemoryRegion) or root.map is not self:
            raise UsageError(f"root: {root!r} is no region of this map")
        space = AddressSpace(self, _name(name), root)
        physical = physical_root(root)
        if physical not in self._views:
            self._views[physical] = FlatView(physical, render(physical))
        space.view = self._views[physical]
        self.spaces.append(space)
        return space

    def space(self, name: str) -> AddressSpace:
        """The address space of that name; UsageError if there is none. O(n)."""
        for each in self.spaces:
            if each.name == name:
                return each
        names = ", ".join(each.name for each in self.spaces) or "none"
        raise UsageError(f"address space {name}: there is no such one; there is {names}")

    # -- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[MemoryMap]:
        """Changes that take effect together when the outermost block ends; an exception in it undoes all of them."""
        with self.change(False):
            yield self

    @contextmanager
    def change(self, pending: bool) -> Iterator[None]:
        """A (nested) transaction; ``pending``: there is something to commit, as QEMU sees it."""
        if self._busy:
            raise UsageError(f"map: it cannot change while {self._busy}")
        begun = len(self._journal)
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            self._undo(begun)
            if not self._depth:
                self._clear()
            raise
        self._depth -= 1
        self._pending = self._pending or pending
        if not self._depth:
            self._end()

    def undo(self, step: Callable[[], object]) -> None:
        """Note how to undo what was just done."""
        if not self._busy:
            self._journal.append(step)

    def next_serial(self) -> int:
        """A number higher than all before: who was added last."""
        self._serial += 1
        return self._serial

    def outside_a_transaction(self, what: str) -> None:
        """UsageError inside one."""
        if self._depth or self._busy:
            raise UsageError(f"map: cannot {what} inside a transaction")

    def _undo(self, begun: int) -> None:
        """All of the journal from ``begun`` on, last first. An inner block that failed undoes only itself."""
        self._busy = "a transaction is undone"
        try:
            while len(self._journal) > begun:
                self._journal.pop()()
        finally:
            self._busy = ""

    def _clear(self) -> None:
        self._journal.clear()
        self.touched.clear()
        self._pending = False

    def _end(self) -> None:
        """The outermost block ended: commit, unless nothing that matters has changed."""
        if not self._pending:
            self._clear()
            return
        prepared: list[tuple[Listener, AddressSpace]] = []
        try:
            views, changes = self._rendered()
            self._busy = "it is prepared"
            for space, view, slices in changes:
                for listener in space.listeners:
                    listener.prepare(space, view, slices)
                    prepared.append((listener, space))
        except BaseException as error:
            also: list[BaseException] = []
            for listener, space in reversed(prepared):
                tell([listener], "undone", space, errors=also)
            self._undo(0)
            self._clear()
            for each in also:
                error.add_note(f"a listener could not undo what it had prepared: {each}")
            raise
        self._clear()
        self._busy = "listeners are told"
        errors: list[BaseException] = []
        try:
            self._tell(changes, errors)
        finally:
            for space, view, _ in changes:
                space.view = view
            self._views.clear()
            self._views.update(views)
            self._busy = ""
        if errors:
            for each in errors[1:]:
                errors[0].add_note(f"another listener: {each}")
            raise errors[0]

    def _rendered(self) -> tuple[dict[MemoryRegion | None, FlatView], list[tuple[AddressSpace, FlatView, list[Slice]]]]:
        """The new views, and for each address space its new one and where that differs."""
        views: dict[MemoryRegion | None, FlatView] = {None: self._views[None]}
        slices: dict[MemoryRegion | None, list[Slice]] = {None: []}
        changes = []
        for space in self.spaces:
            root = physical_root(space.root)
            if root not in views:
                old = self._views.get(root)
                if old is None:
                    views[root], slices[root] = FlatView(root, render(root)), []
                elif self.touched.all:
                    views[root], slices[root] = updated(old, [(0, ADDRESS_END)])
                elif root in self.touched.windows:
                    views[root], slices[root] = updated(old, self.touched.windows[root])
                else:
                    views[root], slices[root] = old, []
            view = views[root]
            here = slices[root] if space.view is self._views.get(root) else [(space.view.ranges, view.ranges)]
            changes.append((space, view, here))
        return views, changes

    def _tell(self, changes: list[tuple[AddressSpace, FlatView, list[Slice]]], errors: list[BaseException]) -> None:
        """Tell all of all; what somebody raises is kept for the end."""
        for listener, space in self.listeners:
            tell([listener], "begin", space, errors=errors)
        for space, view, slices in changes:
            listeners = space.listeners
            if any(wants_nops(listener) for listener in listeners):
                slices = [(space.view.ranges, view.ranges)]  # noqa: PLW2901 - these hear of every range
            for adding in (False, True) if listeners else ():
                for old, new in slices:
                    topology_pass(space, old, new, listeners, adding=adding, errors=errors)
            space.view = view
        for listener, space in self.listeners:
            tell([listener], "commit", space, errors=errors)

    # -- logging -----------------------------------------------------------------------------------------------------

    def log_global_start(self) -> None:
        """Log all memory, as a migration does: listeners hear so, then of each range that was not logged yet."""
        self._global_log(True)

    def log_global_stop(self) -> None:
        """The opposite, in the opposite order."""
        self._global_log(False)

    def _global_log(self, on: bool) -> None:
        self.outside_a_transaction("switch the global log")
        if on == self.global_log:
            raise UsageError(f"map: the global log is {'on' if on else 'off'} already")
        told: list[tuple[Listener, AddressSpace]] = []
        try:
            for listener, space in self.listeners if on else ():
                listener.log_global_start(space)
                told.append((listener, space))
            with self.change(True):
                before, self.global_log = self.global_log, on
                self.undo(lambda: setattr(self, "global_log", before))
                self.touched.all = True
        except BaseException as error:
            if self.global_log != on:  # refused
                for listener, space in reversed(told):
                    tell([listener], "log_global_stop", space, errors=[error])
            raise
        if not on:
            errors: list[BaseException] = []
            for listener, space in reversed(self.listeners):
                tell([listener], "log_global_stop", space, errors=errors)
            for each in errors[:1]:
                raise each

    # -- looks -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if links do not agree, or a view is not what a full render gives. O(all of it)."""
        for region in self.regions:
            region.subregions.check()
            for child in region.subregions:
                if child.container is not region:
                    raise InvariantError(f"region {child.name}: its container is not {region.name}, which has it")
            if region.alias is not None and region not in region.alias.aliases:
                raise InvariantError(f"region {region.name}: its target {region.alias.name} does not know it")
        for space in self.spaces:
            space.view.check()
            if space.view.ranges != render(physical_root(space.root)):
                raise InvariantError(f"address space {space.name}: its view is not what its regions show")

    def __repr__(self) -> str:
        return f"MemoryMap: {len(self.regions)} regions, {len(self.spaces)} address spaces"


def _name(name: Any) -> str:
    """A name that can stand in one line."""
    if not isinstance(name, str) or not name.isprintable():
        raise UsageError(f"name: {name!r} is not a string of printable characters")
    return name


def physical_root(region: MemoryRegion) -> MemoryRegion | None:
    """The region whose view an address space can share: below aliases and containers that show one thing whole.

    As ``memory_region_get_flatview_root()``, except that nothing is passed over that changes what is seen: an alias or
    container that is read-only, nonvolatile or unmergeable, or a target that has an address of its own. As in QEMU, a
    root that is itself in a container is seen at its address there, unless something below it is shown in its place.
    """
    while region.enabled:
        if region.readonly or region.nonvolatile or region.unmergeable:
            return region
        below: MemoryRegion | None = None
        if region.alias is not None:
            if not region.alias_offset and region.size >= region.alias.size:
                below = region.alias
        elif not region.terminates:
            if not region.subregions.enabled:
                return None
            if region.subregions.enabled == 1:
                below = next(child for child in region.subregions if child.enabled)
                if region.size < below.size:
                    below = None
        if below is None or below.addr:
            return region
        region = below
    return None
