"""An entry of a batch for which memory cannot be had is named; what is for the whole batch is said to be.

Each allocation that is made for an entry fails once: what a slot that comes binds (the map of bindings by itself is in
``tests/gmem``), dirty bitmaps, the checks of a ``Vm`` and the host memory that it keeps. Which one fails is counted,
so that every entry that asks is met, and those that do not ask are not named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guestmem.abi.model import KvmModel
from guestmem.designs import find
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import dirty_log as logs
from guestmem.engines.soft.files import Rebinding
from guestmem.engines.soft.update import SoftUpdate
from guestmem.errors import BatchError, MemslotError
from guestmem.gmem import GuestMemfd
from guestmem.memslots import Change, Slot
from guestmem.vm import Transaction, Vm
from guestmem.vm import entries as vm_entries
from guestmem.vm.slot_memory import SlotMemory

HVA, PAGE = 0x7F0000000000, 0x1000
LOGS, FILE = 1, 4


class Shortage:
    """Lets one call after another of those it is put around fail, before or after it has done its work."""

    def __init__(self, fails: int, *, after: bool = False) -> None:
        self.left, self._after = fails, after

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def either(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == -1 and not self._after:
                raise MemoryError
            result = call(*arguments, **named)
            if self.left == -1:
                raise MemoryError
            return result

        return either


def named(call: Callable[[], object]) -> tuple[int | None, str]:
    """The entry that the error of a call names, and what it says; None if it names none."""
    try:
        call()
    except MemslotError as error:
        return error.entry if isinstance(error, BatchError) else None, str(error)
    return -1, ""


def batch(spaces: int, number: int) -> list[Change]:
    """Entries that log: 1, 4 and 6; that bind: 2 and 5. With two spaces, 4 and 6 are in the other."""
    other = spaces - 1
    return [
        Change(1),
        Change(1, 0, 8, HVA, LOGS),
        Change(2, 8, 8, HVA, FILE, 0, number, 0),
        Change(3, 16, 8, HVA),
        Change(4, 24, 8, HVA, LOGS, other),
        Change(5, 32, 8, HVA, FILE, 0, number, 8 * PAGE),
        Change(6, 40, 8, HVA, LOGS, other),
        Change(9),
    ]


def state(engine: SoftEngine) -> tuple[list[Slot], list[int], dict[Any, int]]:
    held = {slot.key: id(engine.dirty.bitmap(slot.id, slot.as_id)) for slot in engine.memslots}
    return list(engine.memslots), [engine.memslots.generation(as_id) for as_id in range(2)], held


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("spaces", [1, 2])
@pytest.mark.parametrize(
    ("owner", "name", "asks", "says"),
    [
        (logs, "DirtyBitmap", [1, 4, 6], "no memory for its dirty bitmap"),
        (Rebinding, "add", range(8), "no memory for what it binds"),
    ],
)
def test_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, asks: Any, says: str, spaces: int, after: bool
) -> None:
    """And nothing has changed: no slot, no generation, no log, no binding."""
    with SoftEngine(1, address_spaces=2) as engine:
        file = GuestMemfd(64 * PAGE, 1)
        number = engine.files.add(file)
        for slot in (1, 9):
            engine.set_memory_region(Change(slot, 16 * slot, 8, HVA, LOGS))
        changes, before = batch(spaces, number), state(engine)
        apply = find("atomic").prepare(engine)
        met = []
        for fails in range(len(asks)):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, Shortage(fails, after=after).around(getattr(owner, name)))
                found, text = named(lambda: apply(engine, changes))
            assert found is not None
            assert text == f"ENOMEM: entry {found}: slot {changes[found].slot}: {says}"
            met.append(found)
            assert state(engine) == before
            assert not list(file.bindings)
            engine.files.check()
        assert sorted(met) == [*asks]
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, (last := Shortage(len(asks))).around(getattr(owner, name)))
            apply(engine, changes)
        assert last.left == 0, "no entry more asks"
        engine.memslots.check()


def test_what_the_whole_batch_takes() -> None:
    """No entry is named, and the error says so."""
    with SoftEngine(1) as engine:
        engine.short_cut = False  # which needs no phases for new ids
        engine.set_memory_region(Change(1, 0, 8, HVA))
        before = state(engine) if engine.memslots.address_spaces > 1 else list(engine.memslots)
        for name in ("net_effect", "stall", "ready"):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(SoftUpdate, name, Shortage(0).around(getattr(SoftUpdate, name)))
                found, text = named(lambda: find("atomic").prepare(engine)(engine, [Change(1), Change(2, 0, 8, HVA)]))
            assert found is None
            assert "no entry is to blame, no slot is changed" in text
            assert list(engine.memslots) == before
        find("atomic").prepare(engine)(engine, [Change(1)])


def changed(vm: Vm[Any, KvmModel]) -> Transaction:
    """Four entries."""
    with vm.memory.transaction() as change:
        host = change.delete(0)
        change.create(0, gpa=0, size=8 * PAGE, host=host, flags=1)
        change.create(1, gpa=8 * PAGE, size=8 * PAGE, host=host + 8 * PAGE, flags=1)
        change.create(2, gpa=1 << 20, size=PAGE)
    return change


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name", "asks"),
    [
        (vm_entries, "_check_meant", range(4)),
        (KvmModel, "check_change", range(4)),
        (SlotMemory, "expect", [1, 2, 3]),
        (logs, "DirtyBitmap", [1, 2]),
    ],
)
def test_of_a_vm(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, asks: Any, after: bool) -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=16 * PAGE, flags=1)
        before, pages = list(vm.memory), vm.model.accounting.pages
        for fails, entry in enumerate(asks):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, Shortage(fails, after=after).around(getattr(owner, name)))
                found, text = named(lambda: changed(vm))
            assert found == entry, text
            assert text.startswith(f"ENOMEM: entry {entry}: slot {(0, 0, 1, 2)[entry]}: no memory for ")
            assert (list(vm.memory), vm.model.accounting.pages) == (before, pages)
            vm.check()
        assert changed(vm).design == "atomic"
        vm.check()


@pytest.mark.parametrize("design", ["sequential", "pause", "pause_if_overlap"])
def test_of_designs_that_make_one_call_after_another(monkeypatch: pytest.MonkeyPatch, design: str) -> None:
    """What was done before is taken back."""
    with SoftEngine(1) as engine:
        engine.set_memory_region(Change(1, 0, 8, HVA))
        before = list(engine.memslots)
        changes = [Change(1), Change(2, 0, 4, HVA), Change(3, 4, 4, HVA, LOGS)]
        for fails in range(3):
            with monkeypatch.context() as patched:
                region = Shortage(fails).around(SoftEngine.set_memory_region)
                patched.setattr(SoftEngine, "set_memory_region", region)
                found, text = named(lambda: find(design).prepare(engine)(engine, changes))
            assert (found, text) == (fails, f"ENOMEM: entry {fails}: slot {changes[fails].slot}: no memory for it")
            assert list(engine.memslots) == before
