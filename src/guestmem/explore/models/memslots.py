"""Two sets of slots: readers that look frames up while an update edits one set, swaps, waits, and brings the other.

Slots, trees and phases are those of production, with nodes of 17 words. Readers look up as a vCPU's fault does.
"""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label

__all__ = ["MODELS"]

_IDS, _NODE_WORDS = 2, 17
_OLD_HVA, _NEW_HVA = 0x10_0000, 0x90_0000


def build(scene: Scene, readers: int, lookups: int, *, split: bool) -> None:
    """A slot of 4 frames is replaced, in one batch, by one with other memory, or by two halves of it."""
    layout, phases = scene.room("memslots.layout"), scene.room("memslots.phases")
    lookup, srcu = scene.room("memslots.lookup"), scene.room("rcu.srcu")
    shape = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    words, desk = layout.new_memslots(shape)
    domain = srcu.Srcu(readers)
    assert phases.stage(words, desk, 0, 16, 4, _OLD_HVA, 0, _IDS) < phases.FIRST_REASON
    assert phases.publish(words, desk)
    assert phases.settle(words, desk)
    assert phases.bring(words, desk, False)
    invariants, geometry = scene.room("memslots.invariants"), shape
    scene.words("memslots", words, memslots_label(scene, shape.first_record, shape.first_node))
    scene.words("srcu", domain.words, srcu_label)

    def reader(words: Words, state: Words, me: int) -> None:
        for turn in range(lookups):
            gfn = 16 + 3 * (turn + me) % 4
            srcu.srcu_enter(state, 0, me)
            record = lookup.find(words, 0, gfn)
            assert record, f"frame {gfn:#x} has no slot"
            base, npages = layout.slot_base_gfn(words, record), layout.slot_npages(words, record)
            assert base <= gfn < base + npages, f"frame {gfn:#x}: found slot [{base:#x}, {base + npages:#x})"
            hva = layout.slot_userspace_addr(words, record) + ((gfn - base) << 12)
            offset = (gfn - 16) << 12
            assert hva in {_OLD_HVA + offset, _NEW_HVA + offset}, f"frame {gfn:#x} is at {hva:#x}"
            srcu.srcu_exit(state, 0, me)

    def update(words: Words, desk: Own, state: Words) -> Own:
        def stage(id_: int, gfn: int, npages: int, hva: int) -> None:
            assert phases.stage(words, desk, id_, gfn, npages, hva, 0, _IDS) < phases.FIRST_REASON

        stage(0, 0, 0, 0)
        if split:
            stage(0, 16, 2, _NEW_HVA)
            stage(1, 18, 2, _NEW_HVA + 0x2000)
        else:
            stage(0, 16, 4, _NEW_HVA)
        assert phases.publish(words, desk)
        srcu.srcu_synchronize(state, 0, readers)
        assert phases.settle(words, desk)
        assert phases.bring(words, desk, False)
        return desk

    for me in range(readers):
        scene.thread(f"reader {me}", reader, words, domain.words, me)
    scene.thread("updater", update, words, desk, domain.words)
    scene.final(
        "both sets are sound, and the same",
        lambda view: invariants.check_memslots(geometry, words.cells, view.result("updater")),
    )
    scene.final("nobody is left inside", lambda _view: domain.check() or not domain.inside())


def replace_1(scene: Scene) -> None:
    """One reader, other memory."""
    build(scene, 1, 2, split=False)


def split_2(scene: Scene) -> None:
    """Two readers, a split."""
    build(scene, 2, 1, split=True)


def both(scene: Scene) -> None:
    """A slot in each of two address spaces gets other memory in one call; the reader is between the two stores, too."""
    layout, phases = scene.room("memslots.layout"), scene.room("memslots.phases")
    lookup, srcu = scene.room("memslots.lookup"), scene.room("rcu.srcu")
    shape = layout.geometry(2, _IDS, node_words=_NODE_WORDS)
    words, first = layout.new_memslots(shape)
    last = scene.own(int(shape.desk_words))
    domain = srcu.Srcu(1)

    def stage(words: Words, desk: Own, as_id: int, npages: int, hva: int) -> None:
        assert phases.stage(words, desk, as_id << 16, 16, npages, hva, 0, _IDS) < phases.FIRST_REASON

    for as_id in range(2):
        stage(words, first, as_id, 2, _OLD_HVA)
        assert phases.publish(words, first)
        assert phases.settle(words, first)
        assert phases.bring(words, first, False)
    invariants, geometry = scene.room("memslots.invariants"), shape
    scene.words("memslots", words, memslots_label(scene, shape.first_record, shape.first_node))
    scene.words("srcu", domain.words, srcu_label)

    def found(words: Words, as_id: int) -> int:
        record = lookup.find(words, as_id, 17)
        assert record, f"frame 0x11 of space {as_id} has no slot"
        hva = int(layout.slot_userspace_addr(words, record))
        assert hva in {_OLD_HVA, _NEW_HVA}, f"frame 0x11 of space {as_id} is at {hva:#x}"
        return hva

    def reader(words: Words, state: Words) -> None:
        srcu.srcu_enter(state, 0, 0)
        second = found(words, 1)
        assert second == _OLD_HVA or found(words, 0) == _NEW_HVA, "who sees the set published last misses the first"
        srcu.srcu_exit(state, 0, 0)

    def update(words: Words, first: Own, last: Own, state: Words) -> tuple[Own, Own]:
        def turn(desk: Own, other: Own) -> None:
            phases.hand_over(desk, other)

        for as_id, desk in enumerate((first, last)):
            stage(words, desk, as_id, 0, 0)
            stage(words, desk, as_id, 2, _NEW_HVA)
            turn(desk, last if desk is first else first)
        phases.publish_both(words, first, last)
        srcu.srcu_synchronize(state, 0, 1)
        for desk in (first, last):
            assert phases.settle(words, desk)
        for desk in (first, last):
            assert phases.bring(words, desk, False)
            turn(desk, last if desk is first else first)
        return first, last

    scene.thread("reader", reader, words, domain.words)
    scene.thread("updater", update, words, first, last, domain.words)
    scene.final(
        "both sets of both spaces are sound, and the same",
        lambda view: invariants.check_memslots(geometry, words.cells, view.result("updater")[0]),
    )
    scene.final("nobody is left inside", lambda _view: domain.check() or not domain.inside())


_PROVES = "a lookup always finds one whole slot, of the old set or of the new, and never a record that was reused"
MODELS = (
    Model("memslots", _PROVES, "1 reader, 2 lookups, 1 batch that re-hosts a slot", replace_1, stale=True),
    Model(
        "memslots-split",
        _PROVES,
        "2 readers, 1 lookup each, 1 batch that splits and re-hosts a slot",
        split_2,
        buffer=2,
    ),
    Model(
        "memslots-both",
        "of two address spaces published in one call, who sees the set published last sees the first one's, too",
        "1 reader, 2 lookups, 1 batch that re-hosts a slot of each space",
        both,
        buffer=2,
        stale=True,
    ),
)
