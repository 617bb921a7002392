"""Listeners hear what QEMU's hear, in its order: begin, all deletes, then adds, nops and logs, commit; while they are
told, the view is the old one.
"""

from __future__ import annotations

from typing import Any

import pytest

from guestmem.errors import UsageError
from guestmem.vmm import AddressSpace, FlatRange, FlatView, Listener, MemoryMap, Recorder
from guestmem.vmm.region import DIRTY_MEMORY_CODE


class Journal(Listener):
    """Writes into a list that several listeners share, nops included."""

    def __init__(self, name: str, priority: int, calls: list[tuple[Any, ...]]) -> None:
        self.name, self.priority, self.calls = name, priority, calls

    def note(self, what: str, section: FlatRange | None = None, *more: int) -> None:
        self.calls.append((what, self.name, *(() if section is None else (section.start,)), *more))

    def begin(self, space: AddressSpace) -> None:
        self.note("begin")

    def commit(self, space: AddressSpace) -> None:
        self.note("commit")

    def region_add(self, space: AddressSpace, section: FlatRange) -> None:
        self.note("add", section)

    def region_del(self, space: AddressSpace, section: FlatRange) -> None:
        self.note("del", section)

    def region_nop(self, space: AddressSpace, section: FlatRange) -> None:
        self.note("nop", section)

    def log_start(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        self.note("log_start", section, old, new)

    def log_stop(self, space: AddressSpace, section: FlatRange, old: int, new: int) -> None:
        self.note("log_stop", section, old, new)

    def log_global_start(self, space: AddressSpace) -> None:
        self.note("log_global_start")

    def log_global_stop(self, space: AddressSpace) -> None:
        self.note("log_global_stop")


class Machine:
    """RAM, a window over it, and RAM further up; two listeners."""

    def __init__(self) -> None:
        self.map = MemoryMap()
        self.root = self.map.container("root")
        self.ram = self.root.add_subregion(0, self.map.ram("ram", 0x10000))
        self.window = self.root.add_subregion(0x4000, self.map.mmio("window", 0x4000), 1)
        self.far = self.root.add_subregion(0x100000, self.map.ram("far", 0x1000))
        self.window.set_enabled(False)
        self.space = self.map.address_space("memory", self.root)
        self.calls: list[tuple[Any, ...]] = []
        self.space.register(Journal("late", 10, self.calls))
        self.space.register(Journal("early", 0, self.calls))
        self.registered = [*self.calls]
        self.calls.clear()


def test_registering_tells_of_all_there_is() -> None:
    machine = Machine()
    assert machine.registered == [
        ("begin", "late"),
        ("add", "late", 0),
        ("add", "late", 0x100000),
        ("commit", "late"),
        ("begin", "early"),
        ("add", "early", 0),
        ("add", "early", 0x100000),
        ("commit", "early"),
    ]


def test_deletes_come_first_and_in_the_opposite_order_of_listeners() -> None:
    machine = Machine()
    machine.window.set_enabled(True)
    assert machine.calls == [
        ("begin", "early"),
        ("begin", "late"),
        ("del", "late", 0),
        ("del", "early", 0),
        ("add", "early", 0),
        ("add", "late", 0),
        ("add", "early", 0x4000),
        ("add", "late", 0x4000),
        ("add", "early", 0x8000),
        ("add", "late", 0x8000),
        ("nop", "early", 0x100000),
        ("nop", "late", 0x100000),
        ("commit", "early"),
        ("commit", "late"),
    ]


def test_a_range_that_only_shrank_is_a_delete_and_an_add() -> None:
    machine = Machine()
    machine.ram.set_size(0x8000)
    assert [call for call in machine.calls if call[1] == "early"] == [
        ("begin", "early"),
        ("del", "early", 0),
        ("add", "early", 0),
        ("nop", "early", 0x100000),
        ("commit", "early"),
    ]


def test_logging_alone_is_a_nop_and_a_log_call() -> None:
    machine = Machine()
    machine.far.set_log(True)
    machine.far.set_log(True, DIRTY_MEMORY_CODE)
    machine.far.set_log(False)
    told = [call for call in machine.calls if call[0].startswith("log")]
    assert told == [
        ("log_start", "early", 0x100000, 0, 1),
        ("log_start", "late", 0x100000, 0, 1),
        ("log_start", "early", 0x100000, 1, 3),
        ("log_start", "late", 0x100000, 1, 3),
        ("log_stop", "late", 0x100000, 3, 2),
        ("log_stop", "early", 0x100000, 3, 2),
    ]
    assert not [call for call in machine.calls if call[0] in ("add", "del")]


def test_a_new_range_that_is_logged_gets_no_log_start() -> None:
    machine = Machine()
    machine.far.set_enabled(False)
    machine.far.set_log(True)
    machine.calls.clear()
    machine.far.set_enabled(True)
    assert [call[0] for call in machine.calls if call[1] == "early"] == ["begin", "nop", "add", "commit"]


def test_the_global_log_starts_before_the_ranges_and_stops_after_them() -> None:
    machine = Machine()
    machine.map.log_global_start()
    early = [call for call in machine.calls if call[1] == "early"]
    assert early == [
        ("log_global_start", "early"),
        ("begin", "early"),
        ("nop", "early", 0),
        ("log_start", "early", 0, 0, 4),
        ("nop", "early", 0x100000),
        ("log_start", "early", 0x100000, 0, 4),
        ("commit", "early"),
    ]
    machine.calls.clear()
    machine.map.log_global_stop()
    assert machine.calls[-1] == ("log_global_stop", "early")
    assert machine.calls[-2] == ("log_global_stop", "late")
    assert ("log_stop", "late", 0, 4, 0) in machine.calls


def test_nested_transactions_are_told_as_one() -> None:
    machine = Machine()
    with machine.map.transaction():
        machine.window.set_enabled(True)
        with machine.map.transaction():
            machine.window.set_enabled(False)
        assert machine.calls == []
        machine.far.set_address(0x200000)
    assert [call for call in machine.calls if call[1] == "early"] == [
        ("begin", "early"),
        ("del", "early", 0x100000),
        ("nop", "early", 0),
        ("add", "early", 0x200000),
        ("commit", "early"),
    ]


def test_what_changes_nothing_that_is_enabled_is_not_told() -> None:
    machine = Machine()
    machine.window.set_readonly(True)  # it is disabled
    machine.window.set_priority(7)
    with machine.map.transaction():
        pass
    assert machine.calls == []
    machine.ram.set_enabled(True)  # it is
    assert machine.calls == []


def test_while_listeners_are_told_the_view_is_the_old_one() -> None:
    machine = Machine()
    before = machine.space.view
    seen: list[FlatView] = []

    class Looks(Listener):
        def region_del(self, space: AddressSpace, section: FlatRange) -> None:
            seen.append(space.view)

        def region_add(self, space: AddressSpace, section: FlatRange) -> None:
            seen.append(space.view)

        def commit(self, space: AddressSpace) -> None:
            seen.append(space.view)

    machine.space.register(Looks())
    seen.clear()
    machine.window.set_enabled(True)
    assert [view is before for view in seen] == [True, True, True, True, False]


def test_a_listener_cannot_change_the_map() -> None:
    machine = Machine()

    class Meddles(Listener):
        def commit(self, space: AddressSpace) -> None:
            if machine.window.enabled:
                machine.far.set_enabled(False)

    machine.space.register(Meddles())
    with pytest.raises(UsageError, match="map: it cannot change while listeners are told"):
        machine.window.set_enabled(True)
    assert machine.space.view.find(0x4000) is not None
    machine.map.check()


def test_unregistering_tells_that_all_is_gone() -> None:
    machine = Machine()
    listener = Recorder()
    machine.far.set_log(True)
    machine.space.register(listener)
    listener.calls.clear()
    machine.space.unregister(listener)
    assert [call[0] for call in listener.calls] == ["begin", "region_del", "log_stop", "region_del", "commit"]
    listener.calls.clear()
    machine.window.set_enabled(True)
    assert listener.calls == []
    with pytest.raises(UsageError, match="is not registered"):
        machine.space.unregister(listener)


def test_address_spaces_are_told_one_after_the_other() -> None:
    memory = MemoryMap()
    root, other = memory.container("root"), memory.container("other")
    ram = root.add_subregion(0, memory.ram("ram", 0x1000))
    other.add_subregion(0x5000, memory.alias("shown", ram))
    listener = Recorder()
    for name, region in (("a", root), ("b", other)):
        memory.address_space(name, region).register(listener)
    listener.calls.clear()
    ram.set_readonly(True)
    assert [call[:2] for call in listener.calls] == [
        ("begin", "a"),
        ("begin", "b"),
        ("region_del", "a"),
        ("region_add", "a"),
        ("region_del", "b"),
        ("region_add", "b"),
        ("commit", "a"),
        ("commit", "b"),
    ]
