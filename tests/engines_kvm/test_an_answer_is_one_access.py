"""What answers an exit, without a kernel: one access where the guest's is one, from the right address space."""

from __future__ import annotations

import ctypes
import struct
import threading

import pytest

from chance import until_met
from guestmem.atomics import host_fetch_add, host_load, host_store, load_acquire, peek, poke
from guestmem.compiled import U64, Words, compiled, own, u64, words
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.address_map import SPACE_SHIFT, map_begin, map_find, map_insert, map_words
from guestmem.engines.kvm.answers import is_writable, left_to_device, retry_mmio
from guestmem.engines.kvm.fragments import copy_fragment

pytestmark = [pytest.mark.no_kvm, pytest.mark.compiled_only]
GPA, PAGE, SMM = 0x5000, 0x1000, 1
ENOUGH = 10_000


@compiled(nogil=True)
def flip(vm: Words, target: U64) -> U64:
    """Write zeroes and ones in turn until STOP."""
    rounds = u64(0)
    while load_acquire(vm, at.STOP) == 0:
        host_store(target, u64(0))
        host_store(target, u64(0xFFFFFFFFFFFFFFFF))
        rounds += u64(1)
    return rounds


@compiled(nogil=True)
def copy_often(found: U64, source: U64, size: U64, times: U64) -> None:
    """Copy to the first word at ``found``; the next count zeroes, all ones, and what is neither."""
    ones = u64(0xFFFFFFFFFFFFFFFF) >> (u64(64) - (size << 3))
    done = u64(0)
    while done < times:
        copy_fragment(found, source, size)
        seen = host_load(found)
        host_fetch_add(found + u64(8), u64(seen == 0))
        host_fetch_add(found + u64(16), u64(seen == ones))
        host_fetch_add(found + u64(24), u64(seen != 0 and seen != ones))
        done += u64(1)


@pytest.mark.parametrize("size", [8, 4, 2])
def test_a_write_that_races_with_a_read_is_seen_whole(size: int) -> None:
    """A thread writes all zeroes or all ones; no copy of it has both."""
    vm = words(int(at.VCPUS))
    held = ctypes.create_string_buffer(64)
    place = -(-ctypes.addressof(held) // 8) * 8
    found = (ctypes.c_uint64 * 4)()
    poke(vm, int(at.STOP), 1)
    flip(vm, place)
    poke(vm, int(at.STOP), 0)
    thread = threading.Thread(target=flip, args=(vm, place))
    thread.start()

    def both(_: int) -> bool:
        copy_often(ctypes.addressof(found), place, size, 100_000)
        assert found[3] == 0
        return min(found[1], found[2]) >= ENOUGH

    try:
        until_met(both, f"{ENOUGH} copies of each value, while the other thread runs")
    finally:
        poke(vm, int(at.STOP), 1)
        thread.join()


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("skew", [(0, 0), (1, 0), (0, 3), (2, 2), (4, 1)])
def test_all_its_bytes_and_no_others(size: int, skew: tuple[int, int]) -> None:
    source = ctypes.create_string_buffer(bytes(range(1, 33)), 32)
    target = ctypes.create_string_buffer(32)
    copy_fragment(ctypes.addressof(target) + 8 + skew[0], ctypes.addressof(source) + 8 + skew[1], size)
    expected = bytearray(32)
    expected[8 + skew[0] : 8 + skew[0] + size] = source.raw[8 + skew[1] : 8 + skew[1] + size]
    assert target.raw == bytes(expected)


@pytest.mark.parametrize("space", [0, SMM])
def test_a_vcpu_in_smm_is_answered_from_its_own_address_space(space: int) -> None:
    vm, entries, vcpu = words(at.vm_words(1)), words(map_words(4)), own(at.OWN_WORDS)
    map_begin(entries, 4)
    run = ctypes.create_string_buffer(4096)
    pages = [ctypes.create_string_buffer(bytes([value]) * PAGE, PAGE) for value in (0x11, 0x22)]
    for number, page in enumerate(pages):
        map_insert(
            entries, GPA | number << int(SPACE_SHIFT), GPA + PAGE | number << int(SPACE_SHIFT), _address(page), 0
        )
    vcpu[int(at.RUN)] = _address(run)
    vcpu[int(at.FD)] = (1 << 64) - 1
    struct.pack_into("<IxxH", run, 8, 6, space)
    struct.pack_into("<Q8sIB", run, 32, GPA + 8, b"", 8, 0)
    assert retry_mmio(vm, entries, vcpu, 0, True) == at.FAILED  # no such file: KVM_RUN fails after the answer
    assert run.raw[40:48] == bytes([0x11 * (space + 1)]) * 8
    assert peek(vm, int(at.ANSWERING)) == 0


def test_what_was_read_from_a_device_is_written_to_it() -> None:
    """Though an update has put memory there between the read exit and the write exit."""
    entries, vcpu = words(map_words(4)), own(at.OWN_WORDS)
    map_begin(entries, 4)
    map_insert(entries, GPA, GPA + PAGE, 0x10000, 0)
    entry = map_find(entries, GPA)
    assert is_writable(entries, vcpu, entry, GPA)
    left_to_device(vcpu, GPA + 8, 8, False)
    left_to_device(vcpu, GPA + 16, 8, False)
    writable = [is_writable(entries, vcpu, entry, GPA + place) for place in (0, 8, 16, 23, 24)]
    assert writable == [True, False, False, False, True]
    vcpu[int(at.DEVICE)] = 0  # the instruction is complete
    assert is_writable(entries, vcpu, entry, GPA + 8)


def _address(held: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(held)
