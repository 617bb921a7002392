"""In a child of fork a VM is closed: it ends at once whatever it does, and the parent's vCPUs are not told."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.engines.kvm import KvmEngine, unusable
from guestmem.engines.kvm import layout as at
from guestmem.errors import GuestmemError
from guestmem.vm import Vm

LIMIT_S = 100.0
LOOP = bytes.fromhex("48ffc1ebfb")  # l: inc rcx; jmp l


def leave_the_block(vm: Vm) -> None:
    with vm:
        pass


def change(vm: Vm) -> None:
    with vm.memory.transaction() as update:
        update.create(5, gpa=0x100000, size=0x1000)


WAYS: dict[str, Callable[[Vm], object]] = {
    "exit": lambda vm: sys.exit(0),
    "close": lambda vm: vm.close(),
    "leave the block": leave_the_block,
    "stop": lambda vm: (vm.engine.vm if isinstance(vm.engine, KvmEngine) else vm.engine).stop(),
    "change": change,
    "run": lambda vm: vm.vcpus[0].run(),
    "read": lambda vm: vm.memory.read(0, 8),
    "drop": lambda vm: None,
}


def in_a_child(vm: Vm, way: Callable[[Vm], object]) -> str:
    """What a child of fork ends with: "" if nothing was raised. AssertionError if it hangs."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        said = b""
        try:
            way(vm)
        except GuestmemError as error:
            said = str(error).encode()
        except SystemExit:
            said = b"exit"
        except BaseException as error:  # noqa: BLE001
            said = repr(error).encode()
        os.write(writable, said)
        os._exit(0)
    os.close(writable)
    end = time.monotonic() + LIMIT_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.005)
    answer = os.read(readable, 1000).decode()
    os.close(readable)
    return answer


@pytest.fixture(params=["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))])
def vm(request: pytest.FixtureRequest) -> Vm:
    made = Vm(1, engine=request.param)
    made.memory.create(0, gpa=0, size=0x40000)
    if request.param == "kvm":
        made.vcpus[0].load_code(LOOP, 0x1000, mode="long", tables=0x2000)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_it_is_closed_there(vm: Vm, way: str) -> None:
    said = in_a_child(vm, WAYS[way])
    assert said == {"exit": "exit", "change": "EBADF: vm: it is closed", "read": "EBADF: vm: it is closed"}.get(
        way, said
    )
    if way in ("run", "leave the block"):
        assert "closed" in said
    vm.memory.write(0x100, b"still here")
    assert vm.memory.read(0x100, 10) == b"still here"
    vm.close()


@pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
@pytest.mark.parametrize("way", ["exit", "close", "stop", "drop"])
def test_the_parents_vcpus_run_on_and_are_not_kicked(way: str) -> None:
    with Vm(1, engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=0x40000)
        vm.vcpus[0].load_code(LOOP, 0x1000, mode="long", tables=0x2000)
        engine = vm.engine.vm
        engine.start()
        while peek(engine.words, int(at.VCPUS + at.STATE)) != at.IN_KVM_RUN:
            time.sleep(0.001)
        in_a_child(vm, WAYS[way])
        assert engine.running == 1
        assert engine.counts()[0]["interrupted"] == 0
        engine.stop()
