"""A pool with few pages left: walkers give back, fill their caches, and take pages in a row, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_OK, _ENOMEM = 0, 12
_MARK = 7
"""What who has a page writes there."""


def build(scene: Scene) -> None:
    """Walker 0 has the last page in its cache, and gives it back; walker 1 has none, and looks for one."""
    small = SmallTable(scene, cache=1, pages=2, watched=False)  # one for the root
    free_list = scene.room("stage2.free_list")
    shape, pool, pages, _ = small.words
    held = [int(desk[int(small.layout.CACHE_COUNT)]) for desk in small.table.desks]
    assert held == [1, 0], f"the walkers have {held} pages, not 1 and 0"

    def giver(desk: Own) -> bool:
        page = free_list.cache_take(desk) - 1
        return bool(free_list.page_give(pages, page))

    def taker(desk: Own) -> int:
        status: int = free_list.cache_topup(shape, pool, pages, desk, 1)
        assert status in {_OK, _ENOMEM}, f"topup said {status}"
        return status

    small.thread("giver", giver)
    small.thread("taker", taker)
    scene.final("it was not free before", lambda view: small.result(view, "giver"))
    small.begin()
    count = int(small.layout.CACHE_COUNT)

    def cached(view: View) -> bool:
        desk = view.result("taker")[0]
        return bool(desk[count] == (small.result(view, "taker") == _OK))

    scene.final("who was told that there is a page has one", cached)


def row(scene: Scene) -> None:
    """One takes two pages in a row for a root, one gives the first of them back, one fills its cache."""
    small = SmallTable(scene, walkers=3, cache=1, pages=4, watched=False)  # one for the root, one in each cache
    free_list = scene.room("stage2.free_list")
    atomics = scene.room("atomics")
    shape, pool, pages, _ = small.words
    count = int(small.layout.CACHE_COUNT)
    first, middle, last = (free_list.cache_take(desk) - 1 for desk in small.table.desks)
    assert (first, middle, last) == (1, 2, 3), f"the walkers have pages {first}, {middle}, {last}"
    for page in (first, last):
        assert free_list.page_give(pages, page)  # page 1 makes no row with 2: a row is aligned to itself
    assert free_list.cache_topup(shape, pool, pages, small.table.desks[2], 1) == _OK
    free_list.cache_put(small.table.desks[0], middle)

    def giver(desk: Own) -> bool:
        return bool(free_list.page_give(pages, free_list.cache_take(desk) - 1))

    def rooted(_desk: Own) -> int:
        taken: int = free_list.take_run(pages, 2)
        if taken:
            assert taken - 1 == middle, f"pages from {taken - 1} on are no row of two"
            for page in (middle, last):
                atomics.store_relaxed(pool, page << 9, _MARK)
            for page in (middle, last):
                assert atomics.load_relaxed(pool, page << 9) == _MARK, f"page {page} of the row is another's, too"
                atomics.store_relaxed(pool, page << 9, 0)
            assert free_list.give_run(pages, middle, 2), "a page of the row was free before"
        return taken

    def taker(desk: Own) -> int:
        if desk[count]:
            assert free_list.page_give(pages, free_list.cache_take(desk) - 1)
        status: int = free_list.cache_topup(shape, pool, pages, desk, 1)
        return status

    small.thread("giver", giver)
    small.thread("root", rooted)
    small.thread("taker", taker)
    scene.final("it was not free before", lambda view: small.result(view, "giver"))
    small.begin()


MODELS = (
    Model(
        "stage2-pool",
        "a page that is taken as it is given back is its new owner's, and clean",
        "2 walkers, 1 page given back, 1 cache filled, a pool of 2 pages",
        build,
        stale=True,
    ),
    Model(
        "stage2-pool-row",
        "pages in a row are one owner's, while others take and give pages of the same word",
        "3 walkers, 1 row of 2 pages taken and given back, 1 page given back, 1 cache filled, a pool of 4 pages",
        row,
        stale=True,
    ),
)
