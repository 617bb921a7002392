"""KVM_SET_USER_MEMORY_REGION_LIST on the software engine: bytes in, one instant, dirty pages out."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..abi.guest_memfds import GuestMemfd
from ..abi.region_list import RegionList, pack_dirty
from ..abi.structures import MemoryRegion
from ..errors import BatchError, MemslotError
from ..memslots import Change
from ..units import PAGE_SHIFT
from .entries import check_entries
from .transaction import DirtyPage

if TYPE_CHECKING:
    from .backends import SoftBackend

__all__ = ["set_region_list"]


def set_region_list(backend: SoftBackend, argument: bytes | int) -> int:
    """The ioctl, by ``atomic`` whatever the VM's design; returns how many dirty pages it wrote out."""
    model, memslots = backend.model, backend.memslots
    read, write = model.user.read, model.user.write
    if not isinstance(argument, bytes):
        address = argument % (1 << 64)
        header = read(address, 32)
        argument = header + read(address + 32, RegionList.entries_of(header))
    listed = RegionList.unpack(argument)
    if listed.as_id >= memslots.address_spaces:
        raise MemslotError(errno.EINVAL, f"region list: as_id {listed.as_id}; there are {memslots.address_spaces}")
    with backend.section, model.lock:
        changes = _changes(backend, listed)
        if not changes:
            return 0
        ends = [model.slots.get(key) for key in {change.key for change in changes}]
        most = sum(held.slot.npages for held in ends if held is not None and held.bitmap is not None)
        if most > listed.room:
            raise MemslotError(errno.ENOSPC, f"region list: room {listed.room}; {most} pages have a log that may end")
        write(listed.dirty, read(listed.dirty, 16 * most)) if most else None  # EFAULT before anything is changed
        dirty: list[DirtyPage] = []
        brought = [
            (change.key, backend.owned.reaching(change.userspace_addr, change.npages << PAGE_SHIFT))
            for change in changes
            if not change.deletes
        ]
        backend.apply(changes, "atomic", dirty, brought=brought)
        if dirty:
            write(listed.dirty, pack_dirty(dirty))
    return len(dirty)


def _changes(backend: SoftBackend, listed: RegionList) -> list[Change]:
    """The entries as changes; BatchError for the first that cannot be."""
    changes: list[Change] = []

    def number_of(region: MemoryRegion) -> int:
        held = backend.model.files.get(region.guest_memfd)
        if not isinstance(held, GuestMemfd):
            number, what = (errno.EBADF, "not open") if held is None else (errno.EINVAL, "no guest_memfd")
            raise MemslotError(number, f"slot {region.id}: file {region.guest_memfd} is {what}")
        if backend.engine.files.get(held.number) is None:
            backend.open_file(region.guest_memfd)  # it was made by an ioctl, and has had no memory yet
        return held.number

    try:
        for change in listed.changes(number_of):
            changes.append(change)  # noqa: PERF402 - those before one that cannot be are needed
    except BatchError:
        _try(backend, changes)  # an entry before it that would be refused comes first
        raise
    return changes


def _try(backend: SoftBackend, changes: Sequence[Change]) -> None:
    """BatchError for the first of ``changes`` that would be refused; nothing changes."""
    if changes:
        check_entries(backend.model.check_change, changes)
        backend.model.accounting.foresee(changes, backend.npages)
        with backend.engine.update(*{change.as_id: None for change in changes}) as update:
            update.stage_all(changes)
