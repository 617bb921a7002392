"""A slot that grows or shrinks at its end is resized in place; all else is one call a change, as today.

A listener's ``region_resize`` (David Hildenbrand, qemu-devel, March 2020, for resizable RAM blocks) with a call in KVM
behind it. It helps memory that grows, and none of the changes that made the debate: there memory is split.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..engines import Engine
from ..memslots import Change, Slot
from . import primitives

__all__ = ["NEEDS", "apply", "is_resize", "prepare"]

NEEDS = primitives.NEEDS


def prepare(engine: Engine) -> None:
    """Nothing is set up."""
    del engine


def is_resize(before: Sequence[Slot], after: Sequence[Slot]) -> bool:
    """Whether one slot got another size, and nothing else.

    >>> slot = Slot(as_id=0, id=1, base_gfn=0, npages=8, userspace_addr=0x10000)
    >>> is_resize([slot], [slot._replace(npages=16)]), is_resize([slot], [slot._replace(base_gfn=1)])
    (True, False)
    """
    return len(before) == len(after) == 1 and before[0] == after[0]._replace(npages=before[0].npages)


def apply(engine: Engine, changes: Sequence[Change]) -> None:
    """Apply the changes part by part; see ``primitives``."""
    primitives.apply_with(engine, changes, is_resize)
