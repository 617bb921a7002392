"""The kernel behind a ``Vm``: through ``engines.kvm``, with its slots kept here once more, since it does not list them.

Every call is the kernel's to judge; why it refused, ``kernel_words`` finds out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..abi.checks import Host
from ..abi.region_list import REGION_LIST
from ..abi.structures import KVM_MEM_MAX_NR_PAGES, MemoryCap, MemoryIoctl, MemoryRegion, change_of, region_of
from ..abi.versions import VERSIONS, version_of
from ..designs.registry import find
from ..designs.sequential import apply_with
from ..dirty.bitmap import as_array
from ..dirty.ring import DirtyEntry
from ..errors import CapabilityError, GuestMemfdError, MemslotError, UnsafeError, UsageError
from ..interrupts import Section
from ..memslots import KVM_MEM_GUEST_MEMFD, Change, ChangeKind, Memslots, Slot, SlotKey
from ..process_memory import read_memory
from ..units import PAGE_SHIFT, PAGE_SIZE
from .backends import REGION_REQUESTS, Alone, Brought, expect, owning
from .entries import check_entries, check_meant, check_spaces
from .guest_memfd import File, KernelGuestMemfd
from .kernel_words import check_argument, ioctl_refused, region_refused, try_changes, try_region
from .listeners import Attached, telling
from .memory import Memory
from .slot_memory import HostPiece, SlotMemory
from .transaction import DirtyPage

if TYPE_CHECKING:
    from ..engines.kvm.vm import KvmVm
    from .kvm_vcpu import KvmGuestVcpu

__all__ = ["KvmBackend"]


class KvmBackend:
    """A VM of ``engines.kvm``."""

    def __init__(self, vcpus: int, *, ring_bytes: int = 0, address_spaces: int = 1) -> None:
        from ..engines.kvm.engine import KvmEngine

        self.engine = KvmEngine(vcpus, ring_bytes=ring_bytes)
        self.rings = bool(ring_bytes)
        vm = self.engine.vm
        if address_spaces > vm.address_spaces:
            self.engine.close()
            raise CapabilityError(f"engine kvm: smm: this kernel has {vm.address_spaces} address space")
        self.memslots = Memslots(vm.address_spaces, max_slots=vm.max_slots)
        self.owned = vm.owner = SlotMemory()
        self.section, self.alone = Section(), Alone()
        self.listeners: list[Attached] = []
        self.design = "pause_if_overlap"
        self.why = "vCPUs are stopped where a removed range overlaps an added one: no hole that neither memory has"

    @functools.cached_property
    def _host(self) -> Host:
        """What of this host decides answers: only asked once the kernel has refused, or before a transaction."""
        with self.engine.vm.calls:
            return _host(self.engine.vm)

    # -- ioctls ------------------------------------------------------------------------------------------------------

    def ioctl(self, request: int, argument: bytes | int) -> int:
        """To the kernel; regions through the engine, which must know them. EFAULT for a structure of another size."""
        if request == REGION_LIST:
            raise MemslotError(errno.ENOTTY, "KVM_SET_USER_MEMORY_REGION_LIST: no kernel has it (engine soft does)")
        check_argument(request, argument)
        size = request >> 16 & 0x3FFF
        if request in REGION_REQUESTS:
            if isinstance(argument, int):
                argument = read_memory(argument % (1 << 64), size)
            self._region(MemoryRegion.unpack(argument), argument, request)
            return 0
        return self._raw(request, argument)

    def _raw(self, request: int, argument: bytes | int) -> int:
        result = self.engine.vm.raw_ioctl(request, argument)
        if result < 0:
            raise ioctl_refused(request, argument, -result)
        return result

    def set_region(
        self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int, piece: HostPiece | None = None
    ) -> ChangeKind:
        """KVM_SET_USER_MEMORY_REGION."""
        region = MemoryRegion(SlotKey(as_id, slot).word, flags, gpa, size, hva)
        return self._region(region, b"", MemoryIoctl.SET_USER_MEMORY_REGION, piece)

    def _region(
        self, region: MemoryRegion, argument: bytes, request: int, piece: HostPiece | None = None
    ) -> ChangeKind:
        """Through the engine; what it cannot know (a region that will be refused) straight on."""
        change = change_of(region)
        refused = (region.guest_phys_addr | region.memory_size) % PAGE_SIZE or change.npages > KVM_MEM_MAX_NR_PAGES
        if request == MemoryIoctl.SET_USER_MEMORY_REGION and region.flags & KVM_MEM_GUEST_MEMFD:
            refused = True  # the first form does not know this flag
        # The kernel's slots and ours change together, and memory goes after both.
        with self.section, self.alone, owning(self, region, piece), telling(self.listeners, self.memslots):
            try:
                if refused:
                    self._raw(request, argument or region.pack())
                kind = self._carry_out(change)
            except MemslotError as error:
                if error.errno == errno.EBADF and self.engine.vm.calls.is_over:
                    raise
                v2 = request == MemoryIoctl.SET_USER_MEMORY_REGION2
                raise region_refused(error, self._host, self.memslots, region, v2=v2) from None
            finally:
                self._mirror({region.key})
        return kind

    def create_guest_memfd(
        self, size: int, flags: int | None, states: str | None, folio_size: int, joins: bool
    ) -> KernelGuestMemfd:
        """The kernel's; states are as this kernel has them."""
        if states is not None or folio_size != PAGE_SIZE or not joins:
            raise UsageError("guest_memfd: states, folio_size and joins are for engine soft; this one is the kernel's")
        if flags is None:
            flags = max(0, self._raw(MemoryIoctl.CHECK_EXTENSION, MemoryCap.GUEST_MEMFD_FLAGS))
        try:
            fd = self.engine.vm.create_guest_memfd(size, flags)
        except CapabilityError as error:
            raise MemslotError(errno.ENOTTY, str(error)) from None
        return KernelGuestMemfd(self, fd, size, flags)

    def file_ioctl(self, file: File, request: int, argument: bytes | bytearray | int) -> int:
        """To the kernel."""
        if file.closed or file.vm is not self or not isinstance(file, KernelGuestMemfd):
            raise GuestMemfdError(errno.EBADF, "ioctl: the file is closed, or another VM's")
        return file.ioctl(request, argument)

    def bind_region(self, change: Change, piece: HostPiece) -> ChangeKind:
        """KVM_SET_USER_MEMORY_REGION2."""
        region = region_of(change)._replace(
            guest_memfd_offset=change.guest_memfd_offset, guest_memfd=change.guest_memfd - 1
        )
        return self._region(region, region.pack2(), MemoryIoctl.SET_USER_MEMORY_REGION2, piece)

    def _carry_out(self, change: Change) -> ChangeKind:
        """One change. A move, also one that is refused, takes the slot away for a moment: vCPUs are stopped."""
        old = self.engine.slot(change.slot, change.as_id)
        if old is None or change.deletes or change.base_gfn == old.base_gfn:
            return self.engine.set_memory_region(change)
        find("pause").prepare(self.engine, reset=False)(self.engine, [change])
        return ChangeKind.MOVE

    # -- slots -------------------------------------------------------------------------------------------------------

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """O(1). From our own slots, which change as a whole: the engine's change one by one."""
        return self.memslots.by_id(slot, as_id) if as_id < self.memslots.address_spaces else None

    def reshape(self, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
        """No kernel has such a call."""
        del gone, made
        return False

    def settle(self, key: SlotKey) -> None:
        """The kernel's slot decides: while engine and records do not agree on what it has, nothing is let go."""
        now = self.slot(key.slot, key.as_id)
        if key not in self.engine.unsure and now == self.engine.slot(key.slot, key.as_id):
            self.owned.settle(key, now)

    def apply(
        self,
        changes: Sequence[Change],
        design: str,
        dirty: list[DirtyPage],
        unsafe: str = "refuse",
        brought: Brought = (),
        meant: Sequence[Slot | None] = (),
    ) -> tuple[str, str]:
        """By a design that this kernel can do: all changes, or none (BatchError); returns which, and why.

        They are tried on our own slots first. If the kernel itself refuses one (ENOMEM), or anything else fails, what
        was done is taken back: see ``designs.sequential``.

        The kernel's dirty log goes with its slot. So logs that end are taken first, and vCPUs are paused from then on
        until the changes are made: what they wrote in between would be in no log.
        """
        with self.section, self.alone, telling(self.listeners, self.memslots):
            check_meant(self, changes, meant)
            try:
                return self._apply(list(changes), design or self.design, unsafe, dirty, brought)
            except OSError as error:  # a look at the vCPUs that the kernel refuses
                raise MemslotError(error.errno or errno.EIO, "transaction: the kernel refuses a call") from None

    def _apply(
        self, changes: list[Change], design: str, unsafe: str, dirty: list[DirtyPage], brought: Brought
    ) -> tuple[str, str]:
        check_entries(self._check, changes)
        check_spaces(changes, design)
        try_changes(self.memslots, changes)
        carry_out = find(design).prepare(self.engine, reset=False)
        keys = {change.key for change in changes}
        ending = self._ending_logs(changes)
        judged = design == "exit_retry"
        taken: dict[Slot, bytes] = {}
        expect(self.owned, changes, brought)
        try:
            with contextlib.ExitStack() as stopped:
                if ending or judged:
                    self.engine.pause()
                    stopped.callback(self.engine.resume)
                why = self.why if design == self.design else "asked for"
                if judged:
                    design, why = self._judge(changes, unsafe)
                    carry_out = find(design).prepare(self.engine, reset=False)
                try:
                    for slot in ending:
                        taken[slot] = self.engine.vm.get_dirty_log(slot.id, slot.npages, slot.as_id)
                    if design == "exit_retry":
                        self._exit_retry(changes, ending, stopped)
                    else:
                        carry_out(self.engine, changes)
                except BaseException:
                    for slot in [slot for slot in taken if self.engine.slot(slot.id, slot.as_id) == slot]:
                        self.engine.vm.answered.give_back(slot.key, taken.pop(slot))
                    raise
        finally:
            for slot, log in taken.items():
                dirty += (
                    DirtyPage(slot.id, slot.base_gfn + page, slot.userspace_addr + page * PAGE_SIZE, slot.as_id)
                    for page in as_array(log, slot.npages).nonzero()[0].tolist()
                )
            self._mirror(keys)
            for key in keys:
                self.settle(key)
        return design, why

    def _exit_retry(self, changes: list[Change], ending: list[Slot], stopped: contextlib.ExitStack) -> None:
        """On vCPUs that are stopped, and judged: they go on once the first memory, and each log that ends, is away.

        Up to then nothing of what changes can have been read by an emulation that is not over; and the first slot that
        goes takes with it all that KVM shadows, tables that the guest once had among it.
        """
        logs = {slot.key for slot in ending}  # until each has ended
        last = -1
        for place, change in enumerate(changes):
            old = self.slot(change.slot, change.as_id)
            goes = old is not None and (change.deletes or change.base_gfn != old.base_gfn)
            ends = change.key in logs and (change.deletes or not change.as_slot().logs_dirty_pages)
            if (goes and last < 0) or ends:
                last = place
                logs.discard(change.key)

        def done(entry: int) -> None:
            if entry == last:
                stopped.close()

        with self.engine.exits_held():
            if last < 0:
                stopped.close()
            apply_with(self.engine, changes, done)

    def _check(self, change: Change) -> None:
        """What can be refused whatever slots there are."""
        try_region(self._host, region_of(change), v2=bool(change.flags & KVM_MEM_GUEST_MEMFD))

    def _ending_logs(self, changes: Sequence[Change]) -> list[Slot]:
        """Slots whose dirty bitmaps end: they are deleted, or no longer logged. With rings there are no bitmaps."""
        if self.rings:
            return []
        ending = {}
        for change in changes:
            old = self.slot(change.slot, change.as_id)
            if old is not None and old.logs_dirty_pages and (change.deletes or not change.as_slot().logs_dirty_pages):
                ending[change.key] = old
        return [*ending.values()]

    def _judge(self, changes: Sequence[Change], unsafe: str) -> tuple[str, str]:
        """exit_retry where nothing speaks against it; else UnsafeError or pause_if_overlap. vCPUs are stopped."""
        from ..engines.kvm.safety import judge

        safety = judge(self.engine, changes)
        if not safety and unsafe == "refuse":
            raise UnsafeError(f"design exit_retry is refused: {'; '.join(safety.reasons)}")
        return safety.design, str(safety)

    def _mirror(self, keys: set[SlotKey]) -> None:
        """Bring our own slots to what the engine has, whatever happened; whole for who looks meanwhile."""
        changes: dict[int, list[Change]] = {}
        come: dict[int, list[Change]] = {}
        for as_id, id_ in keys:
            if as_id >= self.memslots.address_spaces:
                continue
            held, now = self.memslots.by_id(id_, as_id), self.engine.slot(id_, as_id)
            if held == now:
                continue
            if held is not None:
                changes.setdefault(as_id, []).append(Change(id_, as_id=as_id))
            if now is not None:
                come.setdefault(as_id, []).append(Change.of(now))
        for as_id in sorted({*changes, *come}):
            batch = [*changes.get(as_id, ()), *come.get(as_id, ())]
            if len(batch) == 1:
                self.memslots.apply(batch[0])
                continue
            with self.memslots.update(as_id) as update:
                update.stage_all(batch)
                update.publish()

    def harvest(self, found: list[DirtyEntry]) -> None:
        """All entries of all vCPUs' dirty rings."""
        for vcpu in self.engine.vm.vcpus:
            found += [DirtyEntry.of(*pair) for pair in vcpu.harvest()]

    def give_back(self, slot: Slot, log: bytes) -> None:
        """Have the slot's next log say what this one said."""
        self.engine.vm.answered.give_back(slot.key, log)

    # -- vCPUs -------------------------------------------------------------------------------------------------------

    def make_vcpus(self, memory: Memory) -> list[KvmGuestVcpu]:
        """The kernel's vCPUs."""
        from .kvm_vcpu import KvmGuestVcpu

        return [KvmGuestVcpu(vcpu, memory) for vcpu in self.engine.vm.vcpus]

    def stop(self) -> None:
        """Nobody will run a vCPU any more."""
        self.engine.vm.retire()

    def end(self) -> None:
        """Calls are EBADF."""
        self.engine.vm.calls.end()

    def close(self) -> None:
        """Close the VM."""
        self.engine.close()


def _host(vm: KvmVm) -> Host:
    try:
        version = version_of(platform.release())
    except UsageError:
        version = VERSIONS[0]
    tdp = vm.host.tdp
    return Host(
        version=version,
        address_spaces=vm.address_spaces,
        user_slots=vm.max_slots,
        readonly=bool(vm.device.check_extension(MemoryCap.READONLY_MEM)),
        guest_memfd=bool(vm.device.check_extension(MemoryCap.GUEST_MEMFD)),
        task_size_max=(1 << (56 if " la57" in Path("/proc/cpuinfo").read_text() else 47)) - PAGE_SIZE,
        max_gfn=(1 << (vm.physical_bits if tdp else 52) - PAGE_SHIFT) - 1,
        tdp=tdp,
    )
