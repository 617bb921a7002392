"""A dirty log against the software engine's own faults: mark, leaf, protection and flush, from both sides.

``dirty-log`` and ``stage2-log`` have the parts; this has the fault (``user_mem_abort.py``) and the log
(``dirty_log.py``) of production, with slots, table, lock and TLB: the bitmap is the one whose address the slot holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label, vm_label
from ..tables import PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..view import View

__all__ = ["MODELS"]

_GFN, _LOGGED = 1, 1
_IDS, _NODE_WORDS = 2, 17
_WRITE = 2
_OK, _PERMISSION = 0, 3


def build(scene: Scene, *, dirty: bool) -> None:
    """A vCPU writes to the one page of a slot while its log is taken and the page copied.

    ``dirty``: the page has its bit, a leaf that may be written, and an entry in the vCPU's TLB; else its leaf may only
    be read.
    """
    small = SmallTable(scene, walkers=2)
    atomics, at = scene.room("atomics"), scene.room("engines.soft.layout")
    layout, phases, lookup = scene.room("memslots.layout"), scene.room("memslots.phases"), scene.room("memslots.lookup")
    walk, fault = scene.room("stage2.tlb_walk"), scene.room("engines.soft.user_mem_abort")
    code, log = scene.room("engines.soft.vcpu"), scene.room("engines.soft.dirty_log")
    address = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words

    page = scene.words("memory", [0])
    bitmap = scene.words("bitmap", [1 if dirty else 0, 0], lambda i: ("dirty", "taken")[i])
    host = scene.address(page)
    geometry = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    memslots, slots = layout.new_memslots(geometry)
    assert phases.stage(memslots, slots, 0, _GFN, 1, host, _LOGGED, _IDS) < phases.FIRST_REASON
    assert phases.publish(memslots, slots)
    record = lookup.find(memslots, 0, _GFN)
    memslots.cells[(record << int(layout.RECORD_SHIFT)) + int(layout.DIRTY_BITMAP)] = scene.address(bitmap)
    domain = scene.room("rcu.srcu").Srcu(1)
    vm = scene.words("vm", at.vm_words(1), vm_label(scene))
    scene.words("memslots", memslots, memslots_label(scene, geometry.first_record, geometry.first_node))
    scene.words("srcu", domain.words, srcu_label)
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.WRITE_ATTRIBUTES)] = small.attributes
    own[int(at.READ_ATTRIBUTES)] = small.attributes & ~int(shape[int(small.layout.WRITE_MASK)])
    own[int(at.BLOCK_LEVEL)] = 3
    tlb = small.tlb(0)
    small.table.map(_GFN * PAGE, PAGE, host, 3 if dirty else 1)
    if dirty:
        tlb.enter()
        assert tlb.translate(_GFN * PAGE)[0] == "ok"
        tlb.leave()

    def vcpu(desk: Own, tlb: Own, own: Own) -> None:
        while True:
            walk.tlb_enter(shape, pool, mmu, tlb)
            status = walk.tlb_translate(shape, pool, mmu, tlb, _GFN * PAGE, _GFN * PAGE, _WRITE)
            if status == _OK:
                atomics.host_store(tlb[address], 1)
            walk.tlb_leave(mmu, tlb)
            if status == _OK:
                return
            protected = status == _PERMISSION
            outcome = fault.stage2_fault(
                fault.Slots(vm, memslots, domain.words, own),
                fault.Table(*small.words, desk),
                tlb,
                _GFN,
                True,
                protected,
            )
            assert outcome == code.FILLED, f"the fault came to {outcome}"

    def taker(desk: Own, bitmap: Words) -> int:
        log.take_and_protect(log.Table(*small.words, desk), bitmap, 1, _GFN, True)
        return int(atomics.host_load(host))

    small.thread("vCPU", vcpu, tlb.words, own)
    small.thread("log", taker, bitmap)
    small.begin()

    def copied(view: View) -> None:
        copy, now, bit = small.result(view, "log"), view.word("memory", 0), view.word("bitmap", 0)
        assert now == 1, "the write is in memory"
        assert copy == 1 or bit & 1, "the copy is from before the write, and the page's bit is clear"

    scene.final("the write is in the copy, or its page is dirty again", copied)
    scene.final("nobody is left in a section", lambda _view: domain.check() or not domain.inside())


def clean(scene: Scene) -> None:
    """The write makes the page dirty."""
    build(scene, dirty=False)


def again(scene: Scene) -> None:
    """It was dirty."""
    build(scene, dirty=True)


_PROVES = "no write is lost between a fault's mark and leaf, and a log's take, protection and flush"
_SIZE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 write, 1 page, 1 KVM_GET_DIRTY_LOG and copy, 2 levels"
MODELS = (
    Model("fault-log", _PROVES, f"{_SIZE}; the page is clean", clean, exhaustive=False),
    Model("fault-log-again", _PROVES, f"{_SIZE}; it is dirty, and in the TLB", again, stale=True),
)
