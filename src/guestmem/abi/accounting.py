"""How many pages a VM's slots have in all, kept by adding and subtracting, and the number of MMU pages that gives.

The total is one machine word over all slots and address spaces; only a CREATE that would wrap it is refused. KVM keeps
it since 5.17, when walking all slots at each change had become too slow. Source: ``kvm_set_memory_region()`` and
``kvm_arch_commit_memory_region()``, Linux 6.18; before it, ``kvm_mmu_calculate_default_mmu_pages()``.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Sequence

from ..errors import BatchError, InvariantError, MemslotError, UsageError
from ..memslots.changes import Change
from ..memslots.no_memory import no_memory_for
from ..memslots.slot import SlotKey

__all__ = ["MIN_ALLOC_MMU_PAGES", "MmuPagesForm", "PageAccounting", "default_mmu_pages"]

MIN_ALLOC_MMU_PAGES = 64
"""KVM_MIN_ALLOC_MMU_PAGES: the floor of every form, and the least that user space may set."""
_PERMILLE = 20
_RATIO = 50
_WORDS = (32, 64)


class MmuPagesForm(enum.Enum):
    """How kernels computed the default number of shadow MMU pages, oldest first.

    All are 2 % of the pages, rounded down. The trap is integer division: 20 / 1000 taken first is 0, so the product
    must come first, and then it may not fit the word.
    """

    PERMILLE = "pages * 20 / 1000"
    """One machine word: the product wraps from 2**word / 20 pages on."""
    DO_DIV = "do_div((u64)pages * 20, 1000)"
    """64 bits whatever the word is: right for a 32-bit total, wraps for a 64-bit one."""
    RATIO = "pages / 50"
    """Since 5.17: nothing can wrap."""


def default_mmu_pages(pages: int, form: MmuPagesForm = MmuPagesForm.RATIO, word_bits: int = 64) -> int:
    """The default number of MMU pages for a total of ``pages``, at least 64. O(1).

    >>> default_mmu_pages(1_000_000), default_mmu_pages(0)
    (20000, 64)
    >>> default_mmu_pages(2**32 // 20 + 1, MmuPagesForm.PERMILLE, word_bits=32)
    64
    """
    if not 0 <= pages < 1 << word_bits:
        raise UsageError(f"pages: {pages} is not in 0..{(1 << word_bits) - 1:#x}")
    match form:
        case MmuPagesForm.PERMILLE:
            share = (pages * _PERMILLE) % (1 << word_bits) // 1000
        case MmuPagesForm.DO_DIV:
            share = (pages * _PERMILLE) % (1 << 64) // 1000
        case MmuPagesForm.RATIO:
            share = pages // _RATIO
    return max(share, MIN_ALLOC_MMU_PAGES)


class PageAccounting:
    """The total number of pages of a VM, in a word of ``word_bits``, and its number of MMU pages.

    ``mmu_pages`` follows the total on create and delete, until user space has set a number; a move or a change of flags
    does not touch it. Before the first create it is 0, as in a VM just made.

    >>> total = PageAccounting()
    >>> total.create(1 << 20), total.pages, total.mmu_pages
    (None, 1048576, 20971)
    >>> total.set_mmu_pages(100), total.delete(1 << 20), total.mmu_pages
    (None, None, 100)
    """

    __slots__ = ("_quick", "form", "largest", "mmu_pages", "pages", "requested_mmu_pages", "word_bits")

    def __init__(self, word_bits: int = 64, form: MmuPagesForm = MmuPagesForm.RATIO) -> None:
        if word_bits not in _WORDS:
            raise UsageError(f"word_bits: {word_bits} is not 32 or 64")
        self.word_bits, self.form = word_bits, form
        self.largest = (1 << word_bits) - 1
        """Largest total that the word holds."""
        self._quick = form is MmuPagesForm.RATIO
        self.pages = 0
        """nr_memslot_pages."""
        self.mmu_pages = 0
        """n_max_mmu_pages."""
        self.requested_mmu_pages = 0
        """n_requested_mmu_pages: what user space set, 0 while it has not."""

    def can_create(self, npages: int) -> bool:
        """Whether a CREATE of ``npages`` would not wrap the word."""
        return self.pages + npages <= self.largest

    def create(self, npages: int) -> None:
        """A slot of ``npages`` came; EINVAL if the total would wrap, and nothing has changed."""
        if self.pages + npages > self.largest:
            raise self._wraps(self.pages, npages)
        self._become(self.pages + npages)

    def delete(self, npages: int) -> None:
        """A slot of ``npages`` went; EIO if there are not that many, which only a defect can bring about."""
        if npages > self.pages:
            raise self._underflows(npages)
        self._become(self.pages - npages)

    def change(self, went: int, came: int) -> None:
        """Slots of ``went`` pages went and of ``came`` pages came, in one update; as ``delete``, then ``create``."""
        left = self.pages - went
        if left < 0:
            raise self._underflows(went)
        if left + came > self.largest:
            raise self._wraps(left, came)
        self._become(left + came)

    def _wraps(self, there: int, npages: int) -> MemslotError:
        return MemslotError(
            errno.EINVAL, f"npages: {npages:#x} and the {there:#x} there are wrap a word of {self.word_bits} bits"
        )

    def _underflows(self, npages: int) -> MemslotError:
        return MemslotError(errno.EIO, f"npages: {npages:#x} are more than the {self.pages:#x} there are")

    def foresee(self, changes: Sequence[Change], there: Callable[[SlotKey], int]) -> None:
        """Raise BatchError for the first of ``changes``, carried out in order, that would wrap the word, or underflow.

        ``there``: pages of the slot that has a key now, 0 without one. Nothing changes here, and
        what else may be wrong with a change is not looked at. O(changes).
        """
        pages = self.pages
        now: dict[SlotKey, int] = {}
        for entry, change in enumerate(changes):
            try:
                key = change.key
                pages += change.npages - (now[key] if key in now else there(key))
                now[key] = change.npages
            except MemoryError:
                raise no_memory_for(changes, entry, "its pages to be counted") from None
            if not 0 <= pages <= self.largest:
                number, what = (errno.EIO, "underflow") if pages < 0 else (errno.EINVAL, "wrap")
                raise BatchError(
                    number,
                    f"slot {change.slot}: a total of {pages:#x} pages would {what} a word of {self.word_bits} bits",
                    entry=entry,
                )

    def set_mmu_pages(self, count: int) -> None:
        """KVM_SET_NR_MMU_PAGES: stays until set again; EINVAL below 64."""
        if count < MIN_ALLOC_MMU_PAGES:
            raise MemslotError(errno.EINVAL, f"mmu pages: {count} is less than {MIN_ALLOC_MMU_PAGES}")
        self.mmu_pages = self.requested_mmu_pages = count

    def _become(self, pages: int) -> None:
        self.pages = pages
        if self.requested_mmu_pages:
            return
        if self._quick:
            share = pages // _RATIO
            self.mmu_pages = share if share > MIN_ALLOC_MMU_PAGES else MIN_ALLOC_MMU_PAGES
        else:
            self.mmu_pages = default_mmu_pages(pages, self.form, self.word_bits)

    def check(self, npages: int) -> None:
        """Raise InvariantError unless the total is ``npages``: the sum over all slots that there are."""
        if self.pages != npages:
            raise InvariantError(f"accounting: the cached total is {self.pages:#x} pages, the slots have {npages:#x}")
