"""Flags that hardware sets in a leaf while an exclusive operation changes it; and FEAT_BBM.

No flag is lost, and as far as FEAT_BBM allows, block and table change places without a moment between.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

READ, WRITE = 1, 2
OK, TRANSLATION, ACCESS_FLAG, PERMISSION, CONFLICT = range(5)


def build(scene: Scene, change: str, bbm: int = 0, *, dbm: bool = False, young: bool = False) -> None:
    """Leaves without access flag. A vCPU, whose hardware sets it, reads; its table is changed exclusively meanwhile.

    ``dbm``: it writes, to leaves that are read-only but for the dirty-bit-modifier: the hardware makes them writable.
    ``young``: they have the access flag, so that the modifier alone says that hardware may write to them.

    ``change``: protect (a page), split (a block), collapse (its pages), recover (they become a block again, one of them
    write-protected until then). With FEAT_BBM level 1 the block is one of eight times the size, made of blocks: in a
    smaller one nT would be a bit of the address.
    """
    small = SmallTable(scene, watched=bbm == 0, levels=3 if bbm == 1 else 2, dbm=dbm)
    large, below = (1, 2) if bbm == 1 else (2, 3)
    walk, layout = scene.room("stage2.tlb_walk"), scene.room("stage2.tlb_layout")
    address, findings = int(layout.HOST_ADDRESS), int(layout.FINDINGS)
    shape, pool, _, mmu = small.words
    bbm2 = int(small.layout.BBM_2)
    accessed = int(small.table.shape[int(small.layout.ACCESSED)])
    size = PAGE if change == "protect" else 8 * BLOCK if bbm == 1 else BLOCK
    level = large if change == "split" else below
    writable = int(small.table.shape[int(small.layout.WRITE_GRANTED)])
    granted = int(small.table.shape[int(small.layout.WRITE_MASK)])
    if dbm:
        attributes = small.format.attributes(1) | int(small.table.shape[int(small.layout.MODIFIER)])
        done = scene.room("stage2.locked").map_shared(small.table.at(0), 0, size, OFFSET, attributes, level, 0)
        assert done == OK
    else:
        small.table.map(0, size, OFFSET, 3, level=level)
    if not young:
        small.table.young(0, size, clear=True)
    recover = scene.room("stage2.recover")
    if change == "recover":
        small.table.write_protect(0, PAGE)
    tlb = small.tlb(0, bbm=bbm, strict=True, sets_flags=dbm or None)
    if bbm == 1:
        tlb.words[int(layout.TLB_NT)] = 1 << 16

    allowed = {OK, TRANSLATION, CONFLICT, PERMISSION if dbm and change == "protect" else OK}

    def vcpu(_desk: Own, tlb: Own) -> tuple[int, Own]:
        walk.tlb_enter(shape, pool, mmu, tlb)
        for turn in range(2):
            status: int = walk.tlb_translate(shape, pool, mmu, tlb, turn * PAGE, 0, WRITE if dbm else READ)
            assert status != OK or tlb[address] == OFFSET, f"0x0 is at {tlb[address]:#x}"
            assert status in allowed, f"the access faulted with {status}"
            assert status != TRANSLATION or not bbm, "FEAT_BBM: there is no moment without translation"
            if bbm and turn == 0:
                walk.tlb_look(shape, pool, mmu, tlb)
                walk.tlb_prefetch(shape, pool, mmu, tlb, 0)
        assert not tlb[findings], "a stale entry is used, or a block and a page are there at once"
        walk.tlb_leave(mmu, tlb)
        return status, tlb

    def changer(desk: Own) -> Any:
        face = small.face(desk, 1)
        if change == "protect":
            return face.write_protect(0, PAGE, walker=1)
        if change == "split":
            return face.split(0, size, level=below, bbm=bbm, walker=1)
        if change == "recover":
            return recover.recover_range(
                recover.Table(*small.words, desk), 0, size, OFFSET, small.attributes, large, bbm2
            )
        return face.collapse(0, size, level=large, bbm=bbm, walker=1)

    small.thread("vcpu", vcpu, tlb.words)
    small.thread("changer", changer)
    small.begin()

    def flagged(view: View) -> None:
        leaf = small.leaf(0)
        assert leaf is not None, "it is not mapped"
        assert leaf.address == OFFSET, f"0x0 is mapped to {leaf.address:#x}"
        assert small.result(view, "vcpu")[0] != OK or leaf.descriptor & accessed, "the access left no flag"
        if dbm and change != "protect" and small.result(view, "vcpu")[0] == OK:
            assert leaf.descriptor & writable, "the write left no trace"

    def agreed(view: View) -> None:
        tlb.words = small.result(view, "vcpu")[1]
        tlb.enter()  # applies what was logged
        tlb.leave()
        tlb.check()

    def protected(_view: View) -> None:
        leaf = small.leaf(0)
        assert leaf is not None, "it is not mapped"
        assert leaf.descriptor & granted != writable, "what was write-protected is writable again"

    if dbm and change == "protect":
        scene.final("what is write-protected stays so", protected)
    scene.final("what is cached is in the table", agreed)
    scene.final("what was read has its access flag", flagged)
    # With the modifier a write makes leaves differ in a right: these are not collapsed.
    counts = {0, 1} if dbm and change == "collapse" else {1}
    scene.final("one entry was changed", lambda view: small.result(view, "changer") in counts)


_FLAGS = "no access flag that hardware sets is lost to an exclusive change"
_DIRTY = "nothing that hardware says of a write is lost to an exclusive change, nor is hardware's own change called one"
_BBM = "block and table change places without a moment between, where FEAT_BBM allows it, and no flag is lost"
MODELS = (
    Model(
        "stage2-flags-protect",
        _FLAGS,
        "1 vCPU that reads twice, 1 page without access flag write-protected, 2 levels",
        partial(build, change="protect"),
        stale=True,
    ),
    Model(
        "stage2-flags-split",
        _FLAGS,
        "1 vCPU that reads twice, 1 block of 8 pages split, 2 levels",
        partial(build, change="split"),
    ),
    Model(
        "stage2-flags-collapse",
        _FLAGS,
        "1 vCPU that reads twice, 8 pages become a block, 2 levels",
        partial(build, change="collapse"),
        stale=True,
    ),
    *(
        Model(
            f"stage2-dirty-{change}",
            _DIRTY,
            f"1 vCPU that writes twice, {what}, the dirty-bit-modifier set, 2 levels",
            partial(build, change=change, dbm=True),
            stale=True,
        )
        for change, what in (
            ("protect", "1 page write-protected"),
            ("split", "1 block of 8 pages split"),
            ("collapse", "8 pages become a block"),
        )
    ),
    *(
        Model(
            f"stage2-modifier-{change}",
            _DIRTY,
            f"1 vCPU that writes twice, {what}, the dirty-bit-modifier and the access flag set, 2 levels",
            partial(build, change=change, dbm=True, young=True),
            stale=True,
        )
        for change, what in (("protect", "1 page write-protected"), ("split", "1 block of 8 pages split"))
    ),
    *(
        Model(
            f"stage2-bbm{level}-{change}",
            _BBM,
            f"1 vCPU that reads twice and walks ahead, {what}, {4 - level} levels; FEAT_BBM level {level}",
            partial(build, change=change, bbm=level),
        )
        for level, change, what in (
            (1, "split", "1 block of 8 pages split"),
            (1, "collapse", "8 pages become a block"),
            (2, "split", "1 block of 8 pages split"),
            (2, "collapse", "8 pages become a block"),
            (2, "recover", "8 pages, 1 of them write-protected, become a block again"),
        )
    ),
)
