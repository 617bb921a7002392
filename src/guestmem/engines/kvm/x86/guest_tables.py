"""Where a guest in long mode keeps its own page tables: each pair of frame and level is read once.

Source: Intel SDM volume 3, 4.5 (4- and 5-level paging).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....units import PAGE_SHIFT
from ..guest_frames import GuestFrames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["table_frames"]

_PRESENT, _LARGE, _ADDRESS = 1, 1 << 7, 0xFFFFFFFFFF000


def table_frames(frames: GuestFrames, cr3: int, levels: int) -> list[npt.NDArray[np.uint64]]:
    """Frames of the tables at ``cr3``, an array a level, the root first; large pages and absent entries end a walk.

    UnknownTables if there are too many, or one cannot be read. O(tables above the last level).
    """
    import numpy as np

    found = [np.array([(cr3 & _ADDRESS) >> PAGE_SHIFT], np.uint64)]
    for level in range(levels, 1, -1):
        entries = frames.read(found[-1]).ravel()
        below = entries & np.uint64(_PRESENT) != 0
        if level <= 3:
            below &= entries & np.uint64(_LARGE) == 0
        found.append(np.unique((entries[below] & np.uint64(_ADDRESS)) >> np.uint64(PAGE_SHIFT)))
    return found
