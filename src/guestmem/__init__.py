"""guestmem: KVM's guest-memory subsystem as a library and a laboratory.

Names are found when first asked for (PEP 562): ``import guestmem`` loads neither NumPy nor Numba, and nothing
compiles at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._face import face

if TYPE_CHECKING:
    from .check import check
    from .errors import BatchError as BatchError
    from .errors import CapabilityError as CapabilityError
    from .errors import GuestmemError as GuestmemError
    from .errors import InvariantError as InvariantError
    from .errors import MemslotError as MemslotError
    from .errors import TraceError as TraceError
    from .errors import UsageError as UsageError
    from .memslots.changes import Change as Change
    from .memslots.changes import ChangeKind as ChangeKind
    from .memslots.set import Memslots as Memslots
    from .memslots.slot import Slot as Slot
    from .traces import read
    from .vm import Vm as Vm

    __version__: str
    check_trace, read_trace = check, read


def _version() -> str:
    from importlib.metadata import version

    return version("guestmem")


def _check_trace() -> object:
    from .check import check

    return check


def _read_trace() -> object:
    from .traces import read

    return read


face(globals(), __version__=_version, check_trace=_check_trace, read_trace=_read_trace)
