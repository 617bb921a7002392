"""Trees of slots of two levels: a leaf that fills up, one that empties, and none left; all slots of a range copied.

``memslots`` and ``slots-beside`` have a slot or two, whose trees are one node. Here a batch takes out or puts in so
many that nodes split, join and go, while a reader looks frames up and copies all slots, by frame or by host address.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label

if TYPE_CHECKING:
    from ...compiled import Own, Words

__all__ = ["MODELS"]

_IDS, _NODE_WORDS = 8, 17
_PAGES, _APART = 2, 16
_END = 1 << 40


def _base(id_: int) -> int:
    return _APART * (id_ + 1)


def _hva(id_: int) -> int:
    """Host memory lies the other way round."""
    return 0x10_0000 * (_IDS - id_)


def build(scene: Scene, before: tuple[int, ...], after: tuple[int, ...], looked_up: tuple[int, ...]) -> None:
    """From the slots ``before`` to those ``after`` in one batch, while a reader looks some up, and copies all."""
    layout, phases = scene.room("memslots.layout"), scene.room("memslots.phases")
    lookup, srcu = scene.room("memslots.lookup"), scene.room("rcu.srcu")
    invariants = scene.room("memslots.invariants")
    shape = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    words, desk = layout.new_memslots(shape)
    domain = srcu.Srcu(1)
    width, skipped = int(layout.SLOT_WORDS), int(lookup.CURSOR_WORDS)

    def stage(words: Words, desk: Own, id_: int, *, there: bool) -> None:
        asked = (_base(id_), _PAGES, _hva(id_)) if there else (0, 0, 0)
        assert phases.stage(words, desk, id_, *asked, 0, _IDS) < phases.FIRST_REASON

    for id_ in before:
        stage(words, desk, id_, there=True)
    assert phases.publish(words, desk)
    assert phases.settle(words, desk)
    assert phases.bring(words, desk, False)
    scene.words("memslots", words, memslots_label(scene, shape.first_record, shape.first_node))
    scene.words("srcu", domain.words, srcu_label)

    def whole(ids: Iterable[int], *, by_hva: bool) -> list[int]:
        return sorted((_hva if by_hva else _base)(id_) for id_ in ids)

    def reader(words: Words, state: Words, out: Own) -> None:
        newer = False
        for id_ in looked_up:
            srcu.srcu_enter(state, 0, 0)
            record = lookup.find(words, 0, _base(id_) + 1)
            found = bool(record)
            assert not found or layout.slot_base_gfn(words, record) == _base(id_), f"slot {id_} is another's"
            assert not lookup.find(words, 0, _base(id_) + _PAGES), f"a slot holds the frame behind slot {id_}"
            srcu.srcu_exit(state, 0, 0)
            assert found in {id_ in before and not newer, id_ in after}, f"slot {id_}: found: {found}"
            newer = newer or found != (id_ in before)
        for by_hva in (False, True):
            count = int(lookup.copy_slots(words, state, 0, 0, _END, by_hva, out))
            place = int(layout.USERSPACE_ADDR if by_hva else layout.BASE_GFN) - int(layout.FIRST_FIELD)
            seen = [int(out[skipped + width * at + place]) for at in range(count)]
            states = [whole(ids, by_hva=by_hva) for ids in (before, after)]
            assert seen in states[newer:], f"all slots: {seen}"
            newer = newer or seen != states[0]

    def update(words: Words, desk: Own, state: Words) -> Own:
        for id_ in sorted({*before} ^ {*after}):
            stage(words, desk, id_, there=id_ in after)
        assert phases.publish(words, desk)
        srcu.srcu_synchronize(state, 0, 1)
        assert phases.settle(words, desk)
        assert phases.bring(words, desk, False)
        return desk

    scene.thread("reader", reader, words, domain.words, scene.own(skipped + width * _IDS))
    scene.thread("updater", update, words, desk, domain.words)
    scene.final(
        "both sets are sound, and the same",
        lambda view: invariants.check_memslots(shape, words.cells, view.result("updater")),
    )
    scene.final("nobody is left inside", lambda _view: domain.check() or not domain.inside())


_EVERY = tuple(range(_IDS))
MODELS = tuple(
    Model(
        f"slots-levels-{name}",
        "a reader finds each slot of trees of two levels, and copies all of one set, whatever a batch does to nodes",
        f"1 reader, 1 slot looked up, all copied twice, 1 batch: {size}",
        partial(build, before=before, after=after, looked_up=looked_up),
        buffer=2,
        dpor=False,
    )
    for name, size, before, after, looked_up in (
        ("go", "of 8 slots 5 go, and a leaf is empty", _EVERY, (0, 6, 7), (2,)),
        ("come", "4 come to 4, and a leaf is full", (1, 3, 5, 7), _EVERY, (4,)),
        ("none", "all of 2 go", (2, 5), (), (5,)),
    )
)
