"""A split, a merge and a truncation in one call each, on the path that production takes: ``transaction.transact``.

A batch by which no vCPU loses anything asks no vCPU for anything: it edits, compares, publishes, waits for readers and
brings the other set, and all that keeps a fault off a record that is used again is the grace period. Here a slot of two
frames becomes two slots and one again, the second of the records that were freed before: the first as a batch of
``atomic`` asks for it, the second as ``Vm.merge`` does. And a slot of two frames loses the second, as by ``Vm.resize``,
while a vCPU reads both: the first is there all the time, and the memory of the second is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_engine import AGAIN, SmallEngine
from ..small_vm import SMALL

if TYPE_CHECKING:
    from ...compiled import Own
    from ..view import View

__all__ = ["MODELS"]

_GFN, _FREED, _READ = 16, 99, 0
_WORDS_OF_A_PAGE = 512


def build(scene: Scene, order: tuple[int, ...], *, lookups: int = 0) -> None:
    """A vCPU reads the frames ``order``, in that order; or ``lookups`` vCPUs look up the slots of them."""
    words = [0] * (_WORDS_OF_A_PAGE + 1)
    words[0], words[_WORDS_OF_A_PAGE] = 1, 2
    memory = scene.host("memory", words)
    pages = (memory, memory + 0x1000)
    small = SmallEngine(scene, [(0, _GFN, 2, memory)], vcpus=lookups or 1)
    atomics, change = small.atomics, small.change
    lookup, layout, srcu = scene.room("memslots.lookup"), scene.room("memslots.layout"), scene.room("rcu.srcu")
    split = [change(0), change(0, _GFN, 1, pages[0]), change(1, _GFN + 1, 1, pages[1])]
    merge = [change(0), change(1), change(0, _GFN, 2, memory)]

    def vcpu(desk: Own, tlb: Own, own: Own) -> Own:
        small.enter(tlb, own)
        for frame in order:
            while not small.reaches(tlb, (_GFN + frame) << 12, _READ):
                came = small.exit(desk, tlb, own, (_GFN + frame, _READ, True))
                assert came == AGAIN, f"frame {frame} has memory all the time, but an access came to {came}"
            host = small.host(tlb)
            assert host == pages[frame], f"frame {frame} was found at {host - memory:#x} of its slot's memory"
            assert atomics.host_load(host) == 1 + frame, "an access went to memory that was given back"
        small.leave(tlb, own)
        return desk

    def looks(desk: Own, own: Own) -> Own:
        """As ``stage2_fault`` looks its slot up."""
        reader = own[int(small.at.READER)]
        for frame in order:
            gfn = _GFN + frame
            srcu.srcu_enter(small.srcu, 0, reader)
            record = lookup.find(small.slots, 0, gfn)
            assert record, f"frame {frame} has a slot all the time, but a lookup found none"
            base, npages = layout.slot_base_gfn(small.slots, record), layout.slot_npages(small.slots, record)
            assert base <= gfn < base + npages, f"frame {frame} was found in [{base:#x}, {base + npages:#x})"
            host = layout.slot_userspace_addr(small.slots, record) + ((gfn - base) << 12)
            assert host == pages[frame], f"frame {frame} was found at {host:#x}"
            srcu.srcu_exit(small.srcu, 0, reader)
        return desk

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own, int]:
        engine = small.of(slots_desk, ranges, took, desk)
        assert engine.at_once(split), "a split was left to the phases"
        assert engine.reshape(_words(merge)), "a merge was left to the phases"
        return slots_desk, desk, engine.counts.swaps

    for me in range(lookups):
        scene.thread(f"vCPU {me}", looks, *small.vcpu_words(me)[::2])
    if not lookups:
        scene.thread("vCPU 0", vcpu, *small.vcpu_words())
    scene.thread("updater", updater, *small.updater_words())

    def sound(view: View) -> None:
        small.are_sound(*view.result("updater")[:2], *(view.result(f"vCPU {me}") for me in range(lookups or 1)))

    def mapped(_view: View) -> bool:
        found = [small.tables[0].lookup((_GFN + frame) << 12) for frame in range(2)]
        return all(each is None or each.address == pages[frame] for frame, each in enumerate(found))

    swaps = small.engine.counts.swaps
    small.finals()
    scene.final("slots and tables are sound", sound)
    scene.final("frames are mapped to their memory", mapped)
    scene.final("each had one swap", lambda view: view.result("updater")[2] == swaps + 2)


def _words(changes: Sequence[Any]) -> list[int]:
    """Changes as ``vm.reshape`` has them: a word for the status behind each."""
    return [word for each in changes for word in (*each, 0)]


def truncate(scene: Scene, order: tuple[int, ...]) -> None:
    """A vCPU reads the frames ``order``, in that order, while the slot loses the second, which is given back then."""
    words = [0] * (_WORDS_OF_A_PAGE + 1)
    words[0], words[_WORDS_OF_A_PAGE] = 1, 2
    memory = scene.host("memory", words)
    small = SmallEngine(scene, [(0, _GFN, 2, memory)])
    atomics, change = small.atomics, small.change

    def reaches(desk: Own, tlb: Own, own: Own, frame: int) -> bool:
        """Whether an access finds memory; the first frame has some."""
        while not small.reaches(tlb, (_GFN + frame) << 12, _READ):
            came = small.exit(desk, tlb, own, (_GFN + frame, _READ, not frame))
            if came != AGAIN:
                assert frame, "the first frame has memory all the time"
                return False
        return True

    def vcpu(desk: Own, tlb: Own, own: Own) -> Own:
        small.enter(tlb, own)
        for turn, frame in enumerate(order):
            if turn:
                small.look(tlb, own)
            if reaches(desk, tlb, own, frame):
                saw = atomics.host_load(small.host(tlb))
                assert saw == 1 + frame, "an access went to memory that was given back"
        small.leave(tlb, own)
        return desk

    def updater(slots_desk: Own, ranges: Own, took: Own, desk: Own) -> tuple[Own, Own, int]:
        engine = small.of(slots_desk, ranges, took, desk)
        assert engine.reshape(_words([change(0), change(0, _GFN, 1, memory)])), "it was left to the phases"
        atomics.host_store(memory + 0x1000, _FREED)
        return slots_desk, desk, engine.counts.ranges_in_flux

    scene.thread("vCPU 0", vcpu, *small.vcpu_words())
    scene.thread("updater", updater, *small.updater_words())

    def sound(view: View) -> None:
        small.are_sound(*view.result("updater")[:2], view.result("vCPU 0"))

    small.finals()
    scene.final("slots and tables are sound", sound)
    scene.final("the second frame is not mapped", lambda _: small.tables[0].lookup((_GFN + 1) << 12) is None)
    scene.final("one range was in flux", lambda view: view.result("updater")[2] == 1)


def _truncate(name: str, frame: int) -> Model:
    return Model(
        name,
        "on the path that production takes, a slot that is cut takes nothing from a vCPU but what is cut off",
        f"1 vCPU, 1 read of frame {frame}, 1 core, a slot of 2 frames that loses the second; "
        "SoftEngine, 8 table pages of 8 entries",
        partial(truncate, order=(frame,)),
        geometry=SMALL,
        buffer=2,
        steps=4000,
        dpor=False,
    )


_SPLIT = "a slot of 2 frames that is split and merged"


def _model(name: str, order: tuple[int, ...], *, lookups: int = 0) -> Model:
    size = f"1 vCPU, {len(order)} read{'s' * (len(order) > 1)}, 1 core, {_SPLIT}"
    if lookups:
        size = f"{lookups} vCPUs, {len(order)} lookup{'s' * (len(order) > 1)} each, {_SPLIT}"
    return Model(
        name,
        "on the path that production takes, a batch in one call takes no memory from a vCPU, and no record it reads",
        f"{size}; SoftEngine, 8 table pages of 8 entries",
        partial(build, order=order, lookups=lookups),
        geometry=SMALL,
        buffer=2,
        steps=4000,
        dpor=False,
    )


MODELS = (
    _truncate("production-truncate", 1),
    _truncate("production-truncate-rest", 0),
    _model("production-split", (1,)),
    _model("production-split-again", (1, 0)),
    _model("production-split-lookups", (1,), lookups=2),
)
