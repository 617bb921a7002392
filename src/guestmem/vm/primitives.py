"""Split, merge, grow, truncate, toggle read-only: changes of one slot that keep the host memory of each frame it keeps.

No KVM has them as calls (docs/designs.md): there each is a delete and one or two creates. Here each is a transaction,
carried out by the VM's design or the one that is named: with ``atomic`` translations and dirty bits of what stays are
kept and no vCPU waits for it; on the kernel the vCPUs pause.
"""

from __future__ import annotations

import errno
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from ..abi.arguments import U16_MAX, whole
from ..errors import MemslotError
from ..interrupts import Section
from ..memslots import Slot
from ..memslots.slot import KVM_MEM_READONLY
from ..units import PAGE_SHIFT, PAGE_SIZE, U64_MAX, format_size

if TYPE_CHECKING:
    from .slot_memory import HostPiece
    from .transaction import Transaction

__all__ = ["Primitives"]


_GOES_ON = (
    "guest memory ends at {:#x}",
    "host memory ends at {:#x}",
    "flags are {:#x}",
    "guest_memfd is {}",
    "part of the guest_memfd ends at {:#x}",
)
"""What of a slot another one has to go on with."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(method: Callable[Concatenate[Primitives, _P], _R]) -> Callable[Concatenate[Primitives, _P], _R]:
    """No other thread changes slots between the look and the change."""

    @functools.wraps(method)
    def made(self: Primitives, /, *args: _P.args, **named: _P.kwargs) -> _R:
        with self.changing():
            return method(self, *args, **named)

    return made


class Primitives(ABC):
    """The part of ``Memory`` that changes slots without changing what lies behind their frames."""

    @abstractmethod
    def transaction(self, *, design: str = "", unsafe: str = "refuse", as_id: int = 0) -> Transaction:
        """See ``Memory.transaction``."""

    @abstractmethod
    def changing(self) -> Section:
        """See ``Memory.changing``."""

    @abstractmethod
    def reshape(self, gone: Sequence[Slot], made: Sequence[Slot]) -> bool:
        """See ``Backend.reshape``."""

    @abstractmethod
    def kept_at(self, address: int, size: int) -> tuple[HostPiece, ...]:
        """See ``Memory.kept_at``."""

    @abstractmethod
    def __getitem__(self, slot: int | tuple[int, int]) -> Slot:
        """See ``Memory.__getitem__``."""

    @_alone
    def split(self, slot: int, gpa: int, upper: int, *, as_id: int = 0, design: str = "") -> tuple[Slot, Slot]:
        """Make two of a slot: it ends at ``gpa``, and slot ``upper`` has the rest, with the same flags. O(log n).

        MemslotError: ENOENT for a slot that is not there, EINVAL for an address that is not a page inside it, EEXIST
        for an ``upper`` that is taken.

        >>> from guestmem.vm import Vm
        >>> with Vm() as vm:
        ...     _ = vm.memory.create(0, gpa=0, size=0x4000)
        ...     [(half.id, half.base_gfn, half.npages) for half in vm.memory.split(0, 0x1000, 7)]
        [(0, 0, 1), (7, 1, 3)]
        """
        old = self[slot, as_id]
        start, size = old.base_gfn << PAGE_SHIFT, old.npages << PAGE_SHIFT
        gpa, upper = whole("gpa", gpa), whole("upper", upper, U16_MAX)
        if gpa % PAGE_SIZE or not start < gpa < start + size:
            raise MemslotError(
                errno.EINVAL, f"slot {slot}: gpa {gpa:#x} is no page boundary inside [{start:#x}, {start + size:#x})"
            )
        low = old.part(old.base_gfn, gpa >> PAGE_SHIFT)
        high = old.part(gpa >> PAGE_SHIFT, old.end_gfn, upper)
        if not design and self.reshape((old,), (low, high)):
            return low, high
        with self.transaction(design=design, as_id=as_id) as change:
            host = change.delete(slot)
            above, left = host + gpa - start, start + size - gpa
            change.create(slot, gpa=start, size=gpa - start, host=host, flags=old.flags, **change.carried(old, host))
            change.create(upper, gpa=gpa, size=left, host=above, flags=old.flags, **change.carried(old, above))
        return self[slot, as_id], self[upper, as_id]

    @_alone
    def merge(self, slot: int, upper: int, *, as_id: int = 0, design: str = "") -> Slot:
        """Make one of two slots that follow each other in guest and host memory, with the same flags. O(log n).

        The slot keeps the id ``slot``. MemslotError: ENOENT, or EINVAL with what does not fit.
        """
        low, high = self[slot, as_id], self[upper, as_id]
        size, file = low.npages << PAGE_SHIFT, low.guest_memfd
        goes_on = low.end_gfn << PAGE_SHIFT, low.userspace_addr + size, low.flags, file, low.guest_memfd_offset + size
        has = high.base_gfn << PAGE_SHIFT, high.userspace_addr, high.flags, high.guest_memfd, high.guest_memfd_offset
        if has[:4] != goes_on[:4] or (file and has != goes_on):
            for what, one, other in zip(_GOES_ON, goes_on, has, strict=True):
                if one != other:
                    raise MemslotError(
                        errno.EINVAL, f"slot {slot}: its {what.format(one)}, which does not fit {high!r}"
                    )
        made = low.part(low.base_gfn, high.end_gfn)
        if not design and self.reshape((low, high), (made,)):
            return made
        with self.transaction(design=design, as_id=as_id) as change:
            change.delete(upper)
            host = change.delete(slot)
            whole_size = size + (high.npages << PAGE_SHIFT)
            part = change.carried(low, host)
            change.create(slot, gpa=low.base_gfn << PAGE_SHIFT, size=whole_size, host=host, flags=low.flags, **part)
        return self[slot, as_id]

    @_alone
    def resize(self, slot: int, size: int, *, as_id: int = 0, design: str = "") -> Slot:
        """Give a slot another size at its end: grow or truncate. O(log n).

        It grows into the host memory that follows; where the VM knows what that is (memory that it made, or a buffer
        that was given) and it is too short, EINVAL says how much there is.

        >>> import mmap
        >>> from guestmem.vm import Vm
        >>> with Vm() as vm:
        ...     _ = vm.memory.create(0, gpa=0, size=0x1000, host=mmap.mmap(-1, 0x4000))
        ...     vm.memory.resize(0, 0x3000).npages, vm.memory.resize(0, 0x2000).npages
        (3, 2)
        """
        old = self[slot, as_id]
        size = whole("size", size)
        if size % PAGE_SIZE or not size:
            raise MemslotError(
                errno.EINVAL, f"slot {slot}: size {size:#x} is not a positive multiple of {PAGE_SIZE:#x}"
            )
        if size > old.npages << PAGE_SHIFT and size > (room := self._room(old)):
            raise MemslotError(
                errno.EINVAL, f"slot {slot}: size {format_size(size)}: its host memory has {format_size(room)}"
            )
        made = old.part(old.base_gfn, old.base_gfn + (size >> PAGE_SHIFT))
        if not design and self.reshape((old,), (made,)):
            return made
        with self.transaction(design=design, as_id=as_id) as change:
            host = change.delete(slot)
            file = change.carried(old, host)
            change.create(slot, gpa=old.base_gfn << PAGE_SHIFT, size=size, host=host, flags=old.flags, **file)
        return self[slot, as_id]

    def _room(self, slot: Slot) -> int:
        """Bytes from the start of a slot's host memory to the end of the last piece that it reaches."""
        size = slot.npages << PAGE_SHIFT
        pieces = self.kept_at(slot.userspace_addr, size)
        ends = [piece.address + piece.size - slot.userspace_addr for piece in pieces]
        return max(size, *ends) if ends else U64_MAX

    @_alone
    def set_readonly(self, slot: int, readonly: bool, *, as_id: int = 0, design: str = "") -> Slot:
        """Make a slot read-only for the guest, or writable: what no KVM can do to a slot that is there. O(log n)."""
        old = self[slot, as_id]
        flags = old.flags | KVM_MEM_READONLY if readonly else old.flags & ~KVM_MEM_READONLY
        with self.transaction(design=design, as_id=as_id) as change:
            host = change.delete(slot)
            file, size = change.carried(old, host), old.npages << PAGE_SHIFT
            change.create(slot, gpa=old.base_gfn << PAGE_SHIFT, size=size, host=host, flags=int(flags), **file)
        return self[slot, as_id]
