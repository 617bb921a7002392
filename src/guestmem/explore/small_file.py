"""A guest_memfd of a page or two in a scene: its words with names, for threads that convert, fault, access and pin.

Inode, states, folios, the invalidate lock and the generations are those of production; the memory is pretended, and
the range map of the states has narrow nodes. Each thread that converts has the writer's words of its own, for it is run
once for each of its histories.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from .small_vm import srcu_label
from .twin import Mutation

if TYPE_CHECKING:
    from ..compiled import Own
    from .scene import Scene

__all__ = ["SMALL_FILE", "SmallFile"]

SMALL_FILE = (
    Mutation("ranges/layout.py", "LEVELS = const(16)", "LEVELS = const(1)"),
    Mutation("ranges/layout.py", "CHAIN_LENGTH = const(64)", "CHAIN_LENGTH = const(1)"),
    Mutation("gmem/layout.py", "HOSTS_MAX = 16", "HOSTS_MAX = 2"),
)
"""Constants that are cut."""
PAGE = 4096
PUBLIC, SECRET = 1, 2


class _Memory:
    """Stands for the memory file: a hole makes the word of each of its pages 0."""

    def __init__(self, atomics: Any, address: int) -> None:
        self._atomics, self._address = atomics, address

    def allocate(self, offset: int, size: int) -> None:
        """It is there."""

    def punch(self, offset: int, size: int) -> None:
        """Zeroes."""
        for at in range(offset, offset + size, PAGE):
            self._atomics.host_store(self._address + at, 0)

    def close(self) -> None:
        """Nothing to give back."""


class SmallFile:
    """``pages`` pages of ``generation``, shared at first, with one word of memory at the beginning of each."""

    def __init__(self, scene: Scene, generation: str = "attributes", pages: int = 1) -> None:
        self.scene = scene
        self.at, self.fault, self.folio = scene.room("gmem.layout"), scene.room("gmem.fault"), scene.room("gmem.folio")
        self.atomics = scene.room("atomics")
        inode = scene.room("gmem.inode").Inode(
            pages * PAGE, 3, scene.room("gmem.generations").generation(generation), capacity=16
        )
        inode.states = scene.room("ranges.range_map").RangeMap(capacity=1, fanout=3)
        self.memory = scene.host("memory", [PUBLIC] * (512 * (pages - 1) + 1))
        self.atomics.poke(inode.words, int(self.at.ADDRESS), self.memory)
        inode.backing.close()
        inode.backing = _Memory(self.atomics, self.memory)
        self.inode: Any = inode
        self.words = scene.words("inode", inode.words, self._label)
        self.states = scene.words("states", inode.states.words)

    def _label(self, index: int) -> str:
        base = int(self.at.HOST_TLB)
        if base <= index < int(self.at.PAGES):
            return f"host tlb: {srcu_label(index - base)}"
        return str(self.at.INODE.label(index)).lower()

    def writers(self) -> tuple[Any, Any, Any]:
        """Words of a thread that converts: the map's desk, and scratch; hand them on to ``of``.

        The desk is one in production, under the file's lock; here each thread has a copy, which knows no other's count
        of ranges (nobody asks for it) and is otherwise the same, since these stores take no nodes.
        """
        desk = self.inode.states._desk.tolist()  # noqa: SLF001
        desk[int(self.scene.room("ranges.layout").COUNT)] = 16
        return self.scene.own(desk), self.scene.own(64), self.scene.own(3)

    def of(self, desk: Own, freed: Own, found: Own) -> Any:
        """The inode for one run of a thread that converts."""
        inode, states = copy.copy(self.inode), copy.copy(self.inode.states)
        states._desk, states._freed, states._lock = desk, freed, threading.Lock()  # noqa: SLF001 - fresh state
        states._snapshots, states._dropped = [], deque()  # noqa: SLF001
        inode.states, inode.found = states, found
        return inode

    def state(self, page: int = 0) -> int:
        """The state of a page, outside threads."""
        return int(self.inode.states.get(page))

    def reference(self, page: int = 0) -> int:
        """References to a page, outside threads."""
        return int(self.inode.references(page))
