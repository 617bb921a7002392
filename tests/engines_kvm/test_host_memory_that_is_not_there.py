"""Host memory that is not there ends KVM_RUN with EFAULT, also where the VMM answers the access itself."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from guestmem.engines.kvm import Exit
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from kvm_window import AFTER, LIMIT_S, REGISTERS, RESTLESS, Window, died

STORE, LOAD = bytes.fromhex("488903"), bytes.fromhex("488b03")
"""mov [rbx], rax; mov rax, [rbx]."""
SIZE = AFTER - RESTLESS
UNMAPPED = 0x200000000000


@contextmanager
def anonymous(prot: int) -> Iterator[int]:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    address = libc.mmap(None, SIZE, prot, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    yield address
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(SIZE))


@contextmanager
def unmapped() -> Iterator[int]:
    yield UNMAPPED


@contextmanager
def truncated() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, SIZE)
    memory = mmap.mmap(fd, SIZE)
    os.ftruncate(fd, 0)
    os.close(fd)
    view = ctypes.c_char.from_buffer(memory)
    yield ctypes.addressof(view)
    del view
    memory.close()


CASES: dict[str, tuple[Callable[[], AbstractContextManager[int]], bytes]] = {
    "unmapped, store": (unmapped, STORE),
    "unmapped, load": (unmapped, LOAD),
    "PROT_READ, store": (lambda: anonymous(mmap.PROT_READ), STORE),
    "PROT_NONE, load": (lambda: anonymous(0), LOAD),
    "past the end of its file, store": (truncated, STORE),
    "past the end of its file, load": (truncated, LOAD),
}


@pytest.mark.parametrize("in_a_hole", [False, True], ids=["natively", "in a hole"])
@pytest.mark.parametrize("case", CASES)
def test_natively_and_in_a_hole_the_answer_is_the_same(case: str, *, in_a_hole: bool) -> None:
    memory, code = CASES[case]
    with memory() as address, Window() as guest:
        guest.engine.retry_exits(True)
        guest.engine.set_memory_region(Change(1))
        guest.slot1 = Change(1, RESTLESS >> 12, SIZE >> 12, address)
        guest.engine.set_memory_region(guest.slot1)
        guest.prepare(code)
        with pytest.raises(GuestmemError) as caught:
            failure(guest, in_a_hole=in_a_hole)
        assert caught.value.errno == errno.EFAULT


def failure(guest: Window, *, in_a_hole: bool) -> None:
    if not in_a_hole:
        guest.run()
        return
    with guest.engine.exits_held():
        guest.engine.set_memory_region(Change(1))
        guest.start()
        try:
            guest.until_it_waits()
        finally:
            guest.engine.set_memory_region(guest.slot1)
    guest.thread.join(LIMIT_S)
    (ended,) = guest.ended
    assert isinstance(ended, GuestmemError), ended
    raise ended


def test_the_access_is_carried_out_when_memory_has_come() -> None:
    """As natively: KVM_RUN failed, nothing was done, and the next one does it."""
    with truncated() as address, Window() as guest:
        guest.engine.retry_exits(True)
        guest.engine.set_memory_region(Change(1))
        first = guest.slot1
        guest.slot1 = Change(1, RESTLESS >> 12, SIZE >> 12, address)
        guest.engine.set_memory_region(guest.slot1)
        guest.prepare(STORE)
        with pytest.raises(GuestmemError):
            failure(guest, in_a_hole=True)
        guest.engine.set_memory_region(Change(1))
        before = guest.word(RESTLESS)
        guest.engine.set_memory_region(first)
        exit_: Exit = guest.run().exit
        assert died(exit_)
        assert before != REGISTERS["rax"]
        assert guest.word(RESTLESS) == REGISTERS["rax"]
