"""A slot made at an address owns the memory there, whoever alone keeps it then: a view, a transaction."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from guestmem.engines.kvm import unusable
from guestmem.errors import MemslotError
from guestmem.process_memory import read_memory
from guestmem.vm import Vm

ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]
PAGE = 0x1000
SIZE = 16 * PAGE
GPA = 0x100000
MARK = b"GUESTMEM"


@pytest.fixture(params=ENGINES)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    with Vm(engine=request.param) as made:
        yield made


def is_there(address: int) -> bool:
    """By its content: whatever this process maps next may lie at the same place."""
    gc.collect()
    try:
        return read_memory(address, len(MARK)) == MARK
    except MemslotError:
        return False


def mark(address: int) -> None:
    ctypes.memmove(address, MARK, len(MARK))


def own_until_the_slot_goes(vm: Vm, address: int) -> None:
    """Slot 2 owns what is at the address, and nothing does after it."""
    assert is_there(address)
    vm.memory.delete(2)
    assert not is_there(address)


def buffer() -> tuple[Any, int]:
    held = mmap.mmap(-1, SIZE)
    address = int(np.frombuffer(held, np.uint8).ctypes.data)
    for page in range(0, SIZE, PAGE):
        mark(address + page)
    return held, address


def test_a_view(vm: Vm) -> None:
    vm.memory.create(1, gpa=GPA, size=SIZE)
    view = vm.memory.view(GPA, SIZE)
    address = int(view.ctypes.data)
    mark(address + PAGE)
    vm.memory.delete(1)
    vm.memory.create(2, gpa=GPA, size=PAGE, host=address + PAGE)
    del view
    own_until_the_slot_goes(vm, address + PAGE)


def test_a_transaction_that_deletes(vm: Vm) -> None:
    """What it deletes lives until it is over, also where others have deleted it by then."""
    vm.memory.create(1, gpa=GPA, size=SIZE)
    change = vm.memory.transaction()
    address = change.delete(1)
    mark(address)
    vm.memory.delete(1)
    assert is_there(address)
    with vm.memory.transaction() as other:
        other.create(2, gpa=GPA, size=PAGE, host=address)
    del change
    own_until_the_slot_goes(vm, address)


def test_a_transaction_that_was_given_a_buffer(vm: Vm) -> None:
    held, address = buffer()
    change = vm.memory.transaction()
    change.create(1, gpa=0, size=SIZE, host=held)
    del held
    vm.memory.create(2, gpa=GPA, size=PAGE, host=address)
    del change
    own_until_the_slot_goes(vm, address)


@pytest.mark.parametrize("given_by", ["the same transaction", "a call meanwhile"])
def test_memory_that_is_given_after_the_address(vm: Vm, given_by: str) -> None:
    held, address = buffer()
    with vm.memory.transaction() as change:
        change.create(2, gpa=GPA, size=PAGE, host=address + PAGE)
        if given_by == "the same transaction":
            change.create(1, gpa=2 * GPA, size=SIZE, host=held)
        else:
            vm.memory.create(1, gpa=2 * GPA, size=SIZE, host=held)
    del held, change
    vm.memory.delete(1)
    own_until_the_slot_goes(vm, address + PAGE)


def test_an_address_that_is_nobodys_owns_nothing(vm: Vm) -> None:
    held = mmap.mmap(-1, SIZE)
    given = (ctypes.c_char * SIZE).from_buffer(held)
    address = ctypes.addressof(given)
    mark(address)
    vm.memory.create(1, gpa=GPA, size=SIZE, host=held)
    vm.memory.delete(1)
    vm.memory.create(2, gpa=GPA, size=SIZE, host=address)
    del given
    held.close()  # BufferError if anybody had it
    assert not is_there(address)
    vm.memory.delete(2)
