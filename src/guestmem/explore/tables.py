"""A stage-2 table of a few entries in a scene: its words with names, its vCPUs, and what must hold of it in the end."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvariantError
from ..rcu.srcu import SRCU
from ..stage2.descriptor import Rights
from ..stage2.geometry import Geometry
from ..stage2.rwlock import LOCK
from ..stage2.tlb_layout import HUB, LINE, LINES, WAITING
from .monitors.descriptors import Monitor
from .telling import table_words, tlb_changes

if TYPE_CHECKING:
    from ..compiled import Own
    from .scene import Scene
    from .view import View

__all__ = ["BLOCK", "OFFSET", "PAGE", "SmallTable"]

PAGE = 0x1000
BLOCK = 8 * PAGE
"""What an entry above the last level maps: tables have 8 entries."""
OFFSET = 0x100_0000
"""Host address of input address 0."""
POOL_BASE = 0x1000_0000


class SmallTable:
    """A table whose pages have 8 entries, of ``levels`` levels, for ``walkers`` threads under a discipline.

    ``cache``: table pages that each walker has at first. ``queue``: how many it may put aside. ``watched``: by the
    monitor of break-before-make, which knows no FEAT_BBM. ``dbm``: hardware grants the first write to a leaf that says
    so.
    A thread begins with ``enter(desk)`` and returns its desk, alone or first of a tuple.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        discipline: str = "rcu",
        walkers: int = 2,
        cache: int = 2,
        levels: int = 2,
        pages: int = 8,
        annotations: str = "7.1",
        watched: bool = True,
        dbm: bool = False,
        queue: int = 16,
    ) -> None:
        self.scene = scene
        self.monitor = Monitor(scene) if watched else None
        self.layout = scene.room("stage2.layout")
        format_, arm = scene.room("stage2.format"), scene.room("stage2.arm")
        table, pool = scene.room("stage2.table"), scene.room("stage2.pool")
        start = 4 - levels
        bits = 12 + 3 * levels
        geometry = Geometry(12, 3, start, bits)
        self.format = arm.ArmFormat(geometry, 48, format_.Annotations(annotations), dbm=dbm)
        self.pool = pool.Pool(pages, base=POOL_BASE)
        self.table = table.PageTable(
            self.format, self.pool, walkers=walkers, discipline=discipline, cache=max(cache, levels - 1), queue=queue
        )
        self.words = self.table.words
        self.attributes = self.format.attributes(Rights.RW)
        scene.words("table", self.pool.words, table_words(self.table, self.pool))
        scene.words("page", self.pool.pages, self._page_label)
        scene.words("mmu", self.table.mmu, self._mmu_label)
        self._names: list[str] = []
        for desk in self.table.desks:
            scene.room("stage2.free_list").cache_topup(*self.words[:3], desk, cache)

    # Setting up.

    def thread(self, name: str, body: Callable[..., object], *arguments: Any) -> None:
        """Add a walker: ``body(desk, *arguments)``; it returns its status, or more. They are numbered from 0."""
        walker = len(self._names)
        self._names.append(name)

        def run(desk: Own, *rest: Any) -> tuple[Own, object]:
            if self.monitor is not None:
                self.monitor.begin(desk)
            return desk, body(desk, *rest)

        self.scene.thread(name, run, self.table.desks[walker], *arguments)

    def begin(self) -> None:
        """All is set up: from now on the monitor looks."""
        if self.monitor is not None:
            self.monitor.watch(self.table)
        self.scene.final("the table is sound, nothing leaked or freed twice", self._sound)

    def face(self, desk: Own, walker: int) -> Any:
        """The table in Python, for one run of a thread with its own desk."""
        mine = copy.copy(self.table)
        mine.desks = [desk] * (walker + 1)
        return mine

    def tlb(self, walker: int, **options: Any) -> Any:
        """A TLB for ``walker``, with a handful of entries; its words go to a thread as argument."""
        small = {"combined": 2, "leaves": 2, "walks": 2} | options
        made = self.scene.room("stage2.tlb").Tlb(self.table, walker, **small)
        self.scene.tell(made.words, tlb_changes(self.format.geometry.shift))
        return made

    # Looking.

    def result(self, view: View, name: str) -> Any:
        """What a thread's body returned."""
        return view.result(name)[1]

    def leaf(self, ipa: int) -> Any:
        """The leaf for ``ipa``, outside threads."""
        return self.table.lookup(ipa)

    def check_leaf(self, ipa: int, level: int | None = None) -> None:
        """Raise unless ``ipa`` is mapped to its own host address (by a leaf of ``level``)."""
        leaf = self.leaf(ipa)
        if leaf is None:
            raise InvariantError(f"{ipa:#x} is not mapped")
        self._check_address(ipa, leaf)
        if level is not None and leaf.level != level:
            raise InvariantError(f"{ipa:#x} is mapped at level {leaf.level}, not {level}")

    def check_leaves(self, ipas: Sequence[int]) -> None:
        """Raise unless each of them is mapped to its own host address, by a page."""
        for ipa in ipas:
            self.check_leaf(ipa, 3)

    @staticmethod
    def _check_address(ipa: int, leaf: Any) -> None:
        if leaf.address != OFFSET + ipa:
            raise InvariantError(f"{ipa:#x} is mapped to {leaf.address:#x}, not {OFFSET + ipa:#x}")

    def check_addresses(self, ipas: Sequence[int]) -> None:
        """Raise unless each of them is mapped to its own host address, or to none."""
        for ipa in ipas:
            leaf = self.leaf(ipa)
            if leaf is not None:
                self._check_address(ipa, leaf)

    def _sound(self, view: View) -> None:
        before = self.table.desks
        self.table.desks = [view.result(name)[0] for name in self._names] + before[len(self._names) :]
        try:
            self.table.check()
            self._check_cached()
            self._check_waiters()
        finally:
            self.table.desks = before

    def _check_cached(self) -> None:
        """Raise unless pages in walkers' caches say so, and are empty: who takes one links it as it is."""
        pages, layout = self.pool.pages.cells, self.layout
        for page in (self.pool.page_of(at) for desk in self.table.desks for at in self.pool.cached(desk)):
            line = int(layout.PAGES) + layout.PAGE.size * page
            if pages[line + int(layout.STATE)] != int(layout.CACHED):
                raise InvariantError(f"cached page {page} has state {pages[line + int(layout.STATE)]}")
            if any(self.pool.words.cells[512 * page : 512 * page + 8]):
                raise InvariantError(f"cached page {page} is not empty")

    def _check_waiters(self) -> None:
        """Raise unless nobody holds the table's lock, and no invalidation counts as one that waits for vCPUs."""
        cells, lock = self.table.mmu.cells, int(self.layout.MMU_FIXED)
        srcu, waiting = int(cells[int(self.layout.SRCU_BASE)]), int(cells[self.table.tlb_hub + int(WAITING)])
        exits = next(index for index in range(srcu - lock) if LOCK.label(index) == "EXITS")
        held = [LOCK.label(index) for index in range(srcu - lock) if index != exits and cells[lock + index]]
        if held or waiting:
            raise InvariantError(f"left behind: {waiting} that wait for vCPUs, of the table's lock {held}")

    def _page_label(self, index: int) -> str:
        past = index - int(self.layout.PAGES)
        if not 0 <= past < self.layout.PAGE.size * self.pool.limit:
            return ""
        return f"{past // self.layout.PAGE.size} {self.layout.PAGE.label(past % self.layout.PAGE.size).lower()}"

    def _mmu_label(self, index: int) -> str:
        srcu, hub = int(self.table.mmu.cells[int(self.layout.SRCU_BASE)]), self.table.tlb_hub
        queues = int(self.table.mmu.cells[int(self.layout.QUEUE_BASE)])
        for name, structure, start, end in (
            ("", self.layout.MMU, 0, self.layout.MMU_FIXED),
            ("lock: ", LOCK, self.layout.MMU_FIXED, srcu),
            ("section: ", SRCU, srcu, queues),
            ("log: ", HUB, hub, hub + int(LINES) + int(LINE) * self.table.walkers),
        ):
            if start <= index < end and (label := structure.label(index - start)):
                return name + label.lower().replace("_", " ")
        return ""
