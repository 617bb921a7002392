"""The guest_memfds of a software engine's VM: what vCPUs need of each, and which slots have bound what.

Bindings change as in the kernel: a slot's range is bound before the slot is published, and let go after the last reader
of the old set is gone. In between both are invalidated by whoever converts, punches or closes. Source:
``kvm_gmem_bind()``, ``kvm_gmem_unbind()``, Linux 6.18, ``virt/kvm/guest_memfd.c``.
"""

from __future__ import annotations

import errno
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from ...atomics import poke
from ...compiled import Words, words
from ...errors import BatchError, GuestMemfdError, InvariantError, MemslotError, RangeNodesError, UsageError
from ...gmem.bindings import Bound
from ...gmem.checks import check_bind
from ...gmem.file import GuestMemfd
from ...gmem.layout import inode_words
from ...memslots import Change, Slot, SlotKey
from ...memslots.checks import OVERLAPS, refusal_of
from ...memslots.set import Memslots
from ...memslots.slot import KVM_MEM_GUEST_MEMFD
from ...stage2 import layout as table_at
from ...units import PAGE_SHIFT
from ..load import Target
from . import gmem_slot as at
from .stage2 import Stage2

__all__ = ["NO_CHANGE", "Files", "Rebinding", "refused_at"]

NO_CHANGE = Change(0xFFFF)
"""What no update takes: there is no such slot id."""


class _Coming:
    """What slots that come bind of one file, by first page; no two meet. O(log n), but O(n) to put and remove."""

    def __init__(self, bound: Iterable[Bound] = ()) -> None:
        self._bound = list(bound)

    def __iter__(self) -> Iterator[Bound]:
        return iter(self._bound)

    def copy(self) -> _Coming:
        """Another that can be changed."""
        return _Coming(self._bound)

    def meeting(self, first: int, end: int) -> list[Bound]:
        """Those that have a page of [first, end)."""
        at = bisect_left(self._bound, first, key=_end_of)
        found = []
        while at < len(self._bound) and self._bound[at].first < end:
            if self._bound[at].end > first:
                found.append(self._bound[at])
            at += 1
        return found

    def put(self, slot: Slot, first: int) -> None:
        """A slot comes."""
        insort(self._bound, Bound(slot, first), key=_end_of)

    def remove(self, slot: Slot) -> bool:
        """A slot goes again; False if it had not come."""
        first = slot.guest_memfd_offset >> PAGE_SHIFT
        for bound in self.meeting(first, first + 1):
            if bound.slot == slot:
                self._bound.remove(bound)
                return True
        return False

    def overlapping(self, first: int, end: int) -> Iterator[tuple[Slot, int, int]]:
        """As ``Bindings.overlapping``."""
        for slot, page in self.meeting(first, end):
            start, stop = max(first, page), min(end, page + slot.npages)
            yield slot, slot.base_gfn + start - page, slot.base_gfn + stop - page


def _end_of(bound: Bound) -> int:
    return bound.end


