"""As ``sequential``, and the VMM answers MMIO that falls into a hole from the memory behind it, as QEMU does.

During a commit QEMU's own view is still the old one, so a data access that exits as MMIO is carried out by the VMM on
the memory that was there. Fetches still fail, and a locked instruction becomes a read exit and a write exit.
Source: QEMU 10.2, ``flatview_read()`` / ``flatview_write()``; Paolo Bonzini on region_resize, March 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import sequential

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.SET_MEMORY_REGION | Capability.ANSWER_MMIO


def prepare(engine: Engine) -> None:
    """Have the VMM answer."""
    engine.answer_mmio(True)


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """As ``sequential.apply``."""
    sequential.apply(engine, changes)
