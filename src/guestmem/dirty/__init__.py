"""Which pages a guest wrote: bitmaps a slot, or rings a vCPU.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .bitmap import DirtyBitmap as DirtyBitmap
    from .ring import DirtyEntry as DirtyEntry
    from .ring import DirtyRing as DirtyRing
    from .ring import Run as Run

face(globals())