class Rebinding:
    """What changes do to bindings: worked out before, made good when the slots are published."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.incoming: dict[int, _Coming] = {}
        """By file, what slots that come bind."""
        self.gone: dict[int, set[tuple[int, int]]] = {}
        """By file, the keys of slots that lose what they have bound."""
        self._now: dict[SlotKey, Slot | None] = {}
        self.published = False

    def __bool__(self) -> bool:
        return bool(self.incoming or self.gone)

    def copy(self) -> Rebinding:
        """Another that can go on from here, and be thrown away."""
        made = Rebinding(self._files)
        made._now = dict(self._now)
        made.gone = {number: set(keys) for number, keys in self.gone.items()}
        made.incoming = {number: coming.copy() for number, coming in self.incoming.items()}
        return made

    def add(self, change: Change) -> None:
        """One more change, in order; MemslotError as KVM refuses a bind (step 19), and then it is not added.

        Changes that are refused for other reasons are left to who checks those.
        """
        key = change.key
        was = self._now[key] if key in self._now else self._files.memslots.by_id(change.slot, change.as_id)
        if not change.deletes and (was is not None or not change.flags & KVM_MEM_GUEST_MEMFD):
            if was is None or not was.guest_memfd:
                self._now[key] = change.as_slot()
            return
        if change.deletes:
            self._now[key] = None
            if was is not None and was.guest_memfd:
                self._leave(was)
            return
        self._bind(change)
        self._now[key] = change.as_slot()

    def _leave(self, was: Slot) -> None:
        coming = self.incoming.get(was.guest_memfd)
        if coming is None or not coming.remove(was):
            self.gone.setdefault(was.guest_memfd, set()).add((was.as_id, was.id))

    def _bind(self, change: Change) -> None:
        file = self._files.get(change.guest_memfd)
        if file is None or file.closed:
            raise MemslotError(errno.EBADF, f"slot {change.slot}: guest_memfd {change.guest_memfd} is not open")
        first = change.guest_memfd_offset >> PAGE_SHIFT
        try:
            check_bind(file.size, change.guest_memfd_offset, change.memory_size)
        except GuestMemfdError as error:
            why = str(error).partition(": ")[2]
            raise MemslotError(error.errno or errno.EINVAL, f"slot {change.slot}: {why}") from None
        coming = self.incoming.get(file.number)
        other = file.bindings.other(first, first + change.npages, self.gone.get(file.number, ()))
        if other is None and coming is not None:
            other = next(iter(coming.meeting(first, first + change.npages)), None)
        if other is not None:
            raise MemslotError(
                file.overlap_errno,
                f"slot {change.slot}: guest_memfd offset {change.guest_memfd_offset:#x} with size "
                f"{change.memory_size:#x} is bound to slot {other.slot.id} already",
            )
        try:
            file.bindings.promise()
        except RangeNodesError as error:
            why = str(error).partition(": ")[2]
            raise MemslotError(errno.ENOMEM, f"slot {change.slot}: guest_memfd {file.number}: {why}") from None
        if coming is None:
            coming = self.incoming[file.number] = _Coming()
        coming.put(change.as_slot(), first)

    def publish(self) -> None:
        """The slots are about to be published: their files are invalidated for both sides from now on."""
        self.published = True
        for number, coming in self.incoming.items():
            file = self._files.by_number[number]
            with file.inode.changing():
                file.incoming = coming

    def abandon(self) -> None:
        """The slots stay as they were."""
        self.published = False
        for number in self.incoming:
            self._files.by_number[number].incoming = None
        self.incoming, self.gone = {}, {}

    def end(self) -> None:
        """Nobody reads the old slots any more, or nothing was published.

        There is no way back from here: where memory fails, all of it is done once more, which harms nothing.
        """
        if not self.published:
            return
        try:
            self._follow()
        except MemoryError:
            self._follow()
        self.published = False
        self.incoming, self.gone = {}, {}

    def _follow(self) -> None:
        for number in {*self.incoming, *self.gone}:
            self._files.by_number[number].rebind(self.gone.get(number, ()), self.incoming.get(number, ()))


class Files:
    """The files by number; ``len`` 0 until the first: then nothing here costs anything."""

    def __init__(self, memslots: Memslots, stage2: Stage2) -> None:
        self.memslots, self._stage2 = memslots, stage2
        self.by_number: dict[int, GuestMemfd] = {}
        self._words: dict[int, tuple[Words, Words, Words, Words]] = {}
        self._numbers = itertools.count(1)
        self.zaps = True
        """False: conversions leave the guest's mappings alone, which is wrong, and has to be caught."""

    def __len__(self) -> int:
        return len(self.by_number)

    def get(self, number: int) -> GuestMemfd | None:
        """The file of this number."""
        return self.by_number.get(number)

    def add(self, file: GuestMemfd, number: int = 0) -> int:
        """Let slots name ``file``; returns its number, what ``Change.guest_memfd`` says.

        From now on the file's invalidations reach this VM's vCPUs. Before vCPUs work on slots that have it.
        """
        stage2 = self._stage2
        number = number or next(each for each in self._numbers if each not in self.by_number)
        if number in self.by_number:
            raise UsageError(f"guest_memfd: number {number} is another file's")
        if not stage2.private_gfn:
            stage2.private_gfn = int(stage2.tables[0].shape[int(table_at.IPA_END)]) >> PAGE_SHIFT + 1
        mine = words(at.FILE_WORDS)
        poke(mine, int(at.NUMBER), number)
        poke(mine, int(at.GMEM_ONLY), int(file.gmem_only))
        poke(mine, int(at.BY_VM), int(file.attributes is not None))
        attributes = file.inode.states if file.attributes is None else file.attributes.ranges
        self._words[number] = mine, file.inode.words, file.inode.states.words, attributes.words
        self.by_number[number] = file
        file.number, file.invalidate = number, self._invalidation
        file.closes.append(lambda: poke(mine, int(at.CLOSED), 1))
        return number

    def words(self, number: int) -> tuple[Words, Words, Words, Words]:
        """What a vCPU's compiled loop needs of a file; of one that is none, a closed one of that number."""
        found = self._words.get(number)
        if found is None:
            mine = words(at.FILE_WORDS)
            poke(mine, int(at.NUMBER), number)
            poke(mine, int(at.CLOSED), 1)
            found = self._words[number] = mine, words(inode_words(0)), mine, mine
        return found

    def check_targets(self, targets: Iterable[Target]) -> None:
        """UsageError for an address that is no guest address where accesses have a kind."""
        limit = self._stage2.private_gfn << PAGE_SHIFT
        if limit:
            for target in targets:
                if target.gpa >= limit:
                    raise UsageError(f"load: gpa {target.gpa:#x} is not below {limit:#x}, where private accesses go")

    @contextmanager
    def _invalidation(self, slot: Slot, start: int, end: int, kinds: str) -> Iterator[None]:
        """Zap leaves of ``kinds``; one that a vCPU is about to make is not made: see ``gmem_slot``."""
        ranges = [(start, end)] if kinds != "private" else []
        if kinds != "shared":
            ranges += self._stage2.private([(start, end)])
        if self.zaps:
            self._stage2.zap_kind(slot.as_id, ranges)
        yield

    @contextmanager
    def vm_invalidation(self, start: int, end: int) -> Iterator[None]:
        """Attributes of the VM's frames [start, end) change: with the lock of every file under which a fault may look.

        A slot of a closed file is looked at under that file's lock, too. Several files may be on one inode, and an
        inode in several VMs: each is locked once, in one order for all VMs. Under ``slots_lock``, so that no slot with
        another file comes meanwhile.
        """
        files = [file for file in self.by_number.values() if file.attributes is not None]
        inodes = {id(file.inode): file.inode for file in files}
        with ExitStack() as locked:
            for each in sorted(inodes):
                locked.enter_context(inodes[each].changing())
            for as_id in range(self.memslots.address_spaces):
                with self._invalidation(Slot(as_id, 0, 0, 1, 0), start, end, "both"):
                    pass
            yield

    # -- changes of slots --------------------------------------------------------------------------------------------

    def concerns(self, change: Change) -> bool:
        """Whether a change is of a slot that has, or will have, a file."""
        if change.flags & KVM_MEM_GUEST_MEMFD and not change.deletes:
            return True
        was = self.memslots.by_id(change.slot, change.as_id) if self.by_number else None
        return was is not None and bool(was.guest_memfd)

    @contextmanager
    def changing(self, change: Change) -> Iterator[None]:
        """Around one change that is carried out as a whole; MemslotError where it cannot be bound."""
        if not self.concerns(change):
            yield
            return
        made = Rebinding(self)
        try:
            made.add(change)
        except MemslotError:
            for other in self.memslots.overlapping(change.base_gfn, change.base_gfn + change.npages, change.as_id):
                raise refusal_of(OVERLAPS, change, other) from None  # step 17, which comes before the bind
            raise
        made.publish()
        try:
            yield
        except BaseException:
            now = self.memslots.by_id(change.slot, change.as_id)
            if change.deletes == (now is None):  # Ctrl-C: it was published already
                made.end()
            else:
                made.abandon()
            raise
        made.end()

    def check(self) -> None:
        """Raise InvariantError unless slots and bindings agree, and files are sound. O(pages). While nobody changes."""
        bound = {
            (slot.as_id, slot.id): (slot.guest_memfd, slot.guest_memfd_offset >> PAGE_SHIFT, slot.npages)
            for slot in self.memslots
            if slot.guest_memfd and slot.guest_memfd in self.by_number and not self.by_number[slot.guest_memfd].closed
        }
        found = {}
        for number, file in self.by_number.items():
            if file.incoming is not None:
                raise InvariantError(f"guest_memfd {number}: an update is over, and its bindings are not")
            file.check()
            for slot, first in file.bindings:
                found[slot.as_id, slot.id] = number, first, slot.npages
                if self.memslots.by_id(slot.id, slot.as_id) != slot:
                    raise InvariantError(f"guest_memfd {number}: {slot!r} has bound a range, and is no slot")
        if found != bound:
            raise InvariantError(f"guest_memfd: slots say {bound}, files {found}")

    def close(self) -> None:
        """Close what is open."""
        for file in self.by_number.values():
            if not file.closed:
                file.inode.unmapped_if_unused()
                file.close()


def refused_at(entry: int, error: MemslotError) -> BatchError:
    """The error of a batch whose entry cannot be bound."""
    return BatchError(error.errno or errno.EINVAL, str(error).partition(": ")[2], entry=entry)
