"""Guest addresses at which KVM itself takes an access that meets no slot, so that no exit tells of it.

Coalesced MMIO (QEMU's VGA window), ioeventfd, and the interrupt controllers in the kernel. What a caller registers by
``KvmVm.ioctl`` is noted here; of the controllers the kernel is asked (``x86/apic.py``).
Source: Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ...process_memory import read_memory

__all__ = ["Zone", "Zones"]

_REGISTER_COALESCED, _UNREGISTER_COALESCED = 0x4010AE67, 0x4010AE68
_IOEVENTFD = 0x4040AE79
_COALESCED = struct.Struct("<QII")
_EVENTFD = struct.Struct("<QQIiI36x")
_PIO, _DEASSIGN = 2, 4


@dataclass(frozen=True, slots=True)
class Zone:
    """Guest addresses ``[start, end)``, and what takes accesses there."""

    start: int
    end: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} at [{self.start:#x}, {self.end:#x})"


class Zones:
    """What was registered on one VM.

    >>> zones = Zones()
    >>> zones.after(0x4010AE67, struct.pack("<QII", 0xA0000, 0x20000, 0))
    >>> [str(zone) for zone in zones]
    ['coalesced MMIO at [0xa0000, 0xc0000)']
    """

    def __init__(self) -> None:
        self._zones: dict[tuple[object, ...], Zone] = {}

    def add(self, zone: Zone) -> None:
        """Note a zone that was registered elsewhere."""
        self._zones["declared", zone] = zone

    def after(self, request: int, argument: bytes | bytearray | int) -> None:
        """An ioctl on the VM has succeeded: note what it registers, forget what it takes back."""
        if request not in (_REGISTER_COALESCED, _UNREGISTER_COALESCED, _IOEVENTFD):
            return
        if isinstance(argument, int):
            argument = read_memory(argument, request >> 16 & 0x3FFF)
        if request in (_REGISTER_COALESCED, _UNREGISTER_COALESCED):
            start, size, pio = _COALESCED.unpack_from(argument)
            key: tuple[object, ...] = ("coalesced", start, size)
            if request == _REGISTER_COALESCED and not pio:
                self._zones[key] = Zone(start, start + size, "coalesced MMIO")
            elif not pio:
                # As the kernel (coalesced_mmio_in_range()): every zone that holds all of what is named goes.
                self._zones = {
                    other: zone
                    for other, zone in self._zones.items()
                    if other[0] != "coalesced" or not (zone.start <= start and start + size <= zone.end)
                }
        else:
            datamatch, start, size, fd, flags = _EVENTFD.unpack_from(argument)
            key = ("ioeventfd", start, size, fd, datamatch, flags & ~_DEASSIGN)
            if flags & _DEASSIGN:
                self._zones.pop(key, None)
            elif not flags & _PIO:
                self._zones[key] = Zone(start, start + max(size, 8), "ioeventfd")

    def __iter__(self) -> Iterator[Zone]:
        return iter(list(self._zones.values()))
