"""Host memory lives as long as a slot, a view or a call can reach it, whatever other threads do meanwhile.

A meeting is made certain: the other thread is let go at the one call in question, and has its turn, or is seen to wait.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.engines.kvm import KvmEngine, unusable
from guestmem.errors import BatchError, MemslotError
from guestmem.process_memory import read_memory
from guestmem.vm import Vm
from guestmem.vm.slot_memory import HostPiece, PieceIndex

ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"))]
PAGE = 0x1000
SECOND, PATIENCE = 0.3, 60.0
"""How long a thread that should wait is watched, and for how long one that should not is waited for."""


@pytest.fixture(params=ENGINES)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    with Vm(engine=request.param) as made:
        made.memory.create(0, gpa=0, size=4 * PAGE)
        made.memory.create(1, gpa=8 * PAGE, size=4 * PAGE)
        made.memory.write(8 * PAGE, b"l" * 4 * PAGE)
        yield made


def is_there(address: int, content: bytes = b"l" * 8) -> bool:
    """By its content: whatever this process maps next may lie at the same place."""
    try:
        return read_memory(address, len(content)) == content
    except MemslotError:
        return False


def other(action: Callable[[], object], seconds: float = SECOND) -> threading.Thread:
    """Start it in a thread, and give it its turn. What it finds later (the slot has gone) is its business."""

    def go() -> None:
        with contextlib.suppress(MemslotError):
            action()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(seconds)
    return thread


def meets(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], object]) -> list[bool]:
    """The first call of ``owner.name`` meets another thread's action; returns whether that had to wait."""
    plain, waited = getattr(owner, name), list[bool]()

    def call(*args: Any, **named: Any) -> Any:
        if not waited:
            waited.append(False)
            found = plain(*args, **named)
            waited[0] = other(action).is_alive()
            return found
        return plain(*args, **named)

    monkeypatch.setattr(owner, name, call)
    return waited


@pytest.mark.parametrize("how", ["move", "set_flags"])
def test_what_was_meant_for_a_slot_that_has_gone_creates_none(vm: Vm, how: str) -> None:
    update = vm.memory.transaction()
    update.move(1, 16 * PAGE) if how == "move" else update.set_flags(1, 1)
    vm.memory.delete(1)
    with pytest.raises(BatchError, match="slot 1: it does not exist any more") as refused, update:
        pass
    assert refused.value.errno == errno.ENOENT
    assert vm.memory.get(1) is None


def test_what_was_meant_to_create_changes_no_slot_that_came_meanwhile(vm: Vm) -> None:
    host = mmap.mmap(-1, PAGE)
    update = vm.memory.transaction()
    update.create(2, gpa=16 * PAGE, size=PAGE, host=host)
    vm.memory.create(2, gpa=20 * PAGE, size=PAGE, host=host)
    with pytest.raises(BatchError, match="slot 2: it exists by now") as refused, update:
        pass
    assert refused.value.errno == errno.EEXIST
    assert vm.memory[2].base_gfn == 20


@pytest.mark.parametrize("meanwhile", ["move", "set_flags", "recreate"])
@pytest.mark.parametrize("meant", ["move", "set_flags", "delete"])
def test_what_was_meant_for_a_slot_as_it_was_does_not_take_back_a_change(vm: Vm, meant: str, meanwhile: str) -> None:
    update = vm.memory.transaction()
    update.create(2, gpa=32 * PAGE, size=PAGE)
    if meant == "delete":
        update.delete(1)
    else:
        update.move(1, 16 * PAGE) if meant == "move" else update.set_flags(1, 1)
    if meanwhile == "recreate":
        vm.memory.delete(1)
        vm.memory.create(1, gpa=9 * PAGE, size=PAGE)
    else:
        vm.memory.move(1, 24 * PAGE) if meanwhile == "move" else vm.memory.set_flags(1, 1)
    now = list(vm.memory)
    with pytest.raises(BatchError, match="slot 1: it was changed meanwhile") as refused, update:
        pass
    assert (refused.value.errno, refused.value.entry) == (errno.EAGAIN, 1)
    assert list(vm.memory) == now
    with vm.memory.transaction() as again:
        again.move(1, 40 * PAGE)
        again.set_flags(1, 0)
        again.delete(1)
        again.create(1, gpa=8 * PAGE, size=PAGE)
    assert vm.memory[1].npages == 1


