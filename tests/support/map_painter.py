"""Random trees of regions, and what they look like by a painter who colours cells, the nearest region last.

``python tests/support/map_painter.py COUNT [SEED]`` holds both forms of the renderer against the painter, on COUNT
trees, each edited some times.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from campaign_arguments import campaign_arguments

CELL = 0x1000
CELLS = 48
Cell = tuple[Any, int, tuple[bool, bool, bool], tuple[Any, ...]]
"""Region, cell of the region, what it inherits (readonly, nonvolatile, unmergeable), and the way to it from above."""


class Painter:
    """Knows the order in which children were added, by itself; everything else it reads from the regions."""

    def __init__(self) -> None:
        self.children: dict[Any, list[Any]] = {}

    def add(self, container: Any, child: Any) -> None:
        self.children.setdefault(container, []).append(child)

    def remove(self, container: Any, child: Any) -> None:
        self.children[container].remove(child)

    def paint(self, region: Any) -> dict[int, Cell]:
        """Cells of ``region``, from its own cell 0 on."""
        if not region.enabled:
            return {}
        cells: dict[int, Cell] = {}
        last = region.size // CELL
        if region.alias is not None:
            first = region.alias_offset // CELL
            seen = self.paint(region.alias)
            cells = {cell - first: content for cell, content in seen.items() if 0 <= cell - first < last}
        else:
            if region.terminates:
                cells = {cell: (region, cell, (False, False, False), ()) for cell in range(last)}
            for child in sorted(self.children.get(region, []), key=lambda each: each.priority):
                base = child.addr // CELL
                for cell, content in self.paint(child).items():
                    if base + cell < last:
                        cells[base + cell] = content
        own = region.readonly, region.nonvolatile, region.unmergeable
        return {
            cell: (leaf, at, tuple(a or b for a, b in zip(inherited, own, strict=True)), (region, *way))  # type: ignore[misc]
            for cell, (leaf, at, inherited, way) in cells.items()
        }


def ranges(cells: dict[int, Cell]) -> list[tuple[Any, ...]]:
    """Cells that go on in one region with the same attributes, drawn together; unmergeable ones only on one way."""
    found: list[list[Any]] = []
    before: Any = None
    for cell, (leaf, at, inherited, way) in sorted(cells.items()):
        mark = (cell - at, leaf, inherited, leaf.dirty_log_mask, leaf.romd_mode, way if inherited[2] else None)
        if found and found[-1][1] == cell * CELL and before == mark:
            found[-1][1] += CELL
        else:
            found.append([cell * CELL, cell * CELL + CELL, leaf, at * CELL, *inherited, *mark[3:5]])
        before = mark
    return [tuple(each) for each in found]


class RandomMap:
    """A random tree with two address spaces, and random edits of it."""

    def __init__(self, rng: random.Random, vmm: Any) -> None:
        self.rng = rng
        self.map = vmm.MemoryMap()
        self.painter = Painter()
        self.root = self.map.container("root", CELLS * CELL)
        self.other = self.map.container("other", CELLS * CELL)
        self.regions = [self.root, self.other]
        for _ in range(rng.randrange(3, 11)):
            self.make()
        self.spaces = [self.map.address_space("memory", self.root), self.map.address_space("other", self.other)]

    def make(self) -> None:
        rng = self.rng
        if rng.random() < 0.2:
            self.make_pair()
            return
        size = rng.randrange(1, CELLS) * CELL
        kind = rng.choice(["ram", "ram", "mmio", "rom", "rom_device", "container", "alias", "alias"])
        name = f"r{len(self.regions)}"
        options = {key: True for key in ("readonly", "nonvolatile", "unmergeable") if rng.random() < 0.12}
        if kind == "alias":
            target = rng.choice(self.regions[2:] or self.regions)
            pages = target.size // CELL
            first = rng.randrange(pages)
            last = rng.randrange(first + 1, pages + 1)
            region = self.map.alias(name, target, first * CELL, (last - first) * CELL, **options)
        elif kind in ("container", "mmio"):
            region = getattr(self.map, kind)(name, size)
        else:
            region = getattr(self.map, kind)(name, size, **options)
        self.regions.append(region)
        self.put(region)

    def make_pair(self) -> None:
        """Two aliases side by side, of neighbouring parts of one region: what merging is about."""
        rng = self.rng
        target = rng.choice(self.regions[2:] or self.regions)
        pages = target.size // CELL
        if pages < 2:
            return
        border, at = rng.randrange(1, pages), rng.randrange(CELLS // 2)
        for first, last in ((0, border), (border, pages)):
            options = {key: True for key in ("readonly", "nonvolatile", "unmergeable") if rng.random() < 0.2}
            name = f"r{len(self.regions)}"
            region = self.map.alias(name, target, first * CELL, (last - first) * CELL, **options)
            self.regions.append(region)
            try:
                self.root.add_subregion((at + first) * CELL, region, 1)
            except ValueError:  # it would contain itself
                continue
            self.painter.add(self.root, region)

    def put(self, region: Any) -> None:
        container = self.rng.choice([self.root, self.root, self.root, *self.regions])
        offset, priority = self.rng.randrange(CELLS) * CELL, self.rng.randrange(-1, 2)
        try:
            container.add_subregion(offset, region, priority)
        except ValueError:  # a cycle, an alias with a child: refused, nothing has changed
            return
        self.painter.add(container, region)

    def edit(self) -> None:
        rng = self.rng
        region = rng.choice(self.regions)
        container = region.container
        what = rng.randrange(10)
        try:
            if what < 3:
                region.set_enabled(not region.enabled)
            elif what == 3 and container is not None:
                addr = rng.randrange(CELLS) * CELL
                moved = addr != region.addr
                region.set_address(addr)
                if moved:
                    self.painter.remove(container, region)
                    self.painter.add(container, region)
            elif what == 4 and container is not None:
                priority = rng.randrange(-1, 2)
                moved = priority != region.priority
                region.set_priority(priority)
                if moved:
                    self.painter.remove(container, region)
                    self.painter.add(container, region)
            elif what == 5 and container is not None:
                container.del_subregion(region)
                self.painter.remove(container, region)
                if rng.random() < 0.7:
                    self.put(region)
            elif what == 6:
                region.set_size(rng.randrange(1, CELLS + 1) * CELL)
            elif what == 7 and region.alias is not None:
                region.set_alias_offset(rng.randrange(region.alias.size // CELL) * CELL)
            elif what == 8 and region.kind.value == "rom device":
                region.set_romd(not region.romd_mode)
            elif region.backed and rng.random() < 0.3:
                region.set_log(not region.dirty_log_mask)
            else:
                name = rng.choice(["readonly", "nonvolatile", "unmergeable"])
                getattr(region, f"set_{name}")(not getattr(region, name))
        except ValueError:
            return

    def fail(self) -> None:
        """A transaction of some edits that ends in an exception: all of it is undone."""
        children = {container: [*each] for container, each in self.painter.children.items()}
        try:
            with self.map.transaction():
                for _ in range(self.rng.randrange(1, 5)):
                    self.edit()
                self.map.region("no such region")
        except ValueError:
            self.painter.children = children

    def wrong(self) -> str:
        """What does not hold, or nothing: view against painter and against a full render; and the invariants."""
        for space in self.spaces:
            painted = ranges(self.painter.paint(space.root))
            if [tuple(each)[:9] for each in space.view] != painted:
                return f"{space.name}: the view is {space.view.ranges}, the painter has {painted}"
        try:
            self.map.check()
        except AssertionError as error:
            return str(error)
        return ""


def run(count: int, seed: int, vmm: Any, *, edits: int = 4) -> str:
    """The first thing found wrong on ``count`` random trees, or nothing."""
    for index in range(count):
        rng = random.Random(seed * 1_000_003 + index)
        tree = RandomMap(rng, vmm)
        if problem := tree.wrong():
            return f"tree {index} of seed {seed}: {problem}"
        for edit in range(edits):
            how = rng.random()
            if how < 0.3:
                with tree.map.transaction():
                    for _ in range(rng.randrange(1, 5)):
                        tree.edit()
            elif how < 0.4:
                tree.fail()
            else:
                tree.edit()
            if problem := tree.wrong():
                return f"tree {index} of seed {seed}, edit {edit}: {problem}"
    return ""


def passed_over(vmm: Any) -> str:
    """What is wrong about a root that shows one region whole and has an attribute to give it; random ones seldom do."""
    for name in ("readonly", "nonvolatile", "unmergeable"):
        memory, painter = vmm.MemoryMap(), Painter()
        root, ram = memory.container("root", CELL), memory.ram("ram", CELL)
        root.add_subregion(0, ram)
        painter.add(root, ram)
        getattr(root, f"set_{name}")(True)
        view = memory.address_space("memory", root).view
        if [tuple(each)[:9] for each in view] != ranges(painter.paint(root)):
            return f"a {name} root: the view is {view.ranges}"
    return ""


def main() -> int:
    from guestmem import vmm

    given = campaign_arguments(__doc__, count=None, seed=1)
    count, seed = given.count, given.seed
    begun = time.monotonic()
    problem = run(count, seed, vmm)
    said = problem or f"{count} trees, 4 edits each: incremental, full render and painter agree"
    sys.stdout.write(f"{said}; {time.monotonic() - begun:.0f} s\n")
    return bool(problem)


if __name__ == "__main__":
    sys.exit(main())
