"""What stands behind a ``Vm``: the software engine with the model of KVM's ABI; or the kernel (``kvm_backend``)."""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..abi.checks import Host
from ..abi.guest_memfds import GuestMemfd as ModelFile
from ..abi.model import KvmModel
from ..abi.region_list import REGION_LIST
from ..abi.structures import CreateGuestMemfd, EnableCap, MemoryCap, MemoryIoctl, MemoryRegion, region_of
from ..designs.registry import find
from ..dirty.ring import DirtyEntry
from ..engines import Engine
from ..errors import GuestMemfdError, MemslotError
from ..interrupts import Section
from ..memslots import KVM_MEM_GUEST_MEMFD, Change, ChangeKind, Memslots, Slot, SlotKey
from ..memslots.no_memory import no_memory_for, no_memory_for_all
from ..process_memory import read_memory
from ..units import PAGE_SIZE
from .entries import check_entries, check_meant, check_spaces
from .guest_memfd import File
from .listeners import Attached, telling
from .memory import Memory
from .protocol import Vcpu
from .region_list import set_region_list
from .reshape import reshape
from .slot_memory import HostPiece, SlotMemory
from .transaction import DirtyPage
from .vcpu import SoftVcpu

if TYPE_CHECKING:
    from ..gmem import GuestMemfd, VmMemoryAttributes

__all__ = [
    "REGION_REQUESTS",
    "Alone",
    "Backend",
    "Brought",
    "ClosedBackend",
    "SoftBackend",
    "enable",
    "expect",
    "owning",
]

REGION_REQUESTS = (MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2)
Brought = Sequence[tuple[SlotKey, Sequence[HostPiece]]]
"""Slots that a transaction creates, and the host memory that is to be kept for them."""


