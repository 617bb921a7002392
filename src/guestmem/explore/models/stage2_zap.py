"""Two ranges taken from a table with one wait for vCPUs: zapped, protected, or with the tables they are in.

A batch that takes memory in several places waits once. What it takes must be gone from every TLB by then, whichever
range it is in, and a table that goes with its range must not be used again before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..view import View

__all__ = ["MODELS"]

_READ, _WRITE = 1, 2
_OK, _TRANSLATION, _PERMISSION = 0, 1, 3
_FREED, _OTHER = 99, 2 * OFFSET


def build(scene: Scene, what: Sequence[str], *, apart: int = PAGE) -> None:
    """A vCPU reads a page of each range that goes whole, writes to one of each that loses the right, as by ``what``.

    Its TLB has the pages, unless they are ``apart`` by a table each: then it walks, and the tables are used again.
    """
    small = SmallTable(scene, walkers=2, pages=4 if apart == PAGE else 5)
    atomics, zap, walk = scene.room("atomics"), scene.room("stage2.zap"), scene.room("stage2.tlb_walk")
    address = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words
    kinds = {"all": int(small.layout.TAKES_ALL), "writes": int(small.layout.TAKES_WRITES)}
    memory = scene.words("memory", [0] * len(what), lambda i: f"page {i}")
    pages = [place * apart for place in range(len(what))]
    tlb = small.tlb(0)
    for ipa in pages:
        small.table.map(ipa, PAGE, OFFSET + ipa, 3)
    if apart == PAGE:
        tlb.enter()
        for ipa in pages:
            assert tlb.translate(ipa)[0] == "ok"
        tlb.leave()
    ranges = [
        word for ipa, each in zip(pages, what, strict=True) for word in (ipa >> 12, (ipa + apart) >> 12, kinds[each])
    ]

    def vcpu(_desk: Own, tlb: Own, memory: Words) -> None:
        walk.tlb_enter(shape, pool, mmu, tlb)
        for place, (ipa, each) in enumerate(zip(pages, what, strict=True)):
            right = _READ if each == "all" else _WRITE
            status = walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, right)
            assert status in {_OK, _TRANSLATION, _PERMISSION}, f"the access faulted with {status}"
            if status == _OK:
                assert tlb[address] == OFFSET + ipa, "an access went by a table that is used elsewhere by then"
                if each == "writes":
                    atomics.store_relaxed(memory, place, 1)
                else:
                    assert atomics.load_relaxed(memory, place) != _FREED, "an access went to memory given back"
        walk.tlb_leave(mmu, tlb)

    def taker(desk: Own, memory: Words, ranges: Own) -> list[int]:
        zap.zap_ranges(zap.Table(*small.words, desk), ranges, len(what), True)
        left = []
        for place, each in enumerate(what):
            left.append(int(atomics.load_relaxed(memory, place)))
            if each == "all":
                atomics.store_relaxed(memory, place, _FREED)
        if apart > PAGE:
            table = small.face(desk, 1)
            for place in range(len(what), 2 * len(what)):
                table.map(place * apart, PAGE, _OTHER, 3, walker=1)
        return left

    small.thread("vCPU", vcpu, tlb.words, memory)
    small.thread("taker", taker, memory, scene.own(ranges))
    small.begin()

    def kept(view: View) -> bool:
        left = small.result(view, "taker")
        now = [view.word("memory", place) for place in range(len(what))]
        return all(was == is_ for was, is_, each in zip(left, now, what, strict=True) if each == "writes")

    scene.final("what is protected is not written to any more", kept)

    def gone(_view: View) -> bool:
        leaves = [small.leaf(ipa) for ipa in pages]
        return all((leaf is None) == (each == "all") for leaf, each in zip(leaves, what, strict=True))

    scene.final("what was zapped is not mapped, and what was protected is", gone)


def _model(name: str, size: str, what: Sequence[str], apart: int = PAGE) -> Model:
    return Model(
        name,
        "when ranges were taken, no vCPU uses what any of them had, nor walks a table that went with them",
        f"1 vCPU with a TLB of 2 + 2 + 2 entries, 2 accesses, {size}, 2 levels of 8 entries",
        partial(build, what=what, apart=apart),
        buffer=2,
        stale=True,
        dpor=False,
    )


MODELS = (
    _model("stage2-zap-ranges", "2 ranges of a page zapped that its TLB has", ("all", "all")),
    _model("stage2-zap-protects", "a page zapped and a page protected that its TLB has", ("all", "writes")),
    _model("stage2-protect-zaps", "a page protected and a page zapped that its TLB has", ("writes", "all")),
    _model(
        "stage2-zap-tables", "2 ranges of a table each zapped, and the tables taken again", ("all", "all"), apart=BLOCK
    ),
)
