"""Several changes of memory as one: what ``vm.memory.transaction()`` gives.

Changes are collected, and carried out by a design when the block ends. What a design promises (one instant for all, or
only that no vCPU runs meanwhile) is its business: docs/atomic-updates.md.
"""

from __future__ import annotations

import errno
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..abi.arguments import U16_MAX, U32_MAX, whole
from ..abi.take_over import DirtyPage
from ..designs.registry import find
from ..errors import MemslotError, UsageError
from ..memslots import KVM_MEM_GUEST_MEMFD, Change, Slot, SlotKey
from ..units import PAGE_SHIFT, PAGE_SIZE
from .guest_memfd import Carried, file_of, host_of
from .slot_memory import HostPiece

if TYPE_CHECKING:
    from .memory import Memory

__all__ = ["UNSAFE", "DirtyPage", "Transaction"]

UNSAFE = ("refuse", "pause")
"""What becomes of a transaction by a design that is known to harm the guest."""


class Transaction:
    """Changes, in order; each sees what those before it did.

    ``as_id`` of a change: another address space than the transaction's. Both have one instant then, which only design
    ``atomic`` gives (CapabilityError from others).

    When the block ends, a slot that was looked at for them must be as it was: BatchError if it has gone (ENOENT), has
    come (EEXIST), or was moved or changed meanwhile, by whomever (EAGAIN: begin again). Nothing is changed then.

    ``dirty``: afterwards, the dirty pages whose pair of frame and host page has ended, for a migration to copy. On
    ``/dev/kvm``, whose logs go with their slots, all dirty pages of logs that ended (not with dirty rings, which stay).
    """

    def __init__(self, memory: Memory, *, design: str, unsafe: str, as_id: int) -> None:
        if design:
            find(design)
        if unsafe not in UNSAFE:
            raise UsageError(f"unsafe: {unsafe!r} is not one of {', '.join(UNSAFE)}")
        self._memory, self._asked, self._unsafe = memory, design, unsafe
        self.design = self.why = ""
        """Afterwards, the design that carried it out, and why that one."""
        self._as_id = whole("as_id", as_id, U16_MAX)
        self.changes: list[Change] = []
        self.dirty: list[DirtyPage] = []
        self._now: dict[SlotKey, Slot | None] = {}
        self._pieces: dict[int, HostPiece] = {}
        """Host memory that creates bring and deletes take: held until all is over."""
        self._brought: list[tuple[SlotKey, list[HostPiece]]] = []
        """Slots that are created, and what they reach."""
        self._meant: list[Slot | None] = []
        """Of each change, the slot that it is of, as it is then."""
        self._over = False

    def _key(self, slot: int, as_id: int | None) -> SlotKey:
        space = self._as_id if as_id is None else whole("as_id", as_id, U16_MAX)
        return SlotKey(space, whole("slot", slot, U16_MAX))

    def _look(self, key: SlotKey) -> Slot | None:
        return self._now[key] if key in self._now else self._memory.backend.slot(key.slot, key.as_id)

    def _slot(self, key: SlotKey) -> Slot:
        found = self._look(key)
        if found is None:
            raise MemslotError(
                errno.ENOENT, f"slot {key.slot}: no such slot" + (f" in space {key.as_id}" if key.as_id else "")
            )
        return found

    def create(
        self,
        slot: int,
        *,
        gpa: int,
        size: int,
        host: Any = None,
        flags: int = 0,
        guest_memfd: Any = None,
        offset: int = 0,
        as_id: int | None = None,
    ) -> None:
        """As ``Memory.create``. A host address inside memory that the VM made keeps that memory."""
        key = self._key(slot, as_id)
        slot, gpa, size, flags = key.slot, whole("gpa", gpa), whole("size", size), whole("flags", flags, U32_MAX)
        there = self._look(key)
        if there is not None:
            raise MemslotError(errno.EEXIST, f"slot {slot}: it exists: {there!r}")
        if (gpa | size) % PAGE_SIZE or size < PAGE_SIZE:
            raise MemslotError(
                errno.EINVAL,
                f"slot {slot}: gpa {gpa:#x} or size {size:#x} is not a positive multiple of {PAGE_SIZE:#x}",
            )
        number = 0
        if guest_memfd is None:
            piece = HostPiece.of(host, size)
        else:
            number, offset = file_of(f"slot {slot}", guest_memfd, offset, self._memory.backend)
            flags |= KVM_MEM_GUEST_MEMFD
            piece = host_of(guest_memfd, offset, size, host)
        reached = [piece]
        if piece.buffer is None:  # an address, perhaps in memory of another slot; looked up again at the end
            with self._memory.changing():
                reached = [*self._memory.kept_at(piece.address, size)]
        else:
            self._memory.know(piece)
        frames = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT
        change = Change(slot, *frames, piece.address, flags, key.as_id, number, offset if number else 0)
        self._add(change, None)
        self._pieces |= {id(kept): kept for kept in reached}
        self._brought.append((key, reached))

    def carried(self, slot: Slot, host: int) -> dict[str, Any]:
        """What gives ``create`` the part at ``host`` of what ``slot`` has of a guest_memfd; nothing without one."""
        if not slot.guest_memfd:
            return {}
        file = Carried(slot.guest_memfd, self._memory.backend)
        return {"guest_memfd": file, "offset": slot.guest_memfd_offset + host - slot.userspace_addr}

    def delete(self, slot: int, *, as_id: int | None = None) -> int:
        """Delete a slot; returns the host address of its memory, which lives until the transaction is over."""
        key = self._key(slot, as_id)
        with self._memory.changing():
            old = self._slot(key)
            kept = self._memory.kept_at(old.userspace_addr, old.npages << PAGE_SHIFT)
        self._add(Change(key.slot, as_id=key.as_id), old)
        self._pieces |= {id(piece): piece for piece in kept}
        return old.userspace_addr

    def move(self, slot: int, gpa: int, *, as_id: int | None = None) -> None:
        """Move a slot to another guest address. One with a guest_memfd, which KVM does not move, is made anew there."""
        key, gpa = self._key(slot, as_id), whole("gpa", gpa)
        if gpa % PAGE_SIZE:
            raise MemslotError(errno.EINVAL, f"slot {key.slot}: gpa {gpa:#x} is not a multiple of {PAGE_SIZE:#x}")
        old = self._slot(key)
        if old.guest_memfd:
            self.delete(key.slot, as_id=key.as_id)
        self._add(Change.of(old._replace(base_gfn=gpa >> PAGE_SHIFT)), None if old.guest_memfd else old)

    def set_flags(self, slot: int, flags: int, *, as_id: int | None = None) -> None:
        """Switch a slot's logging."""
        flags = whole("flags", flags, U32_MAX)
        old = self._slot(self._key(slot, as_id))
        self._add(Change.of(old._replace(flags=flags)), old)

    def _add(self, change: Change, old: Slot | None) -> None:
        if self._over:
            raise UsageError("transaction: it is over; begin another with Memory.transaction()")
        self.changes.append(change)
        self._meant.append(old)
        self._now[change.key] = None if change.deletes else change.as_slot()

    def __enter__(self) -> Transaction:
        if self._over:
            raise UsageError("transaction: it is over; begin another with Memory.transaction()")
        return self

    def __exit__(self, kind: type[BaseException] | None, _value: object, _trace: TracebackType | None) -> None:
        self._over = True
        if kind is not None or not self.changes:
            return
        try:
            self.design, self.why = self._memory.backend.apply(
                self.changes, self._asked, self.dirty, self._unsafe, self._brought, self._meant
            )
        finally:
            self._pieces, self._brought = {}, []

    def __repr__(self) -> str:
        return f"Transaction of {len(self.changes)} changes, {'over' if self._over else 'not carried out'}"
