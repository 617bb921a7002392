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


class _Vcpu:
    """A vCPU that faults on page 0, of which user space knows by ``slot``'s bit, and reads what it then may."""

    def __init__(self, scene: Scene, *, walkers: int, holds: int, wrong: str) -> None:
        self.small = small = SmallTable(scene, walkers=walkers)
        small.table.map(PAGE, PAGE, 0x100_0000 + PAGE, 1)  # so that the last table is there
        self.module, self.atomics = module, atomics = scene.room("engines.soft.userfault"), scene.room("atomics")
        walk, address = scene.room("stage2.tlb_walk"), int(scene.room("stage2.tlb_layout").HOST_ADDRESS)
        self.memory = memory = scene.host("memory", [holds])
        self.slot = scene.words("slot", scene.room("compiled").words(module.userfault_words(1)))
        module.userfault_set(self.slot, 0)
        shape, pool, _, mmu = small.words

        def vcpu(desk: Own, slot: Words, tlb: Own) -> int:
            came_to: int = module.userfault_abort(slot, module.Table(*small.words, desk), 0, memory, small.attributes)
            assert came_to in {_OK, _USERFAULT}, f"the fault came to {came_to}"
            walk.tlb_enter(shape, pool, mmu, tlb)
            if walk.tlb_translate(shape, pool, mmu, tlb, 0, 0, _READ) == _OK:
                saw: int = atomics.host_load(tlb[address])
                assert saw == _FILLED, f"a vCPU reads {wrong}"
            walk.tlb_leave(mmu, tlb)
            return came_to

        small.thread("vCPU", vcpu, self.slot, small.tlb(0).words)


def fill(scene: Scene) -> None:
    """User space fills a page and clears its bit; the vCPU faults, and reads what it then may."""
    vcpu = _Vcpu(scene, walkers=1, holds=_MISSING, wrong="a page that is not there yet")
    vcpu.atomics.poke(vcpu.slot, int(vcpu.module.ENABLED), 1)

    def user_space(slot: Words) -> None:
        vcpu.atomics.host_store(vcpu.memory, _FILLED)
        vcpu.module.userfault_clear(slot, 0)

    scene.thread("user space", user_space, vcpu.slot)
    vcpu.small.begin()
    scene.final("the bit is clear", lambda view: not view.word("slot", int(vcpu.module.BITMAP)))


def enable(scene: Scene) -> None:
    """The flag comes on, with the page's bit set, while the vCPU faults; then user space takes the page's memory."""
    gone = "through a mapping that should have gone when the flag came on"
    vcpu = _Vcpu(scene, walkers=2, holds=_FILLED, wrong=gone)
    small = vcpu.small

    def updater(desk: Own, slot: Words) -> None:
        vcpu.module.userfault_enable(slot, vcpu.module.Table(*small.words, desk), 1, True)
        vcpu.atomics.host_store(vcpu.memory, _MISSING)

    small.thread("updater", updater, vcpu.slot)
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
