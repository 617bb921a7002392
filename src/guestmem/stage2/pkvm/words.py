"""What travels together in calls of the hypervisor, as one argument; see ``stage2.words``."""

from __future__ import annotations

from typing import NamedTuple

from ...compiled import Own, Words

__all__ = ["Hyp"]


class Hyp(NamedTuple):
    """The host's table, as in ``Table``, with the host's words as mmu, a CPU's desk, and the hypervisor's words."""

    shape: Own
    pool: Words
    pages: Words
    host: Words
    desk: Own
    el2: Words
