"""Each allocation of a bind fails once, alone and in transactions: nothing has changed, nothing is kept.

What can fail is a store into the map of bindings (the kernel's xarray). It is made to fail at the first, second, third
… place until all is done; and nodes are set aside until there is room for 0, 1, 2 … of them. To let go needs none.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from guestmem.compiled import INTERPRETED
from guestmem.designs.registry import DESIGNS, find
from guestmem.engines.soft import SoftEngine
from guestmem.errors import BatchError, GuestMemfdError, MemslotError, RangeNodesError
from guestmem.gmem import GuestMemfd
from guestmem.gmem.bindings import Bindings
from guestmem.memslots import Change
from guestmem.memslots.slot import KVM_MEM_GUEST_MEMFD, Slot
from guestmem.ranges import RangeMap
from guestmem.ranges import layout as at
from guestmem.vm import Vm
from guestmem.vm.guest_memfd import File

PAGE, HVA = 0x1000, 0x7F0000000000
PAGES = 64


def words_of(bindings: Bindings) -> tuple[Any, ...]:
    """Every word of the map, what its writer counts, and the slots."""
    words: Any = bindings._pages.words
    held = bytes(words.cells if INTERPRETED else memoryview(words))
    return held, bindings._pages._desk.tolist()[:16], list(bindings), dict(bindings._keys)


class Shortage:
    """Lets the ``fails``-th allocation of maps fail; 0: none."""

    def __init__(self, fails: int) -> None:
        self.fails, self.asked = fails, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self.fails:
            raise RangeNodesError("ranges: no node is left (so the test)")


@contextmanager
def shortage(fails: int) -> Iterator[Shortage]:
    """Whatever may fail in a range map asks first; what was promised does not ask."""
    made = Shortage(fails)
    store, preallocate = RangeMap.store, RangeMap.preallocate

    def storing(self: RangeMap, start: int, end: int, value: int, *, reserved: bool = False) -> None:
        if not reserved:
            made()
        store(self, start, end, value, reserved=reserved)

    def setting_aside(self: RangeMap, stores: int = 1) -> None:
        made()
        preallocate(self, stores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RangeMap, "store", storing)
        patch.setattr(RangeMap, "preallocate", setting_aside)
        yield made


def errno_of(call: Callable[[], object]) -> int:
    try:
        call()
    except (GuestMemfdError, MemslotError) as error:
        return error.errno or -1
    return 0


def test_a_bind_by_itself() -> None:
    with GuestMemfd(PAGES * PAGE, 1) as file:
        file.bind(Slot(0, 1, 0x100, 8, 0), 0)
        before = words_of(file.bindings)
        with shortage(1):
            assert errno_of(lambda: file.bind(Slot(0, 2, 0x200, 8, 0), 8 * PAGE)) == errno.ENOMEM
        assert words_of(file.bindings) == before
        file.check()
        with shortage(0) as asked:
            file.bind(Slot(0, 2, 0x200, 8, 0), 8 * PAGE)
            assert asked.asked == 1
            file.unbind(1)
            file.unbind(2)
            assert asked.asked == 1, "to let go asks for nothing"
        file.check()


def test_with_room_for_every_number_of_nodes() -> None:
    """A slot is bound or is not; to let go works with no room at all."""
    bindings, refused = Bindings(), 0
    for number in range(40):
        bindings.put(Slot(0, number, 0x1000 * number, 4, 0), 8 * number)
    desk = bindings._pages._desk
    for room in range(120):
        free = int(desk[int(at.FREE_COUNT)]) + (int(desk[int(at.END)]) - int(desk[int(at.NEXT)])) // at.node_words(30)
        desk[int(at.RESERVED)] = free - room
        before = words_of(bindings)
        slot = Slot(0, 100 + room, 0x100000, 4, 0)
        try:
            bindings.put(slot, 1000)
        except RangeNodesError:
            refused += 1
            assert words_of(bindings) == before
        else:
            bindings.remove(slot.id, 0)
        bindings.check()
    assert 0 < refused < 120
    desk[int(at.RESERVED)] = int(desk[int(at.END)])
    for number in range(40):
        bindings.remove(number, 0)
        bindings.check()
    assert not len(bindings)


@pytest.mark.slow
def test_there_is_room_for_all_slots_of_two_address_spaces(rng: random.Random) -> None:
    """So that what was promised is kept, whatever is let go meanwhile: no two of them are neighbours that merge."""
    bindings = Bindings()
    room = 2 * 32764
    every = 997 if INTERPRETED else 1
    keys = [(space, number) for space in range(2) for number in range(0, 32764, every)]
    for place, (space, number) in enumerate(keys):
        bindings.put(Slot(space, number, 2 * place, 1, 0), 2 * place)
    for _ in range(50):
        space, number = rng.choice(keys)
        bindings.remove(number, space)
        bindings.promise()
        bindings.put(Slot(space, number, 1, 1, 0), 1 + 2 * room + 2 * number + space, promised=True)
    bindings.check()
    assert len(bindings) == len(keys)


class Guest:
    """An engine with two files, slot 1 on the first, slot 9 without one; and a transaction that binds both."""

    def __init__(self) -> None:
        self.engine = SoftEngine()
        self.files = [GuestMemfd(PAGES * PAGE, 1) for _ in range(2)]
        self.numbers = [self.engine.files.add(file) for file in self.files]
        self.engine.set_memory_region(self.create(1, 0x100, 16))
        self.engine.set_memory_region(Change(9, 0x900, 4, HVA))

    def create(self, slot: int, gfn: int, npages: int, page: int = 0, file: int = 0) -> Change:
        return Change(slot, gfn, npages, HVA, KVM_MEM_GUEST_MEMFD, 0, self.numbers[file], page * PAGE)

    @property
    def changes(self) -> list[Change]:
        split = [self.create(1, 0x100, 6), self.create(2, 0x106, 10, page=6)]
        return [Change(1), *split, Change(9), self.create(3, 0x400, 8, file=1), self.create(4, 0x500, 8, 32)]

    def state(self) -> object:
        """Slots, and every word of the bindings; what an update has set up is none of it."""
        assert [file.incoming for file in self.files] == [None, None]
        return list(self.engine.memslots), [words_of(file.bindings) for file in self.files]

    def check(self) -> None:
        self.engine.files.check()
        self.engine.memslots.check()


@pytest.mark.parametrize("design", [each.name for each in DESIGNS if each.name not in {"primitives", "resize_notify"}])
def test_each_allocation_of_a_transaction(design: str) -> None:
    """Those that make one call after another take back what they did: the map may have other free nodes then.

    ``primitives`` and ``resize_notify`` are several instants, and what came before the one that fails stays.
    """
    guest = Guest()
    apply = find(design).prepare(guest.engine)
    slots, fails = list(guest.engine.memslots), 1
    bound = [sorted(file.bindings) for file in guest.files]
    while True:
        before = guest.state()
        with shortage(fails) as asked:
            number = errno_of(lambda: apply(guest.engine, guest.changes))
        guest.check()
        if not number:
            assert asked.asked < fails, "a failure that nobody noticed"
            break
        assert number == errno.ENOMEM
        assert list(guest.engine.memslots) == slots
        assert [sorted(file.bindings) for file in guest.files] == bound
        if design in {"atomic", "batch"}:
            assert guest.state() == before, "byte for byte"
        fails += 1
        assert fails < 40
    assert fails > 4, "four slots are bound"
    assert sorted((slot.id, first) for slot, first in guest.files[0].bindings) == [(1, 0), (2, 6), (4, 32)]
    assert sorted((slot.id, first) for slot, first in guest.files[1].bindings) == [(3, 0)]
    guest.engine.files.close()


def test_the_entry_that_found_no_room_is_named() -> None:
    guest = Guest()
    for fails, entry in ((1, 1), (2, 2), (3, 4), (4, 5)):
        with shortage(fails), pytest.raises(BatchError) as caught:
            find("atomic").prepare(guest.engine)(guest.engine, guest.changes)
        assert (caught.value.errno, caught.value.entry) == (errno.ENOMEM, entry)
    guest.engine.files.close()


def again(vm: Vm[Any, Any], file: File) -> object:
    return vm.memory.create(1, gpa=1 << 20, size=PAGE, guest_memfd=file, offset=8 * PAGE)


def test_a_change_by_itself_through_a_vm() -> None:
    with Vm(engine="soft") as vm:
        file = vm.create_guest_memfd(PAGES * PAGE)
        vm.memory.create(0, gpa=0, size=8 * PAGE, guest_memfd=file)
        with shortage(1):
            assert errno_of(lambda: vm.memory.create(1, gpa=1 << 20, size=PAGE, guest_memfd=file)) == errno.EINVAL
        with shortage(1):
            assert errno_of(lambda: again(vm, file)) == errno.ENOMEM
        assert [slot.id for slot in vm.memory] == [0]
        vm.check()
        again(vm, file)
        with shortage(1) as asked:
            vm.memory.delete(0)
            vm.memory.delete(1)
            assert not asked.asked
        vm.check()
