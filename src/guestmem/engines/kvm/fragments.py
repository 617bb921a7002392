"""The parts of one access that KVM hands out one by one, put together again: others see all of it, or nothing.

KVM splits what it emulates into fragments of at most 8 bytes, an exit each. A store of 16 bytes, which the processor
carries out as a whole where it is aligned (SDM volume 3, 9.1.1, on processors with AVX), would be seen half done
between two exits. So a store waits for the next fragment, or for the end of its instruction, before it lands; and a
load takes 16 aligned bytes at once, of which the second half answers the next fragment.
"""

from __future__ import annotations

from ...atomics import host_load, host_store
from ...compiled import ONE, U64, Own, Words, compiled, const, u64
from ...system import (
    host_copy2,
    host_copy4,
    host_copy8,
    host_copy16,
    host_load8,
    host_load16,
    host_load32,
    host_store8,
    host_store16,
    host_store32,
)
from . import layout as at
from .abi import RUN_DATA, RUN_SYNC
from .answered_writes import mark_answered

__all__ = ["answer_fragment", "copy_fragment", "land", "load_fragment", "store_fragment"]

_HALF = const(8)
_WHOLE = const(15)  # mask of an address within 16 bytes
_AHEAD = RUN_SYNC + const(16)


@compiled
def copy_fragment(target: U64, source: U64, size: U64) -> None:
    """Copy at most 8 bytes: as one access where size allows, as the guest's own would be."""
    unaligned = (target | source) & (size - ONE)
    if size == 8 and unaligned == 0:
        host_store(target, host_load(source))
    elif size == 4 and unaligned == 0:
        host_store32(target, host_load32(source))
    elif size == 2 and unaligned == 0:
        host_store16(target, host_load16(source))
    elif size == 8:
        host_copy8(target, source)
    elif size == 4:
        host_copy4(target, source)
    elif size == 2:
        host_copy2(target, source)
    else:
        byte = u64(0)
        while byte < size:
            host_store8(target + byte, host_load8(source + byte))
            byte += ONE


@compiled
def answer_fragment(run: U64, host: U64, size: U64, writes: bool) -> None:
    """Carry out the MMIO exit in ``run`` on host memory, by itself."""
    if writes:
        copy_fragment(host, run + RUN_DATA, size)
    else:
        copy_fragment(run + RUN_DATA, host, size)


@compiled
def land(entries: Words, own: Own) -> None:
    """The store that waits, if one does, reaches memory, and its page is marked."""
    size = own[at.STAGED]
    if size == 0:
        return
    own[at.STAGED] = u64(0)
    source = own[at.RUN] + RUN_SYNC
    if size > _HALF:
        host_copy16(own[at.STAGED_HOST], source)
        own[at.WIDE] += ONE
    else:
        copy_fragment(own[at.STAGED_HOST], source, size)
    mark_answered(entries, own[at.STAGED_ENTRY], own[at.STAGED_PLACE])


@compiled
def store_fragment(entries: Words, own: Own, entry: U64, place: U64, host: U64, size: U64) -> None:
    """Take what a write exit has: behind the half that waits, if it is the other one; else on its own."""
    run = own[at.RUN]
    first = own[at.STAGED_HOST]
    if own[at.STAGED] == 8 and size == 8 and host == first + _HALF and first & _WHOLE == 0:
        host_store(run + RUN_SYNC + _HALF, host_load(run + RUN_DATA))
        own[at.STAGED] = _HALF + _HALF
        return
    land(entries, own)
    host_store(run + RUN_SYNC, host_load(run + RUN_DATA))
    own[at.STAGED] = size
    own[at.STAGED_HOST] = host
    own[at.STAGED_ENTRY] = entry
    own[at.STAGED_PLACE] = place


@compiled
def load_fragment(entries: Words, own: Own, place: U64, host: U64, size: U64) -> None:
    """Answer a read exit: from what was read together with the fragment before, else from memory."""
    run = own[at.RUN]
    land(entries, own)  # what an instruction has stored it may load
    if size == 8 and own[at.AHEAD] == place and place != 0:
        host_store(run + RUN_DATA, host_load(run + _AHEAD + _HALF))
        own[at.WIDE] += ONE
        own[at.AHEAD] = u64(0)
        return
    own[at.AHEAD] = u64(0)
    if size == 8 and host & _WHOLE == 0:
        host_copy16(run + _AHEAD, host)
        host_store(run + RUN_DATA, host_load(run + _AHEAD))
        own[at.AHEAD] = place + _HALF
        return
    copy_fragment(run + RUN_DATA, host, size)
