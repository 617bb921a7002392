"""A table is destroyed, and its pages are somebody else's, while a vCPU is still in the guest with a TLB."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_OK, _READ = 0, 1
_ELSEWHERE = OFFSET + 64 * BLOCK
"""What the new owner of a table page writes there, as a leaf."""


def build(scene: Scene, accesses: int) -> None:
    """Two pages are mapped. A vCPU reads; one destroys the table, and writes to its pages what maps other memory."""
    small = SmallTable(scene, walkers=2, cache=1, pages=4, watched=False)
    small.table.map(0, 2 * PAGE, OFFSET, 3, walker=1)
    shape, pool, pages, mmu = small.words
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    destroy, entry = scene.room("stage2.destroy"), scene.room("stage2.entry")
    atomics, layout = scene.room("atomics"), small.layout
    line = int(layout.PAGES)
    linked = [page for page in range(4) if pages.cells[line + 8 * page + int(layout.STATE)] == int(layout.LINKED)]
    held = [int(desk[int(layout.CACHE_COUNT)]) for desk in small.table.desks]

    def vcpu(_desk: Own, tlb: Own) -> tuple[int, ...]:
        found = []
        for access in range(accesses):
            ipa = PAGE * access
            walk.tlb_enter(shape, pool, mmu, tlb)
            status = walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, _READ)
            if status == _OK:
                assert tlb[address] == OFFSET + ipa, f"a vCPU reads {tlb[address]:#x} through a table that was freed"
            walk.tlb_leave(mmu, tlb)
            found.append(int(status))
        assert _OK not in found[1:] or found[0] == _OK, "a vCPU reads through a table that it found gone"
        return tuple(found)

    def ender(_desk: Own) -> int:
        freed: int = destroy.destroy_table(shape, pool, pages, mmu)
        for page in linked:
            for at in range(2):
                leaf = entry.leaf_descriptor(shape, 3, _ELSEWHERE + PAGE * at, small.attributes)
                atomics.store_relaxed(pool, (page << 9) + at, leaf)
        return freed

    small.thread("vCPU", vcpu, small.tlb(0).words)
    small.thread("ender", ender)
    unsound = int(layout.UNSOUND)

    def given_back(view: View) -> bool:
        taken = small.pool.pages.cells[int(layout.TAKEN)] - small.pool.pages.cells[int(layout.GIVEN)]
        return bool(taken == sum(held) and small.result(view, "ender") == len(linked))

    scene.final("every page is given back, once", given_back)
    scene.final("counts were right, nobody held a page", lambda view: view.word("mmu", unsound) == 0)


MODELS = tuple(
    Model(
        name,
        "nobody reads through a table that was destroyed, and all its pages return",
        f"1 vCPU with a TLB, {size}, 1 destruction, 2 levels, 8 entries, 2 pages mapped",
        partial(build, accesses=accesses),
        stale=True,
        dpor=False,
    )
    for name, size, accesses in (("stage2-destroy", "1 access", 1), ("stage2-destroy-again", "2 accesses", 2))
)
