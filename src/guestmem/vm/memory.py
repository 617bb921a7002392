"""A VM's memory: slots by name, host memory behind them, reading and writing by guest address.

Addresses and sizes here are in bytes (``gpa``); slots say frames. A slot's host memory is made here unless given, and
kept as long as the slot, or a view of it, lives.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..abi.arguments import U16_MAX, U32_MAX, content_of, whole
from ..engines.listeners import Attached, MapListener, difference
from ..errors import MemslotError, UsageError
from ..interrupts import Section
from ..memslots import KVM_MEM_GUEST_MEMFD, Change, ChangeKind, Memslots, Slot
from ..process_memory import read_memory, write_memory
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX
from .display import as_html, as_text
from .guest_memfd import file_of, host_of
from .primitives import Primitives
from .slot_memory import HostPiece

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .backends import Backend
    from .slot_memory import Era
    from .transaction import Transaction

__all__ = ["Memory"]


class Memory(Primitives):
    """The memory of a ``Vm``: ``vm.memory``. Iterating gives its slots, by address space and guest address.

    >>> from guestmem.vm import Vm
    >>> with Vm() as vm:
    ...     slot = vm.memory.create(0, gpa=0x100000, size=0x4000)
    ...     vm.memory.write(0x100FFE, b"abcd")
    ...     vm.memory.read(0x100FFE, 4), vm.memory.find(0x103FFF) == slot, 0x104000 in vm.memory
    (b'abcd', True, False)
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        """What answers: the engine's side, until the VM is closed."""
        self._owned = backend.owned

    @property
    def memslots(self) -> Memslots:
        """The slots themselves, in frames."""
        return self.backend.memslots

    @property
    def era(self) -> Era:
        """Held from before a look-up of slots, it keeps mapped what they reach."""
        return self._owned.era

    # -- changes -----------------------------------------------------------------------------------------------------

    def create(
        self,
        slot: int,
        *,
        gpa: int,
        size: int,
        host: Any = None,
        flags: int = 0,
        as_id: int = 0,
        guest_memfd: Any = None,
        offset: int = 0,
    ) -> Slot:
        """Create a slot of ``size`` bytes at ``gpa``, and memory for it unless ``host`` is given. O(log n).

        ``host``: an object with a writable buffer, of pages; or a host address. MemslotError as the kernel refuses it,
        EEXIST for an id that is taken (which the kernel would take for a change of that slot).

        ``guest_memfd``: of ``Vm.create_guest_memfd``; the slot has it from ``offset`` bytes on. Unless ``host`` is
        given, its host memory is then a mapping of the file if that has MMAP: who touches a private page through a
        view of it dies by SIGBUS, while ``read`` and ``write`` fail with EFAULT.
        """
        slot, as_id = _ids(slot, as_id)
        gpa, size, flags = whole("gpa", gpa), whole("size", size), whole("flags", flags, U32_MAX)
        if not size:
            raise MemslotError(errno.EINVAL, f"slot {slot}: size 0x0 is not a positive multiple of {PAGE_SIZE:#x}")
        with self.changing():
            there = self.backend.slot(slot, as_id)
            if there is not None:
                raise MemslotError(errno.EEXIST, f"slot {slot}: it exists: {there!r}")
            if guest_memfd is not None:
                return self._bind(slot, as_id, gpa, size, host, flags, guest_memfd, offset)
            piece = HostPiece.of(host, size)
            self.backend.set_region(slot, flags, gpa, size, piece.address, as_id, piece)
            return self._existing(slot, as_id)

    def _bind(
        self, slot: int, as_id: int, gpa: int, size: int, host: Any, flags: int, guest_memfd: Any, offset: int
    ) -> Slot:
        if (gpa | size) % PAGE_SIZE:
            raise MemslotError(
                errno.EINVAL, f"slot {slot}: gpa {gpa:#x} or size {size:#x} is not a multiple of {PAGE_SIZE:#x}"
            )
        number, offset = file_of(f"slot {slot}", guest_memfd, offset, self.backend)
        piece = host_of(guest_memfd, offset, size, host)
        flags |= KVM_MEM_GUEST_MEMFD
        change = Change(slot, gpa >> PAGE_SHIFT, size >> PAGE_SHIFT, piece.address, flags, as_id, number, offset)
        self.backend.bind_region(change, piece)
        return self._existing(slot, as_id)

    def delete(self, slot: int, as_id: int = 0) -> None:
        """Delete a slot; MemslotError (EINVAL) if there is none."""
        slot, as_id = _ids(slot, as_id)
        self.backend.set_region(slot, 0, 0, 0, 0, as_id)

    def move(self, slot: int, gpa: int, as_id: int = 0) -> Slot:
        """Move a slot to another guest address; it may overlap where it was. Its dirty log goes with it."""
        slot, as_id = _ids(slot, as_id)
        with self.changing():
            old = self._existing(slot, as_id)
            size = old.npages << PAGE_SHIFT
            self.backend.set_region(slot, old.flags, whole("gpa", gpa), size, old.userspace_addr, as_id)
            return self._existing(slot, as_id)

    def set_flags(self, slot: int, flags: int, as_id: int = 0) -> Slot:
        """Switch a slot's logging; MemslotError (EINVAL) for a change of KVM_MEM_READONLY."""
        slot, as_id = _ids(slot, as_id)
        with self.changing():
            old = self._existing(slot, as_id)
            flags, size = whole("flags", flags, U32_MAX), old.npages << PAGE_SHIFT
            self.backend.set_region(slot, flags, old.base_gfn << PAGE_SHIFT, size, old.userspace_addr, as_id)
            return self._existing(slot, as_id)

    def changing(self) -> Section:
        """``with``: what was looked at stays so until the block ends. Others' changes wait; it nests."""
        return self.backend.section

    def apply(self, change: Change) -> ChangeKind:
        """One change in frames, as traces have them; its host memory is somebody else's."""
        if not isinstance(change, Change):
            raise UsageError(f"change: {change!r} is not a Change")
        slot, as_id = _ids(change.slot, change.as_id)
        return self.backend.set_region(
            slot,
            whole("flags", change.flags, U32_MAX),
            whole("base_gfn", change.base_gfn, U64_MAX >> PAGE_SHIFT) << PAGE_SHIFT,
            whole("npages", change.npages, U64_MAX >> PAGE_SHIFT) << PAGE_SHIFT,
            whole("userspace_addr", change.userspace_addr),
            as_id,
        )

    def transaction(self, *, design: str = "", unsafe: str = "refuse", as_id: int = 0) -> Transaction:
        """Several changes, carried out when the ``with`` block ends without an exception.

        ``design``: by name, instead of the VM's own (``Vm.design``). What each promises: docs/atomic-updates.md. On the
        kernel "exit_retry" (docs/exit-retry.md) is judged each time, on vCPUs stopped meanwhile. Where it is known to
        harm the guest, ``unsafe`` says what is done instead: "refuse" (UnsafeError, with nothing changed), or "pause"
        (pause_if_overlap). ``Transaction.design`` and ``why`` tell which it was.

        >>> from guestmem.vm import Vm
        >>> with Vm() as vm:
        ...     _ = vm.memory.create(0, gpa=0, size=0x4000)
        ...     with vm.memory.transaction() as change:  # split it, the second half read-only
        ...         whole = change.delete(0)
        ...         change.create(0, gpa=0, size=0x2000, host=whole)
        ...         change.create(1, gpa=0x2000, size=0x2000, host=whole + 0x2000, flags=2)
        ...     [(slot.id, slot.readonly) for slot in vm.memory]
        [(0, False), (1, True)]
        """
        from .transaction import Transaction

        return Transaction(self, design=design, unsafe=unsafe, as_id=as_id)

    def listen(self, listener: MapListener) -> Attached:
        """Attach another map of guest memory (``VhostMap``, or your own): it is told of all slots, and of each change.

        What it returns says how often the map had the instant of a change, and how long it was late otherwise: see
        docs/atomic-updates.md. ``unlisten`` ends it.
        """
        attached = Attached(listener)
        with self.changing(), self.memslots.slots_lock:
            if listener.waits:
                listener.stall(())
            try:
                listener.commit(difference((), self))
            finally:
                if listener.waits:
                    listener.resume()
            self.backend.listeners.append(attached)
        return attached

    def unlisten(self, attached: Attached) -> None:
        """It is told of nothing any more; once more is nothing."""
        with self.changing(), self.memslots.slots_lock:
            if attached in self.backend.listeners:
                self.backend.listeners.remove(attached)

    # -- looking -----------------------------------------------------------------------------------------------------

    def __getitem__(self, slot: int | tuple[int, int]) -> Slot:
        """Slot by id, or by (id, address space); MemslotError (ENOENT) if there is none. O(1)."""
        pair = slot if isinstance(slot, tuple) else (slot, 0)
        if len(pair) != 2:
            raise UsageError(f"slot: {slot!r} is neither an id nor (id, address space)")
        return self._existing(*_ids(*pair))

    def _existing(self, slot: int, as_id: int) -> Slot:
        found = self.backend.slot(slot, as_id)
        if found is None:
            raise MemslotError(errno.ENOENT, f"slot {slot}: no such slot" + (f" in space {as_id}" if as_id else ""))
        return found

    def get(self, slot: int, as_id: int = 0) -> Slot | None:
        """Slot by id, or None. O(1)."""
        return self.backend.slot(*_ids(slot, as_id))

    def find(self, gpa: int, as_id: int = 0) -> Slot | None:
        """The slot that holds guest address ``gpa``, or None. O(log n)."""
        return self.memslots.find(whole("gpa", gpa) >> PAGE_SHIFT, whole("as_id", as_id, U16_MAX))

    def by_hva(self, start: int, end: int | None = None, as_id: int = 0) -> list[Slot]:
        """Slots whose host memory has host address ``start``, or overlaps ``[start, end)``. O(log n + k)."""
        start = whole("start", start)
        end = min(start + 1, U64_MAX) if end is None else whole("end", end)
        return self.memslots.by_hva(start, end, whole("as_id", as_id, U16_MAX))

    def overlapping(self, gpa: int, size: int, as_id: int = 0) -> list[Slot]:
        """Slots that overlap ``[gpa, gpa + size)``, ascending. O(log n + k)."""
        start = whole("gpa", gpa)
        end = start + whole("size", size)
        return list(
            self.memslots.overlapping(start >> PAGE_SHIFT, -(-end >> PAGE_SHIFT), whole("as_id", as_id, U16_MAX))
        )

    def __contains__(self, what: int | Slot) -> bool:
        """Whether a guest address is in a slot, or a slot is there."""
        if isinstance(what, Slot):
            return self.get(what.id, what.as_id) == what
        return self.find(what) is not None

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.memslots)

    def __len__(self) -> int:
        return len(self.memslots)

    def hva(self, gpa: int, as_id: int = 0) -> int:
        """Host address of guest address ``gpa``; MemslotError (EFAULT) where there is no slot. O(log n)."""
        gpa = whole("gpa", gpa)
        slot = self.find(gpa, as_id)
        if slot is None:
            raise MemslotError(errno.EFAULT, f"gpa: {gpa:#x} is in no slot")
        return slot.hva(gpa >> PAGE_SHIFT) + gpa % PAGE_SIZE

    # -- contents ----------------------------------------------------------------------------------------------------

    def read(self, gpa: int, size: int, as_id: int = 0) -> bytes:
        """``size`` bytes from guest address ``gpa`` on, across slots; MemslotError (EFAULT) at a hole."""
        era = self._owned.era  # what slots reach from here on stays mapped as long as this name
        content = b"".join([self.host_read(address, part) for address, part in self.parts(gpa, size, as_id)])
        del era
        return content

    def write(self, gpa: int, content: Any, as_id: int = 0) -> None:
        """Write bytes, or any object with a buffer, across slots; MemslotError (EFAULT) at a hole, before any byte.

        A VMM's own writes are in no dirty log, as in KVM: that logs what vCPUs write.
        """
        flat = content_of("content", content)
        done = 0
        era = self._owned.era
        for address, part in self.parts(gpa, len(flat), as_id):
            self.host_write(address, flat[done : done + part])
            done += part
        del era

    def view(self, gpa: int, size: int, as_id: int = 0) -> npt.NDArray[np.uint8]:
        """Guest memory itself as a NumPy array of bytes, writable; use ``.view(dtype)`` for other types.

        Its host addresses must follow each other (UsageError); what the VM keeps of them lives as long as the view.
        O(log n).

        >>> from guestmem.vm import Vm
        >>> with Vm() as vm:
        ...     _ = vm.memory.create(0, gpa=0, size=0x1000)
        ...     vm.memory.view(0x10, 8).view("<u4")[:] = 7
        ...     vm.memory.read(0x10, 8).hex()
        '0700000007000000'
        """
        import numpy as np

        gpa, size = whole("gpa", gpa), whole("size", size)
        with self.changing():
            parts = self.parts(gpa, size, as_id)
            address = parts[0][0]
            end = address
            for start, length in parts:
                if start != end:
                    raise UsageError(f"view: [{gpa:#x}, {gpa + size:#x}) is not one piece of host memory")
                end = start + length
            return np.asarray(_Bytes(address, size, self._owned.reaching(address, size)))

    def parts(self, gpa: int, size: int, as_id: int = 0) -> list[tuple[int, int]]:
        """Host address and size of each slot's part of a range; MemslotError (EFAULT) if it has a hole."""
        gpa, size = whole("gpa", gpa), whole("size", size)
        if not size:
            raise UsageError(f"size: 0x0 bytes at {gpa:#x} is no range")
        end, found = gpa + size, []
        for slot in self.overlapping(gpa, size, as_id):
            if slot.base_gfn << PAGE_SHIFT > gpa:
                break
            stop = min(end, slot.end_gfn << PAGE_SHIFT)
            found.append((slot.hva(gpa >> PAGE_SHIFT) + gpa % PAGE_SIZE, stop - gpa))
            gpa = stop
        if gpa < end:
            raise MemslotError(errno.EFAULT, f"gpa: {gpa:#x} is in no slot")
        return found

    def host_read(self, address: int, size: int) -> bytes:
        """``size`` bytes of host memory; MemslotError (EFAULT) where they cannot be read."""
        return read_memory(address, size)

    def host_write(self, address: int, content: bytes) -> None:
        """Write host memory; MemslotError (EFAULT) where it cannot be written."""
        write_memory(address, content)

    # -- for transactions --------------------------------------------------------------------------------------------

    def kept_at(self, address: int, size: int) -> tuple[HostPiece, ...]:
        """Host memory that the VM knows in ``[address, address + size)``: whoever holds it keeps it. O(log n + k)."""
        return self._owned.reaching(address, size)

    def reshape(self, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
        """See ``Backend.reshape``."""
        return self.backend.reshape(gone, made)

    def know(self, piece: HostPiece) -> None:
        """There is host memory that a slot may soon reach: found by ``kept_at`` as long as anybody keeps it."""
        with self.changing():
            self._owned.know(piece)

    def end(self, backend: Backend) -> None:
        """The VM is closed: ``backend`` answers from now on, and host memory is held by views only."""
        self.backend = backend
        self._owned.clear()

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


class _Bytes:
    """Bytes of this process as NumPy takes them; an array of them keeps this, and so ``pieces``."""

    def __init__(self, address: int, size: int, pieces: tuple[HostPiece, ...]) -> None:
        self.pieces = pieces
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _ids(slot: Any, as_id: Any) -> tuple[int, int]:
    """A slot's id and its address space, as the two halves of ``kvm_userspace_memory_region.slot``."""
    if type(slot) is int and type(as_id) is int and 0 <= slot <= U16_MAX and 0 <= as_id <= U16_MAX:
        return slot, as_id
    return whole("slot", slot, U16_MAX), whole("as_id", as_id, U16_MAX)
