"""Why the kernel refused: it gives a number, this finds the field, its value and what is allowed.

The kernel has judged already; the software engine's checks (``abi.checks``, and a trial on our own slots) are run
afterwards, and speak if they come to the same errno.
"""

from __future__ import annotations

import errno
import os

from ..abi.checks import Host, check_region
from ..abi.structures import ClearDirtyLog, DirtyLog, MemoryIoctl, MemoryRegion, change_of
from ..errors import MemslotError
from ..memslots import Change, Memslots, SlotKey

__all__ = ["KNOWN", "check_argument", "ioctl_refused", "region_refused", "try_changes", "try_region"]

KNOWN = frozenset(int(request) for request in MemoryIoctl)
"""Requests that have a name."""
_NO_BITMAP = "it does not exist, or has no dirty bitmap"


def check_argument(request: int, argument: bytes | int) -> None:
    """MemslotError for bytes that are not as many as the request's number says: the kernel would go past their end.

    EINVAL if it takes none, EFAULT for another number. Entries behind a structure (KVM_SET_GSI_ROUTING) are in no
    number: who has them gives the address.
    """
    size = request >> 16 & 0x3FFF
    if isinstance(argument, int) or len(argument) == size:
        return
    name = MemoryIoctl(request).name if request in KNOWN else f"ioctl {request:#x}"
    if not size:
        raise MemslotError(errno.EINVAL, f"{name}: it takes a number")
    raise MemslotError(errno.EFAULT, f"{name}: {len(argument)} bytes, not {size}")


def try_region(host: Host, region: MemoryRegion, *, v2: bool = False) -> None:
    """MemslotError for what is wrong with a region by itself."""
    check_region(host.limits(v2=v2), region)
    gpa, size = region.guest_phys_addr, region.memory_size
    if size and (gpa + size - 1) >> 12 > host.max_gfn:
        raise MemslotError(
            errno.EINVAL, f"slot {region.id}: its last frame is past {host.max_gfn:#x}, the last of this host"
        )


def try_changes(memslots: Memslots, changes: list[Change]) -> None:
    """BatchError for the first change that the slots as they are would refuse; nothing is changed."""
    with memslots.update(changes[0].as_id) as update:  # left without publish()
        update.stage_all(changes)


def region_refused(error: MemslotError, host: Host, memslots: Memslots, region: MemoryRegion, *, v2: bool) -> Exception:
    """What to raise for a region that the kernel refused with ``error``."""
    change = change_of(region)
    try:
        try_region(host, region, v2=v2)
        with memslots.update(region.as_id) as update:
            update.stage(change)
    except MemslotError as known:
        if known.errno == error.errno:
            return known
    number = error.errno or 0
    what = f"{region.memory_size:#x} bytes at {region.guest_phys_addr:#x} on {region.userspace_addr:#x}"
    return MemslotError(
        number, f"slot {region.id}: {what}, flags {region.flags:#x}: the kernel says {os.strerror(number)}"
    )


def ioctl_refused(request: int, argument: bytes | int, number: int) -> MemslotError:
    """What to raise for any other ioctl on the VM that failed with ``number``."""
    name = f"KVM_{MemoryIoctl(request).name}" if request in KNOWN else f"ioctl {request:#x}"
    words = os.strerror(number)
    logs = {MemoryIoctl.GET_DIRTY_LOG, MemoryIoctl.CLEAR_DIRTY_LOG}
    if request in logs and isinstance(argument, bytes):
        if number == errno.ENXIO:
            return MemslotError(number, "dirty log: the VM logs by rings")
        get = request == MemoryIoctl.GET_DIRTY_LOG
        log = DirtyLog.unpack(argument) if get else ClearDirtyLog.unpack(argument)
        if number == errno.ENOENT:
            words = _NO_BITMAP
        elif number == errno.EINVAL and isinstance(log, ClearDirtyLog):
            words = (
                f"first_page {log.first_page} and num_pages {log.num_pages} are not multiples of 64 inside the slot "
                "(its last pages may be fewer)"
            )
        elif number == errno.EINVAL:
            words = "no id of a slot, or no address space"
        return MemslotError(number, f"slot {SlotKey.of(log.slot).slot}: {words}")
    if request == MemoryIoctl.RESET_DIRTY_RINGS and number == errno.EINVAL:
        words = "the VM has no dirty rings"
    return MemslotError(number, f"{name}: {words}")
