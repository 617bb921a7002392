"""A monitor of every access to a stage-2 table: the rules of break-before-make, as Casemate has them, and of freeing.

Each thread has a ledger, a function of what the thread did, so that it is the same in every schedule with that history.
Rules about one thread's own steps fail in the thread, as an InvariantError; rules about two threads are invariants of
the scene, over what the ledgers note. Rules 1 to 4 are Casemate's (rems-project/casemate), for tables that many
threads write at once: the owner of an entry is who locked it.

1. A valid entry is replaced by a valid one only if rights and flags alone differ.
2. An entry becomes valid only by the thread that locked it, after what was there was invalidated.
3. An invalidation counts if it covers the entry: by address a leaf of that level, by range a table or leaf.
4. Plain stores are for those who hold the entry, or the table's lock for writing; who drops that has invalidated.
5. A table page is given back after its entry was invalidated, and nobody looks at one that was given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import greenlet

from ...errors import InvariantError
from .. import operations as op

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..scene import Scene
    from ..view import View

__all__ = ["Ledger", "Monitor"]

_NO_HINT = 4


class Ledger:
    """What one thread knows of the table, and owes it."""

    def __init__(self, monitor: Monitor, cached: set[int]) -> None:
        self.monitor = monitor
        self.where = {page: (ipa, monitor.start_level) for page, ipa in monitor.root.items()}
        """Of each table page that it came across: first input address and level of its entries."""
        self.last: dict[int, int] = {}
        """What it last saw in an entry."""
        self.held: dict[int, int] = {}
        """Entries that it locked, with what was there."""
        self.unclean: dict[int, int] = {}
        """Valid entries that it took away and has not invalidated yet."""
        self.cached = cached
        """Pages that it took from the pool and has not linked."""
        self.built: set[int] = set()
        """Those of them that are tables by now."""
        self.dead: set[int] = set()
        """Tables that it unlinked, and those it found below."""
        self.given: set[int] = set()
        """Pages that it gave back."""
        self.logged: list[tuple[int, int]] = []
        """Ranges that it has logged an invalidation of, and not waited for."""
        self.buffered: set[int] = set()
        """Entries that it stored plainly since its last fence: memory may not have them yet."""
        self.fresh: set[int] = set()
        """Pages whose state it stored since then."""
        self.exclusive = False

    def key(self) -> object:
        """All that it will still judge by: threads with different ledgers are not the same (``continuation.py``)."""
        return (
            sorted(self.where.items()), sorted(self.last.items()), list(self.held.items()), list(self.unclean.items()),
            *map(sorted, (self.cached, self.built, self.dead, self.given, self.buffered, self.fresh)), self.exclusive,
            list(self.logged),
        )  # fmt: skip

    def fail(self, rule: str, entry: int) -> None:
        """Say which rule was broken, and where."""
        raise InvariantError(f"{rule}: entry {self.monitor.entry_name(entry)}")

    def look(self, entry: int, value: int) -> None:
        """It read an entry."""
        place = self.where.get(self.monitor.page_of(entry))
        self.last[entry] = value
        if place is not None:
            self._follow(entry, value)

    def _follow(self, entry: int, value: int) -> None:
        monitor = self.monitor
        page = monitor.page_of(entry)
        base, level = self.where[page]
        if monitor.is_table(value, level):
            child = monitor.table_page(value)
            ipa = base + monitor.slot_of(entry) * monitor.size(level)
            if child not in self.cached:
                self.where[child] = (ipa, level + 1)
                self.given.discard(child)
                (self.dead.add if page in self.dead else self.dead.discard)(child)

    def write(self, entry: int, old: int, new: int, *, plain: bool) -> None:
        """It wrote an entry of a table, plainly or by a read-modify-write."""
        monitor = self.monitor
        page = monitor.page_of(entry)
        if page in self.cached or page not in self.where:
            return  # not reachable: it is being built
        locked, valid = monitor.locked, monitor.valid
        if plain:
            self.buffered.add(entry)
        if plain and entry not in self.held and not self.exclusive:
            self.fail("4: a plain store by a thread that has neither the entry nor the lock", entry)
        if new == locked:
            if old != locked and page not in self.dead:
                self.held[entry] = old
                if old & valid:
                    self.unclean[entry] = old
        elif entry in self.held:
            if entry in self.unclean:
                self.fail("2: made before what was there was invalidated", entry)
            self._unlinked(entry, self.held.pop(entry))
        elif old & valid and new & valid:
            if (old ^ new) & ~monitor.loose:
                self.fail("1: valid to valid without break-before-make", entry)
        elif new & valid:
            self.fail("2: made valid by a thread that did not lock it", entry)
        elif old & valid:
            self.unclean[entry] = old
        self.last[entry] = new
        base, level = self.where[page]
        if monitor.is_table(new, level):
            child = monitor.table_page(new)
            self.cached -= self.built | {child}
            self.built.clear()
            self.where[child] = (base + monitor.slot_of(entry) * monitor.size(level), level + 1)
            self.dead.discard(child)

    def _unlinked(self, entry: int, old: int) -> None:
        _, level = self.where[self.monitor.page_of(entry)]
        if self.monitor.is_table(old, level):
            self.dead.add(self.monitor.table_page(old))

    def state(self, page: int, value: int) -> None:
        """It set the state of a page."""
        monitor = self.monitor
        self.fresh.add(page)
        if value == monitor.cached_state:
            self.cached.add(page)
            self.built.discard(page)
            self.given.discard(page)
        elif value == monitor.linked_state and page in self.cached:
            self.built.add(page)
        elif value == monitor.free_state:
            for entry, old in self.unclean.items():
                level = self.where[monitor.page_of(entry)][1]
                if monitor.is_table(old, level) and monitor.table_page(old) == page:
                    self.fail("5: a table was given back before its entry was invalidated", entry)
            self.cached.discard(page)
            self.built.discard(page)
            self.where.pop(page, None)
            self.given.add(page)

    def clean(self, start: int, end: int, level: int, *, leaves: bool) -> None:
        """An invalidation of its own is complete."""
        for entry, old in list(self.unclean.items()):
            base, at = self.where[self.monitor.page_of(entry)]
            low = base + self.monitor.slot_of(entry) * self.monitor.size(at)
            high = low + self.monitor.size(at)
            if leaves:
                right = not self.monitor.is_table(old, at) and level in {at, _NO_HINT} and low <= start < high
            else:
                right = start <= low and high <= end
            if right:
                del self.unclean[entry]

    def drain(self) -> None:
        """A fence: memory has all that it stored."""
        self.buffered.clear()
        self.fresh.clear()

    def lock(self, *, taken: bool) -> None:
        """It took, or drops, the table's lock for writing."""
        if not taken and self.unclean:
            self.fail("4: the lock is dropped before this was invalidated", next(iter(self.unclean)))
        self.exclusive = taken


