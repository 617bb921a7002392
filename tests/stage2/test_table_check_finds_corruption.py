"""``check()`` names the first broken invariant, whatever word of a table is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestmem.atomics import peek, poke
from guestmem.errors import InvariantError
from guestmem.stage2 import layout
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.free_list import page_give
from guestmem.stage2.pool import Pool
from guestmem.stage2.table import PageTable

PAGES, COUNT, HELD, STATE, ENTRY_LEVEL = (
    int(getattr(layout, name)) for name in ("PAGES", "COUNT", "HELD", "STATE", "ENTRY_LEVEL")
)


def made(discipline: str = "rcu") -> PageTable:
    table = PageTable(arm_stage2(0x1000, 40), Pool(64, base=0x1000_0000), discipline=discipline, cache=8)
    table.map(0x1000, 0x3000, 0x8000_1000, Rights.RW)
    table.map(0x4000_0000, 0x20_0000, 0x8000_0000, Rights.RW)
    table.check()
    return table


def child(table: PageTable, level: int) -> int:
    """Page number of the table at ``level`` on the way to the mapped pages."""
    at = table.root
    for _ in range(level - 1):
        at = table.format.decode(table.pool.load(at, 0), 1).address  # type: ignore[union-attr]
    return table.pool.page_of(at)


def line(table: PageTable, level: int) -> int:
    return PAGES + 8 * child(table, level)


def entry(table: PageTable, level: int, index: int, word: int) -> None:
    poke(table.pool.words, (child(table, level) << 9) + index, word)


def deaf(table: PageTable) -> None:
    """Lose a page that holds nothing: taken, and nobody has it."""
    table.pool.alloc()


BROKEN: dict[str, tuple[str, Callable[[PageTable], object]]] = {
    "count": ("count of references", lambda t: poke(t.pool.pages, line(t, 3) + COUNT, 3)),
    "count of the root": ("count of references", lambda t: poke(t.pool.pages, line(t, 1) + COUNT, 9)),
    "held": ("links and walkers", lambda t: poke(t.pool.pages, line(t, 2) + HELD, 2)),
    "state": ("state is not LINKED", lambda t: poke(t.pool.pages, line(t, 2) + STATE, 3)),
    "level": ("level is not its parent's", lambda t: poke(t.pool.pages, line(t, 3) + ENTRY_LEVEL, 1)),
    "locked": ("LOCKED", lambda t: entry(t, 3, 7, t.format.locked)),
    "reserved": ("reserved", lambda t: entry(t, 3, 1, 0x8000_1001)),
    "block at the wrong level": ("no block may stand|reached twice|aligned", lambda t: entry(t, 2, 3, 0x1401)),
    "address": ("not aligned", lambda t: entry(t, 2, 3, 0x8000_1401)),
    "twice": ("reached twice", lambda t: entry(t, 2, 5, peek(t.pool.words, child(t, 2) << 9))),
    "outside": ("outside the pool", lambda t: entry(t, 2, 5, 0x2000_0003)),
    "used after free": ("was freed|state is not", lambda t: page_give(t.pool.pages, child(t, 3))),
    "leaked": ("leaked", deaf),
    "unsound": ("wrong count", lambda t: poke(t.mmu, int(layout.UNSOUND), 1)),
    "lock": ("lock is held", lambda t: poke(t.mmu, int(layout.MMU_FIXED), 1)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_is_found(what: str) -> None:
    message, breach = BROKEN[what]
    table = made()
    breach(table)
    with pytest.raises(InvariantError, match=message):
        table.check()
