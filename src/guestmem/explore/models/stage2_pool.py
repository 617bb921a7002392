"""A pool with no page left: one walker gives a page back while another fills its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_OK, _ENOMEM = 0, 12


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


MODELS = (
    Model(
        "stage2-pool",
        "a page that is taken as it is given back is its new owner's, and clean",
        "2 walkers, 1 page given back, 1 cache filled, a pool of 2 pages",
        build,
        stale=True,
    ),
)
