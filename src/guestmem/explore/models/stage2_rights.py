"""What changes in a leaf while its vCPU uses it: rights, access flag, size; and the dirty log that hangs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..scene import Model, Scene
from ..tables import BLOCK, OFFSET, PAGE, SmallTable

if TYPE_CHECKING:
    from ...compiled import Own, Words
    from ..view import View

__all__ = ["MODELS"]

OK, EAGAIN = 0, 11
SHARED = 1
READ, WRITE = 1, 2
TRANSLATION, ACCESS_FLAG, PERMISSION = 1, 2, 3


class _Hardware:
    """What the threads here call: a vCPU's hardware and its faults."""

    def __init__(self, small: SmallTable) -> None:
        scene, self.small = small.scene, small
        self.walk, self.rwlock = scene.room("stage2.tlb_walk"), scene.room("stage2.rwlock")
        self.protect, self.young = scene.room("stage2.protect"), scene.room("stage2.young")
        layout = scene.room("stage2.tlb_layout")
        self.address, self.findings = int(layout.HOST_ADDRESS), int(layout.FINDINGS)
        self.lock = int(small.layout.MMU_FIXED)
        self.shape, self.pool, _, self.mmu = small.words

    def enter(self, tlb: Own) -> None:
        """Enter the guest."""
        self.walk.tlb_enter(self.shape, self.pool, self.mmu, tlb)

    def leave(self, tlb: Own) -> None:
        """Leave it."""
        self.walk.tlb_leave(self.mmu, tlb)

    def translate(self, tlb: Own, ipa: int, need: int) -> int:
        """One access; the memory that it reaches is its own."""
        status: int = self.walk.tlb_translate(self.shape, self.pool, self.mmu, tlb, ipa, ipa, need)
        assert status or tlb[self.address] == OFFSET + ipa, f"{ipa:#x} is at {tlb[self.address]:#x}"
        assert not tlb[self.findings], "the TLB holds a block and a page for one address"
        return status

    def locked(self, walker: int, call: Any, desk: Own, *arguments: int) -> int:
        """A fault: an operation with the lock held for reading."""
        self.rwlock.read_lock(self.mmu, self.lock, walker)
        status: int = call(self.protect.Table(*self.small.words, desk), *arguments, SHARED)
        self.rwlock.read_unlock(self.mmu, self.lock, walker)
        return status


def filled(small: SmallTable, walker: int, ipa: int, **options: Any) -> Any:
    """A TLB that knows ``ipa``."""
    tlb = small.tlb(walker, **options)
    tlb.enter()
    assert tlb.translate(ipa)[0] == "ok"
    tlb.leave()
    return tlb.words


def split(scene: Scene) -> None:
    """A block is split under a vCPU that writes to one of its pages."""
    small = SmallTable(scene)
    hardware = _Hardware(small)
    small.table.map(0, BLOCK, OFFSET, 3)

    def vcpu(_desk: Own, tlb: Own) -> None:
        hardware.enter(tlb)
        assert hardware.translate(tlb, PAGE, WRITE) in {OK, TRANSLATION}
        hardware.leave(tlb)

    def splitter(desk: Own) -> int:
        done: int = small.face(desk, 1).split(0, BLOCK, walker=1)
        return done

    small.thread("vcpu", vcpu, filled(small, 0, 0))
    small.thread("splitter", splitter)
    small.begin()
    scene.final("one block is now pages", lambda view: small.result(view, "splitter") == 1)
    scene.final("all is mapped as before", lambda _: small.check_leaves(range(0, BLOCK, PAGE)))


def log(scene: Scene) -> None:
    """A page that was dirty is collected: the bit taken, writes protected, the page copied, while its vCPU writes."""
    small = SmallTable(scene)
    hardware = _Hardware(small)
    atomics, dirty = scene.room("atomics"), scene.room("dirty.bitmap")
    small.table.map(0, PAGE, OFFSET, 3)
    memory = scene.words("memory", [0])
    bitmap = scene.words("dirty", [1, 0])

    def vcpu(desk: Own, tlb: Own, memory: Words, bitmap: Words) -> None:
        for _ in range(2):
            hardware.enter(tlb)
            status = hardware.translate(tlb, 0, WRITE)
            if status == OK:
                atomics.store_relaxed(memory, 0, 1)
            hardware.leave(tlb)
            if status == OK:
                return
            assert status == PERMISSION, f"the access faulted with {status}"
            hardware.rwlock.read_lock(hardware.mmu, hardware.lock, 0)
            relaxed = hardware.protect.relax_permissions(hardware.protect.Table(*small.words, desk), 0, WRITE, SHARED)
            if relaxed == OK:
                dirty.bitmap_set(bitmap, 0)
            hardware.rwlock.read_unlock(hardware.mmu, hardware.lock, 0)

    def collector(desk: Own, memory: Words, bitmap: Words) -> int:
        assert dirty.bitmap_take(bitmap, 1) == 1, "the page was dirty"
        small.face(desk, 1).write_protect(0, PAGE, walker=1)
        copy: int = atomics.load_relaxed(memory, 0)
        return copy

    small.thread("vcpu", vcpu, filled(small, 0, 0), memory, bitmap)
    small.thread("collector", collector, memory, bitmap)
    small.begin()

    def copied(view: View) -> None:
        copy = small.result(view, "collector")
        now = view.word("memory", 0)
        assert now == copy or view.word("dirty", 0), f"the copy says {copy}, the page {now}, and its bit is clear"

    scene.final("no write is lost to the copy", copied)


