"""What stands behind a ``Vm``: the software engine with the model of KVM's ABI; or the kernel (``kvm_backend``)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..abi.checks import Host
from ..abi.model import KvmModel
from ..abi.structures import EnableCap, MemoryCap, MemoryIoctl, MemoryRegion
from ..designs.registry import find
from ..errors import BatchError, MemslotError
from ..memslots import Change, ChangeKind, Memslots, Slot
from .memory import Memory
from .transaction import DirtyPage
from .vcpu import SoftVcpu

__all__ = ["Backend", "ClosedBackend", "SoftBackend", "check_entries", "enable"]


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

    def apply(
        self, changes: Sequence[Change], design: str, dirty: list[DirtyPage], unsafe: str = "refuse"
    ) -> tuple[str, str]:
        """Several changes by a design; returns which one it was, and why.

        ``dirty`` gets dirty pages that would be lost, even if one is refused. ``unsafe``: see ``Memory.transaction``.
        """

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

    def apply(
        self, changes: Sequence[Change], design: str, dirty: list[DirtyPage], unsafe: str = "refuse"
    ) -> tuple[str, str]:
        """On running vCPUs, then in the dirty logs."""
        del unsafe
        with self.model.lock:
            check_entries(self._check, changes)
            self.model.accounting.foresee(changes, self._npages)
            try:
                find(design or self.design).prepare(self.engine)(self.engine, changes)
            finally:
                dirty += self.model.changed_by_a_design({change.as_id << 16 | change.slot for change in changes})
        return design or self.design, "asked for" if design else self.why

    def _check(self, change: Change) -> None:
        """What can be refused whatever slots there are, and slots with a guest_memfd, which no design can carry."""
        held = self.model.slots.get(change.as_id << 16 | change.slot)
        if held is not None and held.guest_memfd is not None:
            raise MemslotError(errno.EINVAL, f"slot {change.slot}: it has a guest_memfd; delete it by itself")
        self.model.check_change(change)

    def _npages(self, key: int) -> int:
        """Pages of a slot by id | as_id << 16, 0 without one. O(1)."""
        held = self.model.slots.get(key)
        return 0 if held is None else held.slot.npages

    def make_vcpus(self, memory: Memory) -> list[SoftVcpu]:
        """Make vCPUs that carry out accesses."""
        for index in range(self.engine.vcpus):
            self.model.ioctl(MemoryIoctl.CREATE_VCPU, index)
        return [SoftVcpu(self.model, memory, index) for index in range(self.engine.vcpus)]

    def close(self) -> None:
        """Stop vCPU threads, if any run."""
        self.engine.stop()


class ClosedBackend:
    """After ``Vm.close()``: whatever is asked for is EBADF, as the kernel answers for a file that is closed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect and doctest look for such
            raise AttributeError(name)
        raise MemslotError(errno.EBADF, "vm: it is closed")


def check_entries(check: Callable[[Change], object], changes: Sequence[Change]) -> None:
    """Check each change of a batch by itself; BatchError names the first that is refused."""
    for entry, change in enumerate(changes):
        try:
            check(change)
        except MemslotError as error:
            raise BatchError(error.errno or errno.EINVAL, str(error).partition(": ")[2], entry=entry) from None


def enable(backend: Backend, cap: MemoryCap, argument: int) -> None:
    """KVM_ENABLE_CAP on either."""
    backend.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(cap, 0, argument).pack())
