"""How much of a campaign a test carries out: a slice in ``make test``, the whole in ``make night``."""

from __future__ import annotations

import os

__all__ = ["sliced"]


def sliced(slice_: int, whole: int) -> int:
    """``slice_``, or ``whole`` where GUESTMEM_WHOLE=1."""
    return whole if os.environ.get("GUESTMEM_WHOLE") == "1" else slice_
