"""The bytes of a stopped vCPU's code, at rip and before it, and its registers: copied into its ``kvm_run``, compiled.

By KVM_TRANSLATE, with the guest's own tables, from the slots that are there.
"""

from __future__ import annotations

from ....atomics import host_load, host_store, load_relaxed
from ....compiled import ONE, U64, Own, Words, compiled, const, u64, wrapping
from ....system import SYS_IOCTL, failed, host_load8, host_may_access, host_store8, system_call
from .. import layout as at
from ..abi import RUN_SYNC
from ..address_map import MAP_HOST, map_find

__all__ = ["BEHIND", "MOST", "REGS", "SREGS", "fetch", "fetch_before", "get_registers", "get_segments", "set_registers"]

_GET_REGS, _SET_REGS = const(0x8090AE81), const(0x4090AE82)
_GET_SREGS, _TRANSLATE = const(0x8138AE83), const(0xC018AE85)
MOST = const(15)
"""Bytes of an instruction, at most."""
REGS = RUN_SYNC + const(0x40)
_TRANSLATION = RUN_SYNC + const(0x100)
BEHIND = RUN_SYNC + const(0x150)
"""Where the bytes at rip are; those before rip are right before it."""
SREGS = RUN_SYNC + const(0x180)
_RIP = REGS + const(16 * 8)
_PAGE = const(0xFFF)


@compiled
def get_registers(own: Own) -> bool:
    """Read the general registers to ``REGS`` of kvm_run; False if the vCPU is gone."""
    return failed(system_call(SYS_IOCTL, own[at.FD], _GET_REGS, own[at.RUN] + REGS)) == 0


@compiled
def set_registers(own: Own) -> bool:
    """Set them as they were read."""
    return failed(system_call(SYS_IOCTL, own[at.FD], _SET_REGS, own[at.RUN] + REGS)) == 0


@compiled
def get_segments(own: Own) -> bool:
    """Read the segment registers to ``SREGS`` of kvm_run."""
    return failed(system_call(SYS_IOCTL, own[at.FD], _GET_SREGS, own[at.RUN] + SREGS)) == 0


@compiled
def host_of(entries: Words, own: Own, linear: U64) -> U64:
    """Host address of the guest's byte at a linear address; 0 if it cannot be read."""
    place = own[at.RUN] + _TRANSLATION
    host_store(place, linear)
    if failed(system_call(SYS_IOCTL, own[at.FD], _TRANSLATE, place)) != 0 or host_load8(place + u64(16)) == 0:
        return u64(0)
    gpa = host_load(place + u64(8))
    entry = map_find(entries, gpa)
    if entry == 0:
        return u64(0)
    host = load_relaxed(entries, entry + MAP_HOST) + (gpa - load_relaxed(entries, entry))
    if not host_may_access(host, False):
        return u64(0)
    return host


@compiled
def fetch(entries: Words, own: Own, linear: U64, count: U64, place: U64) -> U64:
    """Copy the guest's bytes at a linear address to ``place`` of kvm_run; returns how many could be read."""
    target = own[at.RUN] + place
    host = u64(0)
    done = u64(0)
    while done < count:
        byte = wrapping(linear + done)
        if done == 0 or byte & _PAGE == 0:
            host = host_of(entries, own, byte)
            if host == 0:
                return done
        host_store8(target + done, host_load8(host))
        host += ONE
        done += ONE
    return done


@compiled
def fetch_before(entries: Words, own: Own, linear: U64) -> U64:
    """Copy the bytes before a linear address, at most 15, and at least those of its page: how many could be read."""
    if fetch(entries, own, wrapping(linear - MOST), MOST, BEHIND - MOST) == MOST:
        return MOST
    count = linear & _PAGE
    if count >= MOST or fetch(entries, own, linear - count, count, BEHIND - count) != count:
        return u64(0)
    return count
