"""KVM_PRE_FAULT_MEMORY against the delete of its slot: who finds the slot INVALID leaves its read-side section.

The fault is that of production (``user_mem_abort``), and so is the delete: the INVALID mark, published; the grace
period; the zap; the slot's end. Until 6.18, KVM tried again inside the section for which the delete waits.
"""

from __future__ import annotations

from typing import Any

from ...compiled import Own
from ..scene import Model, Scene
from .fault import GFN, Host

__all__ = ["MODELS"]

_FILLED_OR_NOT = "FILLED", "HOLE", "INVALID"


def delete(scene: Scene) -> None:
    """One fault, one delete."""
    host = Host(scene)
    small, at = host.small, host.at
    fault, code, phases = scene.room("engines.soft.user_mem_abort"), scene.room("engines.soft.vcpu"), host.phases
    own: Any = scene.own(int(at.OWN_WORDS))
    own[int(at.READ_ATTRIBUTES)] = own[int(at.WRITE_ATTRIBUTES)] = small.attributes
    own[int(at.BLOCK_LEVEL)] = 3

    def vcpu(desk: Own, tlb: Own, own: Own) -> int:
        outcome: int = fault.stage2_fault(
            fault.Slots(host.vm, host.memslots, host.domain.words, own),
            fault.Table(*small.words, desk),
            tlb,
            GFN,
            False,
            False,
        )
        assert outcome in {int(getattr(code, name)) for name in _FILLED_OR_NOT}, f"the fault came to {outcome}"
        return outcome

    def updater(desk: Own, slots: Own) -> Own:
        phases.ask(slots, 0, 0, 0, 0, 0, 0, host.ids)
        assert phases.open_change(host.memslots, slots, False) == phases.DELETE
        host.publish(slots)
        host.synchronize()
        assert phases.settle(host.memslots, slots)
        host.zap(desk)
        assert phases.stage_asked(host.memslots, slots) == phases.DELETE
        host.publish(slots)
        host.synchronize()
        assert phases.settle(host.memslots, slots)
        return slots

    small.thread("vCPU", vcpu, small.tlb(0).words, own)
    small.thread("updater", updater, host.desk)
    small.begin()
    scene.final("nobody is left in a section", lambda _view: host.domain.check() or not host.domain.inside())
    scene.final("nothing maps what is in no slot", lambda _view: small.leaf(GFN * 0x1000) is None)


MODELS = (
    Model(
        "pre-fault",
        "a fault that finds its slot INVALID holds up no delete, and maps nothing that is gone",
        "1 vCPU, 1 fault, 2 levels, 1 delete",
        delete,
        buffer=2,
        stale=True,
    ),
)