def age(scene: Scene) -> None:
    """Two pages are aged, while a vCPU accesses one and maps a third; hardware does not set the flag."""
    small = SmallTable(scene)
    hardware = _Hardware(small)
    atomics, locked = scene.room("atomics"), scene.room("stage2.locked")
    small.table.map(0, 2 * PAGE, OFFSET, 3)
    aged = scene.words("aged", 1)
    accessed = int(small.table.shape[int(small.layout.ACCESSED)])

    def vcpu(desk: Own, tlb: Own, aged: Words) -> bool:
        late = bool(atomics.load_acquire(aged, 0))
        for _ in range(2):
            hardware.enter(tlb)
            status = hardware.translate(tlb, PAGE, READ)
            hardware.leave(tlb)
            if status == OK:
                break
            assert status == ACCESS_FLAG, f"the access faulted with {status}"
            hardware.locked(0, hardware.young.mark_young, desk, PAGE)
        assert (
            locked.map_shared(
                locked.Table(*small.words, desk), 2 * PAGE, PAGE, OFFSET + 2 * PAGE, small.attributes, 3, 0
            )
            == OK
        )
        return late

    def ager(desk: Own, aged: Words) -> int:
        young: int = small.face(desk, 1).young(0, 2 * PAGE, clear=True, walker=1)
        atomics.store_release(aged, 0, 1)
        return young

    small.thread("vcpu", vcpu, filled(small, 0, PAGE, sets_flags=False), aged)
    small.thread("ager", ager, aged)
    small.begin()

    def flags(view: View) -> None:
        assert small.result(view, "ager") == 2, f"{small.result(view, 'ager')} of 2 pages were young"
        assert not small.leaf(0).descriptor & accessed, "nobody accessed the first page since"
        if small.result(view, "vcpu"):
            assert small.leaf(PAGE).descriptor & accessed, "an access after the aging left no flag"

    scene.final("flags say who was accessed since", flags)
    scene.final("all maps to its own memory", lambda _: small.check_leaves(range(0, 3 * PAGE, PAGE)))


def relax(scene: Scene) -> None:
    """Two vCPUs that hold a page read-only in their TLBs write to it."""
    small = SmallTable(scene)
    hardware = _Hardware(small)
    small.table.map(0, PAGE, OFFSET, 1)

    def vcpu(desk: Own, tlb: Own, me: int) -> None:
        hardware.enter(tlb)
        status = hardware.translate(tlb, 0, WRITE)
        hardware.leave(tlb)
        if status != OK:
            assert status == PERMISSION, f"the access faulted with {status}"
            assert hardware.locked(me, hardware.protect.relax_permissions, desk, 0, WRITE) in {OK, EAGAIN}
            hardware.enter(tlb)
            assert hardware.translate(tlb, 0, WRITE) == OK, "the right is in the table, and the vCPU faults again"
            hardware.leave(tlb)

    for me in range(2):
        small.thread(f"vcpu {me}", vcpu, filled(small, me, 0), me)
    small.begin()


def relax_block(scene: Scene) -> None:
    """One vCPU adds a right to a block that another breaks for a page of its own."""
    small = SmallTable(scene)
    hardware = _Hardware(small)
    locked = scene.room("stage2.locked")
    small.table.map(0, BLOCK, OFFSET, 1)

    def relaxer(desk: Own) -> int:
        return hardware.locked(0, hardware.protect.relax_permissions, desk, 0, WRITE)

    def mapper(desk: Own) -> int:
        status: int = locked.map_shared(
            locked.Table(*small.words, desk), PAGE, PAGE, OFFSET + PAGE, small.attributes, 3, 0
        )
        return status

    small.thread("relaxer", relaxer)
    small.thread("mapper", mapper)
    small.begin()

    def mapped(view: View) -> None:
        results = small.result(view, "relaxer"), small.result(view, "mapper")
        assert OK in results, f"both lost: {results}"
        small.check_leaf(PAGE, 3 if results[1] == OK else 2)

    scene.final("who did not lose has what it wanted", mapped)


MODELS = (
    Model(
        "stage2-split",
        "a split changes no address and no vCPU ever holds block and page at once",
        "1 vCPU with a TLB that has the block, 1 write, 1 block of 8 pages split, 2 levels",
        split,
        stale=True,
    ),
    Model(
        "stage2-log",
        "no write is lost between dirty bit, write protection and copy",
        "1 vCPU with a TLB that has the page, 1 write, 1 collection of 1 page, 2 levels",
        log,
        stale=True,
    ),
    Model(
        "stage2-age",
        "aging looks at every leaf, and an access after it leaves the flag",
        "1 vCPU with a TLB, 1 access and 1 map, 1 aging of 2 pages, 2 levels",
        age,
    ),
    Model(
        "stage2-relax",
        "after its fault a vCPU has the right that was added, whoever added it",
        "2 vCPUs with TLBs, 1 write each to a page both hold read-only",
        relax,
        stale=True,
    ),
    Model(
        "stage2-relax-block",
        "a right is added to what is there, never to what was there",
        "2 walkers, 2 levels, 8 entries: a right is added to a block that is broken",
        relax_block,
        stale=True,
    ),
)
