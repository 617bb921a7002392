"""What stands behind a ``Vm``: the software engine with the model of KVM's ABI, or the kernel itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Protocol

from ..designs.registry import find
from ..dirty.bitmap import as_array
from ..errors import MemslotError
from ..memslots import Change, ChangeKind, Memslots, Slot
from ..memslots.abi import EnableCap, MemoryCap, MemoryIoctl, MemoryRegion
from ..memslots.checks import Host
from ..units import PAGE_SIZE
from .memory import Memory
from .model import KvmModel
from .transaction import DirtyPage
from .vcpu import SoftVcpu

__all__ = ["Backend", "KvmBackend", "SoftBackend"]

_REGIONS = (MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2)
_GUEST_MEMFD = 4


class Backend(Protocol):
    """What ``Vm``, ``Memory`` and ``Transaction`` need."""

    engine: Any
    memslots: Memslots
    design: str
    why: str

    def ioctl(self, request: int, argument: bytes | int) -> int:
        """A memory ioctl on the VM."""

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int) -> ChangeKind:
        """KVM_SET_USER_MEMORY_REGION."""

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """A slot by id."""

    def apply(self, changes: Sequence[Change], design: str, dirty: list[DirtyPage]) -> None:
        """Several changes by a design. ``dirty`` gets dirty pages that would be lost, even if one is refused."""

    def make_vcpus(self, memory: Memory) -> list[Any]:
        """The vCPUs."""

    def close(self) -> None:
        """Free everything."""


class SoftBackend:
    """The software engine and the model of the ABI on the same slots."""

    def __init__(self, vcpus: int, host: Host, *, cores: int | None = None) -> None:
        from ..engines.soft import SoftEngine

        self.engine = SoftEngine(vcpus, cores=cores, address_spaces=host.address_spaces)
        self.memslots = self.engine.memslots
        self.model = KvmModel(host, memslots=self.memslots, apply=self._apply, logs=self.engine.dirty)
        self.ioctl = self.model.ioctl
        self.design = "atomic"
        self.why = "one instant for all changes; only vCPUs that touch them wait"

    def _apply(self, change: Change) -> ChangeKind:
        """Through the engine if its vCPU threads run or left translations; else only in the slots, which is quicker."""
        engine = self.engine
        if engine.has_run:
            return engine.set_memory_region(change)
        kind = self.memslots.apply(change)
        if engine.dirty.concerns(change):
            engine.dirty.carried_out(change, engine.dirty.bitmap_after(change))
        return kind

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int) -> ChangeKind:
        """Through the model."""
        return self.model.set_region(MemoryRegion(as_id << 16 | slot, flags, gpa, size, hva), v2=False)

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """O(1)."""
        held = self.model.slots.get(as_id << 16 | slot)
        return None if held is None else held.slot

    def apply(self, changes: Sequence[Change], design: str, dirty: list[DirtyPage]) -> None:
        """On running vCPUs, then in the dirty logs."""
        with self.model.lock:
            for change in changes:
                self.model.check_change(change)
            try:
                find(design or self.design).prepare(self.engine)(self.engine, changes)
            finally:
                dirty += self.model.changed_by_a_design({change.as_id << 16 | change.slot for change in changes})

    def make_vcpus(self, memory: Memory) -> list[SoftVcpu]:
        """Make vCPUs that carry out accesses."""
        for index in range(self.engine.vcpus):
            self.model.ioctl(MemoryIoctl.CREATE_VCPU, index)
        return [SoftVcpu(self.model, memory, index) for index in range(self.engine.vcpus)]

    def close(self) -> None:
        """Stop vCPU threads, if any run."""
        self.engine.stop()


class KvmBackend:
    """The kernel, through ``engines.kvm``; slots are kept here once more, since the kernel does not list them."""

    def __init__(self, vcpus: int, *, ring_bytes: int = 0) -> None:
        from ..engines.kvm.engine import KvmEngine

        self.engine = KvmEngine(vcpus, ring_bytes=ring_bytes)
        self.rings = bool(ring_bytes)
        vm = self.engine.vm
        self.memslots = Memslots(vm.address_spaces, max_slots=vm.max_slots)
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
        self.design = "exit_retry"
        self.why = "to be judged at each transaction, from the guest's state and what changes"

    def ioctl(self, request: int, argument: bytes | int) -> int:
        """To the kernel; regions of whole pages through the engine, which must know them."""
        if request in _REGIONS and isinstance(argument, bytes) and len(argument) == request >> 16 & 0x3FFF:
            region = MemoryRegion.unpack(argument)
            aligned = not (region.guest_phys_addr | region.memory_size) % PAGE_SIZE
            if aligned and not region.flags & _GUEST_MEMFD:
                self.set_region(
                    region.id,
                    region.flags,
                    region.guest_phys_addr,
                    region.memory_size,
                    region.userspace_addr,
                    region.as_id,
                )
                return 0
        return self._raw(request, argument)

    def _raw(self, request: int, argument: bytes | int) -> int:
        held = None
        if isinstance(argument, bytes):
            held = ctypes.create_string_buffer(argument, max(len(argument), 1))
            argument = ctypes.addressof(held)
        result: int = self._libc.ioctl(self.engine.vm.fd, request, argument)
        if result < 0:
            number = ctypes.get_errno()
            raise MemslotError(number, f"ioctl {request:#x}: {os.strerror(number)}")
        return result

    def set_region(self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int) -> ChangeKind:
        """Through the engine."""
        if (gpa | size) % PAGE_SIZE:
            region = MemoryRegion(as_id << 16 | slot, flags, gpa, size, hva)
            self._raw(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())  # the kernel says what is wrong
        change = Change(slot, gpa >> 12, size >> 12, hva, flags, as_id)
        kind = self.engine.set_memory_region(change)
        self.memslots.apply(change)
        return kind

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """O(1)."""
        return self.engine.slot(slot, as_id)

    def apply(self, changes: Sequence[Change], design: str, dirty: list[DirtyPage]) -> None:
        """By a design that this kernel can do; what was applied before a refused change stays.

        The kernel's dirty log goes with its slot. So logs that end are taken first, and vCPUs are paused from then on
        until the changes are made: what they wrote in between would be in no log.
        """
        chosen = find(design or self._judge(changes))
        ending = self._ending_logs(changes)
        if ending:
            self.engine.pause()
        try:
            for slot in ending:
                log = self.engine.vm.get_dirty_log(slot.id, slot.npages, slot.as_id)
                dirty += (
                    DirtyPage(slot.id, slot.base_gfn + page, slot.userspace_addr + page * PAGE_SIZE, slot.as_id)
                    for page in as_array(log, slot.npages).nonzero()[0].tolist()
                )
            chosen.prepare(self.engine, reset=False)(self.engine, changes)
        finally:
            if ending:
                self.engine.resume()
            self._mirror({(change.as_id, change.slot) for change in changes})

    def _ending_logs(self, changes: Sequence[Change]) -> list[Slot]:
        """Slots whose dirty bitmaps end: they are deleted, or no longer logged. With rings there are no bitmaps."""
        if self.rings:
            return []
        ending = {}
        for change in changes:
            old = self.slot(change.slot, change.as_id)
            if old is not None and old.logs_dirty_pages and (change.deletes or not change.as_slot().logs_dirty_pages):
                ending[change.as_id, change.slot] = old
        return [*ending.values()]

    def _judge(self, changes: Sequence[Change]) -> str:
        """exit_retry where it is safe, else pause_if_overlap. Looks at registers and page tables; vCPUs pause."""
        from ..engines.kvm.safety import safe_for_exit_retry

        self.engine.pause()
        try:
            safety = safe_for_exit_retry(self.engine, changes)
        finally:
            self.engine.resume()
        self.design, self.why = safety.design, str(safety)
        return safety.design

    def _mirror(self, keys: set[tuple[int, int]]) -> None:
        """Bring our own slots to what the engine has, whatever happened: first what went, then what came."""
        wanted = {key: self.engine.slot(key[1], key[0]) for key in keys}
        for (as_id, slot), now in wanted.items():
            held = self.memslots.by_id(slot, as_id)
            if held is not None and held != now:
                self.memslots.delete(slot, as_id)
        for (as_id, slot), now in wanted.items():
            if now is not None and self.memslots.by_id(slot, as_id) is None:
                self.memslots.create(slot, now.base_gfn, now.npages, now.userspace_addr, now.flags, as_id)

    def make_vcpus(self, memory: Memory) -> list[Any]:
        """The kernel's vCPUs."""
        from .kvm_vcpu import KvmGuestVcpu

        return [KvmGuestVcpu(vcpu, memory) for vcpu in self.engine.vm.vcpus]

    def close(self) -> None:
        """Close the VM."""
        self.engine.close()


def enable(backend: Backend, cap: MemoryCap, argument: int) -> None:
    """KVM_ENABLE_CAP on either."""
    backend.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(cap, 0, argument).pack())
