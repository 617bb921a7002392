"""Whether an exit's instruction can be answered: if it is on ``instruction_list``; everything else is refused.

A load exits before the instruction has ended, with rip at it, so its bytes are decoded. A store exits with rip behind
it: see ``stores``. Where the bytes cannot be fetched, nothing is known, and that is no answer.
"""

from __future__ import annotations

from ....atomics import host_load
from ....compiled import ONE, U64, Own, Words, compiled, const, u64
from .. import layout as at
from ..abi import RUN_DATA
from . import instruction_list as of
from .decoding import INDEX, after_opcode, choice_of, decode, extension_of
from .instruction_bytes import BEHIND, MOST, REGS, fetch, fetch_before, get_registers, get_segments
from .stores import LOADS_FIRST, STORES, is_called, is_far_call, is_repeated, is_stored_otherwise, stored_before

__all__ = ["AGAIN", "ANSWERED", "REFUSED", "verdict", "verdict_of_load"]

ANSWERED, REFUSED, AGAIN = const(0), const(1), const(2)
"""A verdict. AGAIN: its effect is on registers only, and not the processor's: undo it, and have it run natively."""
_RIP, _RSP = REGS + const(16 * 8), REGS + const(6 * 8)
_PAGE = const(0xFFF)


@compiled
def verdict_of_load(listed: U64, code: U64, count: U64) -> U64:
    """The verdict on a load by the instruction that the ``count`` bytes at a host address begin with."""
    found = decode(code, count)
    if found == 0:
        return REFUSED
    entry = host_load(listed + ((found & INDEX) << 3))
    choice = choice_of(found)
    if (entry >> of.AGAIN_SHIFT) & choice & u64(15) != 0:
        return AGAIN
    if entry & of.HAS_MODRM != 0 and after_opcode(found) == count:
        return REFUSED
    if (entry >> of.PREFIX_SHIFT) & choice & u64(15) == 0 or entry & extension_of(found, entry, code) == 0:
        return REFUSED
    return ANSWERED


@compiled
def verdict_of_store(entries: Words, own: Own, gpa: U64, size: U64) -> U64:
    """The verdict on a store that is the first that left the guest of its instruction; registers have been read."""
    run, listed = own[at.RUN], own[at.LISTED]
    data = host_load(run + RUN_DATA)
    if size < 8:
        data &= (ONE << (size << 3)) - ONE
    if not get_segments(own):
        return REFUSED
    rip = host_load(run + _RIP)
    count = fetch_before(entries, own, rip)
    found = stored_before(listed, run, count, gpa, size)
    if found == LOADS_FIRST:
        own[at.WRITES_FIRST] += ONE
        return REFUSED
    if is_stored_otherwise(run, count, gpa, size, data):
        return REFUSED
    if (host_load(run + _RSP) ^ gpa) & _PAGE == 0 and (size == 8 or size == 4 or size == 2) and data >= MOST:
        count = fetch_before(entries, own, data)
        if is_far_call(run + BEHIND - count, count, size):
            return REFUSED
        if size == 8 and is_called(run + BEHIND - count, count, data, rip):
            return ANSWERED
    if found == STORES:
        return ANSWERED
    if is_repeated(listed, run, fetch(entries, own, rip, MOST, BEHIND), gpa, size):
        return ANSWERED
    return REFUSED


@compiled
def verdict(entries: Words, own: Own, gpa: U64, size: U64, writes: bool) -> U64:
    """ANSWERED, REFUSED or AGAIN for the first exit of an instruction, at ``gpa``. Registers are in ``REGS`` then."""
    if not get_registers(own):
        return ANSWERED  # the vCPU is gone, and KVM_RUN says so
    if writes:
        return verdict_of_store(entries, own, gpa, size)
    code = own[at.RUN] + BEHIND
    return verdict_of_load(own[at.LISTED], code, fetch(entries, own, host_load(own[at.RUN] + _RIP), MOST, BEHIND))
