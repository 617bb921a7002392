"""What travels together in calls of the software engine, as one argument; see ``stage2.words``."""

from __future__ import annotations

from typing import NamedTuple

from ...compiled import U64, Own, Words

__all__ = ["Access", "Slots"]


class Slots(NamedTuple):
    """What a vCPU looks slots up with: the VM's words, the sets, their SRCU domain, and the vCPU's own words."""

    vm: Words
    memslots: Words
    srcu: Words
    own: Own


class Access(NamedTuple):
    """One access that may exit: its frame, what it does, and what the load says of its target."""

    gfn: U64
    kind: U64
    private: bool
    must: bool
    readonly: bool
    """Whether memory there is read-only before or after the change."""
    behind: U64
    """Host memory behind a hole there, from which it may be answered."""
