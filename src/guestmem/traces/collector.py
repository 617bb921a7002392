"""Python's cycle collector, held while a million values are made.

Readers and ``check`` make tuples by the million, none of them in a cycle; the collector would walk all of them again
and again, which takes longer than making them.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["without_collector"]


@contextmanager
def without_collector() -> Iterator[None]:
    """Hold the collector, and let it go again if it was on."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
