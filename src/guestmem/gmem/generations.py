"""The generations of states by name."""

from __future__ import annotations

from ..errors import UsageError
from .attributes import Attributes
from .mappability import Mappability
from .shareability import Shareability
from .states import States
from .vm_attributes import VmAttributes

__all__ = ["GENERATIONS", "generation"]

GENERATIONS: dict[str, type[States]] = {
    each.NAME: each for each in (Attributes, Mappability, Shareability, VmAttributes)
}


def generation(name: str) -> States:
    """The generation of a name; UsageError if there is none.

    >>> generation("mappability").NAMES
    {0: 'all', 2: 'guest', 3: 'none'}
    """
    if name not in GENERATIONS:
        raise UsageError(f"states: {name!r} is not one of {', '.join(GENERATIONS)}")
    return GENERATIONS[name]()
