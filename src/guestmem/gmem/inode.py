"""A guest_memfd's inode: the memory, the state and folio of each page; files on it are one VM's views of it.

The state is the inode's, so it is the same in all files, and outlives slots, holes and closes. Source: Linux
``virt/kvm/guest_memfd.c``.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..atomics import load_relaxed, peek, poke
from ..compiled import U64, Words, compiled, const, own, u64, words
from ..errors import GuestMemfdError, InvariantError
from ..ranges import RangeMap
from ..units import PAGE_SIZE
from . import layout as at
from .backing import Backing, HostWindow
from .folio import (
    folio_create,
    folio_head,
    folio_poison,
    folio_put,
    folios_drop,
    folios_fill,
    folios_join,
    folios_poisoned,
    folios_present,
    folios_split,
    page_word,
    unmap_host,
)
from .invalidate_lock import write_lock, write_unlock
from .states import States, room_for

if TYPE_CHECKING:
    from .file import GuestMemfd
    from .pin import Pin

__all__ = ["Inode"]

_CHUNK = 512  # pages that fallocate commits at a time
_REFS, _NONE, _ONE = int(at.REFS), int(at.NONE), const(1)


@compiled
def _sum_of_entries(inode: Words, npages: U64) -> U64:
    """Pages that the host has mapped, counted."""
    mapped = u64(0)
    index = u64(0)
    while index < npages:
        mapped += load_relaxed(inode, page_word(index) + at.PTE)
        index += _ONE
    return mapped


class Inode:
    """``size`` bytes of memory whose pages have states of one generation.

    ``order``: of the largest folios (0, 9: 2 MiB, 18: 1 GiB); ``joins``: whether pages are joined to them again.
    ``capacity``: ranges of states that there is room for in any case.
    """

    def __init__(
        self, size: int, flags: int, states: States, *, order: int = 0, joins: bool = True, capacity: int = 1 << 16
    ) -> None:
        self.backing = Backing(size)
        self.size, self.flags, self.generation = size, flags, states
        self.npages, self.order, self.joins = size // PAGE_SIZE, order, joins
        self.words = words(at.inode_words(self.npages))
        self.found = own(3)
        self.states = RangeMap(capacity=max(16, min(capacity, self.npages)))
        self.initial = states.initial(flags)
        if self.initial:
            self.states[0 : self.npages] = self.initial
        for place, value in (
            (at.NPAGES, self.npages),
            (at.HOST_BARS, states.HOST_BARS),
            (at.GUEST_BARS, states.GUEST_BARS),
            (at.PRIVATE, states.PRIVATE),
            (at.ADDRESS, self.backing.address),
            (at.HOSTS, at.HOSTS_MAX),
            (at.HOST_TLB, 1),
        ):
            poke(self.words, int(place), value)
        self.files: list[GuestMemfd] = []
        self.pins: set[Pin] = set()
        self.on_shared: Callable[[int, int], None] | None = None
        """What the platform does to the bytes of pages that are about to be shared; nothing: they stay."""
        self.python_host = threading.Lock()
        """Python's threads share one place among those who access the mapping."""
        self.mappings = 0
        """Mappings of the host that are open."""
        self.windows: list[HostWindow] = []
        self.nodes = RangeMap(capacity=max(16, min(capacity, self.npages)))
        """1 + the NUMA node of each page that has one."""
        self.policies = RangeMap(capacity=max(16, min(capacity, self.npages)))
        self.policy_of: list[tuple[str, tuple[int, ...]]] = []

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The invalidate lock, for writing."""
        write_lock(self.words)
        try:
            yield
        finally:
            write_unlock(self.words)

    # -- what generations need ---------------------------------------------------------------------------------------

    @contextmanager
    def invalidation(self, first: int, last: int, kinds: str) -> Iterator[None]:
        """The guests' mappings of pages [first, last] go, in every file; new ones are made only afterwards.

        Huge folios that reach out of the range go as a whole, since they may be split.
        """
        if self.order:
            mask = (1 << self.order) - 1
            first, last = first & ~mask, min(last | mask, self.npages - 1)
        with ExitStack() as stack:
            for file in self.files:
                for slot, start, end in file.bound(first, last + 1):
                    stack.enter_context(file.invalidate(slot, start, end, kinds))
            yield

    def window_barred(self, first: int, last: int) -> None:
        """Raw accesses of the host to pages [first, last] end in SIGBUS from now on."""
        for window in self.windows:
            window.bar(first * PAGE_SIZE, (last + 1) * PAGE_SIZE)

    def window_follows(self, first: int, last: int, windows: list[HostWindow] | None = None) -> None:
        """Raw accesses of the host to pages [first, last] are allowed where states allow them."""
        for window in self.windows if windows is None else windows:
            page = first
            while page <= last:
                _, end, state = self.states.find(page)
                end = min(end, last + 1)
                change = window.bar if state & self.generation.HOST_BARS else window.allow
                change(page * PAGE_SIZE, end * PAGE_SIZE)
                page = end
            for page in self.poisoned(first, last):
                window.bar(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)

    def prepare_shared(self, first: int, last: int) -> None:
        """Split huge folios that pages [first, last] touch, and call ``on_shared``: nobody has them mapped now."""
        if self.order:
            folios_split(self.words, first, last)
        if self.on_shared is not None:
            self.on_shared(first, last)

    def regroup(self, first: int, last: int) -> None:
        """Join pages to huge folios where a block around [first, last] has no shared page any more."""
        if not self.order or not self.joins:
            return
        pages = 1 << self.order
        block, end = first & ~(pages - 1), last | (pages - 1)
        while block <= end and block + pages <= self.npages:
            if self._barred_throughout(block, pages):
                folios_join(self.words, block, block + pages - 1, self.order)
            block += pages

    def _barred_throughout(self, block: int, pages: int) -> bool:
        _, until, state = self.states.find(block)
        bars = self.generation.HOST_BARS
        return bool(state & bars) and not state & self.generation.GUEST_BARS and until >= block + pages

    # -- memory ------------------------------------------------------------------------------------------------------

    def commit(self, page: int) -> None:
        """Let page ``page`` be there, as part of a huge folio if its block is all private and empty.

        GuestMemfdError (ENOMEM) if there is no memory; nothing has changed then.
        """
        with self.changing():
            if int(folios_present(self.words, page, page)):
                return
            pages = 1 << self.order
            block = page & ~(pages - 1)
            huge = (
                self.order
                and block + pages <= self.npages
                and self._barred_throughout(block, pages)
                and not int(folios_present(self.words, block, block + pages - 1))
            )
            first, order = (block, self.order) if huge else (page, 0)
            self.backing.allocate(first * PAGE_SIZE, PAGE_SIZE << order)
            self._place(first, 1 << order)
            folio_create(self.words, first, order)

    def allocate(self, first: int, last: int) -> None:
        """Commit pages [first, last], in order; what was committed before memory ran out stays, as in the kernel."""
        if self.order:
            page = first
            while page <= last:
                self.commit(page)
                head = int(folio_head(self.words, page))
                page = head + (1 << self.folio_order(head))
            return
        for start in range(first, last + 1, _CHUNK):
            count = min(_CHUNK, last + 1 - start)
            write_lock(self.words)
            try:
                self._commit_chunk(start, count)
            finally:
                write_unlock(self.words)

    def _commit_chunk(self, start: int, count: int) -> None:
        try:
            self.backing.allocate(start * PAGE_SIZE, count * PAGE_SIZE)
        except GuestMemfdError:
            if count == 1:
                raise
            for page in range(start, start + count):
                self._commit_chunk(page, 1)
            return
        self._place(start, count)
        folios_fill(self.words, start, start + count - 1)

    def _place(self, first: int, count: int) -> None:
        """Write down on which NUMA nodes pages come to lie, where there is a policy; new pages only."""
        for start, end, policy in list(self.policies.overlapping(first, first + count)):
            mode, nodes = self.policy_of[policy - 1]
            for page in range(start, end):
                if not int(folios_present(self.words, page, page)):
                    self.nodes[page] = 1 + nodes[page % len(nodes) if mode == "interleave" else 0]

    def punch(self, first: int, last: int) -> None:
        """Give the memory of pages [first, last] back; what was pinned there is its pin's alone from now on."""
        with self.changing(), room_for(self, first), self.invalidation(first, last, "both"):
            self.window_barred(first, last)
            unmap_host(self.words, first, last)
            for pin in [pin for pin in self.pins if pin.first <= last and pin.last >= first]:
                pin.leave(first, last)
            self._drop(first, last)
            self.backing.punch(first * PAGE_SIZE, (last + 1 - first) * PAGE_SIZE)
            if self.nodes:
                self.nodes.erase(first, last + 1)
            self.generation.punched(self, first, last)
            self.window_follows(first, last)

    def _drop(self, first: int, last: int) -> None:
        for edge in (first, last):  # a huge folio that reaches out of the hole is split
            head = int(folio_head(self.words, edge))
            order = self.folio_order(head)
            if order and not first <= head <= head + (1 << order) - 1 <= last:
                folios_split(self.words, edge, edge)
        folios_drop(self.words, first, last)

    # -- looking -----------------------------------------------------------------------------------------------------

    def folio(self, page: int) -> int:
        """The word of page ``page``."""
        return int(peek(self.words, int(at.PAGES) + 2 * page))

    def folio_order(self, head: int) -> int:
        """The order of the folio that begins at page ``head``."""
        return self.folio(head) >> at.ORDER_SHIFT & int(at.ORDER_MASK)

    def references(self, page: int) -> int:
        """References from outside to the folio of page ``page``."""
        return self.folio(int(folio_head(self.words, page))) & _REFS

    def count(self, name: str) -> int:
        """A counter, by its name in lower case: splits, joins, conversions, refusals, host_faults, guest_faults."""
        places = [field.offset for field in at.INODE.fields if field.counter]
        return int(peek(self.words, dict(zip(at.INODE.counter_names, places, strict=True))[name]))

    def mapped_pages(self) -> int:
        """Pages that the host has mapped. O(1)."""
        return int(peek(self.words, int(at.MAPPED)))

    def poison(self, page: int) -> None:
        """Memory failure: nobody may have the folio of ``page`` any more, and it stays in the file (MF_DELAYED)."""
        with self.changing():
            head = int(folio_head(self.words, page))
            if not self.folio(head) & int(at.PRESENT):
                raise GuestMemfdError(errno.ENOENT, f"guest_memfd: page {page} has no memory that could fail")
            last = head + (1 << self.folio_order(head)) - 1
            with self.invalidation(head, last, "both"):
                unmap_host(self.words, head, last)
                folio_poison(self.words, head)
                self.window_follows(head, last)

    def poisoned(self, first: int, last: int) -> list[int]:
        """Pages of [first, last] whose folio is poisoned."""
        page, found = int(folios_poisoned(self.words, first, last)), []
        while page != _NONE:
            found.append(page)
            page = int(folios_poisoned(self.words, page + 1, last)) if page < last else _NONE
        return found

    def put(self, page: int) -> None:
        """Drop a reference; the generation hears of the last one, if it wants to."""
        if folio_put(self.words, int(folio_head(self.words, page))):
            self.generation.last_put(self, page)

    def unmapped_if_unused(self) -> None:
        """The host unmapped something: with the last mapping go its page tables, and the references they hold."""
        if not self.mappings:
            write_lock(self.words)
            try:
                unmap_host(self.words, 0, self.npages - 1)
            finally:
                write_unlock(self.words)
        self.closed_if_unused()

    def closed_if_unused(self) -> None:
        """Give the memory back once no file, no mapping of the host and no pin is left."""
        if not self.files and not self.pins and not self.mappings:
            self.backing.close()

    def check(self) -> None:
        """Raise InvariantError unless folios, mappings, states and pins agree. O(pages). While nothing else runs."""
        self.states.check()
        if int(peek(self.words, 0)):
            raise InvariantError("guest_memfd: the invalidate lock is held")
        for _, end, state in self.states:
            if end > self.npages or state not in self.generation.NAMES:
                raise InvariantError(f"guest_memfd: state {state:#x} up to page {end} is none of {self.npages} pages")
        mapped = int(_sum_of_entries(self.words, self.npages))
        if mapped != self.mapped_pages():
            raise InvariantError(f"guest_memfd: {mapped} pages are mapped, {self.mapped_pages()} were counted")
        held = dict[int, int]()
        for pin in self.pins:
            for page in pin.held:
                head = int(folio_head(self.words, page))
                held[head] = held.get(head, 0) + 1
        page = 0
        while page < self.npages:
            page = self._check_folio(page, held)

    def _check_folio(self, head: int, held: dict[int, int]) -> int:
        """Check the folio that begins at ``head``; returns where the next one begins."""
        word, order = self.folio(head), self.folio_order(head)
        pages = range(head, head + (1 << order))
        if word & int(at.TAIL) or pages.stop > self.npages or head % (1 << order):
            raise InvariantError(f"guest_memfd: page {head} begins no folio of order {order}")
        if order:
            wrong = [page for page in pages[1:] if self.folio(page) != int(at.PRESENT | at.TAIL) | order << 40]
            if wrong:
                raise InvariantError(f"guest_memfd: page {wrong[0]} is no tail of the folio at {head}")
            shared = [page for page in pages if not self.states.get(page) & self.generation.HOST_BARS]
            if shared:
                raise InvariantError(f"guest_memfd: page {shared[0]} of the huge folio at {head} is shared")
        mapped = sum(int(peek(self.words, int(at.PAGES) + 2 * page + 1)) for page in pages)
        references = word & _REFS
        if references != mapped + held.get(head, 0):
            raise InvariantError(
                f"guest_memfd: page {head} has {references} references, of {mapped} mappings "
                f"and {held.get(head, 0)} pins"
            )
        if mapped and self.states.get(head) & self.generation.HOST_BARS:
            raise InvariantError(f"guest_memfd: page {head} is mapped by the host, which its state bars")
        return pages.stop
