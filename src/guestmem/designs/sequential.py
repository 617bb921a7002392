"""One call a change: KVM today.

DELETE and MOVE take two swaps each; between the delete of a range and its re-creation it is missing. Source:
``kvm_set_memory_region()``, Linux 6.18.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes one after another; what was applied before a refused one stays."""
    for change in changes:
        engine.set_memory_region(change)
