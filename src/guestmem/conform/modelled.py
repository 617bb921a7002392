"""Calls carried out on the model: what a kernel should answer."""

from __future__ import annotations

import errno

from ..errors import MemslotError
from ..memslots import KVM_MEM_READONLY
from ..memslots.abi import (
    KVM_MEM_GUEST_MEMFD,
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryIoctl,
    MemoryRegion,
)
from ..memslots.checks import Host
from ..vm.model import KvmModel
from ..vm.user_memory import BufferMemory
from .calls import (
    ARENA,
    ARENA_BYTES,
    BUFFER,
    BUFFER_BYTES,
    HOME_GPA,
    HOME_HVA,
    HOME_SLOT,
    LOG_BYTES,
    Answer,
    Call,
    in_short,
)
from .guest import HOME_BYTES

__all__ = ["ModelledVm"]

_CLOSED, _DEVICE, _VM, _FIRST = 0, 1, 2, 3
_STACKS = 1 << 46
_UNTOUCHED = b"\xa5" * LOG_BYTES


class ModelledVm:
    """A VM of the model that answers calls. ``answer`` is None for what cannot be compared: such a call is left out."""

    def __init__(self, host: Host) -> None:
        self.memory = BufferMemory(BUFFER, BUFFER_BYTES)
        self.vm = KvmModel(host, user=self.memory)
        self.vm.files = {_DEVICE: "/dev/kvm", _VM: "vm"}
        self._files: list[int] = []
        self._at_home = False
        self._harvested = 0
        self._unsure: set[int] = set()

    def answer(self, call: Call) -> Answer | None:
        """What a kernel should answer."""
        try:
            answer: Answer | None = getattr(self, "_" + call.kind)(*call.args)
        except MemslotError as error:
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
        before = self.vm.slots.get(key)
        answer = self._ioctl(request, argument)
        after = self.vm.slots.get(key)
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

    def _region2(self, *fields: int) -> Answer:
        *region, file, padding = fields
        argument = bytearray(MemoryRegion._make((*region, self._file(file))).pack2())
        argument[44:] = bytes([padding]) * len(argument[44:])
        return self._set_region(region[0], MemoryIoctl.SET_USER_MEMORY_REGION2, bytes(argument))

    def _file(self, file: int) -> int:
        if file < _FIRST:
            return file
        return self._files[(file - _FIRST) % len(self._files)] if self._files else _CLOSED

    def _get_log(self, slot: int, padding: int, address: int) -> Answer:
        self.memory.content[:LOG_BYTES] = _UNTOUCHED
        result = self.vm.ioctl(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(slot, padding, address).pack())
        return Answer(result, bytes(self.memory.content[:LOG_BYTES]))

    def _clear_log(self, slot: int, num_pages: int, first_page: int, address: int, pattern: int) -> Answer:
        self.memory.content[:] = bytes([pattern]) * BUFFER_BYTES
        log = ClearDirtyLog(slot, num_pages, first_page, address)
        return self._ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, log.pack())

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

    def _mmu_pages(self, count: int) -> Answer:
        return self._ioctl(MemoryIoctl.SET_NR_MMU_PAGES, count)

    def _bad_pointer(self, request: int) -> Answer:
        return Answer(self.vm.ioctl(request, 8))

    def _unknown(self, request: int) -> Answer:
        return Answer(self.vm.ioctl(request, 0))

    def _home(self) -> Answer | None:
        if self._at_home:
            return None
        region = MemoryRegion(HOME_SLOT, 0, HOME_GPA, HOME_BYTES, HOME_HVA)
        result = self.vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())
        self.vm.ioctl(MemoryIoctl.CREATE_VCPU, 0)
        self._at_home = True
        return Answer(result)

    def _write(self, gpa: int, pages: int) -> Answer | None:
        """What a guest meets that writes one word to each of ``pages``: the exits of ``vm.SoftVcpu``, in short."""
        if not self._at_home:
            return None
        vm = self.vm
        ring = vm.dirty.rings[0]
        exits: list[tuple[str, int]] = []
        places = []
        for page in range(pages):
            gfn = (gpa >> 12) + page
            slot = vm.memslots.find(gfn)
            key = slot.id if slot is not None else 0
            if slot is not None and vm.slots[key].slot.flags & KVM_MEM_GUEST_MEMFD:
                return None  # where its memory comes from depends on attributes: not memslots' business
            if slot is not None and (key in self._unsure or slot.hva(gfn) >= _STACKS):
                return None  # see _set_region; there may be a stack of this very process
            places.append((gfn, slot))
        for gfn, slot in places:
            if ring is not None and ring.soft_full:
                exits.append(("dirty ring full", -1))
                break
            if slot is None or slot.flags & KVM_MEM_READONLY:
                exits.append(("mmio write 8", gfn << 12))
                continue
            if not ARENA <= slot.hva(gfn) < ARENA + ARENA_BYTES:
                return Answer(-errno.EFAULT, exits=in_short(exits))
            vm.dirty.mark(slot.id, gfn - slot.base_gfn, 0)
        else:
            exits.append(("dirty ring full" if ring is not None and ring.soft_full else "done", -1))
        return Answer(0, exits=in_short(exits))

    def _harvest(self) -> Answer | None:
        ring = self.vm.dirty.rings.get(0) if self._at_home else None
        if ring is None:
            return None
        entries = ring.harvest()
        self._harvested += len(entries)
        return Answer(0, exits=tuple(sorted({f"{entry.slot:#x}+{entry.offset:#x}" for entry in entries})))

    def _reset(self) -> Answer:
        count = self.vm.ioctl(MemoryIoctl.RESET_DIRTY_RINGS, 0)
        given, self._harvested = self._harvested, 0
        return Answer(count - given)
