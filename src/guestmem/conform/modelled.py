"""Calls carried out on the model: what a kernel should answer."""

from __future__ import annotations

import errno

from ..abi.checks import Host
from ..abi.memory_attributes import FileIoctl, MemoryAttributes, MemoryAttributes2
from ..abi.model import KvmModel, ModelSlot
from ..abi.structures import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryIoctl,
    MemoryRegion,
)
from ..abi.user_memory import BufferMemory
from ..errors import GuestMemfdError, MemslotError
from ..memslots import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Slot, SlotKey
from .calls import (
    ARENA,
    ARENA_BYTES,
    BUFFER,
    BUFFER_BYTES,
    HOME_GPA,
    HOME_HVA,
    HOME_SLOT,
    LOG_BYTES,
    SECOND_VCPU,
    Answer,
    Call,
    in_short,
)
from .guest import HOME_BYTES

__all__ = ["ModelledVm"]

_CLOSED, _DEVICE, _VM, _FIRST = 0, 1, 2, 3
_STACKS = 1 << 46
_LOGGED, _RIGHTS = KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
_UNTOUCHED = b"\xa5" * LOG_BYTES


class ModelledVm:
    """A VM of the model that answers calls. ``answer`` is None for what cannot be compared: such a call is left out."""

    def __init__(self, host: Host) -> None:
        self.memory = BufferMemory(BUFFER, BUFFER_BYTES)
        self.vm = KvmModel(host, user=self.memory)
        self.vm.files = {_DEVICE: "/dev/kvm", _VM: "vm"}
        self._files: list[int] = []
        self._vcpus: list[int] = []
        """Ids of the vCPUs that write and read: of ``home``, then of ``second``."""
        self._writers: dict[int, set[int]] = {}
        """By slot: who wrote to it since its log was taken."""
        self._harvested = [0, 0]
        self._unsure: set[int] = set()
        self._kept: set[int] = set()
        self.why = ""
        """Of the last answer: the model's words for a refusal, or what it came to. ``promises`` go by it."""

    def answer(self, call: Call) -> Answer | None:
        """What a kernel should answer."""
        self.why = ""
        try:
            answer: Answer | None = getattr(self, "_" + call.kind)(*call.args)
        except (MemslotError, GuestMemfdError) as error:
            self.why = str(error)
            return Answer(-(error.errno or 0))
        return answer

    def _ioctl(self, request: MemoryIoctl, argument: bytes | int) -> Answer:
        return Answer(self.vm.ioctl(request, argument))

    def _region(self, *fields: int) -> Answer:
        return self._set_region(fields[0], MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(*fields).pack())

    def _set_region(self, key: int, request: MemoryIoctl, argument: bytes) -> Answer:
        """A region call; notes slots whose ring entries depend on what the kernel mapped ahead of any write.

        INITIALLY_SET with rings protects nothing when logging is switched on, and a shadow MMU maps neighbours of a
        page, writable, when it maps that.
        """
        named = SlotKey.of(key)
        before = self.vm.slots.get(named)
        answer = self._ioctl(request, argument)
        after = self.vm.slots.get(named)
        self._came_to(key, before, after)
        if before is None or after is None or before.slot.base_gfn != after.slot.base_gfn:
            if before is not None:
                self._unsure.clear()  # a DELETE or MOVE throws all translations away
        elif (
            self.vm.dirty.ring_entries
            and self.vm.dirty.initially_set
            and after.slot.logs_dirty_pages > before.slot.logs_dirty_pages
        ):
            self._unsure.add(key)
        return answer

    def _came_to(self, key: int, before: ModelSlot | None, after: ModelSlot | None) -> None:
        if before is None or after is None:
            self.why = "delete" if before is not None else "create"
            self._kept.discard(key)
            self._writers.pop(key, None)
            if after is not None and after.bitmap is not None and self.vm.dirty.initially_set:
                self.why = "create, all dirty"
        elif after.slot.base_gfn != before.slot.base_gfn:
            self.why = "move, logging changed" if after.slot.flags != before.slot.flags else "move"
            if before.bitmap is not None and after.bitmap is not None and before.bitmap.copy().strip(b"\0"):
                self._kept.add(key)
        else:
            self.why = "flags" if after.slot.flags != before.slot.flags else "nothing"

    def _region2(self, *fields: int) -> Answer:
        *region, file, padding = fields
        argument = bytearray(MemoryRegion._make((*region, self._file(file))).pack2())
        argument[44:] = bytes([padding]) * len(argument[44:])
        answer = self._set_region(region[0], MemoryIoctl.SET_USER_MEMORY_REGION2, bytes(argument))
        if region[1] & KVM_MEM_GUEST_MEMFD and self.why == "create":
            self.why = "create, bound" + (" past 2**63" if fields[5] + fields[3] >= 1 << 63 else "")
        if padding:
            self.why += ", padding"
        return answer

    def _file(self, file: int) -> int:
        if file < _FIRST:
            return file
        return self._files[(file - _FIRST) % len(self._files)] if self._files else _CLOSED

    def _get_log(self, slot: int, padding: int, address: int) -> Answer:
        self.memory.content[:LOG_BYTES] = _UNTOUCHED
        result = self.vm.ioctl(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(slot, padding, address).pack())
        self.why = "a log that was moved" if slot in self._kept else "a log"
        self.why += ", of two writers" if len(self._writers.pop(slot, ())) > 1 else ""
        self._kept.discard(slot)
        return Answer(result, bytes(self.memory.content[:LOG_BYTES]))

    def _clear_log(self, slot: int, num_pages: int, first_page: int, address: int, pattern: int) -> Answer:
        self.memory.content[:] = bytes([pattern]) * BUFFER_BYTES
        log = ClearDirtyLog(slot, num_pages, first_page, address)
        answer = self._ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, log.pack())
        self.why = "bits were given" if pattern and num_pages else "no bits were given"
        return answer

    def _cap(self, cap: int, flags: int, argument: int) -> Answer:
        return self._ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(cap, flags, argument).pack())

    def _extension(self, cap: int) -> Answer:
        return self._ioctl(MemoryIoctl.CHECK_EXTENSION, cap)

    def _vcpu(self, id_: int) -> Answer:
        self.vm.ioctl(MemoryIoctl.CREATE_VCPU, id_)
        return Answer(0)

    def _guest_memfd(self, size: int, flags: int) -> Answer:
        self._files.append(self.vm.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack()))
        return Answer(0)

    def _attributes(self, address: int, size: int, attributes: int, flags: int) -> Answer:
        asked = MemoryAttributes(address, size, attributes, flags)
        return self._ioctl(MemoryIoctl.SET_MEMORY_ATTRIBUTES, asked.pack())

    def _file_attributes(self, file: int, *fields: int) -> Answer | None:
        if file == _DEVICE:
            return None  # its own requests and errnos
        offset, size, bits, flags, reserved = fields
        argument = MemoryAttributes2(offset, size, bits, flags, reserved=(reserved,) * 11).pack()
        return Answer(self.vm.attributes.file_ioctl(self._file(file), FileIoctl.SET_MEMORY_ATTRIBUTES2, argument))

    def _mmu_pages(self, count: int) -> Answer:
        return self._ioctl(MemoryIoctl.SET_NR_MMU_PAGES, count)

    def _bad_pointer(self, request: int) -> Answer:
        return Answer(self.vm.ioctl(request, 8))

    def _unknown(self, request: int) -> Answer:
        return Answer(self.vm.ioctl(request, 0))

    def _home(self) -> Answer | None:
        if self._vcpus:
            return None
        region = MemoryRegion(HOME_SLOT, 0, HOME_GPA, HOME_BYTES, HOME_HVA)
        result = self.vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())
        self.vm.ioctl(MemoryIoctl.CREATE_VCPU, 0)
        self._vcpus.append(0)
        return Answer(result)

    def _second(self) -> Answer | None:
        if len(self._vcpus) != 1:
            return None
        self.vm.ioctl(MemoryIoctl.CREATE_VCPU, SECOND_VCPU)
        self._vcpus.append(SECOND_VCPU)
        return Answer(0)

    def _write(self, gpa: int, pages: int) -> Answer | None:
        """What a guest meets that writes one word to each of ``pages``: the exits of ``vm.SoftVcpu``, in short."""
        return self._touch(0, gpa, pages, write=True)

    def _read(self, gpa: int, pages: int) -> Answer | None:
        """What a guest meets that reads one word of each of ``pages``.

        Left out where such a read is logged, or not: KVM lets writes through as soon as it maps a page, if host memory
        is there already, and says then that it is dirty. Source: ``make_spte()``.
        """
        return self._touch(0, gpa, pages, write=False)

    def _write2(self, gpa: int, pages: int) -> Answer | None:
        return self._touch(1, gpa, pages, write=True)

    def _read2(self, gpa: int, pages: int) -> Answer | None:
        return self._touch(1, gpa, pages, write=False)

    def _touch(self, which: int, gpa: int, pages: int, *, write: bool) -> Answer | None:
        if which >= len(self._vcpus):
            return None
        vm, vcpu = self.vm, self._vcpus[which]
        ring = vm.dirty.rings[vcpu]
        exits: list[tuple[str, int]] = []
        places = self._places(gpa >> 12, pages)
        if places is None or (not write and any(slot and slot.flags & _RIGHTS == _LOGGED for _, slot in places)):
            return None
        for gfn, slot in places:
            if ring is not None and ring.soft_full:
                exits.append(("dirty ring full", -1))
                break
            if slot is None or (write and slot.flags & KVM_MEM_READONLY):
                exits.append((f"mmio {'write' if write else 'read'} 8", gfn << 12))
                continue
            if not ARENA <= slot.hva(gfn) < ARENA + ARENA_BYTES:
                self.why = "EFAULT: no host memory"
                return Answer(-errno.EFAULT, exits=in_short(exits))
            if write:
                vm.dirty.mark(slot.key, gfn - slot.base_gfn, vcpu)
                self._writers.setdefault(slot.id, set()).add(vcpu)
        else:
            exits.append(("dirty ring full" if ring is not None and ring.soft_full else "done", -1))
        held = exits[-1][0] + (", some memory" if len(exits) <= len(places) else "")
        self.why = held + (", read-only" if any(slot and slot.flags & KVM_MEM_READONLY for _, slot in places) else "")
        self.why += ", mmio" if len(exits) > 1 else ""
        return Answer(0, exits=in_short(exits))

    def _places(self, first: int, pages: int) -> list[tuple[int, Slot | None]] | None:
        """Frames and their slots; None if what comes of touching them cannot be said."""
        places = []
        for gfn in range(first, first + pages):
            slot = self.vm.memslots.find(gfn)
            key = slot.id if slot is not None else 0
            if slot is not None and slot.flags & KVM_MEM_GUEST_MEMFD:
                return None  # where its memory comes from depends on attributes: not memslots' business
            if slot is not None and (key in self._unsure or slot.hva(gfn) >= _STACKS):
                return None  # see _set_region; there may be a stack of this very process
            places.append((gfn, slot))
        return places

    def _harvest(self) -> Answer | None:
        return self._harvest_of(0)

    def _harvest2(self) -> Answer | None:
        return self._harvest_of(1)

    def _harvest_of(self, which: int) -> Answer | None:
        ring = self.vm.dirty.rings.get(self._vcpus[which]) if which < len(self._vcpus) else None
        if ring is None:
            return None
        entries = ring.harvest()
        self._harvested[which] += len(entries)
        self.why = "entries" if entries else "no entries"
        return Answer(0, exits=tuple(sorted({f"{entry.slot:#x}+{entry.offset:#x}" for entry in entries})))

    def _reset(self) -> Answer:
        count = self.vm.ioctl(MemoryIoctl.RESET_DIRTY_RINGS, 0)
        given, both, self._harvested = sum(self._harvested), all(self._harvested), [0, 0]
        self.why = ("given back" if given else "none to give back") + (", of two rings" if both else "")
        return Answer(count - given)
