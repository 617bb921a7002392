"""The guest_memfds of a trace, as files of our own: which change binds which range of which.

A recording names files by descriptor, and says where in the file a slot begins. What a file is of whose changes
something is not told, or not as KVM would take it, is replayed by ``userspace_addr`` instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..gmem import GuestMemfd
from ..memslots import Change, ChangeKind, Slot
from ..memslots.slot import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from ..traces import RecordedChange, Timeline, Transaction
from ..units import PAGE_SHIFT

__all__ = ["TraceFiles"]

_Range = tuple[int, int]
_NOT_WITH_A_FILE = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


class TraceFiles:
    """Files by number, from 1 on, each as large as what is bound of it. ``shrink``: see ``plan``.

    A descriptor of which one range is bound twice is another file from then on: numbers are used again. Pages are
    private, as a confidential guest's are once it has accepted them.
    """

    def __init__(self, timeline: Timeline, transactions: Sequence[Transaction], shrink: int) -> None:
        self._shrink = shrink
        self._told = timeline.guest_memfds
        recorded = [each for transaction in transactions for each in transaction.changes]
        self._bound: dict[int, tuple[int, int]] = {}
        """By place among all changes, number and offset."""
        sizes = self._number(recorded, set(self._unfit(recorded)))
        self.files = [GuestMemfd(size) for size in sizes]
        self.left = sum(1 for each in recorded if _has_file(each)) - len(self._bound)
        """Changes that bind a file, and are replayed by ``userspace_addr``."""

    @property
    def bindings(self) -> int:
        """Changes that bind one of the files."""
        return len(self._bound)

    def _unfit(self, recorded: Iterable[RecordedChange]) -> Iterator[int]:
        """Descriptors whose changes are not only creates, by what KVM takes, and deletes."""
        for each in recorded:
            told = self._told.get(each.line)
            if told is not None and _has_file(each):
                wrong = each.kind is not ChangeKind.CREATE or each.change.flags & _NOT_WITH_A_FILE
                if wrong or told[1] % (1 << PAGE_SHIFT + self._shrink):
                    yield told[0]

    def _number(self, recorded: Sequence[RecordedChange], unfit: set[int]) -> list[int]:
        """Fill ``_bound``; returns the files' sizes."""
        sizes: list[int] = []
        of_fd: dict[int, int] = {}
        live: dict[int, dict[tuple[int, int], _Range]] = {}
        where: dict[tuple[int, int], int] = {}
        for place, each in enumerate(recorded):
            change, told = each.change, self._told.get(each.line)
            key = change.as_id, change.slot
            if change.deletes:
                if key in where:
                    del live[where.pop(key)][key]
                continue
            if told is None or not _has_file(each) or told[0] in unfit:
                continue
            fd, offset = told[0], told[1] >> self._shrink
            end = offset + (change.npages >> self._shrink << PAGE_SHIFT)
            number = of_fd.get(fd, 0)
            if not number or any(offset < stop and start < end for start, stop in live[number].values()):
                sizes.append(0)
                number = of_fd[fd] = len(sizes)
                live[number] = {}
            sizes[number - 1] = max(sizes[number - 1], end)
            live[number][key] = offset, end
            where[key] = number
            self._bound[place] = number, offset
        return sizes

    def bind(self, place: int, change: Change) -> Change:
        """Change ``place`` of all, with the file that it binds, if it does."""
        bound = self._bound.get(place)
        if bound is None:
            return change
        number, offset = bound
        return change._replace(flags=change.flags | KVM_MEM_GUEST_MEMFD, guest_memfd=number, guest_memfd_offset=offset)

    def host(self, slot: Slot, gfn: int) -> int:
        """Host address of what a guest finds at a frame of a slot: private memory, if it has a file."""
        if not slot.guest_memfd:
            return slot.hva(gfn)
        address: int = self.files[slot.guest_memfd - 1].inode.backing.address
        return address + slot.guest_memfd_offset + ((gfn - slot.base_gfn) << PAGE_SHIFT)

    def notes(self) -> Iterator[str]:
        """What is replayed in another way than it was recorded."""
        if self.bindings:
            files = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
            yield (
                f"{self.bindings} change{'s' * (self.bindings != 1)} with KVM_MEM_GUEST_MEMFD: with {files} of our "
                "own, whose pages are all private, as are the accesses to them"
            )
        if self.left:
            yield (
                f"{self.left} change{'s' * (self.left != 1)} with KVM_MEM_GUEST_MEMFD: replayed by userspace_addr, as "
                "shared memory"
            )

    def close(self) -> None:
        """Give their memory back."""
        for file in self.files:
            if not file.closed:
                file.close()


def _has_file(each: RecordedChange) -> bool:
    return not each.change.deletes and bool(each.change.flags & KVM_MEM_GUEST_MEMFD)
