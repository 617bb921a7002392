"""pKVM: who owns which page when the host itself is not trusted. ``el2`` is its face; see ``docs/pkvm.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._face import face

if TYPE_CHECKING:
    from .el2 import Pkvm as Pkvm
    from .el2 import ProtectedVm as ProtectedVm
    from .states import Ownership as Ownership
    from .states import PageState as PageState

face(globals())
