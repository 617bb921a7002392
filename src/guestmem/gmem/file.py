"""A guest_memfd: one VM's file on an inode, with the slots that have bound ranges of it.

Source: ``virt/kvm/guest_memfd.c``, Linux 6.12 to 7.3, and the series for in-place conversion of 2025 and 2026.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import NamedTuple

from ..compiled import own
from ..errors import CapabilityError, GuestMemfdError, MemoryFaultError, RangeNodesError, UsageError
from ..memslots.slot import Slot
from ..units import PAGE_SIZE
from . import layout as at
from .bindings import Bindings, Bound, Incoming
from .checks import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    check_attributes2,
    check_bind,
    check_create,
    check_fallocate,
    check_integers,
    check_range,
)
from .fault import guest_fault, pin_page
from .generations import generation
from .host_mapping import HostMapping
from .inode import Inode
from .mappability import Mappability
from .numa import NumaPolicy
from .pin import Pin, unpinnable
from .states import EHWPOISON, GUEST_MEMFD_FLAG_MMAP
from .vm_attributes import VmMemoryAttributes

__all__ = ["FALLOC_FL_KEEP_SIZE", "FALLOC_FL_PUNCH_HOLE", "GuestMemfd", "GuestPage", "Invalidate"]

Invalidate = Callable[[Slot, int, int, str], AbstractContextManager[None]]
"""Called with a slot, frames [start, end) of it, and the kind of mappings that go: "shared", "private" or "both"."""
_ORDERS = {PAGE_SIZE: 0, 1 << 21: 9, 1 << 30: 18}
_OK, _ABSENT, _POISON, _LAST = int(at.OK), int(at.ABSENT), int(at.POISON), int(at.LAST)
_WRONG_KIND, _BARRED = int(at.WRONG_KIND), int(at.BARRED)


class GuestPage(NamedTuple):
    """What a guest's fault came to: the page's host address; ``page`` in the file, or -1 for ``userspace_addr``."""

    address: int
    page: int
    order: int = 0


def _nothing(_slot: Slot, _start: int, _end: int, _kinds: str) -> AbstractContextManager[None]:
    return nullcontext()


class GuestMemfd(NumaPolicy):
    """KVM_CREATE_GUEST_MEMFD: ``size`` bytes of memory for guests, of the VM ``vm`` (any object).

    ``states``: who may touch which page, and how that changes: attributes (default), mappability, shareability, or
    vm-attributes (then ``attributes`` are the VM's). ``flags``: MMAP 1, INIT_SHARED 2, of the ``known`` ones.
    ``folio_size``: of the largest folios, 4 KiB, 2 MiB or 1 GiB; ``joins``: whether split ones are joined again.
    ``invalidate``: has the guest's mappings go (see ``Invalidate``). ``overlap_errno``: of binding a range twice:
    EINVAL up to 7.2, EEXIST from 7.3 on. ``private_vm``: whether the VM's type has private memory.

    >>> file = GuestMemfd(0x4000, flags=3)
    >>> file.state(0), file.convert(0x1000, 0x2000, private=True), file.state(1)
    ('shared', None, 'private')
    >>> with file.mmap(0, 0x4000) as host:
    ...     host[0x123] = 5
    ...     host[0x1000]
    Traceback (most recent call last):
    guestmem.errors.SigbusError: SIGBUS: guest_memfd: page 1 is private
    >>> with file.pin(0, 0x1000):
    ...     file.convert(0, 0x4000, private=True)
    Traceback (most recent call last):
    guestmem.errors.GuestMemfdError: EAGAIN: guest_memfd: page 0 is in use: pinned, or mapped again meanwhile
    >>> file.close()
    """

    def __init__(
        self,
        size: int,
        flags: int = 0,
        *,
        vm: object = None,
        states: str = "attributes",
        attributes: VmMemoryAttributes | None = None,
        invalidate: Invalidate | None = None,
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
        known: int = 3,
        overlap_errno: int = errno.EINVAL,
        private_vm: bool = True,
    ) -> None:
        check_create(size, flags, known)
        if folio_size not in _ORDERS:
            raise UsageError(f"folio_size: {folio_size:#x} is not one of {', '.join(map(hex, _ORDERS))}")
        inode = Inode(size, flags, generation(states), order=_ORDERS[folio_size], joins=joins)
        self._open(inode, vm, attributes, invalidate, overlap_errno, private_vm)

    def _open(
        self,
        inode: Inode,
        vm: object,
        attributes: VmMemoryAttributes | None,
        invalidate: Invalidate | None,
        overlap_errno: int,
        private_vm: bool,
    ) -> None:
        self.inode, self.vm, self.flags = inode, vm, inode.flags
        self.attributes = attributes
        self.overlap_errno, self.private_vm = overlap_errno, private_vm
        self.invalidate = invalidate or _nothing
        self.bindings = Bindings()
        self.incoming: Incoming | None = None
        """What slots of an update that is under way will have bound: both are invalidated meanwhile."""
        self.closes: list[Callable[[], object]] = []
        """Called under the file's lock when it is closed, before the guest's mappings go."""
        self.number, self.fd = 0, -1
        """What ``Slot.guest_memfd`` says, and its descriptor, where a VM made it."""
        self._out = own(3)
        self.closed = False
        inode.files.append(self)

    def link(self, vm: object, **options: object) -> GuestMemfd:
        """Another file on the same inode, for another VM (KVM_LINK_GUEST_MEMFD, RFC, May 2025). State is shared."""
        self._must_be_open()
        other = object.__new__(GuestMemfd)
        attributes, invalidate = options.pop("attributes", None), options.pop("invalidate", None)
        if options:
            raise UsageError(f"link: {', '.join(options)} is not attributes or invalidate")
        other._open(self.inode, vm, attributes, invalidate, self.overlap_errno, self.private_vm)  # type: ignore[arg-type]
        return other

    def _must_be_open(self) -> None:
        if self.closed:
            raise GuestMemfdError(errno.EBADF, "guest_memfd: the file is closed")

    def _must_have(self, page: int) -> None:
        check_integers(page=page)
        if not 0 <= page < self.inode.npages:
            raise UsageError(f"page: {page} is not within the file's {self.inode.npages}")

    @property
    def size(self) -> int:
        """Bytes; fixed."""
        return self.inode.size

    # -- slots -------------------------------------------------------------------------------------------------------

    def bind(self, slot: Slot, offset: int, *, vm: object = None) -> None:
        """Let ``slot`` have the file from ``offset`` bytes on: page ``gfn - base_gfn + offset / 4096`` for each frame.

        EBADF if the file is closed; EINVAL if it belongs to another VM than ``vm``, if the range is not in the file, or
        if the slot has bound one already; the kernel version's errno if another slot has a part of the range.
        """
        self._must_be_open()
        if vm is not self.vm:
            raise GuestMemfdError(errno.EINVAL, f"guest_memfd: slot {slot.id}: the file belongs to another VM")
        size = slot.npages * PAGE_SIZE
        check_bind(self.size, offset, size)
        if self.bindings.get(slot) is not None:
            raise GuestMemfdError(
                errno.EINVAL, f"guest_memfd: slot {slot.id} has bound a range: it can only be deleted"
            )
        first, end = offset // PAGE_SIZE, (offset + size) // PAGE_SIZE
        with self.inode.changing():
            other = self.bindings.other(first, end)
            if other is not None:
                raise GuestMemfdError(
                    self.overlap_errno,
                    f"guest_memfd: slot {slot.id}: pages [{first:#x}, {end:#x}) meet those of slot {other.slot.id}",
                )
            try:
                self.bindings.put(slot, first)
            except RangeNodesError as error:
                raise GuestMemfdError(errno.ENOMEM, f"guest_memfd: slot {slot.id}: {error}") from None

    def unbind(self, slot: int, as_id: int = 0) -> None:
        """The slot is deleted: its range is nobody's; pages and their states stay. EINVAL if it has none."""
        with self.inode.changing():
            self.bindings.remove(slot, as_id)

    def bound(self, first: int, end: int) -> list[tuple[Slot, int, int]]:
        """Slots that have bound pages of [first, end), or will have, each with the frames [start, end) of these."""
        found = list(self.bindings.overlapping(first, end))
        return found if self.incoming is None else [*found, *self.incoming.overlapping(first, end)]

    def rebind(self, gone: Iterable[tuple[int, int]], came: Iterable[Bound]) -> None:
        """An update is over: slots ``gone`` (as_id, id) have nothing any more, those that ``came`` have theirs.

        Where memory fails, the same call can be made again: what is not bound yet is ``incoming`` until then.
        """
        with self.inode.changing():
            if not self.closed:
                self.bindings.follow(gone, came)
            self.incoming = None

    def close(self) -> None:
        """The last descriptor of this file goes: bound slots have no memory any more, and the guest's mappings go.

        EBADF for a second close. Memory goes with the inode's last file, mapping and pin. The slots stay, and the
        guest's faults on them are EFAULT.
        """
        self._must_be_open()
        with self.inode.changing():
            self.inode.files.remove(self)
            for told in self.closes:
                told()
            with ExitStack() as stack:
                for slot, start, end in self.bound(0, self.inode.npages):
                    stack.enter_context(self.invalidate(slot, start, end, "both"))
                self.bindings.clear()
                self.closed = True
        self.inode.closed_if_unused()

    def __enter__(self) -> GuestMemfd:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            self.close()

    # -- memory ------------------------------------------------------------------------------------------------------

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Commit memory (KEEP_SIZE 1), or give it back (with PUNCH_HOLE 2), as the call; errors as in ``checks``.

        Memory that was committed before ENOMEM stays.
        """
        self._must_be_open()
        check_fallocate(self.size, mode, offset, length)
        first, end = offset // PAGE_SIZE, min(offset + length, self.size) // PAGE_SIZE
        if not mode & FALLOC_FL_PUNCH_HOLE:
            self.inode.allocate(first, end - 1)
        elif first < end:
            self.inode.punch(first, end - 1)

    def punch(self, offset: int, length: int) -> None:
        """A hole: memory of ``[offset, offset + length)`` goes back; read again, it is zero."""
        self.fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)

    def poison(self, page: int) -> None:
        """Memory failure at page ``page``: mappings go, the page stays, and every fault on it is EHWPOISON."""
        self._must_be_open()
        self._must_have(page)
        self.inode.poison(page)

    # -- the host ----------------------------------------------------------------------------------------------------

    def mmap(self, offset: int = 0, size: int | None = None, *, shared: bool = True, real: bool = False) -> HostMapping:
        """Map it for the host: ENODEV without the flag MMAP, EINVAL for MAP_PRIVATE (``shared=False``).

        ``real``: raw accesses by this process through ``HostMapping.address``, which die by SIGBUS where they may not.
        """
        self._must_be_open()
        if not self.flags & GUEST_MEMFD_FLAG_MMAP:
            raise GuestMemfdError(errno.ENODEV, "guest_memfd: it was made without GUEST_MEMFD_FLAG_MMAP")
        if not shared:
            raise GuestMemfdError(errno.EINVAL, "guest_memfd: a mapping has to be MAP_SHARED")
        return HostMapping(self.inode, offset, self.size - offset if size is None else size, real=real)

    def pin(self, offset: int, size: int) -> Pin:
        """Take a reference to every page of the range for as long as one likes; EFAULT if one is not the host's.

        All or none. It is what DMA does, and what a conversion to private cannot wait for.
        """
        self._must_be_open()
        first, last = check_range(self.size, offset, size)
        inode, page = self.inode, first
        try:
            while page <= last:
                status = int(pin_page(inode.words, inode.states.words, page, False))
                if status == _ABSENT:
                    inode.commit(page)
                elif status == _LAST:
                    inode.generation.last_put(inode, page)
                elif status == _OK:
                    page += 1
                else:
                    raise unpinnable(inode, page, status)  # noqa: TRY301 - what was pinned is let go below
        except BaseException:
            for taken in range(first, page):
                inode.put(taken)
            raise
        return Pin(inode, first, last)

    # -- the guest ---------------------------------------------------------------------------------------------------

    def get_pfn(self, slot: Slot, gfn: int, *, private: bool = True) -> GuestPage:
        """kvm_gmem_get_pfn(): the page behind a frame of a slot that has bound this file, committed if need be.

        EFAULT if the file was closed, or for a page past its end; EIO if the binding is not this slot's; EHWPOISON.
        MemoryFaultError (EFAULT) for an access of the wrong kind.
        """
        if self.closed:
            raise GuestMemfdError(errno.EFAULT, f"guest_memfd: slot {slot.id}: its file is closed")
        bound = self.bindings.get(slot)
        if bound is None or not slot.base_gfn <= gfn < slot.end_gfn:
            raise GuestMemfdError(errno.EIO, f"guest_memfd: slot {slot.id} has not bound frame {gfn:#x}")
        page, inode = gfn - slot.base_gfn + bound.first, self.inode
        while True:
            status = int(guest_fault(inode.words, inode.states.words, page, private, False, self._out))
            if status != _ABSENT:
                break
            inode.commit(page)
        if status == _OK:
            return GuestPage(int(self._out[0]), page, int(self._out[1]))
        if status == _POISON:
            raise GuestMemfdError(EHWPOISON, f"guest_memfd: page {page} is poisoned")
        if status in {_WRONG_KIND, _BARRED}:
            raise MemoryFaultError(KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0, gfn * PAGE_SIZE, PAGE_SIZE)
        raise GuestMemfdError(errno.EFAULT, f"guest_memfd: page {page} is past the end of the file")

    @property
    def gmem_only(self) -> bool:
        """Whether a slot that binds this file takes shared memory from it, too, and not from ``userspace_addr``.

        So with MMAP, 6.18 on, and always where the file itself has attributes. KVM's own accesses to guest memory go
        through ``userspace_addr`` all the same: unless that is a mapping of the file at the same offset, KVM and the
        guest see different memory.
        """
        return self.attributes is None or bool(self.flags & GUEST_MEMFD_FLAG_MMAP)

    def guest_fault(self, slot: Slot, gfn: int, *, private: bool) -> GuestPage:
        """A guest's access to a frame: the page that it gets, or MemoryFaultError if it is of the wrong kind.

        With attributes of the VM, these are asked first, and shared memory may be ``userspace_addr``'s.
        """
        if self.attributes is None:
            return self.get_pfn(slot, gfn, private=private)
        if private != bool(self.attributes.get(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE):
            raise MemoryFaultError(KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0, gfn * PAGE_SIZE, PAGE_SIZE)
        if private or self.gmem_only:
            return self.get_pfn(slot, gfn, private=private)
        return GuestPage(slot.hva(gfn), -1)

    def kvm_access(self, slot: Slot, gfn: int, *, private: bool) -> tuple[GuestPage, int]:
        """Where guest and KVM look for one frame: the guest's page, and the address that KVM's own accesses use.

        They differ where the slot is gmem-only and its ``userspace_addr`` is no mapping of the file at that offset.
        """
        return self.guest_fault(slot, gfn, private=private), slot.hva(gfn)

    # -- states ------------------------------------------------------------------------------------------------------

    def state(self, page: int) -> str:
        """What the state of page ``page`` is called; UsageError for a page that the file has not."""
        self._must_have(page)
        return self.inode.generation.NAMES[self.inode.states.get(page)]

    def convert(self, offset: int, size: int, *, private: bool) -> None:
        """Let the range be private, or shared, in the way of the file's generation. All of it, or nothing changes.

        EBADF, EINVAL (size 0, wrapping, unaligned, past the end; shareability takes size 0), then what the generation
        says: ENOMEM or EAGAIN with ``error_offset``. O(log n + ranges replaced) to store; to private also O(pages),
        to look at references.
        """
        self._must_be_open()
        if self.inode.generation.NAME == "shareability" and size == 0:
            return
        first, last = check_range(self.size, offset, size)
        self.inode.generation.convert(self.inode, first, last, private=private)

    def set_memory_attributes2(
        self, offset: int, size: int, attributes: int, flags: int = 0, reserved: Sequence[int] = ()
    ) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 on the file, with its checks in order.

        ENOTTY if the file has no attributes of its own; EINVAL for flags, reserved words, a VM without private memory,
        other attributes than PRIVATE 8, and ranges (see ``convert``).
        """
        self._must_be_open()
        if self.inode.generation.NAME != "attributes":
            raise GuestMemfdError(errno.ENOTTY, f"guest_memfd: states are of {self.inode.generation.NAME}")
        check_attributes2(attributes, flags, reserved, private_vm=self.private_vm)
        self.convert(offset, size, private=bool(attributes))

    def mappability(self) -> Mappability:
        """The generation with three states, whose steps can be taken one by one; CapabilityError if it is another."""
        if not isinstance(self.inode.generation, Mappability):
            raise CapabilityError(f"guest_memfd: states are of {self.inode.generation.NAME}, not of mappability")
        return self.inode.generation

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.bindings)} slots"
        return f"GuestMemfd({self.size:#x}, flags={self.flags}, states={self.inode.generation.NAME!r}, {state})"

    def check(self) -> None:
        """Raise InvariantError unless bindings, folios and states are sound. O(pages)."""
        self.inode.check()
        self.bindings.check()
