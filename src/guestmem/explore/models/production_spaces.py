"""Both address spaces changed with one instant, on the path that production takes: ``SpacesUpdate`` and a vCPU's exits.

One frame of each space. A vCPU accesses that of space 0, goes to space 1 (as into SMM) and accesses that one: what it
saw done there must be done here. Space 1, where memory comes, is published last, so that its frame does not wait: all
rests on what space 0 shows before the second store.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL
from ..twin import Mutation

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_TABLES = "engines/soft/stage2.py"
_SIZES = (
    Mutation(_TABLES, "TABLE_PAGES = 1 << 14", "TABLE_PAGES = 16"),
    *(each for each in SMALL if each.new != "TABLE_PAGES = 8"),
)
_GFN, _OLD, _NEW, _FREED = 16, 1, 2, 99
_HOLE, _READONLY = 0, 3
_MET_HOLE, _MET_READONLY = 2, 3
_READ, _WRITE = 0, 1
KINDS = {
    "comes": (_HOLE, _NEW, _READ),
    "goes": (_OLD, _HOLE, _READ),
    "writable": (_READONLY, _OLD, _WRITE),
    "readonly": (_OLD, _READONLY, _WRITE),
}
"""What happens to the frame of space 0: what an access sees before, and after, and whether it reads or writes."""

WHAT = {
    "comes": "memory comes",
    "goes": "memory goes",
    "writable": "read-only memory becomes writable",
    "readonly": "memory becomes read-only",
}


def build(scene: Scene, kind: str) -> None:
    """The frame of space 0 ``kind``; that of space 1 comes."""
    before, after, access_kind = KINDS[kind]
    old, new = scene.host("old page", [_OLD]), scene.host("new page", [_NEW])
    small = SmallEngine(
        scene, [] if kind == "comes" else [(0, _GFN, 1, old, 2 * (kind == "writable"))], address_spaces=2
    )
    at, atomics, change, memslots = small.at, small.atomics, small.change, small.memslots
    second_desk = scene.room("compiled").own(memslots.geometry.desk_words)
    memslots.desks.append(second_desk)
    apply = scene.room("designs.atomic").apply
    changes = {
        "comes": [change(0, _GFN, 1, new)],
        "goes": [change(0)],
        "writable": [change(0), change(0, _GFN, 1, old)],
        "readonly": [change(0), change(0, _GFN, 1, old, 2)],
    }[kind]
    changes.append(change(1, _GFN + 1, 1, new, 0, 1))  # another frame: in flux, one waits in both spaces

    def access(as_id: int, desk: Own, tlb: Own, own: Own) -> int:
        """What an access to the frame of a space finds; as ``stage2_access``, after ``VcpuThreads._run``."""
        kind, gfn = (_READ if as_id else access_kind), _GFN + as_id
        own[int(at.AS_ID)] = as_id
        small.enter(tlb, own, as_id=as_id)
        saw = 0
        while not small.reaches(tlb, gfn << 12, kind, as_id):
            came = small.exit(desk, tlb, own, (gfn, kind, False), as_id=as_id)
            if came != AGAIN:
                saw = {_MET_HOLE: _HOLE, _MET_READONLY: _READONLY}[came]
                break
        else:
            saw = int(atomics.host_load(small.host(tlb)))
        small.leave(tlb, own, as_id=as_id)
        return saw

    def vcpu(desk0: Own, tlb0: Own, desk1: Own, tlb1: Own, own: Own) -> tuple[Own, Own]:
        first = access(0, desk0, tlb0, own)
        assert first in {before, after}, f"an access of space 0 saw {first}"
        second = access(1, desk1, tlb1, own)
        assert second in {_HOLE, _NEW}, f"an access of space 1 saw {second}"
        assert first == before or second == _NEW, "an access of space 1 saw the old after one of space 0 saw the new"
        return desk0, desk1

    def updater(second: Own, first: Own, ranges: Own, took: Own, *desks: Own) -> tuple[Own, ...]:
        engine = small.of(first, ranges, took, *desks)
        engine.memslots.desks = [first, second]
        apply(engine, changes)
        if kind == "goes":
            atomics.host_store(old, _FREED)
        return engine.memslots.desk, *desks

    scene.thread("vCPU", vcpu, *small.vcpu_words())
    scene.thread("updater", updater, second_desk, *small.updater_words())

    def sound(view: View) -> None:
        memslots.desk, *desks = view.result("updater")
        memslots.check()
        before = [table.desks for table in small.tables]
        for table, *walkers in zip(small.tables, desks, view.result("vCPU"), strict=True):
            table.desks = walkers
        try:
            for table in small.tables:
                table.check()
        finally:
            for table, walkers in zip(small.tables, before, strict=True):
                table.desks = walkers

    small.finals()
    scene.final("slots and tables are sound", sound)


def _model(kind: str, **options: Any) -> Model:
    return Model(
        f"production-spaces-{kind}",
        "on the path that production takes, changes of two address spaces have one instant",
        f"SoftEngine, 16 table pages of 8 entries, 1 vCPU that changes its space, 1 core; {WHAT[kind]} in "
        "the first space, memory comes in the second; an access each",
        partial(build, kind=kind),
        geometry=_SIZES,
        buffer=2,
        steps=4000,
        dpor=False,
        **options,
    )


MODELS = tuple(_model(kind) for kind in KINDS)
