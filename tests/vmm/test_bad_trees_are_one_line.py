"""A tree that cannot be is refused in one line that names the region, and nothing has changed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from guestmem.errors import TraceError, UsageError
from guestmem.vmm import AddressSpace, KvmListener, Listener, MemoryMap, Recorder
from guestmem.vmm.description import description_of, read_description
from guestmem.vmm.mtree import read_mtree

END = 1 << 64


def machine() -> tuple[MemoryMap, Any]:
    memory = MemoryMap()
    root = memory.container("root")
    box = root.add_subregion(0x10000, memory.container("box", 0x8000))
    box.add_subregion(0, memory.ram("ram", 0x4000, userspace_addr=0x10000))
    root.add_subregion(0, memory.alias("shown", box, 0x1000, 0x2000))
    memory.address_space("memory", root)
    return memory, memory.region


CASES: dict[str, tuple[Callable[[MemoryMap, Any], object], str]] = {
    "a container in itself": (
        lambda m, r: r("box").add_subregion(0, m.region("root")),
        "region root: in box it would contain itself",
    ),
    "an alias of what it is in": (
        lambda m, r: r("box").add_subregion(0, m.alias("loop", r("box"))),
        "region loop: in box it would contain itself",
    ),
    "an alias of what shows it": (
        lambda m, r: r("box").add_subregion(0, m.alias("loop", r("root"))),
        "region loop: in box it would contain itself",
    ),
    "past the end": (
        lambda m, r: r("root").add_subregion(END - 0x1000, m.ram("far", 0x2000)),
        "region far: 0xfffffffffffff000 \\+ 0x2000 reaches past 2\\^64",
    ),
    "grown past the end": (
        lambda m, r: r("box").set_size(END),
        "region box: 0x10000 \\+ 0x10000000000000000 reaches past",
    ),
    "moved past the end": (lambda m, r: r("box").set_address(END - 1), "region box: .* reaches past 2\\^64"),
    "an alias out of its target": (
        lambda m, r: m.alias("wide", r("ram"), 0x3000, 0x2000),
        "region wide: \\[0x3000, 0x5000\\) is not inside its target ram, which has 0x4000 bytes",
    ),
    "an alias that grows out of it": (
        lambda m, r: r("shown").set_size(0x8000),
        "region shown: .* is not inside its target",
    ),
    "an alias that slides out of it": (
        lambda m, r: r("shown").set_alias_offset(0x7000),
        "region shown: .* is not inside",
    ),
    "a target that shrinks": (
        lambda m, r: r("box").set_size(0x2000),
        "region box: alias shown would reach past its new size",
    ),
    "a region in two containers": (
        lambda m, r: r("root").add_subregion(0, r("ram")),
        "region ram: it is in box already; a region has one container",
    ),
    "a child of an alias": (
        lambda m, r: r("shown").add_subregion(0, m.ram("child", 0x1000)),
        "region child: shown is an alias",
    ),
    "a region of another map": (
        lambda m, r: r("root").add_subregion(0, MemoryMap().ram("strange", 0x1000)),
        "is no region of this map",
    ),
    "a child that is not there": (lambda m, r: r("root").del_subregion(r("ram")), "region ram: it is not in root"),
    "no size": (lambda m, r: m.ram("none", 0), "region none: size: 0x0 is not in 0x1..0x1"),
    "a size that is none": (
        lambda m, r: m.ram("none", cast("Any", "4K")),
        "region none: size: '4K' is not a whole number",
    ),
    "a priority that is none": (
        lambda m, r: r("box").set_priority(1 << 40),
        "priority: 0x10000000000 is not in",
    ),
    "an address without a container": (
        lambda m, r: r("root").set_address(0x1000),
        "region root: it is in no container",
    ),
    "ROM that can be written": (
        lambda m, r: m.rom("rom", 0x1000).set_readonly(False),
        "region rom: a ROM is read-only",
    ),
    "a mode of what has none": (lambda m, r: r("ram").set_romd(False), "region ram: it is no ROM device"),
    "a log of no memory": (lambda m, r: r("box").set_log(True), "region box: it has no memory to log"),
    "a name of two lines": (lambda m, r: m.ram("a\nb", 0x1000), "name: 'a\\\\nb' is not a string of printable"),
    "a name that is none": (lambda m, r: m.ram(cast("Any", 7), 0x1000), "name: 7 is not a string"),
    "an address that is none": (
        lambda m, r: m.ram("x", 0x1000, userspace_addr="abc"),
        "region x: userspace_addr: 'abc' is not a whole number",
    ),
    "an address of no host": (
        lambda m, r: m.ram("x", 0x1000, userspace_addr=1 << 70),
        "region x: userspace_addr: .* is not in",
    ),
    "memory past the end of a host": (
        lambda m, r: m.ram("x", 0x2000, userspace_addr=(1 << 56) - 0x1000),
        "region x: 0x2000 bytes from host address 0xfffffffffff000 on reach past 2\\^56",
    ),
    "grown past the end of a host": (
        lambda m, r: m.ram("x", 0x1000, userspace_addr=(1 << 56) - 0x1000).set_size(0x2000),
        "region x: 0x2000 bytes from host address .* reach past 2\\^56",
    ),
    "an access of no bytes": (
        lambda m, r: m.mmio("x", 0x1000, max_access=0),
        "region x: max_access: 0x0 is not in 0x1..0x8",
    ),
    "a listener that is none": (
        lambda m, r: m.spaces[0].register(cast("Any", "me")),
        "listener: 'me' is not derived from Listener",
    ),
    "a region that is not there": (lambda m, r: r("nothing"), "region nothing: no region has that name"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_nothing_changes(name: str) -> None:
    memory, region = machine()
    before = description_of(memory)
    call, message = CASES[name]
    with pytest.raises(UsageError, match=message) as caught:
        call(memory, region)
    assert "\n" not in str(caught.value)
    after = description_of(memory)
    assert [each for each in after["regions"] if each in before["regions"]] == before["regions"]
    memory.check()


def test_ways_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("guestmem.vmm.render"), "MAX_VISITS", 40_000)
    memory = MemoryMap()
    inner = memory.container("level 0", 0x1000)
    for level in range(1, 40):
        outer = memory.container(f"level {level}", 0x1000)
        for side in (0, 1):
            outer.add_subregion(0, memory.alias(f"side {side}", inner))
        inner = outer
    with pytest.raises(UsageError, match="region level 39: more than 40000 ways lead through its aliases"):
        memory.address_space("memory", inner)


def test_deep_trees_are_rendered() -> None:
    memory = MemoryMap()
    root = inner = memory.container("root")
    for level in range(3000):
        inner = inner.add_subregion(0, memory.container(f"level {level}"))
    inner.add_subregion(0x1000, memory.ram("ram", 0x1000))
    space = memory.address_space("memory", root)
    assert [each.region.name for each in space.view] == ["ram"]


def test_a_transaction_that_fails_leaves_everything_as_it_was() -> None:
    memory, region = machine()
    space, view, before = memory.spaces[0], memory.spaces[0].view, description_of(memory)

    def fails() -> None:
        with memory.transaction():
            region("box").set_enabled(False)
            region("ram").set_readonly(True)
            region("shown").set_address(0x8000)
            region("box").del_subregion(region("ram"))
            region("box").set_size(0x9000)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert space.view is view
    assert description_of(memory) == before
    memory.check()


def test_an_inner_block_that_fails_undoes_only_itself() -> None:
    memory, region = machine()

    def fails() -> None:
        with memory.transaction():
            region("box").set_enabled(False)
            raise ZeroDivisionError

    with memory.transaction():
        region("ram").set_readonly(True)
        with pytest.raises(ZeroDivisionError):
            fails()
    assert region("ram").readonly
    assert region("box").enabled
    memory.check()


def test_a_listener_that_refuses_undoes_the_transaction() -> None:
    memory, region = machine()
    space, view = memory.spaces[0], memory.spaces[0].view

    class Refuses(Listener):
        def prepare(self, space: AddressSpace, view: object, slices: object) -> None:
            raise UsageError("no")

        def begin(self, space: AddressSpace) -> None:
            calls.append("begin")

    calls: list[str] = []
    space.register(Refuses())
    calls.clear()
    with pytest.raises(UsageError, match="no"):
        region("box").set_enabled(False)
    assert region("box").enabled
    assert space.view is view
    assert calls == []
    memory.check()


def test_what_cannot_be_undone_does_not_stop_the_undoing() -> None:
    memory, region = machine()
    space, view, before = memory.spaces[0], memory.spaces[0].view, description_of(memory)

    class First(Listener):
        def undone(self, space: AddressSpace) -> None:
            raise RuntimeError("it stays")

    class Second(Listener):
        ready = False

        def prepare(self, space: AddressSpace, view: object, slices: object) -> None:
            if not self.ready:
                raise UsageError("no")

    second = Second()
    space.register(First())
    space.register(second)
    with pytest.raises(UsageError, match="no") as caught:
        region("box").set_enabled(False)
    assert caught.value.__notes__ == ["a listener could not undo what it had prepared: it stays"]
    assert space.view is view
    assert description_of(memory) == before
    second.ready = True
    region("box").set_enabled(False)
    assert not space.view
    memory.check()


@pytest.mark.parametrize("callback", ["begin", "region_del", "region_add", "commit"])
def test_a_listener_that_raises_keeps_nothing_from_the_others(callback: str) -> None:
    memory, region = machine()
    space = memory.spaces[0]
    calls: list[Recorder] = [Recorder(priority=place) for place in (0, 2)]

    class Raises(Listener):
        priority = 1

    def fails(*_arguments: object) -> None:
        raise ZeroDivisionError

    raises = Raises()
    for each in (*calls, raises):
        space.register(each)
    for each in calls:
        each.calls.clear()
    setattr(raises, callback, fails)
    with pytest.raises(ZeroDivisionError), memory.transaction():
        region("box").set_address(0x20000)
    assert region("box").addr == 0x20000  # the change stands
    assert calls[0].calls == calls[1].calls
    assert [call[0] for call in calls[0].calls] == ["begin", "region_del", "region_add", "commit"]
    memory.check()
    setattr(raises, callback, lambda *_arguments: None)
    region("box").set_address(0x10000)
    memory.check()


def test_a_listener_that_raises_while_it_registers_is_not_registered() -> None:
    memory = MemoryMap()
    root = memory.container("root")
    root.add_subregion(0, memory.ram("ram", 0x1000))
    space = memory.address_space("memory", root)
    with pytest.raises(UsageError, match="region ram: its host address is not known"):
        space.register(KvmListener())
    assert not space.listeners
    assert not memory.listeners


def test_what_qemus_way_has_no_slots_for_is_refused_before_it_is_done() -> None:
    memory = MemoryMap()
    root = memory.container("root")
    space, slots = memory.address_space("memory", root), KvmListener(max_slots=2)
    space.register(slots)
    rams = [memory.ram(f"ram {place}", 0x1000, userspace_addr=place << 20) for place in range(3)]
    nowhere, within = memory.ram("nowhere", 0x1000), memory.ram("within", 0x1000, userspace_addr=0x800)
    for place in range(2):
        root.add_subregion(place << 20, rams[place])
    before = dict(slots.slots)
    for region, message in (
        (rams[2], "slots: the view needs 3, and 2 can be"),
        (nowhere, "region nowhere: its host address is not known"),
        (within, "region within: the page at 0x40000000 would be host memory at 0x800, within a page"),
    ):
        with pytest.raises(UsageError, match=message):
            root.add_subregion(1 << 30, region)
        assert region.container is None
        assert slots.slots == before
    with memory.transaction():
        rams[0].set_enabled(False)
        root.add_subregion(1 << 30, rams[2])
    assert len(slots.slots) == 2
    memory.check()


def test_a_global_log_that_is_refused_is_off_for_all() -> None:
    memory, _ = machine()
    space, recorder = memory.spaces[0], Recorder()

    class Refuses(Listener):
        def prepare(self, space: AddressSpace, view: object, slices: object) -> None:
            raise UsageError("no")

    space.register(recorder)
    space.register(Refuses())
    recorder.calls.clear()
    with pytest.raises(UsageError, match="no"):
        memory.log_global_start()
    assert not memory.global_log
    assert [call[0] for call in recorder.calls] == ["log_global_start", "log_global_stop"]
    memory.check()


DESCRIPTIONS = {
    "[]": "a description is an object with a list 'regions'",
    "{": "f.json:1: not JSON",
    '{"regions": [1]}': "regions\\[0\\]: it is no object with a name",
    '{"regions": [{"name": "a", "kind": "box"}]}': "region a: kind 'box' is not one of",
    '{"regions": [{"name": "a", "kind": "ram"}]}': "region a: it has no size",
    '{"regions": [{"name": "a", "kind": "ram", "size": "4 kilo"}]}': "region a: size: '4 kilo' is not a number",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1, "colour": 1}]}': "region a: 'colour' is not one of",
    '{"regions": [{"name": "a", "kind": "alias", "of": "b"}]}': "region a: 'b' is no region that is described",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1, "in": "a"}]}': "region a: in a it would",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1}, {"name": "a", "kind": "ram", "size": 1}]}': "another region",
    '{"regions": [{"name": "a", "kind": "ram", "size": 4096}, {"name": "b", "kind": "alias", "of": "a", "offset": 1, '
    '"size": 4096}]}': "region b: .* is not inside its target a",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1}], "steps": [{"edits": [["fly", "a"]]}]}': "step '0': .* is",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1}], "steps": [{"edits": [["set_size", "a"]]}]}': "it takes 1",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1}], "steps": [{"edits": [[["x"], "a"]]}]}': "step '0': .* is",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1}], "steps": [{"edits": ["'
    + "x" * 5000
    + '"]}]}': "'xxx.*x\\.\\.\\. is",
    '{"regions": [{"name": "a", "kind": "ram", "size": "' + "9" * 5000 + '"}]}': "region a: size: '999",
    '{"regions": [{"name": "a", "kind": "ram", "size": ' + "9" * 5000 + "}]}": "a number in it has thousands of digits",
    '{"regions": [{"name": "a\\nb", "kind": "ram", "size": 1}]}': "regions\\[0\\]: name 'a\\\\nb' has characters that",
    '{"regions": [{"name": "\\ud800", "kind": "ram", "size": 1}]}': "regions\\[0\\]: name .* has characters that",
    '{"regions": [{"name": "' + "x" * 5000 + '", "kind": "box"}]}': "region xxx.*: kind 'box' is not one of",
    '{"regions": [{"name": "a", "kind": "ram", "size": "16777216T"}]}': "region a: .* bytes from host address",
    '{"regions": [{"name": "a", "kind": "ram", "size": 1, "host": 1208925819614629174706176}]}': "not in",
    '{"regions": [{"name": "a", "kind":"mmio","size":1}],"address_spaces": [{"name": "\\u001b","root":"a"}]}': "name: ",
    '{"regions": ' + "[" * 100000: "it is nested too deep",
}


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_a_description_that_cannot_be_names_what_is_wrong(text: str) -> None:
    with pytest.raises(TraceError, match=DESCRIPTIONS[text]) as caught:
        read_description(text, "f.json")
    assert str(caught.value).startswith("f.json:")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


LINE = "  {:016x}-{:016x} (prio 0, {}): {}\n"
MTREES = {
    "address-space: memory\n" + LINE.format(0, 0xFFF, "i/o", "alias a @gone 0000000000000000-0000000000000fff"): (
        "f.txt:2: alias of gone, which has no block 'memory-region: gone'"
    ),
    "address-space: memory\n  0000000000000000-0000000000000fff (prio x, ram): a\n": "f.txt:2: not a line of info",
    "address-space: memory\n" + LINE.format(0x1000, 0xFFE, "ram", "a"): "f.txt:2: a range that ends before it starts",
    "FlatView #0\n"
    + LINE.format(0, 0xFFF, "ram", "a")
    + LINE.format(0x800, 0x1FFF, "ram", "b"): "f.txt:3: it overlaps line 2",
    "address-space: m\n"
    + LINE.format(0, 0xFFF, "i/o", "alias x @a 0000000000000000-0000000000000fff")
    + "memory-region: a\n"
    + LINE.format(0, 0xFFF, "i/o", "a")
    + "  "
    + LINE.format(0, 0xFFF, "i/o", "alias y @a 0000000000000000-0000000000000fff"): "region a: it contains itself",
    "nothing": "no address space of info mtree is in it",
    "address-space: m\n"
    + LINE.format(0, 0xFFF, "i/o", "alias x @a0 0000000000000000-0000000000000fff")
    + "".join(
        f"memory-region: a{i}\n" + LINE.format(0, 0xFFF, "i/o", f"alias x @a{i + 1} 0000000000000000-0000000000000fff")
        for i in range(3000)
    )
    + "memory-region: a3000\n"
    + LINE.format(0, 0xFFF, "ram", "a3000"): "f.txt: regions are nested too deep",
    "address-space: m\n" + "".join(" " * i + LINE.format(0, 0xFFF, "i/o", f"c{i}") for i in range(2000)): (
        "regions are nested too deep"
    ),
    "FlatView #0\n" + LINE.format(0, END - 1, "ram", "a"): "f.txt: region a: 0x10000000000000000 bytes from host",
    "address-space: m\n" + LINE.format(0, 0xFFF, "ram", "\x1b[31m"): "f.txt: name: '\\x1b[31m' is not a string",
}


@pytest.mark.parametrize("text", MTREES)
def test_an_mtree_that_cannot_be_names_its_line(text: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_mtree(text, "f.txt")
    assert MTREES[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_of_a_map_reads_as_that_map() -> None:
    memory, _ = machine()
    again = read_description(json.dumps(description_of(memory))).map
    assert description_of(again) == description_of(memory)
    assert [tuple(each)[:2] for each in again.spaces[0].view] == [tuple(each)[:2] for each in memory.spaces[0].view]
