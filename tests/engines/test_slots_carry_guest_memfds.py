"""Slots with a guest_memfd change in every design: bound when they are, unbound when nobody reads them any more."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Iterator

import pytest

from guestmem.designs.registry import DESIGNS, find
from guestmem.engines.load import Access, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.errors import BatchError, MemslotError
from guestmem.gmem import GuestMemfd
from guestmem.memslots import Change
from guestmem.memslots.slot import KVM_MEM_GUEST_MEMFD

PAGE = 0x1000
HVA = 0x7F0000000000
SIZE = 64 * PAGE


class Guest:
    """An engine with two files, and changes of slots that have them."""

    def __init__(self, vcpus: int = 1, **options: object) -> None:
        self.engine = SoftEngine(vcpus, **options)  # type: ignore[arg-type]
        self.files = [GuestMemfd(SIZE, 1) for _ in range(2)]
        self.numbers = [self.engine.files.add(file) for file in self.files]

    def create(self, slot: int, gfn: int, npages: int, page: int = 0, file: int = 0) -> Change:
        hva = HVA + page * PAGE
        return Change(slot, gfn, npages, hva, KVM_MEM_GUEST_MEMFD, 0, self.numbers[file], page * PAGE)

    def apply(self, design: str, *changes: Change) -> None:
        find(design).prepare(self.engine)(self.engine, changes)
        self.check()

    def bound(self, file: int = 0) -> list[tuple[int, int, int, int]]:
        """Slot, first frame, pages, first page of the file: of all that have it."""
        return sorted((slot.id, slot.base_gfn, slot.npages, first) for slot, first in self.files[file].bindings)

    def check(self) -> None:
        self.engine.files.check()
        self.engine.memslots.check()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.engine.files.close()


designs = pytest.mark.parametrize("design", [each.name for each in DESIGNS])


@designs
def test_slots_are_created_moved_split_merged_and_bound_elsewhere(guest: Guest, design: str) -> None:
    guest.apply(design, guest.create(1, 0x100, 16))
    assert guest.bound() == [(1, 0x100, 16, 0)]
    guest.apply(design, Change(1), guest.create(1, 0x400, 16))
    assert guest.bound() == [(1, 0x400, 16, 0)], "moved"
    guest.apply(design, Change(1), guest.create(1, 0x400, 6), guest.create(2, 0x406, 10, page=6))
    assert guest.bound() == [(1, 0x400, 6, 0), (2, 0x406, 10, 6)], "split"
    guest.apply(design, Change(1), Change(2), guest.create(3, 0x400, 16))
    assert guest.bound() == [(3, 0x400, 16, 0)], "merged"
    guest.apply(design, Change(3), guest.create(3, 0x400, 16, page=32))
    assert guest.bound() == [(3, 0x400, 16, 32)], "another range of the file"
    guest.apply(design, Change(3), guest.create(3, 0x400, 16, file=1))
    assert guest.bound() == []
    assert guest.bound(1) == [(3, 0x400, 16, 0)], "another file"
    guest.apply(design, Change(3))
    assert guest.bound() == guest.bound(1) == []


@pytest.mark.parametrize("design", [each.name for each in DESIGNS if each.name not in {"primitives", "resize_notify"}])
@pytest.mark.parametrize(
    ("number", "why", "changes"),
    [
        (errno.EBADF, "guest_memfd 77 is not open", [Change(2, 0x200, 4, HVA, 4, 0, 77)]),
        (errno.EINVAL, "is not in a file of", [Change(2, 0x200, 65, HVA, 4, 0, 1)]),
        (errno.EINVAL, "is bound to slot 1 already", [Change(2, 0x200, 4, HVA, 4, 0, 1, 12 * PAGE)]),
        (errno.EEXIST, "overlaps Slot 1", [Change(2, 0x108, 16, HVA, 4, 0, 1, 8 * PAGE)]),
        (errno.EINVAL, "can only be deleted", [Change(1, 0x200, 16, HVA, 4, 0, 1)]),
        (errno.EINVAL, "flags 0x0 differs", [Change(1, 0x100, 16, HVA)]),
    ],
)
def test_what_cannot_be_bound_is_refused_and_nothing_is_changed(
    guest: Guest, design: str, number: int, why: str, changes: list[Change]
) -> None:
    guest.apply(design, guest.create(1, 0x100, 16))
    slots, bound = list(guest.engine.memslots), guest.bound()
    with pytest.raises(BatchError, match=why) as caught:
        guest.apply(design, guest.create(7, 0x800, 8, page=32), *changes)
    assert (caught.value.errno, caught.value.entry) == (number, 1)
    assert (list(guest.engine.memslots), guest.bound()) == (slots, bound)
    guest.check()


def test_a_range_that_an_entry_frees_can_be_bound_by_the_next_and_not_by_the_one_before(guest: Guest) -> None:
    guest.apply("atomic", guest.create(1, 0x100, 16))
    guest.apply("atomic", Change(1), guest.create(2, 0x300, 16))
    with pytest.raises(BatchError, match=r"entry 0: slot 1: .*bound to slot 2 already"):
        guest.apply("atomic", guest.create(1, 0x100, 16), Change(2))
    with pytest.raises(BatchError, match=r"entry 2: slot 4: .*bound to slot 3 already"):
        guest.apply("atomic", Change(2), guest.create(3, 0x300, 8), guest.create(4, 0x400, 8, page=7))
    assert guest.bound() == [(2, 0x300, 16, 0)]


def test_a_change_by_itself_is_bound_as_well(guest: Guest) -> None:
    guest.engine.set_memory_region(guest.create(1, 0x100, 16))
    with pytest.raises(MemslotError, match="is bound to slot 1 already"):
        guest.engine.set_memory_region(guest.create(2, 0x200, 16, page=8))
    with pytest.raises(MemslotError) as caught:
        guest.engine.set_memory_region(guest.create(2, 0x104, 16, page=8))
    assert caught.value.errno == errno.EEXIST, "overlap of frames is looked at before"
    guest.engine.set_memory_region(Change(1))
    guest.check()
    assert guest.bound() == []


def test_kept_memory_is_not_zapped_and_other_memory_is(guest: Guest) -> None:
    engine = guest.engine
    guest.apply("atomic", guest.create(1, 0x100, 16))
    in_flux = engine.counts.ranges_in_flux
    guest.apply("atomic", Change(1), guest.create(1, 0x100, 6), guest.create(2, 0x106, 10, page=6))
    assert engine.counts.ranges_in_flux == in_flux, "a split keeps each frame's page"
    guest.apply("atomic", Change(2), guest.create(2, 0x106, 10, page=26))
    assert engine.counts.ranges_in_flux == in_flux + 1, "ten frames have other pages"


def test_random_transactions_leave_what_a_dict_says(rng: random.Random) -> None:
    """The oracle: by slot, what it has bound; an entry that asks for a page that another has is refused."""
    guest = Guest()
    slots: dict[int, tuple[int, int, int, int]] = {}  # slot: frame, pages, file, first page
    refused = 0
    for _ in range(100):
        before, changes, wrong = dict(slots), [], None
        for entry in range(rng.randint(1, 4)):
            slot = rng.randrange(6)
            if slot in slots:
                del slots[slot]
                changes.append(Change(slot))
                continue
            frame, count, file, page = 0x100 * (slot + 1), rng.randint(1, 16), rng.randrange(2), rng.randrange(48)
            taken = {at for _, n, f, first in slots.values() if f == file for at in range(first, first + n)}
            changes.append(guest.create(slot, frame, count, page, file))
            if taken & set(range(page, page + count)):
                wrong = entry
                break
            slots[slot] = frame, count, file, page
        design = rng.choice(["atomic", "batch", "sequential", "replace_all"])
        if wrong is None:
            guest.apply(design, *changes)
        else:
            with pytest.raises(BatchError) as caught:
                guest.apply(design, *changes)
            assert caught.value.entry == wrong
            slots, refused = before, refused + 1
        for file in range(2):
            assert guest.bound(file) == sorted((s, a, n, p) for s, (a, n, f, p) in slots.items() if f == file)
    assert refused > 2
    guest.engine.files.close()


def test_primitives_whose_parts_share_pages_of_a_file_are_one(guest: Guest) -> None:
    guest.apply("primitives", guest.create(1, 0x100, 16))
    guest.apply("primitives", guest.create(2, 0x200, 4, page=32), Change(1), guest.create(3, 0x300, 16))
    assert guest.bound() == [(2, 0x200, 4, 32), (3, 0x300, 16, 0)]
    guest.apply(
        "primitives", Change(2), Change(3), guest.create(2, 0x200, 4, page=0), guest.create(3, 0x300, 4, page=32)
    )
    assert guest.bound() == [(2, 0x200, 4, 0), (3, 0x300, 4, 32)]


def test_a_file_that_is_closed_serves_nobody_and_its_slots_stay(guest: Guest) -> None:
    guest.apply("atomic", guest.create(1, 0x100, 16))
    guest.files[0].close()
    assert guest.engine.slot(1) is not None
    guest.check()
    with pytest.raises(MemslotError, match="guest_memfd 1 is not open"):
        guest.engine.set_memory_region(guest.create(2, 0x300, 16, page=32))
    guest.apply("atomic", Change(1), guest.create(3, 0x500, 16, file=1))
    assert guest.bound(1) == [(3, 0x500, 16, 0)]


@pytest.mark.parametrize("design", ["atomic", "batch", "pause", "kick_all", "replace_all"])
def test_running_vcpus_see_old_or_new_pages_and_nothing_else(design: str) -> None:
    guest = Guest(2)
    engine, host = guest.engine, guest.files[0].inode.backing.address
    engine.set_memory_region(guest.create(1, 0x100, 16))
    loads = [
        Load(
            Target((0x100 + gfn) * PAGE, host + (gfn + a) * PAGE, host + (gfn + b) * PAGE, private=True, changed=True)
            for gfn in range(16)
        )
        for a, b in ((0, 32), (32, 0))
    ]
    apply = find(design).prepare(engine)
    engine.set_access(Access())
    engine.start()
    try:
        for turn in range(20):
            engine.set_load(loads[turn % 2])
            with engine.window():
                apply(engine, [Change(1), guest.create(1, 0x100, 16, page=0 if turn % 2 else 32)])
            time.sleep(0.001)
    finally:
        engine.stop()
    counts = engine.vcpu_counts()
    for name in ("killed_fetches", "memory_faults", "stale", "strange", "holes_read", "holes_write", "saw_private"):
        assert not sum(each[name] for each in counts), name
    assert engine.stage2 is not None
    engine.stage2.check()
    guest.check()
    engine.files.close()
