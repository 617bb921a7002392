"""Dirty logs and dirty rings of a VM, taken so that an interrupt loses none."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from ..abi.arguments import U16_MAX, whole
from ..abi.structures import ClearDirtyLog, DirtyLog, MemoryIoctl
from ..dirty.bitmap import as_array
from ..dirty.ring import DirtyEntry
from ..errors import UsageError
from ..interrupts import held
from ..slot_key import SlotKey

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .backends import Backend

__all__ = ["Logs"]


class Logs:
    """What of a ``Vm`` is about pages that were written to."""

    rings: bool
    _manual: bool
    _harvested: list[DirtyEntry]
    """What a harvest took that was interrupted: the next one gives it."""
    _now: Backend
    """What answers calls: a ``Backend``, or ``ClosedBackend``."""

    def ioctl(self, request: int, argument: bytes | bytearray | memoryview | int = 0) -> int:
        """See ``Vm.ioctl``."""
        raise NotImplementedError

    def dirty_log(self, slot: int, as_id: int = 0) -> npt.NDArray[np.bool_]:
        """KVM_GET_DIRTY_LOG: a boolean a page, in a new array; the log is empty then, unless ``manual_protect``.

        MemslotError: ENOENT without a log, ENXIO with rings.
        """
        slot, as_id = whole("slot", slot, U16_MAX), whole("as_id", as_id, U16_MAX)
        there, buffer = None, b""
        try:
            with self._now.section:  # the slot keeps its size
                there = self._now.slot(slot, as_id)
                npages = 64 if there is None else there.npages  # the ioctl says what is wrong
                room = ctypes.create_string_buffer((npages + 63) // 64 * 8)
                log = DirtyLog(SlotKey(as_id, slot).word, 0, ctypes.addressof(room))
                self.ioctl(MemoryIoctl.GET_DIRTY_LOG, log.pack())
                buffer = room.raw
            array: npt.NDArray[np.bool_] = as_array(buffer, npages)
            return array  # noqa: TRY300 - an interrupt here is one before it
        except BaseException:  # Ctrl-C: nobody got it
            if there is not None and buffer and not self._manual:
                with self._now.section:
                    self._now.give_back(there, buffer)
            raise

    def clear_dirty_log(self, slot: int, pages: npt.ArrayLike, first_page: int = 0, as_id: int = 0) -> None:
        """KVM_CLEAR_DIRTY_LOG: forget the ``pages`` that are true, counted from ``first_page`` (a multiple of 64)."""
        import numpy as np

        slot, as_id = whole("slot", slot, U16_MAX), whole("as_id", as_id, U16_MAX)
        try:
            flags = np.asarray(pages, np.bool_)
        except (TypeError, ValueError):
            flags = np.zeros((), np.bool_)
        if flags.ndim != 1 or isinstance(pages, str | bytes):
            raise UsageError(f"pages: {type(pages).__name__} is not a sequence of booleans, one a page")
        bits = np.packbits(flags, bitorder="little").tobytes()
        held = ctypes.create_string_buffer(bits.ljust((len(flags) + 63) // 64 * 8 or 8, b"\0"))
        log = ClearDirtyLog(
            SlotKey(as_id, slot).word, len(flags), whole("first_page", first_page), ctypes.addressof(held)
        )
        self.ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, log.pack())

    def harvest(self) -> list[DirtyEntry]:
        """All entries of all vCPUs' dirty rings; ``reset_dirty_rings`` frees their room. UsageError without rings."""
        if not self.rings:
            raise UsageError("dirty rings: the VM was made without (ring_entries)")
        found: list[DirtyEntry] = []
        try:
            with self._now.section:
                found, self._harvested = self._harvested, []
                self._now.harvest(found)
            return found  # noqa: TRY300 - an interrupt here is one before it
        except BaseException:  # Ctrl-C: nobody got them
            with held:
                self._harvested = found + self._harvested
            raise

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: how many harvested entries were given back."""
        return self.ioctl(MemoryIoctl.RESET_DIRTY_RINGS)
