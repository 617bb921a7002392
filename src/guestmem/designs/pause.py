"""Stop all vCPUs, apply the changes one after another, let them go on.

The first proposal to QEMU (October 2020), and what ``KVM_KICK_ALL_RUNNING_VCPUS`` (October 2022) would have done in
the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import sequential

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION | Capability.PAUSE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes while no vCPU is in the guest; they go on whatever happens."""
    engine.pause()
    try:
        sequential.apply(engine, changes)
    finally:
        engine.resume()
