"""``atomic`` without the wait for acknowledgements: broken on purpose.

Every measurement runs it too: a load under which it passes is too weak to show that another design is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Capability, Engine
from ..memslots import Change
from . import atomic

__all__ = ["NEEDS", "apply", "prepare"]

NEEDS = Capability.UPDATE


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """As ``atomic.apply``, but publish while vCPUs may still use old translations."""
    atomic.apply_with(engine, changes, wait=False)
