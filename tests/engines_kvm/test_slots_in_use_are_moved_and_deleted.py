"""A slot that a running guest reads is moved and deleted: the guest sees its memory or MMIO, and nothing else.

Cases of the kernel's set_memory_region_test, in our own words. The guest reads 8 bytes of slot 1 again and again, and
publishes each value; where there is no slot the VMM answers a value of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from guestmem.engines.kvm import Exit, InternalError, KvmEngine, KvmVcpu, Mmio, Shutdown, identity_tables, user_mode
from guestmem.errors import GuestmemError
from guestmem.memslots import Change

pytestmark = pytest.mark.compiled_only

# l: mov rax, [rbx]; mov [rcx], rax; inc qword [rcx+8]; jmp l
READS = bytes.fromhex("488b03 488901 48ff4108 ebf4")
MMIO = 0xBEEF
HERE, MEMORY = 0x20000, 0x30000
PAGE = 0x1000
LIMIT_S = 60.0
DISABLE_QUIRKS2, SLOT_ZAP_ALL = 213, 1 << 7
by_either_zap = pytest.mark.parametrize("zap", ["all", "slot"])
"""A delete or move throws all translations away, unless KVM_X86_QUIRK_SLOT_ZAP_ALL is switched off."""


class Reader:
    """vCPU 0 in a thread of Python: MMIO reads of slot 1's place are answered with MMIO, all else ends it."""

    def __init__(self, engine: KvmEngine, memory: mmap.mmap) -> None:
        self.engine, self.memory = engine, memory
        self.vcpu: KvmVcpu = engine.vm.vcpus[0]
        self.mmio: list[Mmio] = []
        self.ended: Exit | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        while True:
            try:
                exit_ = self.vcpu.run()
            except GuestmemError:  # the VM is stopped
                return
            if not isinstance(exit_, Mmio) or exit_.is_write:
                self.ended = exit_
                return
            self.mmio.append(exit_)
            self.vcpu.answer(exit_, struct.pack("<Q", MMIO)[: exit_.size])

    def seen(self) -> tuple[int, int]:
        """The last value, and how many there were."""
        return struct.unpack_from("<QQ", self.memory, 0x2000)

    def sees(self, wanted: Callable[[int], bool], what: str) -> None:
        """Wait until the guest has read, from now on, a value that is wanted."""
        rounds, end = self.seen()[1], time.monotonic() + LIMIT_S
        while self.seen()[1] < rounds + 3 or not wanted(self.seen()[0]):
            assert self.ended is None, self.ended
            assert time.monotonic() < end, f"never seen: {what}; last {self.seen()}"
            time.sleep(0.0005)


@contextmanager
def reader(zap: str) -> Iterator[tuple[Reader, Change]]:
    """A guest that reads HERE; slot 0 is its code, tables and results, slot 1 two pages from HERE - 1 page on."""
    with KvmEngine(1) as engine:
        if zap == "slot":
            if not engine.vm.device.check_extension(DISABLE_QUIRKS2) & SLOT_ZAP_ALL:
                pytest.skip("this kernel cannot zap the slot alone")
            engine.vm.enable_cap(DISABLE_QUIRKS2, SLOT_ZAP_ALL)
        memory = mmap.mmap(-1, MEMORY)
        view = ctypes.c_char.from_buffer(memory)
        host = ctypes.addressof(view)
        engine.set_memory_region(Change(0, 0, 16, host))
        slot1 = Change(1, HERE >> 12, 2, host + HERE)
        engine.set_memory_region(slot1)
        memory[0x1000 : 0x1000 + len(READS)] = READS
        tables = identity_tables(0x4000, 0x40000)
        memory[0x4000 : 0x4000 + len(tables)] = tables
        for page, value in ((0, 1), (1, 2)):
            struct.pack_into("<Q", memory, HERE + PAGE * page, value)
        made = Reader(engine, memory)
        made.vcpu.set_sregs(user_mode(made.vcpu.sregs(), 0x4000))
        made.vcpu.set_registers(rip=0x1000, rbx=HERE, rcx=0x2000, rflags=2)
        made.thread.start()
        try:
            yield made, slot1
        finally:
            engine.vm.stop()
            made.thread.join(LIMIT_S)
            engine.close()
            del view
            memory.close()


@by_either_zap
def test_a_move_is_seen_as_old_new_or_mmio(zap: str) -> None:
    """One page down, the frame that is read holds the second page; while it moves, its place may be empty."""
    with reader(zap) as (guest, here):
        guest.sees(lambda value: value == 1, "the first page")
        for _ in range(50):
            guest.engine.set_memory_region(here._replace(base_gfn=here.base_gfn - 1))
            guest.sees(lambda value: value == 2, "the second page, moved down")
            guest.engine.set_memory_region(here)
            guest.sees(lambda value: value == 1, "the first page, moved back")
        assert guest.ended is None
        assert all(exit_ == Mmio(HERE, 8, is_write=False, data=b"") for exit_ in guest.mmio)


@by_either_zap
def test_a_deleted_slot_is_mmio_until_it_comes_back(zap: str) -> None:
    with reader(zap) as (guest, here):
        for _ in range(20):
            guest.sees(lambda value: value == 1, "memory")
            guest.engine.set_memory_region(Change(1))
            guest.sees(lambda value: value == MMIO, "MMIO")
            guest.engine.set_memory_region(here)
        assert guest.mmio
        assert all(exit_ == Mmio(HERE, 8, is_write=False, data=b"") for exit_ in guest.mmio)


@by_either_zap
def test_deleting_the_code_ends_the_guest(zap: str) -> None:
    with reader(zap) as (guest, _):
        guest.sees(lambda value: value == 1, "memory")
        guest.engine.set_memory_region(Change(0))
        guest.thread.join(LIMIT_S)
        assert isinstance(guest.ended, InternalError | Shutdown), guest.ended
        if isinstance(guest.ended, InternalError):
            assert 0x1000 <= guest.vcpu.registers()["rip"] < 0x1000 + len(READS)
