"""guest_memfd: memory for guests that the host may touch or may not, page by page.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from .bindings import Bound as Bound
    from .file import GuestMemfd as GuestMemfd
    from .file import GuestPage as GuestPage
    from .host_mapping import HostMapping as HostMapping
    from .pin import Pin as Pin
    from .vm_attributes import VmMemoryAttributes as VmMemoryAttributes

face(globals())
