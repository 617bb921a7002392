"""A vCPU maps a page in a table that another replaces by a block: who frees the table, when, under each discipline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

OK, EAGAIN = 0, 11
SHARED = 1


def build(scene: Scene, discipline: str, levels: int = 2, *, look: bool = False) -> None:
    """One page of the block is mapped. One vCPU maps, or looks up, another; one maps all of it as a block.

    With three levels the block is one of eight times the size, and two tables go.
    """
    size = BLOCK if levels == 2 else 8 * BLOCK
    small = SmallTable(scene, discipline=discipline, levels=levels)
    locked, discipline_, walk = (scene.room(f"stage2.{room}") for room in ("locked", "discipline", "walk"))
    rwlock, lock = scene.room("stage2.rwlock"), int(small.layout.MMU_FIXED)
    found, enoent = int(small.layout.FIND) + 2, int(small.layout.ENOENT)
    small.table.map(0, PAGE, OFFSET, 3)

    def mapper(desk: Own) -> int:
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), PAGE, PAGE, OFFSET + PAGE, small.attributes, 3, 0
        )
        assert status in {OK, EAGAIN}, f"map said {status}"
        discipline_.reclaim_tables(discipline_.Table(*small.words, desk), True)
        return status

    def reader(desk: Own) -> int:
        rwlock.read_lock(small.table.mmu, lock, 0)
        status: int = walk.lookup_shared(walk.Table(*small.words, desk), PAGE)
        rwlock.read_unlock(small.table.mmu, lock, 0)
        assert status in {OK, EAGAIN, enoent}, f"lookup said {status}"
        assert status != OK or desk[found] == OFFSET + PAGE, f"lookup found {desk[found]:#x}"
        return status

    def collapser(desk: Own) -> int:
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), 0, size, OFFSET, small.attributes, 4 - levels, 0
        )
        assert status in {OK, EAGAIN}, f"map said {status}"
        discipline_.reclaim_tables(discipline_.Table(*small.words, desk), True)
        return status

    small.thread("reader" if look else "mapper", reader if look else mapper)
    small.thread("collapser", collapser)

    # Whoever comes last: the page is in the block, or in a table again. (If the block is broken before the collapser
    # looks at it once more, it goes on in the new table, page by page.)
    small.begin()
    scene.final("all maps to its own memory", lambda _: small.check_addresses(range(0, size, PAGE)))
    scene.final("what was mapped is there", lambda _: small.check_leaf(PAGE))


_PROVES = "a table that is replaced by a block is freed once, when nobody is inside, with all that was put in late"
_SIZE = "2 walkers, 2 levels, 8 entries: a page is mapped, its table becomes a block"
_LOOK = "2 walkers, 2 levels, 8 entries: a page is looked up, its table becomes a block"
_DISCIPLINES = {"rcu": "rcu", "lock": "lock_subtree", "rwlock": "rwlock", "refs": "walk_refs"}
MODELS = (
    *(
        Model(
            f"stage2-collapse-{name}",
            _PROVES,
            f"{_SIZE}; {discipline}",
            partial(build, discipline=discipline),
            stale=discipline in {"rcu", "rwlock"},
        )
        for name, discipline in _DISCIPLINES.items()
    ),
    *(
        Model(
            f"stage2-look-{name}",
            _PROVES,
            f"{_LOOK}; {discipline}",
            partial(build, discipline=discipline, look=True),
            stale=True,
        )
        for name, discipline in _DISCIPLINES.items()
    ),
    *(
        Model(
            f"stage2-collapse-{name}-3",
            _PROVES,
            f"2 walkers, 3 levels, 8 entries: a page is mapped, 2 tables become a block; {discipline}",
            partial(build, discipline=discipline, levels=3),
            buffer=2,
            exhaustive=discipline == "rwlock",
            stale=discipline == "rwlock",
        )
        for name, discipline in _DISCIPLINES.items()
    ),
    *(
        Model(
            f"stage2-look-{name}-3",
            _PROVES,
            f"2 walkers, 3 levels, 8 entries: a page is looked up, 2 tables become a block; {discipline}",
            partial(build, discipline=discipline, levels=3, look=True),
            buffer=2,
            stale=True,
            dpor=False,
        )
        for name, discipline in _DISCIPLINES.items()
    ),
)
