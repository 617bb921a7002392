"""What travels together in calls that change slots, as one argument; see ``stage2.words``."""

from __future__ import annotations

from typing import NamedTuple

from ..compiled import U64, Own, Words

__all__ = ["Batch", "Updater"]


class Updater(NamedTuple):
    """What an update works on, under ``slots_lock``."""

    memslots: Words
    desk: Own
    srcu: Words
    readers: U64
    """Of the SRCU domain."""


class Batch(NamedTuple):
    """Changes that are carried out as one, and room for what they amount to; see ``phases.stage_batch``."""

    asked: Own
    """BATCH_WORDS each."""
    entries: U64
    ids: U64
    """Slot ids that may be used are below."""
    pairs: Own
    was: Own
    now: Own
    out: Own
    """These four as for ``batch.compare_sets``."""