class Backend(Protocol):
    """What a VMM calls through ``Vm``: ioctls, slots with their memory, transactions.

    Not an ``Engine``, which is what designs call: one change, a pause, an update in phases on running vCPUs.
    """

    @property
    def engine(self) -> Engine:
        """What carries the changes out."""

    memslots: Memslots
    owned: SlotMemory
    listeners: list[Attached]
    """Other maps of guest memory than the vCPUs'; changed under ``section``."""
    section: Section
    """Held by whoever changes slots, or looks at them and then does something that must still fit."""
    design: str
    why: str

    def ioctl(self, request: int, argument: bytes | int) -> int:
        """A memory ioctl on the VM."""

    def set_region(
        self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int, piece: HostPiece | None = None
    ) -> ChangeKind:
        """KVM_SET_USER_MEMORY_REGION; ``piece`` is the memory at ``hva``, if it is to be kept for the slot."""

    def bind_region(self, change: Change, piece: HostPiece) -> ChangeKind:
        """KVM_SET_USER_MEMORY_REGION2: create a slot with a guest_memfd; ``piece``: as above."""

    def create_guest_memfd(
        self, size: int, flags: int | None, states: str | None, folio_size: int, joins: bool
    ) -> File:
        """KVM_CREATE_GUEST_MEMFD; flags None: all that there are; states None: those of the VM's kernel."""

    def file_ioctl(self, file: File, request: int, argument: bytes | bytearray | int) -> int:
        """An ioctl on one of its files."""

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """A slot by id."""

    def settle(self, key: SlotKey) -> None:
        """After a change of a slot: let go what it does not reach, if that is certain."""

    def apply(
        self,
        changes: Sequence[Change],
        design: str,
        dirty: list[DirtyPage],
        unsafe: str = "refuse",
        brought: Brought = (),
        meant: Sequence[Slot | None] = (),
    ) -> tuple[str, str]:
        """Several changes by a design, all or none (BatchError); returns which one it was, and why.

        ``dirty`` gets dirty pages that would be lost. ``unsafe``: see ``Memory.transaction``. ``brought``: host memory
        by slot that is created; ``meant``: of each change, the slot that it is of (``check_meant``).
        """

    def reshape(self, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
        """Put slots ``made`` in the place of ``gone``, on the same memory. Under ``section``.

        False: nothing is changed; a transaction does it, or refuses it.
        """

    def harvest(self, found: list[DirtyEntry]) -> None:
        """Add all entries of all vCPUs' dirty rings. Under ``section``."""

    def give_back(self, slot: Slot, log: bytes) -> None:
        """Have the slot's next log say what this one said, too. Under ``section``."""

    def make_vcpus(self, memory: Memory) -> Sequence[Vcpu]:
        """The vCPUs."""

    def stop(self) -> None:
        """Stop the vCPUs for good. Ctrl-C meanwhile: it can be done again."""

    def end(self) -> None:
        """Calls are refused from now on. Under ``section``."""

    def close(self) -> None:
        """Free everything, when no call is under way any more."""


class SoftBackend:
    """The software engine and the model of the ABI on the same slots."""

    def __init__(self, vcpus: int, host: Host, *, cores: int | None = None) -> None:
        from ..engines.soft import SoftEngine

        self.engine = SoftEngine(vcpus, cores=cores, address_spaces=host.address_spaces)
        self.memslots = self.engine.memslots
        self.owned = self.engine.owner = SlotMemory()
        self.model = KvmModel(
            host, memslots=self.memslots, apply=self._apply, logs=self.engine.dirty, attributes=lambda: self.attributes
        )
        self.listeners = self.engine.listeners
        self.section, self.alone = Section(), Alone()
        self.design = "atomic"
        self.why = "one instant for all changes; only vCPUs that touch them wait"

    def create_guest_memfd(
        self, size: int, flags: int | None, states: str | None, folio_size: int, joins: bool
    ) -> GuestMemfd:
        """Its descriptor is of the model; its memory is real."""
        self.model.host.states_of(states)  # that, or none
        if flags is None:
            flags = self.model.host.gmem_flags & ~(2 if self.model.host.private_memory else 0)
        fd = self.model.ioctl(MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack())
        try:
            return self.open_file(fd, folio_size, joins)
        except BaseException:
            del self.model.files[fd]
            raise

    def file_ioctl(self, file: File, request: int, argument: bytes | bytearray | int) -> int:
        """Of the model, which asks the file."""
        if file.closed or file.vm is not self:
            raise GuestMemfdError(errno.EBADF, "ioctl: the file is closed, or another VM's")
        return self.model.attributes.file_ioctl(file.fd, request, argument)

    def open_file(self, fd: int, folio_size: int = PAGE_SIZE, joins: bool = True) -> GuestMemfd:
        """Give the model's file ``fd`` memory, and let vCPUs have it."""
        from ..gmem import GuestMemfd

        held, host = self.model.files[fd], self.model.host
        states = host.file_states
        assert isinstance(held, ModelFile)
        made = GuestMemfd(
            held.size,
            held.flags,
            vm=self,
            states=states,
            attributes=self.attributes if states == "vm-attributes" else None,
            folio_size=folio_size,
            joins=joins,
            known=host.gmem_flags,
            overlap_errno=host.version.gmem_overlap_errno,
            private_vm=host.private_memory,
        )
        self.engine.files.add(made, held.number)
        made.fd, held.content = fd, made
        made.closes.append(lambda: self.model.files.pop(fd, None))
        return made

    @functools.cached_property
    def attributes(self) -> VmMemoryAttributes:
        """The VM's memory attributes: PRIVATE where its type has private memory, and files have none of their own."""
        from ..gmem import VmMemoryAttributes

        return VmMemoryAttributes(self.model.host.vm_attribute_bits, self.engine.files.vm_invalidation)

    def bind_region(self, change: Change, piece: HostPiece) -> ChangeKind:
        """Through the model."""
        file = self.engine.files.get(change.guest_memfd)
        region = region_of(change)._replace(
            guest_memfd_offset=change.guest_memfd_offset, guest_memfd=-1 if file is None or file.closed else file.fd
        )
        with self.section, self.alone, owning(self, region, piece), telling(self.listeners, self.memslots):
            return self.model.set_region(region, v2=True)

    def _apply(self, change: Change) -> ChangeKind:
        """Through the engine if its vCPU threads run or left translations; else only in the slots, which is quicker.

        A vCPU that starts meanwhile may have made a translation from the old slot: from what it left in the table by
        the end of the grace period, which is in ``apply``, everything goes before the memory is anybody else's.
        """
        engine = self.engine
        if engine.has_run:
            return engine.set_memory_region(change)
        with engine.files.changing(change):
            kind = self.memslots.apply(change)
            if engine.has_run:
                engine.flush(wait=True)
        if engine.dirty.concerns(change):
            engine.dirty.carried_out(change, engine.dirty.bitmap_after(change))
        return kind

    def ioctl(self, request: int, argument: bytes | int) -> int:
        """Of the model; regions are ours to know, too, for their memory."""
        if request == REGION_LIST:
            return set_region_list(self, argument)
        if request not in REGION_REQUESTS:
            return self.model.ioctl(request, argument)
        if not isinstance(argument, bytes):
            argument = read_memory(argument % (1 << 64), request >> 16 & 0x3FFF)
        if len(argument) != request >> 16 & 0x3FFF:
            return self.model.ioctl(request, argument)  # which refuses it
        region = MemoryRegion.unpack(argument)
        with self.section:
            if region.flags & KVM_MEM_GUEST_MEMFD and region.memory_size:
                held = self.model.files.get(region.guest_memfd)
                if isinstance(held, ModelFile) and self.engine.files.get(held.number) is None:
                    self.open_file(region.guest_memfd)  # it was made by an ioctl, and has had no memory yet
            with self.alone, owning(self, region), telling(self.listeners, self.memslots):
                return self.model.ioctl(request, argument)

    def set_region(
        self, slot: int, flags: int, gpa: int, size: int, hva: int, as_id: int, piece: HostPiece | None = None
    ) -> ChangeKind:
        """Through the model."""
        region = MemoryRegion(SlotKey(as_id, slot).word, flags, gpa, size, hva)
        with self.section, self.alone, owning(self, region, piece), telling(self.listeners, self.memslots):
            return self.model.set_region(region, v2=False)

    def slot(self, slot: int, as_id: int) -> Slot | None:
        """O(1)."""
        return self.memslots.by_id(slot, as_id) if as_id < self.memslots.address_spaces else None

    def apply(
        self,
        changes: Sequence[Change],
        design: str,
        dirty: list[DirtyPage],
        unsafe: str = "refuse",
        brought: Brought = (),
        meant: Sequence[Slot | None] = (),
    ) -> tuple[str, str]:
        """On running vCPUs, then in the dirty logs."""
        del unsafe
        with self.section, self.alone, self.model.lock:
            try:
                check_meant(self, changes, meant)
                check_entries(self.model.check_change, changes)
                check_spaces(changes, design or self.design)
                self.model.accounting.foresee(changes, self.npages)
                carry_out = find(design or self.design).prepare(self.engine)
                keys = {change.key for change in changes}
                before = [(key, self.slot(key.slot, key.as_id)) for key in keys]
                done = design or self.design, "asked for" if design else self.why
            except MemoryError:
                raise no_memory_for_all() from None
            try:
                expect(self.owned, changes, brought)
                with telling(self.listeners, self.memslots):
                    carry_out(self.engine, changes)
            except MemoryError:
                # What is published cannot be taken back, and the engine has brought it to its end.
                if all(self.slot(key.slot, key.as_id) == was for key, was in before):
                    raise no_memory_for_all() from None
                if self.listeners:
                    raise
            finally:
                try:
                    self._follow(keys, dirty)
                except MemoryError:  # what it did can be done again
                    self._follow(keys, dirty)
        return done

    def _follow(self, keys: set[SlotKey], dirty: list[DirtyPage]) -> None:
        """Logs, accounting and host memory are those of the slots that there are now; again is nothing."""
        self.model.changed_by_a_design(keys, dirty)
        for key in keys:
            self.settle(key)

    def reshape(self, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
        """In one compiled call, if that is all there is to do."""
        return reshape(self, gone, made)

    def settle(self, key: SlotKey) -> None:
        """Slots are where vCPUs find them: nothing else can have one."""
        self.owned.settle(key, self.slot(key.slot, key.as_id))

    def npages(self, key: SlotKey) -> int:
        """Pages of a slot, 0 without one. O(1)."""
        held = self.model.slots.get(key)
        return 0 if held is None else held.slot.npages

    def harvest(self, found: list[DirtyEntry]) -> None:
        """All entries of all vCPUs' dirty rings."""
        for ring in self.model.dirty.rings.values():
            if ring is not None:
                found += ring.harvest()

    def give_back(self, slot: Slot, log: bytes) -> None:
        """Into the bitmap."""
        with self.model.lock:
            held = self.model.slots.get(slot.key)
            if held is not None and held.bitmap is not None and held.slot == slot:
                held.bitmap.merge(log)

    def make_vcpus(self, memory: Memory) -> list[SoftVcpu]:
        """Make vCPUs that carry out accesses."""
        for index in range(self.engine.vcpus):
            self.model.ioctl(MemoryIoctl.CREATE_VCPU, index)
        return [SoftVcpu(self.model, memory, index, self.engine.files) for index in range(self.engine.vcpus)]

    def stop(self) -> None:
        """Stop vCPU threads, if any run."""
        self.engine.stop()

    def end(self) -> None:
        """Nothing that could be another's is behind a call."""

    def close(self) -> None:
        """Close the files."""
        self.engine.stop()
        self.engine.files.close()


class Alone:
    """A change that is under way: the section is reentrant, a change is not.

    A thread comes in twice where an object's ``__del__`` changes the VM that is being changed: MemslotError (EBUSY).
    """

    __slots__ = ("_is_on",)

    def __init__(self) -> None:
        self._is_on = False

    def __enter__(self) -> None:
        if self._is_on:
            raise MemslotError(errno.EBUSY, "vm: this thread is changing it already (was that an object's __del__?)")
        self._is_on = True

    def __exit__(self, *_exception: object) -> None:
        self._is_on = False


@contextmanager
def owning(backend: Backend, region: MemoryRegion, piece: HostPiece | None = None) -> Iterator[None]:
    """Around one change of a slot: its memory is ours before, and what no slot reaches afterwards is let go."""
    key, owned = region.key, backend.owned
    if region.memory_size:
        hva, size = region.userspace_addr, region.memory_size
        owned.expect(key, owned.reaching(hva, size) if piece is None else (piece, *owned.reaching(hva, size)))
    try:
        yield
    finally:
        backend.settle(key)


def expect(owned: SlotMemory, changes: Sequence[Change], brought: Brought) -> None:
    """The same before several: what the slots reach that are created, whoever makes it."""
    given: dict[SlotKey, list[HostPiece]] = {}
    for key, pieces in brought:
        given.setdefault(key, []).extend(pieces)
    for entry, change in enumerate(changes):
        if change.deletes:
            continue
        try:  # also what lies in a buffer that was given: it may own nothing itself
            reached = owned.reaching(change.userspace_addr, change.memory_size)
            owned.expect(change.key, (*given.get(change.key, ()), *reached))
        except MemoryError:
            raise no_memory_for(changes, entry, "what it keeps of its host memory") from None


class ClosedBackend:
    """After ``Vm.close()``: whatever is asked for is EBADF, as the kernel answers for a file that is closed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect and doctest look for such
            raise AttributeError(name)
        raise MemslotError(errno.EBADF, "vm: it is closed")


def enable(backend: Backend, cap: MemoryCap, argument: int) -> None:
    """KVM_ENABLE_CAP on either."""
    backend.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(cap, 0, argument).pack())
