"""Regions by both ioctls, errors with the kernel's errno, dirty logs by bitmap and by ring, and guest_memfd."""

from __future__ import annotations

import ctypes
import errno
import mmap
import time

import pytest

from guestmem.abi.structures import MemoryCap
from guestmem.engines.kvm import KvmEngine, KvmVm, user_mode
from guestmem.engines.kvm import engine as engine_module
from guestmem.errors import CapabilityError, GuestmemError, MemslotError, UsageError
from guestmem.memslots import Change, ChangeKind
from guestmem.units import PAGE_SIZE as PAGE
from kvm_guest import RESTLESS, TABLES, Guest, registers

LOG = 1


def test_changes_are_what_they_are() -> None:
    with Guest("inc", 1) as guest:
        engine, slot1 = guest.engine, guest.slot1
        assert engine.set_memory_region(slot1) is ChangeKind.NOTHING
        assert engine.set_memory_region(slot1._replace(flags=LOG)) is ChangeKind.FLAGS_ONLY
        assert engine.set_memory_region(slot1._replace(flags=LOG, base_gfn=0x40)) is ChangeKind.MOVE
        moved = engine.slot(1)
        assert moved
        assert moved.base_gfn == 0x40
        assert engine.set_memory_region(Change(1)) is ChangeKind.DELETE
        assert engine.slot(1) is None
        assert [slot.id for slot in engine.slots()] == [0]


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (Change(1), errno.EINVAL),  # none there
        (Change(1, 0x8, 0x10, 0x1000), errno.EEXIST),  # overlaps slot 0
        (Change(0, 0, 0x20, 0x1000), errno.EINVAL),  # another size
        (Change(40000, 0x100, 1, 0x1000), errno.EINVAL),
        (Change(1, 0x100, 1, 0x1001), errno.EINVAL),
    ],
)
def test_refusals_carry_the_kernels_errno(change: Change, number: int) -> None:
    with Guest("inc", 1) as guest:
        guest.engine.set_memory_region(Change(1))
        before = guest.engine.slots()
        with pytest.raises(MemslotError) as caught:
            guest.engine.set_memory_region(change)
        assert caught.value.errno == number
        assert guest.engine.slots() == before


def test_region2_is_the_same_without_guest_memfd() -> None:
    with Guest("inc", 1) as guest:
        vm = guest.engine.vm
        if not vm.device.check_extension(MemoryCap.USER_MEMORY2):
            pytest.skip("this kernel has no KVM_CAP_USER_MEMORY2")
        vm.set_user_memory_region2(5, 0x100000, 0x1000, guest.address)
        with pytest.raises(MemslotError, match="EEXIST"):
            vm.set_user_memory_region2(6, 0x100000, 0x1000, guest.address)
        vm.set_user_memory_region2(5, 0, 0, 0)


def test_the_dirty_log_names_the_page_that_was_written() -> None:
    with Guest("inc", 1) as guest:
        engine = guest.engine
        engine.set_memory_region(guest.slot1._replace(flags=LOG))
        assert engine.vm.get_dirty_log(1, 16) == bytes(8)
        engine.vm.start()
        end = time.monotonic() + 60
        while not guest.word(RESTLESS):
            assert time.monotonic() < end
            time.sleep(0.0005)
        engine.vm.stop()
        bits = int.from_bytes(engine.vm.get_dirty_log(1, 16), "little")
        assert bits == 1
        assert engine.vm.get_dirty_log(1, 16) == bytes(8)
        engine.vm.clear_dirty_log(1, 0, 16, bytes(8))
        with pytest.raises(MemslotError, match="ENOENT"):
            engine.vm.get_dirty_log(0, 16)
        with pytest.raises(UsageError, match="16 pages need 8"):
            engine.vm.clear_dirty_log(1, 0, 16, b"")


def test_the_dirty_ring_names_it_too() -> None:
    with KvmVm(1) as probe:
        if not probe.device.check_extension(MemoryCap.DIRTY_LOG_RING_ACQ_REL):
            pytest.skip("this kernel has no dirty rings")
    with Guest("inc", 1, ring_bytes=0x10000) as guest:
        engine = guest.engine
        engine.set_memory_region(guest.slot1._replace(flags=LOG))
        engine.vm.start()
        end = time.monotonic() + 60
        while not guest.word(RESTLESS):
            assert time.monotonic() < end
            time.sleep(0.0005)
        engine.vm.stop()
        entered = engine.vm.vcpus[0].harvest()
        assert set(entered) == {(1, 0)}
        assert engine.vm.reset_dirty_rings() == len(entered)
        assert engine.vm.vcpus[0].harvest() == []
        with pytest.raises(MemslotError, match="ENXIO"):
            engine.vm.get_dirty_log(1, 16)


def test_guest_memfd_where_the_kernel_has_it() -> None:
    with KvmVm(1) as vm:
        if not vm.device.check_extension(MemoryCap.GUEST_MEMFD):
            with pytest.raises(CapabilityError, match="GUEST_MEMFD"):
                vm.create_guest_memfd(0x1000)
            return
        assert vm.create_guest_memfd(0x2000) > 2
        with pytest.raises(MemslotError, match="EINVAL"):
            vm.create_guest_memfd(0x1001)


def test_what_no_kernel_can_do_is_a_capability_error() -> None:
    with KvmEngine(1) as engine, pytest.raises(CapabilityError, match="in phases"):
        engine.update()
    with pytest.raises(UsageError, match="vcpus: 0"):
        KvmEngine(0)
    with pytest.raises(CapabilityError, match="vCPUs; this kernel allows"):
        KvmEngine(100_000)


def test_a_slot_whose_bookkeeping_would_take_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_BYTES_A_PAGE", 1 << 30)
    with KvmEngine(1) as engine:
        with pytest.raises(CapabilityError, match="slot 0 of 64 GiB takes the kernel some 16384 TiB"):
            engine.set_memory_region(Change(0, 0, 1 << 24, 0x1000))
        assert engine.slots() == []


def test_a_vcpu_that_no_slot_can_carry_says_so() -> None:
    with KvmEngine(1) as engine:
        vcpu = engine.vm.vcpus[0]
        vcpu.set_sregs(user_mode(vcpu.sregs(), TABLES))
        vcpu.set_registers(registers(0, code_in_slot_1=False))
        try:
            assert vcpu.run()
        except GuestmemError as error:
            assert error.errno  # noqa: PT017 - an exit or a failed run: both are answers


def test_a_log_has_room_for_its_slot() -> None:
    """Else the kernel writes past the end of the bitmap; whatever the slot was before, and whatever was refused."""
    with KvmEngine() as engine:
        vm = engine.vm
        host = mmap.mmap(-1, 128 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(host))

        def room(pages: int) -> bool:
            try:
                vm.get_dirty_log(1, pages)
            except MemslotError as error:
                return str(error) != f"EINVAL: npages: {pages}; slot 1 has 128"
            return True

        vm.set_user_memory_region(1, 0, 128 * PAGE, address, 1)
        with pytest.raises(MemslotError):
            vm.set_user_memory_region(1, 0, 64 * PAGE, address, 1)
        assert [room(pages) for pages in (0, 64, 127, 128, 200)] == [False, False, False, True, True]
        vm.set_user_memory_region(1, 0, 0, 0)
        vm.set_user_memory_region(1, 0, 64 * PAGE, address, 1)
        assert room(64)