class Monitor:
    """Watches the table of a scene. Made before the scene's rooms are imported; then ``watch`` and ``begin``."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._invalidate()
        self.root: dict[int, int] = {}

    def _invalidate(self) -> None:
        """Be told of invalidations: before any room takes the functions."""
        room = vars(self.scene.room("stage2.invalidate"))
        ipa, range_, all_ = room["invalidate_ipa"], room["invalidate_range"], room["invalidate_all"]
        log, wait = room["log_range"], room["wait_for_logged"]

        def invalidate_ipa(mmu: Words, at: int, level: int) -> None:
            ipa(mmu, at, level)
            self._clean(at, at + 1, level, leaves=True)

        def invalidate_range(mmu: Words, start: int, size: int) -> None:
            range_(mmu, start, size)
            self._clean(start, start + size, _NO_HINT, leaves=False)
            if (ledger := self._ledger()) is not None and (start, start + size) in ledger.logged:
                ledger.logged.remove((start, start + size))

        def invalidate_all(mmu: Words) -> None:
            all_(mmu)
            self._clean(0, 1 << 64, _NO_HINT, leaves=False)

        def log_range(mmu: Words, hub: int, start: int, size: int) -> int:
            ledger = self._ledger()
            if ledger is not None:
                ledger.logged.append((start, start + size))
            last: int = log(mmu, hub, start, size)
            return last

        def wait_for_logged(mmu: Words, hub: int, before: int) -> None:
            wait(mmu, hub, before)
            ledger = self._ledger()
            if ledger is not None:
                while ledger.logged:
                    start, end = ledger.logged.pop()
                    self._clean(start, end, _NO_HINT, leaves=False)

        room.update(invalidate_ipa=invalidate_ipa, invalidate_range=invalidate_range, invalidate_all=invalidate_all)
        room.update(log_range=log_range, wait_for_logged=wait_for_logged)

    def watch(self, table: Any) -> None:
        """Watch a PageTable of the twin, whose words the scene has: sees all that its threads do from now on."""
        layout = self.scene.room("stage2.layout")
        shape, self._pool, self._pages, self._mmu = table.words
        self._shape = shape
        self._to_words: int = table.pool.page_shift - 3
        self._base: int = table.pool.base
        self._page_shift: int = table.pool.page_shift
        geometry = table.format.geometry
        self.size: Callable[[int], int] = geometry.size
        self.start_level: int = geometry.start_level
        self._last_level = int(shape[int(layout.LAST_LEVEL)])
        root = table.pool.page_of(table.root)
        per_page = 1 << self._to_words
        self.root = {
            root + at // per_page: at * geometry.size(self.start_level)
            for at in range(0, 1 << geometry.ipa_bits >> geometry.shift(self.start_level), per_page)
        }
        self.locked, self.valid = int(shape[int(layout.LOCKED)]), int(shape[int(layout.VALID)])
        self._kind = int(shape[int(layout.TABLE_MASK)]), int(shape[int(layout.TABLE_KIND)])
        self._address = int(shape[int(layout.ADDRESS_MASK)])
        words = ("PERMISSION_MASK", "ACCESSED", "DIRTY", "MODIFIER", "SOFTWARE_MASK")
        self.loose = 0
        for word in words:
            self.loose |= int(shape[int(getattr(layout, word))])
        self.free_state, self.cached_state = int(layout.FREE), int(layout.CACHED)
        self.linked_state = int(layout.LINKED)
        self._first, self._state, self._held = int(layout.PAGES), int(layout.STATE), int(layout.HELD)
        self._end = self._first + 8 * table.pool.limit
        self._lock = int(self._mmu.cells[int(layout.LOCK_BASE)])
        self._guards = self._lock, int(self._mmu.cells[int(layout.QUEUE_BASE)])
        self._hub = int(table.tlb_hub)
        self._table = table
        self._install()
        self.scene.invariant("who locked an entry finds it locked, and it alone", self._owners)
        self.scene.invariant("nothing valid where an invalidation is owed", self._debts)
        self.scene.invariant("nobody looks at a table page that was given back", self._looks)

    def begin(self, desk: Own | None = None) -> None:
        """From a thread, first of all: a new ledger for this run."""
        cached = (
            set() if desk is None else {(at - self._base) >> self._page_shift for at in self._table.pool.cached(desk)}
        )
        vars(greenlet.getcurrent())["ledger"] = Ledger(self, cached)

    # Names and places.

    def page_of(self, entry: int) -> int:
        """The table page that an entry lies in."""
        return entry >> self._to_words

    def slot_of(self, entry: int) -> int:
        """Its index there."""
        return entry & ((1 << self._to_words) - 1)

    def entry_name(self, entry: int) -> str:
        """For people."""
        return f"{self.slot_of(entry)} of page {self.page_of(entry)}"

    def is_table(self, descriptor: int, level: int) -> bool:
        """Whether a descriptor at ``level`` points to a table."""
        return level < self._last_level and descriptor & self._kind[0] == self._kind[1]

    def table_page(self, descriptor: int) -> int:
        """Which."""
        return ((descriptor & self._address) - self._base) >> self._page_shift

    # What is seen.

    def _install(self) -> None:
        scheduler = cast("Any", self.scene.scheduler)
        carry_out, see, codes = scheduler.step, self._see, op.CODES

        def step(operation: str, words: Words | None, index: int, first: int, second: int) -> int:
            value: int = carry_out(operation, words, index, first, second)
            see(codes[operation], words, index, first, second, value)
            return value

        # A story tells the line that called an atomic: this frame counts as one of the atomics' own.
        step.__code__ = step.__code__.replace(co_filename=str(self.scene.room("atomics").__file__))
        scheduler.step = step

    @staticmethod
    def _ledger() -> Ledger | None:
        return cast("Ledger | None", vars(greenlet.getcurrent()).get("ledger"))

    def _clean(self, start: int, end: int, level: int, *, leaves: bool) -> None:
        ledger = self._ledger()
        if ledger is not None:
            ledger.clean(start, end, level, leaves=leaves)
            self._tell(ledger)

    def _see(self, code: int, words: Words | None, index: int, first: int, second: int, value: int) -> None:
        ledger = self._ledger()
        if ledger is None:
            return
        # Not a read-modify-write: on a word that nobody else touches the explorer lets it overtake.
        if code == op.FENCE and (ledger.buffered or ledger.fresh):
            ledger.drain()
            self._tell(ledger)
        if words is None:
            return
        if words is self._pool:
            self._see_entry(ledger, code, index, first, second, value)
        elif words is self._pages:
            if code > op.LOAD_ACQUIRE and self._first <= index < self._end:
                field = (index - self._first) & 7
                if field in {self._state, self._held}:
                    self.scene.note("looks at", None)
                if field == self._state and code <= op.STORE_RELEASE:
                    ledger.state((index - self._first) >> 3, first)
        elif words is self._mmu and code > op.LOAD_ACQUIRE:
            if index == self._lock and code == op.COMPARE_EXCHANGE and value == first == 0:
                ledger.lock(taken=True)
            elif index == self._lock and code == op.EXCHANGE:
                ledger.lock(taken=False)
            if self._guards[0] <= index < self._guards[1] or index >= self._hub:
                self.scene.note("looks at", None)

    def _see_entry(self, ledger: Ledger, code: int, index: int, first: int, second: int, value: int) -> None:
        page = self.page_of(index)
        if page in ledger.given:
            ledger.fail("5: used by the thread that gave the page back", index)
        if page in ledger.where and page not in ledger.cached and page not in ledger.fresh:
            self.scene.note("looks at", page)
        if code <= op.LOAD_ACQUIRE:
            ledger.look(index, value)
            return
        if code in {op.STORE_RELAXED, op.STORE_RELEASE}:
            ledger.write(index, ledger.last.get(index, 0), first, plain=True)
        elif code == op.EXCHANGE:
            ledger.look(index, value)
            ledger.write(index, value, first, plain=False)
        elif code == op.COMPARE_EXCHANGE:
            ledger.look(index, value)
            if value == first:
                ledger.write(index, value, second, plain=False)
        self._tell(ledger)

    def _tell(self, ledger: Ledger) -> None:
        self.scene.note("locked", tuple(entry for entry in ledger.held if entry not in ledger.buffered))
        self.scene.note("owes", tuple(entry for entry in ledger.unclean if entry not in ledger.buffered))

    # What must hold between threads.

    def _each(self, view: View, key: str) -> list[Any]:
        return [(thread.name, view.note(thread.name, key)) for thread in self.scene]

    def _owners(self, view: View) -> None:
        owner: dict[int, str] = {}
        for name, entries in self._each(view, "locked"):
            for entry in entries or ():
                if entry in owner:
                    raise InvariantError(f"entry {self.entry_name(entry)} is locked by {owner[entry]} and {name}")
                owner[entry] = name
                if (word := view.word(self._pool, entry)) != self.locked:
                    raise InvariantError(f"entry {self.entry_name(entry)}, locked by {name}, is {word:#x}")

    def _debts(self, view: View) -> None:
        for name, entries in self._each(view, "owes"):
            for entry in entries or ():
                if (word := view.word(self._pool, entry)) & self.valid:
                    raise InvariantError(f"entry {self.entry_name(entry)}: {name} did not invalidate it, is {word:#x}")

    def _looks(self, view: View) -> None:
        for name, page in self._each(view, "looks at"):
            if page is not None:
                state = view.word(self._pages, self._first + 8 * page + self._state)
                if state in {self.free_state, self.cached_state}:
                    raise InvariantError(f"{name} uses table page {page}, which was given back")
