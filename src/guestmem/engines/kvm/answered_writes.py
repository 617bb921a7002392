"""Pages of logging slots that answers of MMIO wrote to: KVM's own dirty log has only what guests and KVM wrote.

A bitmap a slot, beside KVM's: vCPUs that answer set bits, calls for the log merge them in, as the kernel would have
given them. With dirty rings they come with the next harvest. Idea: QEMU marks its own bitmap for what it emulates.
"""

from __future__ import annotations

from ...abi.structures import ClearDirtyLog, DirtyLog, EnableCap, MemoryCap, MemoryIoctl
from ...atomics import host_fetch_or, load_relaxed
from ...compiled import ONE, U64, Words, compiled, u64
from ...dirty.bitmap import DirtyBitmap, as_array, bitmap_words
from ...process_memory import read_memory, write_memory
from ...slot_key import SlotKey
from .address_map import MAP_BITS

__all__ = ["AnsweredWrites", "mark_answered"]


@compiled
def mark_answered(entries: Words, entry: U64, place: U64) -> None:
    """Set the bit of the page at ``place``, which the answer has written to, if the entry's slot logs.

    Not ``bitmap_mark``, which looks first: no lock is held, and a look could come before the write is seen, so that who
    took the bit in between would copy the page without it. The locked operation is a full fence.
    """
    bits = load_relaxed(entries, entry + MAP_BITS)
    if bits != 0:
        page = (place - load_relaxed(entries, entry)) >> 12
        host_fetch_or(bits + ((page >> 6) << 3), ONE << (page & u64(63)))


class AnsweredWrites:
    """The bitmaps of one VM, by slot."""

    def __init__(self, *, rings: bool = False) -> None:
        self._logs: dict[SlotKey, DirtyBitmap] = {}
        self._manual = False
        self._rings = rings
        self._ended: list[tuple[int, int]] = []
        """With rings: what was written before its log ended, for the next harvest."""

    def begin(self, key: SlotKey, npages: int) -> bool:
        """The slot is going to log; False if it does already. ``end`` if it comes to nothing."""
        if key in self._logs:
            return False
        self._logs[key] = DirtyBitmap(npages)
        return True

    def address(self, key: SlotKey) -> int:
        """Host address of the slot's bits."""
        return self._logs[key].address

    def give_back(self, key: SlotKey, bits: bytes) -> None:
        """Bits that were taken from the kernel's log of a slot that goes on after all: the next look has them."""
        log = self._logs.get(key)
        if log is not None:
            log.merge(bits)

    def end(self, key: SlotKey) -> None:
        """The slot is gone, or logs no more. No entry of the map has its bits.

        As KVM's own: a bitmap goes with its slot, what is in a ring stays there.
        """
        log = self._logs.pop(key, None)
        if log is not None and self._rings:
            self._ended += _entries(key, log)

    def after(self, request: int, argument: bytes | int) -> None:
        """An ioctl on the VM has succeeded: merge what it gave, forget what it cleared. O(words of the log)."""
        if request not in (MemoryIoctl.GET_DIRTY_LOG, MemoryIoctl.CLEAR_DIRTY_LOG, MemoryIoctl.ENABLE_CAP):
            return
        if isinstance(argument, int):
            argument = read_memory(argument, request >> 16 & 0x3FFF)
        if request == MemoryIoctl.GET_DIRTY_LOG:
            log = DirtyLog.unpack(argument)
            self._merge(self._logs.get(SlotKey.of(log.slot)), log.dirty_bitmap)
        elif request == MemoryIoctl.CLEAR_DIRTY_LOG:
            self._clear(ClearDirtyLog.unpack(argument))
        elif EnableCap.unpack(argument).cap == MemoryCap.MANUAL_DIRTY_LOG_PROTECT2:
            self._manual = bool(EnableCap.unpack(argument).arg0 & 1)

    def _merge(self, log: DirtyBitmap | None, address: int) -> None:
        """Into the caller's bitmap; ours is empty then, unless logs are cleared by hand."""
        if log is None:
            return
        bits = log.copy() if self._manual else log.take()
        if bits.strip(b"\0"):
            import numpy as np

            given = np.frombuffer(read_memory(address, len(bits)), np.uint64)
            write_memory(address, (given | np.frombuffer(bits, np.uint64)).tobytes())

    def _clear(self, asked: ClearDirtyLog) -> None:
        log = self._logs.get(SlotKey.of(asked.slot))
        if log is not None and asked.num_pages:
            bits = read_memory(asked.dirty_bitmap, 8 * bitmap_words(asked.num_pages))
            log.clear(asked.first_page, asked.num_pages, bits)

    def harvest(self) -> list[tuple[int, int]]:
        """All pages, as entries of a dirty ring: (``SlotKey.word``, page of the slot). None is left."""
        ended = len(self._ended)  # more may come meanwhile
        found = self._ended[:ended]
        del self._ended[:ended]
        for key, log in list(self._logs.items()):
            found += _entries(key, log)
        return found


def _entries(key: SlotKey, log: DirtyBitmap) -> list[tuple[int, int]]:
    """What is set in a log, as entries of a ring; it is empty then."""
    bits = log.take()
    if not bits.strip(b"\0"):
        return []
    return [(key.word, page) for page in as_array(bits, log.npages).nonzero()[0].tolist()]
