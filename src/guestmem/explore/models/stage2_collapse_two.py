"""A shared walk that holds tables comes up from two of them, while a page below one is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own

__all__ = ["MODELS"]

OK = 0
_SECOND = 8 * BLOCK


def build(scene: Scene) -> None:
    """Of two tables of tables neither becomes a block, for each has one page."""
    small = SmallTable(scene, discipline="walk_refs", levels=3)
    collapse, walk, rwlock = (scene.room(f"stage2.{room}") for room in ("collapse", "walk", "rwlock"))
    mmu, lock = small.table.mmu, int(small.layout.MMU_FIXED)
    find, shared = int(small.layout.FIND), int(small.layout.SHARED)
    for page in (0, _SECOND):
        small.table.map(page, PAGE, OFFSET + page, 3)

    def reader(desk: Own) -> int:
        rwlock.read_lock(mmu, lock, 0)
        status: int = walk.lookup_shared(walk.Table(*small.words, desk), _SECOND)
        rwlock.read_unlock(mmu, lock, 0)
        assert status == OK, f"lookup said {status}"
        assert desk[find + 2] == OFFSET + _SECOND, f"lookup found {desk[find + 2]:#x}"
        return status

    def collapser(desk: Own) -> int:
        rwlock.read_lock(mmu, lock, 1)
        status: int = collapse.collapse_range(collapse.Table(*small.words, desk), 0, 2 * _SECOND, 1, shared)
        rwlock.read_unlock(mmu, lock, 1)
        assert status == OK, f"the collapse said {status}"
        return status

    small.thread("reader", reader)
    small.thread("collapser", collapser)
    small.begin()
    scene.final("all is as it was", lambda _: small.check_leaves([0, _SECOND]))


MODELS = (
    Model(
        "stage2-collapse-two",
        "a walk that comes up from two tables lets go of each",
        "2 walkers, 3 levels, 8 entries: 2 tables of tables are looked at for a collapse, 1 lookup; walk_refs",
        build,
        buffer=2,
        stale=True,
        dpor=False,
    ),
)
