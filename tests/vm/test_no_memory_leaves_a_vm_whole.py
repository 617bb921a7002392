"""Memory that cannot be had, wherever a transaction of a ``Vm`` asks for it: all of it is done, or nothing.

MemoryError is thrown at every instruction that may allocate, one after another (of every so many in ``make test``).
Before the instant nothing has changed. After it there is no error: accounting, logs and the memory that is kept follow,
and no dirty page is lost on the way. What guest_memfds have bound: ``test_no_memory_leaves_bindings_whole``.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import Any

import pytest

from guestmem.abi.accounting import PageAccounting
from guestmem.abi.model import KvmModel
from guestmem.memslots import Slot
from guestmem.vm import Transaction, Vm, Write
from guestmem.vm.slot_memory import HostPiece, SlotMemory
from no_memory import thrown
from slices import sliced

pytestmark = [pytest.mark.compiled_only, pytest.mark.slow]  # interpreted, each word allocates
PAGE, PAGES = 0x1000, 16
STEP = sliced(41, 1)
SHORT_STEP, ERA_STEP = sliced(11, 1), sliced(37, 1)


def forth(vm: Vm[Any, KvmModel]) -> Transaction:
    """Slot 0 is split, loses two pages in the middle, and half moves."""
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.create(0, gpa=0, size=8 * PAGE, host=host, flags=1)
        change.create(1, gpa=0x100000, size=6 * PAGE, host=host + 10 * PAGE, flags=1)
    return change


def back(vm: Vm[Any, KvmModel]) -> None:
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.delete(1)
        change.create(0, gpa=0, size=PAGES * PAGE, host=host, flags=1)


def known_dirty(vm: Vm[Any, KvmModel], change: Transaction | None) -> set[int]:
    """Host pages that are in a log, or were handed back."""
    pages = {page.userspace_addr for page in change.dirty} if change is not None else set()
    for slot in vm.memory:
        if slot.logs_dirty_pages:
            pages |= {slot.userspace_addr + PAGE * int(page) for page in vm.dirty_log(slot.id).nonzero()[0]}
    return pages


def test_at_each_place() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGES * PAGE, flags=1)
        forth(vm)  # room that is kept is there from now on
        back(vm)
        number = failed = followed = 0
        where = "-"
        while where:
            vm.vcpus[0].load([Write(gfn * PAGE, b"dirty") for gfn in range(PAGES)])
            vm.vcpus[0].run()
            start = vm.memory[0].userspace_addr
            wrote = {start + PAGE * page for page in range(PAGES)}
            before, pages = list(vm.memory), vm.model.accounting.pages
            done: list[Transaction] = []
            error, where = thrown(lambda done=done: done.append(forth(vm)), number)  # type: ignore[misc]
            vm.model.check()
            if error is None:
                assert list(vm.memory) != before, f"{where}: no error, and nothing is changed"
                followed += 1
                assert known_dirty(vm, done[0]) == wrote, f"{where}: dirty pages are lost"
                back(vm)
            else:
                assert list(vm.memory) == before, f"{where}: {error!r}, and something is changed"
                assert vm.model.accounting.pages == pages
                assert known_dirty(vm, None) == wrote, f"{where}: dirty pages are lost"
                failed += 1
            number += STEP
        assert number > 1000
        assert failed > 300 // STEP
        assert followed > 300 // STEP


def test_where_memory_fails_twice_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """And can be brought to what there is, later."""
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGES * PAGE, flags=1)
        held = dict(vm.model.slots)

        def fails(*_arguments: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(PageAccounting, "change", fails)
            with pytest.raises(MemoryError), vm.memory.transaction() as change:
                change.delete(0)
        assert vm.model.slots == held
        vm.model.changed_by_a_design(held)
        assert not vm.model.slots
        vm.model.check()


def test_at_each_place_of_a_primitive() -> None:
    """Split and truncate: as above; where there is no memory for the short way, a transaction has some."""

    def cut(vm: Vm[Any, KvmModel]) -> None:
        vm.memory.split(0, 8 * PAGE, 1)

    def shorten(vm: Vm[Any, KvmModel]) -> None:
        vm.memory.resize(0, 4 * PAGE)

    def join(vm: Vm[Any, KvmModel]) -> None:
        vm.memory.merge(0, 1)

    def lengthen(vm: Vm[Any, KvmModel]) -> None:
        vm.memory.resize(0, PAGES * PAGE)

    for change, undo in ((cut, join), (shorten, lengthen)):
        with Vm() as vm:
            vm.memory.create(0, gpa=0, size=PAGES * PAGE)
            change(vm)
            undo(vm)
            number = failed = followed = 0
            where = "-"
            while where:
                before, pages = list(vm.memory), vm.model.accounting.pages
                error, where = thrown(lambda change=change, vm=vm: change(vm), number)  # type: ignore[misc]
                vm.model.check()
                assert all(vm._backend.owned.of_slot(slot.key) for slot in vm.memory), f"{where}: memory is not kept"
                if error is None:
                    assert list(vm.memory) != before, f"{where}: no error, and nothing is changed"
                    followed += 1
                    undo(vm)
                elif list(vm.memory) != before:  # a result that nobody got
                    assert "primitives.py" in where or "interrupts.py" in where, f"{where}: something is changed"
                    undo(vm)
                else:
                    assert vm.model.accounting.pages == pages
                    failed += 1
                number += SHORT_STEP
            assert followed
            assert (failed + followed) * SHORT_STEP > 50


def test_what_a_truncation_lets_go_has_its_era() -> None:
    """Who began to read before it keeps what was mapped then, wherever memory fails."""
    base = mmap.mmap(-1, 8 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(base))
    number, where, cut = 0, "-", 0
    while where:
        with Vm() as vm:
            vm.engine.short_cut = True
            low, high = (HostPiece.of(memoryview(base)[start:][: 4 * PAGE], 4 * PAGE) for start in (0, 4 * PAGE))
            vm.memory.know(low)
            vm.memory.know(high)
            vm.memory.create(0, gpa=0, size=8 * PAGE, host=address)
            goes = weakref.ref(high)
            del low, high
            assert goes() is not None
            era = vm.memory.era
            where = thrown(lambda vm=vm: vm.memory.resize(0, 4 * PAGE), number)[1]  # type: ignore[misc]
            assert goes() is not None, f"{where}: what a reader may be in is unmapped"
            del era
            if vm.memory[0].npages == 4:
                cut += 1
                vm.memory.resize(0, PAGE)  # what failed is over
                assert goes() is None, f"{where}: it is kept"
            vm.check()
        number += ERA_STEP if where else 0
    assert cut


def test_records_that_follow_a_truncation_forget_nothing_before_its_era() -> None:
    """As above, at every place of ``SlotMemory.reshaped``; then the slots' records follow as after any change."""
    base = mmap.mmap(-1, 8 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(base))
    whole, cut = Slot(0, 0, 0, 8, address), Slot(0, 0, 0, 4, address)
    number, where = 0, "-"
    while where:
        owned = SlotMemory()
        low, high = (HostPiece.of(memoryview(base)[start:][: 4 * PAGE], 4 * PAGE) for start in (0, 4 * PAGE))
        owned.expect(whole.key, (low, high))
        era, goes, pieces = owned.era, weakref.ref(high), owned.reaching(address, 4 * PAGE)
        del low, high
        where = thrown(lambda: owned.reshaped((whole,), (cut,), pieces), number)[1]  # noqa: B023
        owned.expect(cut.key, pieces)
        owned.settle(cut.key, cut)
        assert owned.of_slot(cut.key) == pieces, where
        assert goes() is not None, f"{where}: what a reader may be in is unmapped"
        del era
        assert goes() is None, f"{where}: it is kept"
        number += 1
    assert number > 10
