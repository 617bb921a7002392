"""Slots that go get a flag that makes accesses exit to the VMM, which holds the vCPU until all is applied.

KVM_MEM_DISABLED, or better KVM_MEM_USER_EXIT (Sean Christopherson and Paolo Bonzini, kvm list, September 2022). As
``batch``, but nothing relies on the architecture's retry of INVALID slots: whoever touches one leaves for user space.
What exits to nobody is not held: KVM's own accesses.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import batch

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.UPDATE | Capability.RETRY_EXITS


def prepare(engine: Engine) -> None:
    """Have exits that fall into an update wait for its end."""
    engine.retry_exits(True)


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Flag what goes, swap; apply all changes, swap; let go who exited."""
    with engine.exits_held():
        batch.apply(engine, changes)
