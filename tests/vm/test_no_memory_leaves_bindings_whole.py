"""Where memory fails while what slots have bound of guest_memfds is made good, the rest follows all the same."""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.abi.model import KvmModel
from guestmem.errors import InvariantError
from guestmem.gmem.bindings import Bindings, Bound
from guestmem.gmem.file import GuestMemfd
from guestmem.memslots import Slot
from guestmem.ranges import RangeMap
from guestmem.vm import Vm

Files = tuple[GuestMemfd, GuestMemfd]
PAGE, PAGES = 0x1000, 16
CALLS = 8
"""What ``back`` asks of bindings: five slots go, three come."""


def made(vm: Vm[Any, KvmModel]) -> Files:
    """Two files: slot 0 has all of the first, slot 5 the half of the second."""
    files = vm.create_guest_memfd(PAGES * PAGE), vm.create_guest_memfd(PAGES * PAGE)
    vm.memory.create(0, gpa=0, size=PAGES * PAGE, guest_memfd=files[0])
    vm.memory.create(5, gpa=1 << 30, size=PAGE, guest_memfd=files[1])
    return files


def forth(vm: Vm[Any, KvmModel], files: Files) -> None:
    """Slot 0 is split, loses two pages in the middle, and half moves; slot 5 moves, and another comes beside it."""
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.create(0, gpa=0, size=8 * PAGE, host=host, guest_memfd=files[0])
        far = host + 10 * PAGE
        change.create(1, gpa=0x100000, size=6 * PAGE, host=far, guest_memfd=files[0], offset=10 * PAGE)
        change.delete(5)
        change.create(5, gpa=1 << 31, size=PAGE, guest_memfd=files[1], offset=PAGE)
        change.create(6, gpa=1 << 32, size=2 * PAGE, guest_memfd=files[1], offset=4 * PAGE)
        change.create(7, gpa=1 << 33, size=PAGE, guest_memfd=files[1])


def back(vm: Vm[Any, KvmModel], files: Files) -> None:
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.delete(1)
        for slot in (5, 6, 7):
            change.delete(slot)
        change.create(0, gpa=0, size=PAGES * PAGE, host=host, guest_memfd=files[0])
        change.create(5, gpa=1 << 30, size=PAGE, guest_memfd=files[1])
        change.create(8, gpa=1 << 34, size=PAGE, guest_memfd=files[1], offset=7 * PAGE)


def bound(file: GuestMemfd) -> list[tuple[int, int, int]]:
    return sorted((slot.id, first, slot.npages) for slot, first in file.bindings)


def failing(monkeypatch: pytest.MonkeyPatch, call: int, *, after: bool) -> list[int]:
    """Let the ``call``-th call that puts or removes what a slot has fail, before it has done anything or after all."""
    left = [call]

    def fails(original: Any) -> Any:
        def either(*arguments: Any, **named: Any) -> None:
            left[0] -= 1
            if left[0] == -1 and not after:
                raise MemoryError
            original(*arguments, **named)
            if left[0] == -1:
                raise MemoryError

        return either

    for name in ("put", "remove"):
        monkeypatch.setattr(Bindings, name, fails(getattr(Bindings, name)))
    return left


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(CALLS + 1))
def test_in_the_middle_of_what_is_bound_anew(monkeypatch: pytest.MonkeyPatch, call: int, after: bool) -> None:
    """At each call that puts or removes one of the slots: the rest follows, and the next transaction goes through."""
    with Vm() as vm:
        files = made(vm)
        forth(vm, files)
        with monkeypatch.context() as patched:
            left = failing(patched, call, after=after)
            back(vm, files)
        vm.model.check()
        vm.engine.files.check()
        assert bound(files[0]) == [(0, 0, PAGES)]
        assert bound(files[1]) == [(5, 0, 1), (8, 7, 1)]
        assert left[0] < 0 or call == CALLS, "all places were met"
        forth(vm, files)
        vm.engine.files.check()


def test_after_one_file_and_before_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that went and came in the file that was done keeps what it has."""
    with Vm() as vm:
        files = made(vm)
        rebind, calls = GuestMemfd.rebind, 0

        def fails(self: GuestMemfd, gone: Any, came: Any) -> None:
            nonlocal calls
            rebind(self, gone, came)
            calls += 1
            if calls < 2:
                raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(GuestMemfd, "rebind", fails)
            forth(vm, files)
        assert calls == 3
        vm.engine.files.check()
        assert bound(files[0]) == [(0, 0, 8), (1, 10, 6)]
        assert bound(files[1]) == [(5, 1, 1), (6, 4, 2), (7, 0, 1)]


def test_where_memory_fails_twice_it_is_done_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves the update, which has happened, does what is left of it."""
    with Vm() as vm:
        files = made(vm)
        rebind, calls = GuestMemfd.rebind, 0

        def fails(self: GuestMemfd, gone: Any, came: Any) -> None:
            nonlocal calls
            calls += 1
            if calls <= 2:
                raise MemoryError
            rebind(self, gone, came)

        with monkeypatch.context() as patched:
            patched.setattr(GuestMemfd, "rebind", fails)
            forth(vm, files)
        assert calls == 4
        vm.engine.files.check()
        assert bound(files[1]) == [(5, 1, 1), (6, 4, 2), (7, 0, 1)]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["put", "remove"])
def test_one_change_by_itself(monkeypatch: pytest.MonkeyPatch, name: str, after: bool) -> None:
    """That is no transaction: nobody who leaves it would try again."""
    with Vm() as vm:
        files = made(vm)
        with monkeypatch.context() as patched:
            left = failing(patched, 0, after=after)
            if name == "remove":
                vm.memory.delete(5)
            else:
                vm.memory.create(9, gpa=1 << 35, size=PAGE, guest_memfd=files[1], offset=PAGE)
        assert left[0] < 0
        vm.engine.files.check()
        assert bound(files[1]) == ([] if name == "remove" else [(5, 0, 1), (9, 1, 1)])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["put", "remove"])
def test_in_the_middle_of_one_slot(monkeypatch: pytest.MonkeyPatch, name: str, after: bool) -> None:
    """Before it is done again, others can look: whatever page is found bound, it is known to whom."""
    bindings, store = Bindings(), RangeMap.store
    old, new = Bound(Slot(0, 1, 0, 4, 0), 0), Bound(Slot(0, 2, 0x10, 8, 0), 2)
    bindings.put(*old)
    gone = [(0, 1)]

    def fails(self: RangeMap, start: int, end: int, value: int, *, reserved: bool = False) -> None:
        fail = bool(value) == (name == "put")
        if fail and not after:
            raise MemoryError
        store(self, start, end, value, reserved=reserved)
        if fail:
            raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(RangeMap, "store", fails)
        with pytest.raises(MemoryError):
            bindings.follow(gone, [new])
    for first in range(12):
        assert all(slot.id in {1, 2} for slot, _, _ in bindings.overlapping(first, first + 1))
        bindings.other(first, first + 1)
    for _ in range(2):
        bindings.follow(gone, [new])
        bindings.check()
        assert list(bindings) == [new]


def test_what_is_not_done_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were nothing bound anew, the check would say so."""
    with Vm() as vm:
        files = made(vm)
        with monkeypatch.context() as patched:
            patched.setattr(Bindings, "follow", lambda *_: None)
            forth(vm, files)
        with pytest.raises(InvariantError, match="guest_memfd"):
            vm.engine.files.check()
