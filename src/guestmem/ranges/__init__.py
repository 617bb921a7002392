"""A map from ranges to values: the maple tree's job, over flat words, with readers that take no lock.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .range_map import RangeMap as RangeMap
    from .snapshot import Ranges as Ranges
    from .snapshot import RangeSnapshot as RangeSnapshot

face(globals())
