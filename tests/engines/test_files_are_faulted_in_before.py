"""KVM_PRE_FAULT_MEMORY of slots with a guest_memfd: each page is mapped as it is, private or shared, and committed."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from guestmem import CapabilityError, MemslotError
from guestmem.abi.versions import LINUX_6_18, LINUX_7_4
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.pre_fault import PreFault, pre_fault_memory
from guestmem.gmem import GuestMemfd, VmMemoryAttributes
from guestmem.memslots import Change
from guestmem.memslots.slot import KVM_MEM_GUEST_MEMFD

PAGE, HVA, AT = 0x1000, 0x7F0000000000, 0x100
PAGES = 16


class Guest:
    """One file of 16 pages at frame 0x100, and 4 ordinary frames behind it."""

    def __init__(self, flags: int = 3, *, offset: int = 0, **options: object) -> None:
        self.engine = SoftEngine(2)
        self.file = GuestMemfd((PAGES + offset) * PAGE, flags, **options)  # type: ignore[arg-type]
        self.number = self.engine.files.add(self.file)
        self.engine.set_memory_region(Change(1, AT, PAGES, HVA, KVM_MEM_GUEST_MEMFD, 0, self.number, offset * PAGE))
        self.engine.set_memory_region(Change(2, AT + PAGES, 4, HVA + (1 << 24)))

    def ask(self, page: int, pages: int, **options: object) -> PreFault:
        return pre_fault_memory(self.engine, 1, (AT + page) * PAGE, pages * PAGE, **options)  # type: ignore[arg-type]

    def leaves(self, *, private: bool) -> dict[int, int]:
        """By page, the host address that its leaf has."""
        assert self.engine.stage2 is not None
        table, bit = self.engine.stage2.tables[0], self.engine.stage2.private_gfn * PAGE if private else 0
        found = {page: table.lookup((AT + page) * PAGE | bit) for page in range(PAGES + 4)}
        return {page: leaf.address for page, leaf in found.items() if leaf is not None}

    def address(self, page: int) -> int:
        return self.file.inode.backing.address + page * PAGE


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(MemslotError) as caught:
        call()
    return caught.value.errno


def test_each_page_is_mapped_as_it_is() -> None:
    guest = Guest(offset=3)
    guest.file.convert(5 * PAGE, 4 * PAGE, private=True)  # pages 2 to 5 of the slot
    assert not any(guest.file.inode.folio(page) for page in range(PAGES + 3))
    assert guest.ask(0, 8) == PreFault((AT + 8) * PAGE, 0)
    assert guest.leaves(private=False) == {page: guest.address(page + 3) for page in (0, 1, 6, 7)}
    assert guest.leaves(private=True) == {page: guest.address(page + 3) for page in (2, 3, 4, 5)}
    assert [page for page in range(PAGES + 3) if guest.file.inode.folio(page)] == list(range(3, 11)), "committed"
    before = [guest.leaves(private=kind) for kind in (False, True)]
    assert guest.ask(0, 8) == PreFault((AT + 8) * PAGE, 0), "again is fine"
    assert [guest.leaves(private=kind) for kind in (False, True)] == before
    guest.engine.files.check()


def test_a_conversion_takes_away_what_was_faulted_in() -> None:
    guest = Guest()
    guest.ask(0, 4)
    guest.file.convert(PAGE, PAGE, private=True)
    assert sorted(guest.leaves(private=False)) == [0, 2, 3]
    guest.ask(0, 4)
    assert (sorted(guest.leaves(private=False)), sorted(guest.leaves(private=True))) == ([0, 2, 3], [1])


def test_over_the_end_of_the_file_into_ordinary_memory() -> None:
    guest = Guest()
    assert guest.ask(14, 8) == PreFault((AT + 20) * PAGE, 2 * PAGE)
    assert sorted(guest.leaves(private=False)) == [14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("flags", [1, 0])
def test_attributes_of_the_vm(flags: int) -> None:
    """Private frames from the file; shared ones from it too if it has MMAP, else from userspace_addr."""
    attributes = VmMemoryAttributes()
    guest = Guest(flags, states="vm-attributes", attributes=attributes)
    attributes._invalidate = guest.engine.files.vm_invalidation
    attributes.set((AT + 2) * PAGE, 2 * PAGE, 8)
    guest.ask(0, 6)
    assert guest.leaves(private=True) == {page: guest.address(page) for page in (2, 3)}
    shared = {page: guest.address(page) if flags else HVA + page * PAGE for page in (0, 1, 4, 5)}
    assert guest.leaves(private=False) == shared


def test_huge_folios_are_one_leaf_where_memory_is_aligned() -> None:
    engine, huge = SoftEngine(1), 2 << 20
    file = GuestMemfd(2 * huge, 1, folio_size=huge)
    number = engine.files.add(file)
    engine.set_memory_region(Change(1, 0x200, 1024, HVA, KVM_MEM_GUEST_MEMFD, 0, number))
    file.fallocate(1, 0, huge)
    pre_fault_memory(engine, 0, 0x200 * PAGE + 7 * PAGE, PAGE)
    assert engine.stage2 is not None
    table, private = engine.stage2.tables[0], engine.stage2.private_gfn * PAGE
    leaves = [table.lookup(private | (0x200 + page) * PAGE) for page in (0, 7, 511)]
    if file.inode.backing.address % huge:  # where the system put it: a leaf has to be aligned in both
        assert [leaf is not None for leaf in leaves] == [False, True, False]
    else:
        assert len({leaf and leaf.descriptor for leaf in leaves}) == 1
        assert leaves[0] is not None
    assert table.lookup(private | 0x400 * PAGE) is None


def test_poison_by_kernel() -> None:
    guest = Guest()
    guest.ask(0, 4)
    guest.file.poison(2)
    assert guest.ask(0, 4, version=LINUX_7_4) == PreFault((AT + 2) * PAGE, 2 * PAGE)
    assert errno_of(lambda: guest.ask(2, 1, version=LINUX_7_4)) == 133
    with pytest.raises(CapabilityError, match=r"Linux 6\.18 answers for poisoned memory was not read"):
        guest.ask(2, 1, version=LINUX_6_18)


@pytest.mark.parametrize("private", [False, True])
def test_a_file_that_is_closed(private: bool) -> None:
    guest = Guest(1 if private else 3)
    guest.file.close()
    assert errno_of(lambda: guest.ask(0, 2)) == errno.EFAULT
    assert guest.leaves(private=private) == {}
    assert guest.ask(PAGES, 2) == PreFault((AT + PAGES + 2) * PAGE, 0), "what is beside it is not concerned"


def test_a_page_that_nobody_may_have() -> None:
    """Mappability: a page that the guest took back while it was pinned is in state none."""
    guest = Guest(states="mappability")
    with guest.file.pin(PAGE, PAGE):
        guest.file.mappability().unshare(guest.file.inode, 1, 1)
        assert guest.file.state(1) == "none"
        assert guest.ask(0, 2) == PreFault((AT + 1) * PAGE, PAGE)
        assert errno_of(lambda: guest.ask(1, 1)) == errno.EFAULT


def test_a_page_that_is_converted_while_it_is_faulted_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind that was asked for is not the page's any more: it is asked again."""
    from guestmem.engines.soft import pre_fault

    guest, real, asked = Guest(), pre_fault._is_private, list[int]()

    def stale(engine: SoftEngine, gpa: int) -> bool:
        asked.append(gpa)
        if len(asked) == 1:
            was = real(engine, gpa)
            guest.file.convert(0, PAGE, private=True)
            return was
        return real(engine, gpa)

    monkeypatch.setattr(pre_fault, "_is_private", stale)
    assert guest.ask(0, 1).size == 0
    assert (list(guest.leaves(private=False)), list(guest.leaves(private=True))) == ([], [0])
    assert len(asked) >= 2


def test_nobody_is_left_inside_a_section() -> None:
    guest = Guest()
    guest.ask(0, 4)
    guest.engine.set_memory_region(Change(1))
    assert not guest.engine.srcu.inside()
    assert errno_of(lambda: guest.ask(0, 1)) == errno.ENOENT
    assert int(guest.engine.vcpu_words(1)[0].own[int(at.FILE)]) == guest.number
