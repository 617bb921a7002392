"""A view is what a painter sees, cell by cell and border by border; brought up to date it is what rendering anew gives.

``python tests/support/map_painter.py 100000`` does the same on as many trees as one likes.
"""

from __future__ import annotations

import pytest

import map_painter
from guestmem import vmm
from guestmem.explore import load

MUTANTS = {
    "priority is compared the wrong way": (
        "subregions.py",
        "return child.priority, child",
        "return -child.priority, child",
    ),
    "the one added first wins": ("subregions.py", "child.priority, child.serial", "child.priority, -child.serial"),
    "read-only is not inherited through an alias": (
        "render.py",
        "base -= target.addr + region.alias_offset\n",
        "base -= target.addr + region.alias_offset\n                readonly = False\n",
    ),
    "nonvolatile is not inherited": ("render.py", "nonvolatile or region.nonvolatile", "region.nonvolatile"),
    "unmergeable is not inherited": ("render.py", "unmergeable or region.unmergeable", "region.unmergeable"),
    "a merge over an unmergeable border": (
        "flatview.py",
        "        and not a.unmergeable\n        and not b.unmergeable\n",
        "",
    ),
    "a merge of read-only and not": ("flatview.py", "a.readonly == b.readonly", "True"),
    "the offset of an alias's alias": (
        "render.py",
        "target.addr + region.alias_offset",
        "target.addr + (region.alias_offset if target.alias is None else 0)",
    ),
    "a target's own address": ("render.py", "base -= target.addr + region", "base -= region"),
    "a child reaches past its container": (
        "render.py",
        "high = min(high, base + region.size)",
        "high = base + region.size",
    ),
    "a disabled region is seen": ("render.py", "if not region.enabled:", "if False:"),
    "a region hides its children": (
        "render.py",
        "stack.append((region, base, low, high, readonly, nonvolatile, unmergeable, way, True))",
        "pass",
    ),
    "what is partly behind others is not entered": (
        "render.py",
        "free_starts[gap] >= high:",
        "free_starts[gap] > low:",
    ),
    "aliases are not touched": ("touched.py", "for alias in at.aliases", "for alias in ()"),
    "an alias is touched at its target's place": (
        "touched.py",
        "max(low - alias.alias_offset, 0), min(high - alias.alias_offset, alias.size)",
        "low, min(high, alias.size)",
    ),
    "where it was is not touched": (
        "region.py",
        "        self.map.touched.add(child)\n        addr, priority",
        "        addr, priority",
    ),
    "what it was long is not touched": (
        "region.py",
        "        before = self.size\n        self.map.touched.add(self)\n",
        "        before = self.size\n",
    ),
    "neighbours of a window are not looked at": (
        "incremental.py",
        "        if first and view[first - 1].end == low:\n            first -= 1\n",
        "",
    ),
    "halves of an unmergeable range stay halves": ("incremental.py", " or _halves(done[-1], each)", ""),
    "two unmergeable ranges are taken for halves": (
        "incremental.py",
        "a.path is not None and a.path == b.path",
        "a.path is not None",
    ),
    "windows in one range are two groups": ("incremental.py", "if groups and first < groups[-1][1]:", "if False:"),
    "a read-only root is passed over": (
        "map.py",
        "if region.readonly or region.nonvolatile or",
        "if region.nonvolatile or",
    ),
    "enabled children are not counted": ("region.py", "self.container.subregions.enabled += enabled - before", "pass"),
    "a chunk forgets its longest child": (
        "subregions.py",
        "max(self._ends[at], child.addr + child.size)",
        "child.addr + child.size",
    ),
    "a failed transaction leaves a child": ("region.py", "self.map.undo(lambda: self._unlink(child))", "pass"),
    "a failed transaction leaves an attribute": (
        "region.py",
        "self.map.undo(lambda: self._assign(name, before))",
        "pass",
    ),
}


def test_on_random_trees_with_random_edits(seed: int) -> None:
    assert map_painter.run(400, seed, vmm) == ""


def test_a_root_that_shows_one_region_whole() -> None:
    assert map_painter.passed_over(vmm) == ""


@pytest.mark.slow
def test_on_many_random_trees(seed: int) -> None:
    assert map_painter.run(1000, seed + 1, vmm) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_renderer_is_caught(name: str, seed: int) -> None:
    file, old, new = MUTANTS[name]
    with load([(f"vmm/{file}", old, new)]) as twin:
        try:
            room = twin.room("vmm")
            problem = map_painter.passed_over(room) or map_painter.run(1500, seed, room)
        except (AssertionError, ValueError, KeyError, IndexError, AttributeError) as error:
            problem = repr(error)
    assert problem


def test_a_root_that_moves_in_a_disabled_container_is_seen_to_move() -> None:
    memory = vmm.MemoryMap()
    box, ram = memory.container("box", 0x10000), memory.ram("ram", 0x1000)
    box.set_enabled(False)
    space = memory.address_space("ram", ram)
    for change, start in (
        (lambda: box.add_subregion(0x2000, ram), 0x2000),
        (lambda: ram.set_address(0x4000), 0x4000),
        (lambda: box.del_subregion(ram), 0),
    ):
        change()
        assert [each[:2] for each in space.view] == [(start, start + 0x1000)]
        memory.check()
