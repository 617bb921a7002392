"""KVM Userfault: a vCPU's fault against user space that fills the page, and against the flag that is switched on.

The fault, the bitmap, the flag with its zap, TLB and table are those of production.
"""

from __future__ import annotations

from ...compiled import Own, Words
from ..scene import Model, Scene
from ..tables import PAGE, SmallTable

__all__ = ["MODELS"]

_OK, _USERFAULT, _READ = 0, 64, 1
_MISSING, _FILLED = 0, 7


def fill(scene: Scene) -> None:
    """User space fills a page and clears its bit; the vCPU faults, and reads what it then may."""
    small = SmallTable(scene, walkers=1)
    small.table.map(PAGE, PAGE, 0x100_0000 + PAGE, 1)  # so that the last table is there
    module, atomics = scene.room("engines.soft.userfault"), scene.room("atomics")
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    memory = scene.host("memory", [_MISSING])
    slot = scene.words("slot", scene.room("compiled").words(module.userfault_words(1)))
    atomics.poke(slot, int(module.ENABLED), 1)
    module.userfault_set(slot, 0)
    shape, pool, _, mmu = small.words

    def vcpu(desk: Own, slot: Words, tlb: Own) -> int:
        came_to: int = module.userfault_abort(slot, module.Table(*small.words, desk), 0, memory, small.attributes)
        assert came_to in {_OK, _USERFAULT}, f"the fault came to {came_to}"
        walk.tlb_enter(shape, pool, mmu, tlb)
        if walk.tlb_translate(shape, pool, mmu, tlb, 0, 0, _READ) == _OK:
            saw: int = atomics.host_load(tlb[address])
            assert saw == _FILLED, "a vCPU reads a page that is not there yet"
        walk.tlb_leave(mmu, tlb)
        return came_to

    def user_space(slot: Words) -> None:
        atomics.host_store(memory, _FILLED)
        module.userfault_clear(slot, 0)

    small.thread("vCPU", vcpu, slot, small.tlb(0).words)
    scene.thread("user space", user_space, slot)
    small.begin()
    scene.final("the bit is clear", lambda view: not view.word("slot", int(module.BITMAP)))


def enable(scene: Scene) -> None:
    """The flag comes on, with the page's bit set, while the vCPU faults; then user space takes the page's memory."""
    small = SmallTable(scene, walkers=2)
    small.table.map(PAGE, PAGE, 0x100_0000 + PAGE, 1)
    module, atomics = scene.room("engines.soft.userfault"), scene.room("atomics")
    walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
    memory = scene.host("memory", [_FILLED])
    slot = scene.words("slot", scene.room("compiled").words(module.userfault_words(1)))
    module.userfault_set(slot, 0)
    shape, pool, _, mmu = small.words

    def vcpu(desk: Own, slot: Words, tlb: Own) -> int:
        came_to: int = module.userfault_abort(slot, module.Table(*small.words, desk), 0, memory, small.attributes)
        assert came_to in {_OK, _USERFAULT}, f"the fault came to {came_to}"
        walk.tlb_enter(shape, pool, mmu, tlb)
        if walk.tlb_translate(shape, pool, mmu, tlb, 0, 0, _READ) == _OK:
            saw: int = atomics.host_load(tlb[address])
            assert saw == _FILLED, "a vCPU reads through a mapping that should have gone when the flag came on"
        walk.tlb_leave(mmu, tlb)
        return came_to

    def updater(desk: Own, slot: Words) -> None:
        module.userfault_enable(slot, *small.words, desk, 1, True)
        atomics.host_store(memory, _MISSING)

    small.thread("vCPU", vcpu, slot, small.tlb(0).words)
    small.thread("updater", updater, slot)
    small.begin()
    scene.final("nothing maps a page whose bit is set", lambda _view: small.leaf(0) is None)


MODELS = (
    Model(
        "userfault",
        "no vCPU reads a page before user space has filled it",
        "1 page, 1 vCPU with a TLB, 1 fault, 1 access, 2 levels, 1 page filled",
        fill,
        buffer=2,
        stale=True,
    ),
    Model(
        "userfault-enable",
        "once the flag is on, nothing maps a page whose bit is set",
        "1 page, 1 vCPU with a TLB, 1 fault, 1 access, 2 levels, 1 change of the flag",
        enable,
        buffer=2,
    ),
)
