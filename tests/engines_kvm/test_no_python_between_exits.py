"""On the hot path no Python runs between an exit and the next entry: vCPUs go on while somebody keeps the GIL.

One compiled call, which keeps the GIL, makes many updates; meanwhile no vCPU thread can run a line of Python.
"""

from __future__ import annotations

import ctypes

import pytest

from chance import until_met
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.atomics import wait_for
from guestmem.compiled import U64, Words, compiled, u64
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.address_map import map_insert, map_remove
from guestmem.engines.kvm.update_lock import give_exclusive, take_exclusive
from guestmem.system import SYS_IOCTL, failed, system_call
from kvm_guest import Guest

pytestmark = pytest.mark.compiled_only
UPDATES, ENOUGH = 100, 10


@compiled  # not nogil: that is the point
def update_often(vm: Words, entries: Words, fd: U64, delete: U64, create: U64, gpa: U64, host: U64, times: U64) -> U64:
    """As exit_retry: delete and create a slot of 64 KiB, ``times`` times; returns how many calls failed."""
    bad = u64(0)
    done = u64(0)
    while done < times:
        take_exclusive(vm)
        bad += u64(failed(system_call(SYS_IOCTL, fd, u64(0x4020AE46), delete)) != 0)
        map_remove(entries, gpa)
        bad += u64(failed(system_call(SYS_IOCTL, fd, u64(0x4020AE46), create)) != 0)
        map_insert(entries, gpa, gpa + u64(0x10000), host, u64(0))
        give_exclusive(vm)
        wait_for(vm, at.WAITING, u64(0), u64(300_000))  # sleeps, since nobody wakes it; and keeps the GIL
        done += u64(1)
    return bad


@pytest.mark.parametrize("name", ["inc", "avx"])
def test_exits_are_answered_while_the_gil_is_kept(name: str) -> None:
    assert int(MemoryIoctl.SET_USER_MEMORY_REGION) == 0x4020AE46
    with Guest(name) as guest:
        vm = guest.engine.vm
        guest.engine.retry_exits(True)
        change = guest.slot1
        packed = [
            ctypes.create_string_buffer(MemoryRegion(1, 0, change.guest_phys_addr, size, change.userspace_addr).pack())
            for size in (0, change.memory_size)
        ]
        delete, create = (ctypes.addressof(each) for each in packed)

        def update(times: int) -> None:
            gpa, host = change.guest_phys_addr, change.userspace_addr
            assert not update_often(vm.words, vm.map, vm.file, delete, create, gpa, host, times)

        update(1)  # compiles
        vm.start()
        most = [0, 0]

        def enough(_: int) -> bool:
            before = vm.counts()
            update(UPDATES)
            after = vm.counts()
            for vcpu in (0, 1):
                names = ("retried_answers", "retried_fetches")
                most[vcpu] = max(most[vcpu], sum(after[vcpu][name] - before[vcpu][name] for name in names))
            assert vm.ended == {}
            return min(most) >= ENOUGH

        try:
            until_met(enough, f"{ENOUGH} exits of each vCPU in one call")
        finally:
            vm.stop()
            assert vm.ended == {}
            assert -2 <= guest.missing() <= 0
