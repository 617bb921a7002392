"""No hole on today's kernels, and nobody is stopped: exits that fall into an update are carried out after it.

One call a change, as ``sequential``. Meanwhile the engine holds exits: MMIO is answered from the memory that is there
once the update is over, and its instruction completed before the next update may begin; a fetch that failed while an
update was in flight is run again. vCPUs that do not touch what changes run on. The rules, and where this is not safe:
docs/exit-retry.md and ``engines.kvm.safety``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import sequential

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION | Capability.RETRY_EXITS


def prepare(engine: Engine) -> None:
    """Have exits that fall into an update wait for its end."""
    engine.retry_exits(True)


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes one after another while exits wait; all or none: see ``sequential``."""
    with engine.exits_held():
        sequential.apply(engine, changes)
