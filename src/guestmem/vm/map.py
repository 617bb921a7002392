"""A VM's memory map: a person says what memory looks like, and the least disturbing update is found and carried out.

What ``guestmem.vmm`` plans, this carries out on the VM's engine while its vCPUs run; and it answers the accesses for
which they exit, as QEMU does (``system/memory.c``, ``system/physmem.c``, 10.2).
"""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import MemslotError, UsageError
from ..memslots.slot import KVM_USER_MEM_SLOTS, Slot
from ..units import PAGE_SIZE, format_size
from ..vmm import AddressSpace, FlatRange, FlatView, Listener, MemoryMap, MemoryRegion, RegionKind, fewest_pieces
from ..vmm.plan import WAYS, restored
from ..vmm.region import number
from ..vmm.slots import run_around
from .exits import Exit, Mmio
from .transaction import DirtyPage

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["Map"]

_MAP_NORESERVE = 0x4000


class Map(MemoryMap):
    r"""``vm.map``: a ``MemoryMap`` with address space "memory" of root ``system``; with SMM also "smram" of ``smram``.

    ``smram`` shows ``system``, and what is put over it. RAM, ROM and ROM devices get host memory unless
    ``userspace_addr`` is given; ``max_size`` makes more of it than ``size``, to grow into. A transaction ends with the
    slots of the new view in place, or, if the engine refuses, with an error and everything as it was. One thread
    changes at a time; others wait, as for QEMU's big lock.

    ``way``: "fewest" slots, or "least" disturbance of those there are; None: fewest under ``atomic``, else least.
    ``design``: by which updates are made (None: the VM's own). ``dirty``: dirty pages whose logs ended, since it was
    last emptied.

    >>> from guestmem.vm import Read, Vm, Write
    >>> with Vm() as vm:
    ...     ram = vm.map.ram("ram", 0x4000)
    ...     _ = vm.map.system.add_subregion(0, ram)
    ...     port = vm.map.mmio("port", 0x1000, read=lambda offset, size: 0x42 + offset)
    ...     _ = vm.map.system.add_subregion(0x1000, port, priority=1)
    ...     vm.vcpus[0].load([Write(0x2000, b"abcd"), Read(0x1001, 1), Read(0x2000, 4), Read(0x9000, 1)])
    ...     vm.map.run(vm.vcpus[0]), vm.vcpus[0].values
    ...     len(vm.memory)
    ...     port.set_enabled(False)
    ...     len(vm.memory)
    (Hlt(), [b'C', b'abcd', b'\x00'])
    2
    1
    """

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self._vm = vm
        self._hosts: dict[int, tuple[MemoryRegion, mmap.mmap, memoryview]] = {}
        self.way: str | None = None
        self.design: str | None = None
        self.dirty: list[DirtyPage] = []
        self.system = self.container("system")
        spaces = [("memory", self.system)]
        self.smram: MemoryRegion | None = None
        if vm.memory.memslots.address_spaces > 1:
            self.smram = self.container("smram")
            self.smram.add_subregion(0, self.alias("system in smram", self.system))
            spaces.append(("smram", self.smram))
        for as_id, (name, root) in enumerate(spaces):
            self.address_space(name, root).register(_Slots(self, vm, as_id))

    @contextmanager
    def change(self, pending: bool) -> Iterator[None]:
        """As ``MemoryMap.change``, one thread at a time."""
        with self.lock, super().change(pending):
            yield

    # -- host memory -------------------------------------------------------------------------------------------------

    def _region(self, name: str, kind: RegionKind, size: int, **options: Any) -> MemoryRegion:
        backed = kind in (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE)
        most = options.pop("max_size", None) if backed else None
        with self.lock:  # a region's number is its own
            if most is not None:
                most = number(
                    f"region {name}: max_size", most, number(f"region {name}: size", size, 1, 1 << 64), 1 << 64
                )
            region = super()._region(name, kind, size, **options)
            if backed and region.userspace_addr is None:
                import ctypes

                room = most or region.size
                try:
                    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
                    held = mmap.mmap(-1, -(-room // PAGE_SIZE) * PAGE_SIZE, flags=flags)
                except (OSError, OverflowError) as error:
                    self.regions.pop()
                    why = f"region {name}: {format_size(room)} of host memory: {error}"
                    raise MemslotError(getattr(error, "errno", None) or errno.ENOMEM, why) from None
                region.userspace_addr = ctypes.addressof(ctypes.c_char.from_buffer(held))
                self._hosts[region.number] = region, held, memoryview(held)[:room]
        return region

    def allow_size(self, region: MemoryRegion, size: int) -> None:
        """Refuse to show host memory that was not made for ``region``."""
        if region.number in self._hosts and size > len(self._hosts[region.number][1]):
            made = len(self._hosts[region.number][2])
            raise UsageError(
                f"region {region.name}: size: {size:#x} is more than the {made:#x} bytes of host memory that were made "
                "for it (max_size)"
            )

    def memory_of(self, region: MemoryRegion) -> memoryview:
        """The host memory that was made for ``region``, writable; UsageError if none was."""
        if region.map is not self or region.number not in self._hosts:
            raise UsageError(f"region {region.name}: no host memory was made for it here")
        return self._hosts[region.number][2]

    # -- accesses ----------------------------------------------------------------------------------------------------

    def read(self, gpa: int, size: int, space: str = "memory") -> bytes:
        """What the machine answers at ``gpa``: memory, callbacks, and 0 where nothing is. Range by range."""
        with self.lock:
            answer = b""
            for at, length, section in _parts(self.space(space).view, gpa, size):
                answer += bytes(length) if section is None else self._read(section, at - section.start, length)
            return answer

    def write(self, gpa: int, content: bytes, space: str = "memory") -> None:
        """As a vCPU writes: memory, callbacks; ROM, and where nothing is, swallow it."""
        with self.lock:
            for at, length, section in _parts(self.space(space).view, gpa, len(content)):
                if section is not None:
                    self._write(section, at - section.start, content[at - gpa : at - gpa + length])

    def _read(self, section: FlatRange, at: int, size: int) -> bytes:
        region, offset = section.region, section.offset + at
        if region.is_ram or (region.kind is RegionKind.ROM_DEVICE and region.romd_mode):
            return self._vm.memory.host_read(_host(region) + offset, size)
        answer = b""
        for place, length in _accesses(offset, size, region.max_access):
            value = 0 if region.read is None else region.read(place, length)
            answer += (value & (1 << 8 * length) - 1).to_bytes(length, "little")
        return answer

    def _write(self, section: FlatRange, at: int, content: bytes) -> None:
        region, offset = section.region, section.offset + at
        if region.is_ram:
            if not (section.readonly or region.readonly):
                self._vm.memory.host_write(_host(region) + offset, content)
            return
        for place, length in _accesses(offset, len(content), region.max_access):
            if region.write is not None and not section.readonly:
                piece = content[place - offset : place - offset + length]
                region.write(place, int.from_bytes(piece, "little"), length)

    def handle(self, vcpu: Any, exit_: Exit) -> bool:
        """Answer an exit for an access of memory; False for any other exit.

        On the software engine as the vCPU sees memory, in SMM or not; on ``/dev/kvm`` from "memory".
        """
        if not isinstance(exit_, Mmio):
            return False
        space = "smram" if self.smram is not None and self._vm.engine.name == "soft" and vcpu.smm else "memory"
        if exit_.is_write:
            self.write(exit_.gpa, exit_.data, space)
        else:
            vcpu.answer(exit_, self.read(exit_.gpa, exit_.size, space))
        return True

    def run(self, vcpu: Any) -> Exit:
        """Run ``vcpu``, answering its accesses, until an exit that is something else."""
        exit_: Exit = vcpu.run()
        while self.handle(vcpu, exit_):
            exit_ = vcpu.run()
        return exit_

    def note(self, dirty: Sequence[DirtyPage]) -> None:
        """Keep what an update handed back."""
        self.dirty += dirty


class _Slots(Listener):
    """Carries out the update for one address space, before anyone is told."""

    def __init__(self, memory_map: Map, vm: Vm, as_id: int) -> None:
        self.map, self.vm, self.as_id = memory_map, vm, as_id
        self.ids: set[int] = set()
        """Slots that are the map's; others are left alone."""
        self.others: set[int] = set()
        """Slots that were seen not to be; some may be gone."""
        self.planned = ""
        """The way in which all slots were planned last; empty: they have to be planned as a whole."""
        self.before: list[Slot] = []
        """The slots that the last update has changed, as they were."""
        self.changed: set[int] = set()
        """Their ids, and those of new ones."""

    def prepare(self, space: AddressSpace, view: FlatView, slices: Sequence[Any]) -> None:
        """Make the slots those of ``view``."""
        del space
        self.before, self.changed = [], set()
        if slices:
            self._carry_out(view, slices)

    def undone(self, space: AddressSpace) -> None:
        """Back to the slots that were there, with their ids and borders."""
        del space
        memory = self.vm.memory
        now = [slot for each in self.changed if (slot := memory.get(each, self.as_id)) is not None]
        try:
            self._make(now, restored(now, self.before, self.as_id))
        except BaseException:
            self.planned = ""
            raise

    def _carry_out(self, view: FlatView, slices: Sequence[Any]) -> None:
        design = self.map.design or self.vm.design
        way = self.map.way or ("fewest" if design == "atomic" else "least")
        if way not in WAYS:
            raise UsageError(f"way: {way!r} is not one of {', '.join(WAYS)}")
        whole = way != self.planned
        while True:
            slots, changes = self._plan(view, way, None if whole else slices)
            strange = [change.slot for change in changes if not change.deletes and change.slot not in self.ids]
            strange = [] if whole else [each for each in strange if self.vm.memory.get(each, self.as_id) is not None]
            if not strange:
                break
            self.others.update(strange)  # made by hand meanwhile
        self._make(slots, changes)
        self.planned = way

    def _plan(self, view: FlatView, way: str, slices: Sequence[Any] | None) -> tuple[list[Slot], list[Any]]:
        """Slots of the map, and the changes of them; with ``slices`` only what these reach, else of all."""
        memory, room = self.vm.memory, KVM_USER_MEM_SLOTS
        if slices is not None:
            mine, pieces = self._reached(view, slices)
            taken = self.others | self.ids.difference(slot.id for slot in mine)
            if len(taken) + len(mine) + len(pieces) < room:
                return mine, WAYS[way](mine, pieces, as_id=self.as_id, max_slots=room, taken=taken)
        there = [slot for slot in memory if slot.as_id == self.as_id]
        mine = [slot for slot in there if slot.id in self.ids]
        self.ids = {slot.id for slot in mine}  # what was deleted by hand is the map's no more
        self.others = {slot.id for slot in there} - self.ids
        return mine, WAYS[way](mine, fewest_pieces(view), as_id=self.as_id, max_slots=room, taken=self.others)

    def _reached(self, view: FlatView, slices: Sequence[Any]) -> tuple[list[Slot], list[Any]]:
        """The map's slots, and the pieces of the view, from the first changed byte to the last; none is cut.

        O(log n + k) for k slots and ranges there.
        """
        ranges = [each for sides in slices for side in sides if side for each in (side[0], side[-1])]
        if not ranges:
            return [], []
        low, high = min(each.start for each in ranges), max(each.end for each in ranges)
        while True:
            first, last = run_around(view, low, high)
            if first < last:
                low, high = min(low, view[first].start), max(high, view[last - 1].end)
            low, high = low // PAGE_SIZE * PAGE_SIZE, -(-high // PAGE_SIZE) * PAGE_SIZE
            slots = self.vm.memory.overlapping(low, high - low, self.as_id)
            mine = sorted((slot for slot in slots if slot.id in self.ids), key=lambda slot: slot.base_gfn)
            wider = (low, high)
            if mine:
                wider = min(low, mine[0].base_gfn * PAGE_SIZE), max(high, mine[-1].end_gfn * PAGE_SIZE)
            if wider == (low, high) and run_around(view, low, high) == (first, last):
                return mine, fewest_pieces(view.ranges[first:last])
            low, high = wider

    def _make(self, slots: Sequence[Slot], changes: Sequence[Any]) -> None:
        if not changes:
            return
        old = {slot.id: slot for slot in slots}
        with self.vm.memory.transaction(design=self.map.design or "", as_id=self.as_id) as update:
            for change in changes:
                _add(update, old.get(change.slot), change)
        self.changed = {change.slot for change in changes}
        self.before = [slot for slot in slots if slot.id in self.changed]
        self.map.note(update.dirty)
        self.ids.difference_update(change.slot for change in changes if change.deletes)
        self.ids.update(change.slot for change in changes if not change.deletes)


def _add(update: Any, old: Slot | None, change: Any) -> None:
    if change.deletes:
        update.delete(change.slot)
    elif old is None or any(each.deletes and each.slot == change.slot for each in update.changes):
        update.create(
            change.slot,
            gpa=change.guest_phys_addr,
            size=change.memory_size,
            host=change.userspace_addr,
            flags=change.flags,
        )
    elif old.base_gfn != change.base_gfn:
        update.move(change.slot, change.guest_phys_addr)
    else:
        update.set_flags(change.slot, change.flags)


def _host(region: MemoryRegion) -> int:
    if region.userspace_addr is None:
        raise UsageError(f"region {region.name}: its host address is not known (userspace_addr)")
    return region.userspace_addr


def _parts(view: FlatView, start: int, size: int) -> Iterator[tuple[int, int, FlatRange | None]]:
    """The parts of an access: address, size, and who takes it, or None."""
    at, end = start, start + size
    for section in view.overlapping(start, end):
        if section.start > at:
            yield at, section.start - at, None
            at = section.start
        length = min(section.end, end) - at
        yield at, length, section
        at += length
    if at < end:
        yield at, end - at, None


def _accesses(offset: int, size: int, most: int) -> Iterator[tuple[int, int]]:
    """As QEMU's ``memory_access_size()`` cuts: a power of two, at most ``most``, and aligned.

    >>> list(_accesses(3, 8, 4))
    [(3, 1), (4, 4), (8, 2), (10, 1)]
    """
    while size:
        length = min(size, most, offset & -offset or most)
        length = 1 << length.bit_length() - 1
        yield offset, length
        offset, size = offset + length, size - length
