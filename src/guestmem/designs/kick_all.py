"""Block all vCPUs in the kernel, apply everything as one batch, let them go on.

KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS (Emanuele Giuseppe Esposito, 22 October 2022), with a list of
changes instead of calls in between. It has one instant, since nobody runs, and every vCPU pays for it, whatever it
touches. Left open there: who blocks all the other ioctls, and users of slots that are no vCPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import atomic

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.UPDATE | Capability.PAUSE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply all changes or none while no vCPU is in the guest; they go on whatever happens."""
    if not changes:
        return
    engine.pause()
    try:
        atomic.apply(engine, changes)
    finally:
        engine.resume()