@pytest.mark.parametrize("how", ["move", "set_flags"])
def test_nobody_deletes_between_the_look_and_the_change(vm: Vm, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = meets(monkeypatch, vm.memory, "_existing", lambda: vm.memory.delete(1))
    changed = vm.memory.move(1, 16 * PAGE) if how == "move" else vm.memory.set_flags(1, 1)
    assert waited == [True]
    assert is_there(changed.userspace_addr) or vm.memory.get(1) is None


def test_nobody_creates_the_same_slot_between(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = meets(monkeypatch, vm.memory.backend, "slot", lambda: vm.memory.create(2, gpa=32 * PAGE, size=PAGE))
    assert vm.memory.create(2, gpa=16 * PAGE, size=PAGE).base_gfn == 16
    assert waited == [True]


@pytest.mark.parametrize("how", ["split", "resize", "transaction", "ioctl", "given"])
def test_an_address_in_memory_that_no_slot_covers_keeps_it(vm: Vm, how: str) -> None:
    memory = vm.memory
    address = memory[1].userspace_addr
    if how == "split":
        memory.split(1, 10 * PAGE, 2)
        memory.delete(2)
    elif how == "given":
        memory.delete(1)
        held = mmap.mmap(-1, 4 * PAGE)
        held[:] = b"l" * 4 * PAGE
        address = memory.create(1, gpa=8 * PAGE, size=2 * PAGE, host=held).userspace_addr
        del held
    else:
        memory.resize(1, 2 * PAGE)
    upper = address + 2 * PAGE
    if how == "transaction":
        with memory.transaction() as update:
            update.create(2, gpa=10 * PAGE, size=2 * PAGE, host=upper)
    elif how == "ioctl":
        region = MemoryRegion(slot=2, guest_phys_addr=10 * PAGE, memory_size=2 * PAGE, userspace_addr=upper)
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())
    else:
        memory.create(2, gpa=10 * PAGE, size=2 * PAGE, host=upper)
    memory.delete(1)
    gc.collect()
    assert memory.read(10 * PAGE, 8) == b"llllllll"
    memory.delete(2)
    gc.collect()
    assert not is_there(upper), "and nothing keeps it any longer"


@pytest.mark.parametrize("end", ["delete", "close"])
def test_a_view_of_two_pieces_keeps_both(vm: Vm, end: str) -> None:
    held = mmap.mmap(-1, 4 * PAGE)
    for number in (0, 1):
        part = memoryview(held)[2 * number * PAGE : 2 * (number + 1) * PAGE]
        vm.memory.create(2 + number, gpa=(16 + 2 * number) * PAGE, size=2 * PAGE, host=part)
    del held, part
    vm.memory.merge(2, 3)
    assert vm.memory.resize(2, 3 * PAGE).npages == 3, "the room is that of both"
    view = vm.memory.view(16 * PAGE, 3 * PAGE)
    vm.memory.delete(2) if end == "delete" else vm.close()
    gc.collect()
    view[:] = 7
    address = view.ctypes.data
    assert is_there(address, b"\7" * 8)
    assert is_there(address + 2 * PAGE, b"\7" * 8)
    del view
    assert not is_there(address, b"\7" * 8)


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize("end", ["delete", "close"])
def test_a_call_that_is_at_it_keeps_memory(vm: Vm, call: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = vm.close if end == "close" else lambda: vm.memory.delete(1)
    plain, done = getattr(vm.memory, f"host_{call}"), []

    def late(*args: Any) -> Any:
        done.append(not other(finish, PATIENCE).is_alive())  # a reader holds up nobody
        return plain(*args)

    monkeypatch.setattr(vm.memory, f"host_{call}", late)
    if call == "read":
        assert vm.memory.read(8 * PAGE, 8) == b"llllllll"
    else:
        vm.memory.write(8 * PAGE, b"GUESTMEM")
    assert done == [True]


@pytest.mark.parametrize("end", ["delete", "close"])
def test_a_view_is_of_memory_that_stays(vm: Vm, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = vm.close if end == "close" else lambda: vm.memory.delete(1)
    waited = meets(monkeypatch, vm.memory, "parts", finish)
    view = vm.memory.view(8 * PAGE, PAGE)
    assert waited == [True] or end == "close"
    gc.collect()
    assert is_there(view.ctypes.data)


def test_a_log_fits_its_slot(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is as large as the slot is when the log is read: else the kernel writes past its end."""
    vm.memory.create(2, gpa=0x100000, size=PAGE, host=mmap.mmap(-1, 0x1000000), flags=1)
    waited = meets(monkeypatch, vm._now, "slot", lambda: vm.memory.resize(2, 0x1000000))
    assert len(vm.dirty_log(2)) == 1
    assert waited == [True]


def test_one_of_several_threads_closes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is closed twice may be somebody else's file by then."""
    if why := unusable():
        pytest.skip(why)

    closed: list[int] = []
    plain = os.close
    made = Vm(2, engine="kvm")
    made.memory.create(0, gpa=0, size=PAGE)
    files = {made.engine.vm.file, made.engine.vm.device.fd, *(vcpu.fd for vcpu in made.engine.vm.vcpus)}
    threads: list[threading.Thread] = []

    def close(fd: int) -> None:
        closed.append(fd)
        if not threads:
            threads.append(other(made.close))  # while the first file is being closed
        plain(fd)

    monkeypatch.setattr(os, "close", close)
    made.close()
    threads[0].join()
    assert sorted(fd for fd in closed if fd in files) == sorted(files)
    assert made.closed


def test_checks_beside_changes_are_checks(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = vm.model if vm.model is not None else vm.memory.memslots
    waited = list[bool]()
    plain = type(owner).check

    def check(self: Any) -> None:
        waited.append(other(lambda: vm.memory.delete(1)).is_alive())
        plain(self)

    monkeypatch.setattr(type(owner), "check", check)
    vm.check()
    assert waited[0]


def test_a_closed_vm_says_so(vm: Vm) -> None:
    vcpu = vm.vcpus[0]
    vm.close()
    calls: list[Callable[[], object]] = [
        vcpu.run,
        lambda: vcpu.answer(None, b""),  # type: ignore[arg-type] # whatever it is
        lambda: vm.memory.view(0, 8),
        lambda: vm.memory.move(1, 0),
        lambda: vm.dirty_log(1),
    ]
    if isinstance(vm.engine, KvmEngine):
        kvm = vm.engine.vm
        calls += [
            lambda: kvm.ioctl(0xAE03, 3),
            lambda: kvm.create_guest_memfd(PAGE),
            lambda: kvm.device.check_extension(3),
            lambda: kvm.enable_cap(3),
        ]
    for call in calls:
        with pytest.raises(MemslotError) as refused:
            call()
        assert refused.value.errno == errno.EBADF


def test_the_index_against_a_list(seed: int) -> None:

    draw = random.Random(seed)
    held = mmap.mmap(-1, 64 * PAGE)
    view = memoryview(held)
    index, listed = PieceIndex(), list[HostPiece]()
    for _ in range(300):
        if listed and draw.random() < 0.4:
            del listed[draw.randrange(len(listed))]  # if it was the last of its kind, it is gone
        else:
            start = draw.randrange(60)
            piece = HostPiece.of(view[start * PAGE : (start + draw.choice((1, 2, 4))) * PAGE], PAGE)
            if listed and draw.random() < 0.3:
                piece = draw.choice(listed)
            index.add(piece)
            listed.append(piece)
            del piece
        base = HostPiece.of(view, PAGE).address
        address, size = base + draw.randrange(64 * PAGE), draw.choice((1, PAGE, 5 * PAGE))
        expected = {id(piece) for piece in listed if piece.overlaps(address, address + size)}
        assert {id(piece) for piece in index.overlapping(address, size)} == expected
