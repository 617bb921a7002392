"""Close beside calls in other threads: a file's number is given back when no call can take it to the kernel any more.

A call is stopped between its look at the number and the kernel, in each way to the kernel that there is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.abi.structures import MemoryIoctl
from guestmem.engines.kvm import KvmEngine, ioctls, unusable, vcpu, vm_file
from guestmem.engines.kvm import vm as kvm_vm
from guestmem.engines.kvm.exits import decode
from guestmem.errors import GuestmemError, MemslotError
from guestmem.vm import Vm, guest_memfd

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
PAGE = 0x1000
PATIENCE_S = 60
TURN_S = 0.3
"""How long one that should wait is watched."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """What closes a VM: nobody waits for it later."""
    machine().close()


def machine(**options: Any) -> Vm[KvmEngine, None]:
    vm = Vm(engine="kvm", **options)
    vm.memory.create(0, gpa=0, size=4 * PAGE, flags=1)
    vm.engine.vm.kick()
    return vm


def files(vm: Vm[KvmEngine, None]) -> list[int]:
    kvm = vm.engine.vm
    return [kvm.file, kvm.device.fd, *(each.fd for each in kvm.vcpus)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def beside_a_close(
    vm: Vm[KvmEngine, None], call: Callable[[], Any], owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """What ``call`` gives in a thread whose first call of ``owner.name`` meets a close: all files are open then."""
    numbers, plain = files(vm), getattr(owner, name)
    seen: list[bool] = []
    given: list[Any] = []
    closer = threading.Thread(target=vm.close, daemon=True)
    mine: list[threading.Thread] = []

    def late(*arguments: Any, **named: Any) -> Any:
        if not seen and threading.current_thread() in mine:
            closer.start()
            closer.join(TURN_S)
            seen.append(all(is_open(number) for number in numbers))
        return plain(*arguments, **named)

    def work() -> None:
        try:
            given.append(call())
        except GuestmemError as error:
            given.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, late)
        mine.append(threading.Thread(target=work, daemon=True))
        mine[0].start()
        mine[0].join(PATIENCE_S)
        closer.join(PATIENCE_S)
    assert seen == [True]
    assert vm.closed
    assert files(vm) == [-1, -1]
    with pytest.raises(MemslotError) as refused:
        call()
    assert refused.value.errno == errno.EBADF
    return given[0]


def test_an_ioctl(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    cap = MemoryIoctl.CHECK_EXTENSION
    assert beside_a_close(vm, lambda: vm.ioctl(cap, 3), vm_file, "raw_ioctl", monkeypatch) == 1


def test_a_dirty_log(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    assert len(beside_a_close(vm, lambda: vm.dirty_log(0), vm_file, "raw_ioctl", monkeypatch)) == 4


@pytest.mark.parametrize("how", ["slot", "transaction", "file", "log", "any", "cap"])
def test_a_call_that_has_a_structure(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    kvm = vm.engine.vm

    def transaction() -> None:
        with vm.memory.transaction() as change:
            change.delete(0)
            change.create(0, gpa=0, size=PAGE)
            change.create(1, gpa=PAGE, size=PAGE)

    calls: dict[str, Callable[[], Any]] = {
        "slot": lambda: vm.memory.create(1, gpa=0x100000, size=PAGE),
        "transaction": transaction,
        "file": lambda: vm.create_guest_memfd(PAGE),
        "log": lambda: kvm.get_dirty_log(0, 4),
        "any": lambda: kvm.ioctl(MemoryIoctl.CHECK_EXTENSION, 3),
        "cap": lambda: kvm.enable_cap(MemoryIoctl.CHECK_EXTENSION),
    }
    given = beside_a_close(vm, calls[how], fcntl, "ioctl", monkeypatch)
    assert not isinstance(given, MemslotError) or given.errno not in (errno.EBADF, errno.EIO), given


def test_registers_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    given = beside_a_close(vm, vm.vcpus[0].registers, fcntl, "ioctl", monkeypatch)
    assert "rip" in given


@pytest.mark.parametrize("name", ["kick_all", "pause_all"])
def test_a_kick(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    call = vm.engine.vm.kick if name == "kick_all" else vm.engine.vm.pause
    assert beside_a_close(vm, call, kvm_vm, name, monkeypatch) == 0


def test_a_harvest(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine(ring_entries=1024)
    owner = vm.engine.vm.answered
    assert beside_a_close(vm, vm.engine.vm.vcpus[0].harvest, owner, "harvest", monkeypatch) == []


def test_a_hole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine()
    try:
        file = vm.create_guest_memfd(PAGE)
    except MemslotError as error:
        pytest.skip(str(error))
    owner: Any = guest_memfd._libc
    beside_a_close(vm, lambda: file.punch(0, PAGE), owner, "fallocate", monkeypatch)


def test_an_exit_that_is_being_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up nobody, and is read to its end."""
    vm = machine()
    vm.vcpus[0].load_code(b"\xf4", 0)
    plain = decode
    closed: list[bool] = []

    def late(page: memoryview) -> Any:
        other = threading.Thread(target=vm.close)
        other.start()
        other.join(PATIENCE_S)
        closed.append(vm.closed)
        return plain(page)

    monkeypatch.setattr(vcpu, "decode", late)
    assert str(vm.vcpus[0].run()) == "Hlt()"
    assert closed == [True]


def test_who_is_at_a_call_cannot_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object's ``__del__`` in the midst of a call of the same thread."""
    vm = machine()
    plain, said = ioctls.raw_ioctl, list[MemslotError]()

    def late(*arguments: Any) -> int:
        if not said:
            with pytest.raises(MemslotError) as refused:
                vm.close()
            said.append(refused.value)
        return plain(*arguments)

    monkeypatch.setattr(vm_file, "raw_ioctl", late)
    assert vm.ioctl(MemoryIoctl.CHECK_EXTENSION, 3) == 1
    assert said[0].errno == errno.EBUSY
    vm.close()
    assert vm.closed
