"""The library's front door: a VM, its memory, its vCPUs and their exits, on the software engine or on ``/dev/kvm``.

Names are found when first asked for: behind them is compiled code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._face import face

if TYPE_CHECKING:
    from ..abi.model import KvmModel as KvmModel
    from .accesses import Fetch as Fetch
    from .accesses import Read as Read
    from .accesses import Write as Write
    from .exits import DirtyRingFull as DirtyRingFull
    from .exits import Exit as Exit
    from .exits import FailEntry as FailEntry
    from .exits import Hlt as Hlt
    from .exits import InternalError as InternalError
    from .exits import Io as Io
    from .exits import MemoryFault as MemoryFault
    from .exits import Mmio as Mmio
    from .exits import OtherExit as OtherExit
    from .exits import Shutdown as Shutdown
    from .exits import SystemEvent as SystemEvent
    from .guest_memfd import file_ioctl as file_ioctl
    from .listeners import MapListener as MapListener
    from .listeners import VhostMap as VhostMap
    from .memory import Memory as Memory
    from .transaction import DirtyPage as DirtyPage
    from .transaction import Transaction as Transaction
    from .vcpu import SoftVcpu as SoftVcpu
    from .vm import Vm as Vm

face(globals())
