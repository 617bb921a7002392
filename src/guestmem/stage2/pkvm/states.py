"""What a component may say of a page, as Python values. Linux: ``enum pkvm_page_state``, ``nvhe/memory.h``."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["Ownership", "PageState"]


class PageState(enum.IntEnum):
    """What one component (host, hypervisor, a guest) has of a page."""

    OWNED = 0
    """It alone."""
    SHARED_OWNED = 1
    """It owns the page and lets somebody else use it."""
    SHARED_BORROWED = 2
    """It may use the page of somebody else."""
    NOPAGE = 3
    """Nothing: no mapping, no access."""


class Ownership(NamedTuple):
    """Who has a page of memory: the host's and the hypervisor's state, and what is known of guests."""

    host: PageState
    hyp: PageState
    shares: int
    """Mappings in guests that borrow the page from the host."""
    pins: int
    """How often the hypervisor pinned a page that it borrows."""
    guest: int
    """Handle of the guest that owns the page; 0: none, or one that shares it with the host."""
    gfn: int
    """Frame number at which that guest has it."""
