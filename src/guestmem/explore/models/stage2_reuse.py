"""A table page is freed and taken again elsewhere while another walker is about to enter it.

The pool is so small that who frees a page gets the same one again: a look at what a page was, or a count on a life that
is over, then lands in somebody else's table. It is the case that the second look of ``walk_refs`` is for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

OK, EAGAIN = 0, 11
_BELOW = 2 * BLOCK
"""Where the page is used again."""


def build(scene: Scene, discipline: str) -> None:
    """One page is mapped. A vCPU maps another; one maps all as a block, and takes the table for another place."""
    small = SmallTable(scene, discipline=discipline, cache=1, pages=4)
    locked, map_, discipline_ = (scene.room(f"stage2.{room}") for room in ("locked", "map", "discipline"))
    free_list, rwlock = scene.room("stage2.free_list"), scene.room("stage2.rwlock")
    lock, shared = int(small.layout.MMU_FIXED), int(small.layout.SHARED)
    shape, pool, pages, mmu = small.words
    small.table.map(0, PAGE, OFFSET, 3, walker=1)

    def mapper(desk: Own) -> int:
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), PAGE, PAGE, OFFSET + PAGE, small.attributes, 3, 0
        )
        assert status in {OK, EAGAIN}, f"map said {status}"
        discipline_.reclaim_tables(discipline_.Table(*small.words, desk), True)
        return status

    def collapser(desk: Own) -> tuple[int, int]:
        rwlock.read_lock(mmu, lock, 1)
        done: int = map_.map_range(map_.Table(*small.words, desk), 0, BLOCK, OFFSET, small.attributes, 2, shared)
        rwlock.read_unlock(mmu, lock, 1)
        assert done in {OK, EAGAIN}, f"map said {done}"
        discipline_.reclaim_tables(discipline_.Table(*small.words, desk), True)
        if free_list.cache_topup(shape, pool, pages, desk, 1) != OK:
            return done, EAGAIN  # the other one still holds it
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), _BELOW, PAGE, OFFSET + _BELOW, small.attributes, 3, 0
        )
        assert status in {OK, EAGAIN}, f"map said {status}"
        return done, status

    small.thread("mapper", mapper)
    small.thread("collapser", collapser)
    small.begin()
    scene.final("all maps to its own memory", lambda _: small.check_addresses(range(0, 3 * BLOCK, PAGE)))

    def mapped(view: View) -> None:
        if small.result(view, "mapper") == OK:
            small.check_leaf(PAGE)

    scene.final("what was mapped is there", mapped)


_PROVES = "a walker never enters, or writes, a page that is another table by then"
_SIZE = "2 walkers, 2 levels, 8 entries, 4 pages: a page is mapped, its table becomes a block, and a table elsewhere"
MODELS = tuple(
    Model(f"stage2-reuse-{name}", _PROVES, f"{_SIZE}; {discipline}", partial(build, discipline=discipline))
    for name, discipline in (("rcu", "rcu"), ("refs", "walk_refs"))
)
