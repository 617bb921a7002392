"""Dirty logs with two pages in a word, with words that are not the first, and what else takes the right to write.

``fault_log`` has one page, the first of its slot. Here another page of the same word is dirty already; the page is in
the second word, which KVM_CLEAR_DIRTY_LOG asks for by itself; bits are merged back while a vCPU marks; and a range is
protected as a slot that becomes read-only, or starts to log, has it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..small_vm import memslots_label, srcu_label, vm_label
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..view import View

__all__ = ["MODELS"]

_LOGGED, _IDS, _NODE_WORDS = 1, 2, 17
_WRITE = 2
_OK, _TRANSLATION, _PERMISSION = 0, 1, 3


def build(scene: Scene, *, page: int, clears: bool, dirty: bool) -> None:
    """A vCPU writes to ``page`` of a slot while its log is taken, or its word cleared, and the page copied.

    All others of its word are dirty. ``dirty``: so is the page, which has a leaf that may be written; else none.
    """
    levels = 3 if page > 63 else 2
    small = SmallTable(scene, walkers=2, levels=levels)
    atomics, at = scene.room("atomics"), scene.room("engines.soft.layout")
    layout, phases, lookup = scene.room("memslots.layout"), scene.room("memslots.phases"), scene.room("memslots.lookup")
    walk, fault = scene.room("stage2.tlb_walk"), scene.room("engines.soft.user_mem_abort")
    code, log = scene.room("engines.soft.vcpu"), scene.room("engines.soft.dirty_log")
    address = int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    shape, pool, _, mmu = small.words

    half, word, bit = 1 + (page >> 6), page >> 6, 1 << (page & 63)
    bits = [0] * (2 * half)
    bits[word] = bit if dirty else bit << 1
    if clears:
        bits[half] = bit  # what user space asks for
    memory = scene.words("memory", [0])
    host = scene.address(memory)
    bitmap = scene.words("bitmap", bits, lambda i: f"dirty {i}" if i < half else f"taken {i - half}")
    geometry = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    memslots, slots = layout.new_memslots(geometry)
    base = host - page * PAGE
    assert phases.stage(memslots, slots, 0, 1, page + 2, base, _LOGGED, _IDS) < phases.FIRST_REASON
    assert phases.publish(memslots, slots)
    record = lookup.find(memslots, 0, 1)
    memslots.cells[(record << int(layout.RECORD_SHIFT)) + int(layout.DIRTY_BITMAP)] = scene.address(bitmap)
    domain = scene.room("rcu.srcu").Srcu(1)
    vm = scene.words("vm", at.vm_words(1), vm_label(scene))
    scene.words("memslots", memslots, memslots_label(scene, geometry.first_record, geometry.first_node))
    scene.words("srcu", domain.words, srcu_label)
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.WRITE_ATTRIBUTES)] = small.attributes
    own[int(at.READ_ATTRIBUTES)] = small.attributes & ~int(shape[int(small.layout.WRITE_MASK)])
    own[int(at.BLOCK_LEVEL)] = 3
    tlb, gfn = small.tlb(0), 1 + page
    if dirty:
        small.table.map(gfn * PAGE, PAGE, host, 3)
        tlb.enter()
        assert tlb.translate(gfn * PAGE)[0] == "ok"
        tlb.leave()

    def vcpu(desk: Own, tlb: Own, own: Own) -> bool:
        for last in (False, True):
            walk.tlb_enter(shape, pool, mmu, tlb)
            status = walk.tlb_translate(shape, pool, mmu, tlb, gfn * PAGE, gfn * PAGE, _WRITE)
            if status == _OK:
                atomics.host_store(tlb[address], 1)
            walk.tlb_leave(mmu, tlb)
            if status == _OK or last:
                return bool(status == _OK)
            outcome = fault.stage2_fault(
                fault.Slots(vm, memslots, domain.words, own),
                fault.Table(*small.words, desk),
                tlb,
                gfn,
                True,
                status == _PERMISSION,
            )
            assert outcome == code.FILLED, f"the fault came to {outcome}"
        return False

    def taker(desk: Own, bitmap: Words) -> int:
        if clears:
            log.clear_and_protect(log.Table(*small.words, desk), bitmap, half, 1, word, 1, page + 2, True)
        else:
            log.take_and_protect(log.Table(*small.words, desk), bitmap, half, 1, True)
        return int(atomics.host_load(host))

    small.thread("vCPU", vcpu, tlb.words, own)
    small.thread("log", taker, bitmap)
    small.begin()

    def copied(view: View) -> None:
        copy, now, left = small.result(view, "log"), view.word("memory", 0), view.word("bitmap", word)
        assert now == small.result(view, "vCPU"), "a write is in memory if it was made"
        assert copy == now or left & bit, "the copy is from before the write, and the page's bit is clear"

    scene.final("the write is in the copy, or its page is dirty again", copied)
    scene.final("nobody is left in a section", lambda _view: domain.check() or not domain.inside())


def protect(scene: Scene) -> None:
    """A vCPU writes through its TLB to two pages whose right to write is taken; then they are copied."""
    small = SmallTable(scene, walkers=2)
    atomics, zap, walk = scene.room("atomics"), scene.room("stage2.zap"), scene.room("stage2.tlb_walk")
    shape, pool, _, mmu = small.words
    memory = scene.words("memory", [0, 0], lambda i: f"page {i}")
    small.table.map(0, 2 * PAGE, OFFSET, 3)
    tlb = small.tlb(0)
    tlb.enter()
    for page in range(2):
        assert tlb.translate(page * PAGE)[0] == "ok"
    tlb.leave()

    def vcpu(_desk: Own, tlb: Own, memory: Words) -> None:
        walk.tlb_enter(shape, pool, mmu, tlb)
        for page in range(2):
            status = walk.tlb_translate(shape, pool, mmu, tlb, page * PAGE, page * PAGE, _WRITE)
            if status == _OK:
                atomics.store_relaxed(memory, page, 1)
            assert status in {_OK, _PERMISSION}, f"the access faulted with {status}"
        walk.tlb_leave(mmu, tlb)

    def protector(desk: Own, memory: Words, ranges: Own) -> tuple[int, ...]:
        zap.zap_ranges(zap.Table(*small.words, desk), ranges, 1, True)
        return tuple(int(atomics.load_relaxed(memory, page)) for page in range(2))

    small.thread("vCPU", vcpu, tlb.words, memory)
    small.thread("protector", protector, memory, scene.own([0, 2, int(small.layout.TAKES_WRITES)]))
    small.begin()
    scene.final(
        "what is protected is not written to any more",
        lambda view: small.result(view, "protector") == tuple(view.word("memory", page) for page in range(2)),
    )


def merge(scene: Scene) -> None:
    """Bits that were taken are put back, as for a caller that could not have them, while a vCPU marks two pages."""
    room = scene.room("dirty.bitmap")
    bitmap = scene.words("bitmap", [0, 0, 1, 1], lambda i: f"{('dirty', 'taken')[i // 2]} {i % 2}")
    host = scene.address(bitmap)

    def vcpu() -> None:
        for page in (1, 65):
            assert room.bitmap_mark(host, page), "the bit was clear"

    def merger(bitmap: Words) -> None:
        room.bitmap_merge(bitmap, 2)

    scene.thread("vCPU", vcpu)
    scene.thread("merger", merger, bitmap)
    scene.final("no bit is lost", lambda view: all(view.word("bitmap", word) == 3 for word in range(2)))


def joined(scene: Scene) -> None:
    """A vCPU writes to a page that may only be read; meanwhile its table becomes a block again that may only be read.

    So the level of the fault is older than what is there: logging was switched off and on since.
    """
    small = SmallTable(scene, walkers=2)
    at, code = scene.room("engines.soft.layout"), scene.room("engines.soft.vcpu")
    layout, phases, lookup = scene.room("memslots.layout"), scene.room("memslots.phases"), scene.room("memslots.lookup")
    walk, fault = scene.room("stage2.tlb_walk"), scene.room("engines.soft.user_mem_abort")
    recover = scene.room("stage2.recover").recover_range
    shape, pool, _, mmu = small.words
    granted, mask = (int(shape[int(getattr(small.layout, name))]) for name in ("WRITE_GRANTED", "WRITE_MASK"))
    readonly, first = small.attributes & ~mask, BLOCK // PAGE
    bitmap = scene.words("bitmap", 2, lambda i: ("dirty", "taken")[i])
    geometry = layout.geometry(1, _IDS, node_words=_NODE_WORDS)
    memslots, slots = layout.new_memslots(geometry)
    assert phases.stage(memslots, slots, 0, first, 8, OFFSET + BLOCK, _LOGGED, _IDS) < phases.FIRST_REASON
    assert phases.publish(memslots, slots)
    record = lookup.find(memslots, 0, first)
    memslots.cells[(record << int(layout.RECORD_SHIFT)) + int(layout.DIRTY_BITMAP)] = scene.address(bitmap)
    domain = scene.room("rcu.srcu").Srcu(1)
    vm = scene.words("vm", at.vm_words(1), vm_label(scene))
    scene.words("memslots", memslots, memslots_label(scene, geometry.first_record, geometry.first_node))
    scene.words("srcu", domain.words, srcu_label)
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.WRITE_ATTRIBUTES)], own[int(at.READ_ATTRIBUTES)] = small.attributes, readonly
    own[int(at.BLOCK_LEVEL)] = 2
    small.table.map(BLOCK, BLOCK, OFFSET + BLOCK, 1, level=3)
    ipa = BLOCK + PAGE

    def vcpu(desk: Own, tlb: Own, own: Own) -> int:
        walk.tlb_enter(shape, pool, mmu, tlb)
        status: int = walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, _WRITE)
        walk.tlb_leave(mmu, tlb)
        assert status in {_PERMISSION, _TRANSLATION}, f"the access came to {status}"
        words = fault.Slots(vm, memslots, domain.words, own), fault.Table(*small.words, desk), tlb
        assert fault.stage2_fault(*words, ipa // PAGE, True, status == _PERMISSION) == code.FILLED
        return status

    def joiner(desk: Own) -> int:
        done: int = recover(fault.Table(*small.words, desk), BLOCK, BLOCK, OFFSET + BLOCK, readonly, 2, 0)
        return done

    small.thread("vCPU", vcpu, small.tlb(0).words, own)
    small.thread("joiner", joiner)
    small.begin()

    def logged(view: View) -> None:
        for page in range(8):
            leaf = small.leaf(BLOCK + page * PAGE)
            if leaf is not None and leaf.descriptor & mask == granted:
                assert view.word("bitmap", 0) >> page & 1, f"page {page} can be written, and its bit is clear"

    scene.final("what can be written is in the log", logged)


def chunks(scene: Scene) -> None:
    """Two blocks are split with a cache of one table page, the lock dropped in between, while a vCPU reads both."""
    small = SmallTable(scene, walkers=2, cache=1)
    log, walk = scene.room("engines.soft.dirty_log"), scene.room("stage2.tlb_walk")
    shape, pool, _, mmu = small.words
    small.table.map(0, 2 * BLOCK, OFFSET, 3)

    def vcpu(_desk: Own, tlb: Own) -> None:
        walk.tlb_enter(shape, pool, mmu, tlb)
        for ipa in (PAGE, BLOCK + PAGE):
            status = walk.tlb_translate(shape, pool, mmu, tlb, ipa, ipa, 1)
            assert status in {_OK, _TRANSLATION}, f"the access faulted with {status}"
        walk.tlb_leave(mmu, tlb)

    def splitter(desk: Own) -> int:
        done: int = log.split_in_chunks(log.Table(*small.words, desk), 0, 2 * BLOCK, 2)
        return done

    small.thread("vCPU", vcpu, small.tlb(0).words)
    small.thread("splitter", splitter)
    small.begin()
    scene.final("two blocks are now pages", lambda view: small.result(view, "splitter") == 2)
    scene.final("all is mapped as before", lambda _: small.check_leaves(range(0, 2 * BLOCK, PAGE)))


_PROVES = "no write is lost between a fault's mark and leaf, and a log's take or clear, protection and flush"
_SIZE = "1 vCPU with a TLB of 2 + 2 + 2 entries, 1 write, 1 fault"
MODELS = (
    Model(
        "fault-log-beside",
        _PROVES,
        f"{_SIZE}, 1 KVM_GET_DIRTY_LOG; a page of the same word is dirty, 2 levels",
        partial(build, page=1, clears=False, dirty=False),
        buffer=2,
        dpor=False,
        stale=True,
    ),
    Model(
        "fault-log-clear",
        _PROVES,
        f"{_SIZE}, 1 KVM_CLEAR_DIRTY_LOG of the second word, the page is dirty, 3 levels",
        partial(build, page=64, clears=True, dirty=True),
        buffer=2,
        dpor=False,
        stale=True,
    ),
    Model(
        "stage2-protect",
        "who took the right to write from a range finds it unchanged from then on",
        "1 vCPU with a TLB that has both pages, 2 writes, 1 range of 2 pages protected, 2 levels",
        protect,
        buffer=2,
        stale=True,
        dpor=False,
    ),
    Model(
        "log-merge",
        "no bit is lost when taken bits are put back",
        "1 vCPU that marks a page in each of 2 words, 1 merge",
        merge,
        stale=True,
    ),
    Model(
        "fault-log-joined",
        "no page can be written that is not in the log, whatever the level of a fault was",
        "1 vCPU that writes to 1 of 8 pages, which become a block again, 2 levels",
        joined,
        buffer=2,
        dpor=False,
        stale=True,
    ),
    Model(
        "stage2-split-chunks",
        "a range is split to its end, however few table pages there are at a time",
        "1 vCPU that reads 2 pages, 2 blocks of 8 pages split, a cache of 1 table page, 2 levels",
        chunks,
        buffer=2,
        dpor=False,
        stale=True,
    ),
)
