"""What travels together in calls of the software engine, as one argument; see ``stage2.words``."""

from __future__ import annotations

from typing import NamedTuple

from ...compiled import U64, Own, Words

__all__ = ["Access", "Sighting", "Slots"]


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


class Sighting(NamedTuple):
    """What an access saw, and what it would see before and after: a host address, SAW_HOLE or SAW_READONLY."""

    old: U64
    new: U64
    saw: U64
    begun: U64
    """The number of windows begun and ended when the access began."""
    window: U64
    """The same when it was done."""
    start: U64
    """When it began, ns; 0 outside windows."""
