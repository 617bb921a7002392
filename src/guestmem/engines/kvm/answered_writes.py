"""Pages of logging slots that answers of MMIO wrote to: KVM's own dirty log has only what guests and KVM wrote.

A bitmap a slot, beside KVM's: vCPUs that answer set bits, calls for the log merge them in, as the kernel would have
given them. With dirty rings they come with the next harvest. Idea: QEMU marks its own bitmap for what it emulates.
"""

from __future__ import annotations

import ctypes

from ...atomics import address_of, exchange, fetch_and, host_fetch_or, load_relaxed
from ...compiled import U64, Words, compiled, const, u64, words
from ...memslots.abi import ClearDirtyLog, DirtyLog, EnableCap, MemoryCap, MemoryIoctl
from ...units import U64_MAX
from .address_map import MAP_BITS

__all__ = ["AnsweredWrites", "mark_answered"]

_ONE = const(1)
_WORD_BITS = 64


@compiled
def mark_answered(entries: Words, entry: U64, place: U64) -> None:
    """Set the bit of the page at ``place``, which the answer has written to, if the entry's slot logs."""
    bits = load_relaxed(entries, entry + MAP_BITS)
    if bits != 0:
        page = (place - load_relaxed(entries, entry)) >> 12
        host_fetch_or(bits + ((page >> 6) << 3), _ONE << (page & u64(63)))


@compiled
def first_word(bits: Words) -> U64:
    """From Python: the host address of the bits."""
    return address_of(bits, u64(0))


@compiled
def take_word(bits: Words, index: U64) -> U64:
    """From Python: a word of bits, which is 0 afterwards."""
    return exchange(bits, index, u64(0))


@compiled
def clear_word(bits: Words, index: U64, keep: U64) -> U64:
    """From Python: clear all bits of a word but ``keep``; returns what it was."""
    return fetch_and(bits, index, keep)


class AnsweredWrites:
    """The bitmaps of one VM, by slot | as_id << 16."""

    def __init__(self) -> None:
        self._bits: dict[int, Words] = {}
        self._manual = False

    def begin(self, key: int, npages: int) -> int:
        """The slot logs from now on, or does already; returns the host address of its bits."""
        if key not in self._bits:
            self._bits[key] = words(-(-npages // _WORD_BITS))
        return int(first_word(self._bits[key]))

    def end(self, key: int) -> None:
        """The slot is gone, or logs no more. No entry of the map has its bits."""
        self._bits.pop(key, None)

    def after(self, request: int, argument: bytes | int) -> None:
        """An ioctl on the VM has succeeded: merge what it gave, forget what it cleared."""
        if request not in (MemoryIoctl.GET_DIRTY_LOG, MemoryIoctl.CLEAR_DIRTY_LOG, MemoryIoctl.ENABLE_CAP):
            return
        if isinstance(argument, int):
            argument = ctypes.string_at(argument, request >> 16 & 0x3FFF)
        if request == MemoryIoctl.GET_DIRTY_LOG:
            log = DirtyLog.unpack(argument)
            self._merge(self._bits.get(log.slot), log.dirty_bitmap)
        elif request == MemoryIoctl.CLEAR_DIRTY_LOG:
            self._clear(ClearDirtyLog.unpack(argument))
        elif EnableCap.unpack(argument).cap == MemoryCap.MANUAL_DIRTY_LOG_PROTECT2:
            self._manual = bool(EnableCap.unpack(argument).arg0 & 1)

    def _merge(self, bits: Words | None, address: int) -> None:
        """Into the caller's bitmap; ours is empty then, unless logs are cleared by hand."""
        if bits is None:
            return
        for index in range(len(bits)):
            word = int(clear_word(bits, index, U64_MAX) if self._manual else take_word(bits, index))
            if word:
                ctypes.c_uint64.from_address(address + 8 * index).value |= word

    def _clear(self, log: ClearDirtyLog) -> None:
        bits = self._bits.get(log.slot)
        if bits is None:
            return
        first = log.first_page // _WORD_BITS
        for index in range(min(-(-log.num_pages // _WORD_BITS), len(bits) - first)):
            given = ctypes.c_uint64.from_address(log.dirty_bitmap + 8 * index).value
            clear_word(bits, first + index, U64_MAX & ~given)

    def harvest(self) -> list[tuple[int, int]]:
        """All pages, as entries of a dirty ring: (slot | as_id << 16, page of the slot). None is left."""
        found = []
        for key, bits in list(self._bits.items()):  # slots may come meanwhile
            for index in range(len(bits)):
                word = int(take_word(bits, index))
                found += [(key, _WORD_BITS * index + bit) for bit in range(_WORD_BITS) if word >> bit & 1]
        return found
