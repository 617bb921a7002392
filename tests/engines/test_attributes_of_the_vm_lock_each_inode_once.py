"""Attributes of the VM change with every inode locked that a fault may look under: each once, in one order for all VMs.

A fault looks at them under the lock of its slot's file, closed or not; two VMs may share inodes (KVM_LINK_GUEST_MEMFD).
The model ``gmem-attributes`` of ``guestmem explore`` has the race with a closed file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from guestmem.engines.soft import SoftEngine
from guestmem.gmem import GuestMemfd, VmMemoryAttributes
from guestmem.gmem.inode import Inode

PAGE = 0x1000


class Locks:
    """Which inodes are locked, in which order; one that is locked twice would wait for itself."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[Inode] = []
        self.held: list[Inode] = []
        locks, real = self, Inode.changing

        @contextmanager
        def changing(inode: Inode) -> Iterator[None]:
            assert inode not in locks.held, "it waits for itself"
            locks.taken.append(inode)
            locks.held.append(inode)
            try:
                with real(inode):
                    yield
            finally:
                locks.held.remove(inode)

        patch.setattr(Inode, "changing", changing)


def made(*files: GuestMemfd) -> tuple[SoftEngine, VmMemoryAttributes]:
    """An engine with files on the inodes of ``files``, in this order, and the attributes of its VM."""
    engine, attributes = SoftEngine(), VmMemoryAttributes()
    for file in files:
        engine.files.add(file.link(engine, attributes=attributes))
    attributes._invalidate = engine.files.vm_invalidation
    return engine, attributes


def test_two_vms_take_them_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, third = (GuestMemfd(PAGE, states="vm-attributes") for _ in range(3))
    _, here = made(one, other, third)
    _, there = made(third, other, one)
    orders = []
    for attributes in (here, there):
        locks = Locks(monkeypatch)
        attributes.set(0, PAGE, 8)
        orders.append(locks.taken)
        assert not locks.held
        monkeypatch.undo()
    assert orders[0] == orders[1]
    assert {id(inode) for inode in orders[0]} == {id(file.inode) for file in (one, other, third)}


def test_two_files_on_one_inode_are_one_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    file = GuestMemfd(PAGE, states="vm-attributes")
    _, attributes = made(file, file)
    locks = Locks(monkeypatch)
    attributes.set(0, PAGE, 8)
    assert locks.taken == [file.inode]
    assert attributes.get(0) == 8


def test_a_closed_file_is_locked_for_its_slots_are_faulted_in_still(monkeypatch: pytest.MonkeyPatch) -> None:
    file = GuestMemfd(PAGE, states="vm-attributes")
    engine, attributes = made(file)
    engine.files.get(1).close()  # type: ignore[union-attr]
    locks = Locks(monkeypatch)
    attributes.set(0, PAGE, 8)
    assert locks.taken == [file.inode]
