"""Ctrl-C at any instruction, and around any system call, leaves kernel, engine and memory agreeing, and vCPUs running.

As a program (``python tests/vm/test_ctrl_c_at_every_place.py``) it goes through all places, and prints how many.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from guestmem import interrupts
from guestmem.atomics import peek
from guestmem.engines.kvm import KvmEngine, unusable
from guestmem.engines.kvm import layout as at
from guestmem.vm import Io, Vm
from interrupt_sweep import around_calls, places
from kernel_slots import agree

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")

IDS, PAGES = range(6), range(0x4E, 0x5A)
COUNT = bytes.fromhex("f048ff03ebfa")  # l: lock inc qword [rbx]; jmp l
TELL = bytes.fromhex("fec0e610ebfa")  # l: inc al; out 0x10, al; jmp l
DATA = 0x30000
STRIDE = 97
"""Of the places, so many are skipped between two in a test."""


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def machine() -> Iterator[Vm[KvmEngine, None]]:
    """Two users that count in slot 1's neighbour, whatever is done to the other slots."""
    with Vm(2, engine="kvm") as vm:
        memory = vm.memory
        memory.create(0, gpa=0, size=0x31000)
        memory.create(1, gpa=0x40000, size=0x8000, flags=1)
        memory.create(2, gpa=0x50000, size=0x4000)
        for vcpu in vm.vcpus:
            vcpu.load_code(COUNT, 0x1000, mode="long", tables=0x2000)
            vcpu.set_registers(rbx=DATA)
        yield vm


def transaction(design: str) -> Callable[[Vm[KvmEngine, None]], object]:
    """Split slot 1, or merge it again."""

    def go(vm: Vm[KvmEngine, None]) -> None:
        with vm.memory.transaction(design=design) as update:
            host = update.delete(1)
            if vm.memory.get(3) is None:
                update.create(1, gpa=0x40000, size=0x4000, host=host, flags=1)
                update.create(3, gpa=0x44000, size=0x4000, host=host + 0x4000)
            else:
                update.delete(3)
                update.create(1, gpa=0x40000, size=0x8000, host=host, flags=1)

    return go


def create_or_delete(vm: Vm[KvmEngine, None]) -> None:
    if vm.memory.get(4) is None:
        vm.memory.create(4, gpa=0x58000, size=0x2000, flags=1)
    else:
        vm.memory.delete(4)


ACTIONS: dict[str, Callable[[Vm[KvmEngine, None]], object]] = {
    "transaction, pause": transaction("pause"),
    "transaction, pause_if_overlap": transaction("pause_if_overlap"),
    "transaction, exit_retry": transaction("exit_retry"),
    "transaction, sequential": transaction("sequential"),
    "create, delete": create_or_delete,
    "move": lambda vm: vm.memory.move(2, 0x50000 if vm.memory[2].base_gfn != 0x50 else 0x54000),
    "move onto itself": lambda vm: vm.memory.move(2, 0x50000 if vm.memory[2].base_gfn != 0x50 else 0x52000),
    "set_flags": lambda vm: vm.memory.set_flags(2, 1 - vm.memory[2].flags),
}
WHOLE = [{(1, 0x40, 8)}, {(1, 0x40, 4), (3, 0x44, 4)}]
"""What a transaction leaves: all of it, or nothing."""


def wrong(vm: Vm[KvmEngine, None], action: str) -> str:
    """What is not as it should be after an interrupted action; "" if all is well."""
    words = vm.engine.vm.words
    if peek(words, int(at.PAUSED)):
        return "a pause is in force"
    if peek(words, int(at.UPDATES)) & 1:
        return "an update is under way"
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return "signals are held off"
    if vm.engine.vm.running not in (0, 2):
        return f"{vm.engine.vm.running} vCPUs run"
    try:
        agree(vm, IDS, PAGES, frames=action.startswith("move"))
    except AssertionError as error:
        return str(error) or "kernel, engine, front door and memory differ"
    there = {(slot.id, slot.base_gfn, slot.npages) for slot in vm.memory if slot.id in (1, 3)}
    if action.startswith("transaction") and there not in WHOLE:
        return f"half of it: {there}"
    return ""


def counts(vm: Vm[KvmEngine, None]) -> bool:
    """Whether the vCPUs go on."""
    before, end = vm.memory.read(DATA, 8), time.monotonic() + 60
    while vm.memory.read(DATA, 8) == before:
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def sweep(action: str, stride: int, *, start: int = 0) -> tuple[int, int, list[str]]:
    """All places of an action: how many, at how many it was raised, and what went wrong where."""
    done = raised = 0
    bad: list[str] = []
    with machine() as vm:
        ACTIONS[action](vm)  # compiled, and what is looked up once
        for place, was_raised in places(lambda: ACTIONS[action](vm), stride, start):
            done += 1
            raised += was_raised
            if why := wrong(vm, action):
                bad.append(f"{place}: {why}")
                break
        if not bad:
            for where, was_raised in around_calls(lambda: ACTIONS[action](vm)):
                done += 1
                raised += was_raised
                if why := wrong(vm, action):
                    bad.append(f"{where}: {why}")
                    break
        vm.engine.vm.start()
        if not bad and not counts(vm):
            bad.append("the vCPUs stand still")
        vm.engine.vm.stop()
    return done, raised, bad


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_differs_afterwards(action: str) -> None:
    done, raised, bad = sweep(action, STRIDE)
    assert not bad
    assert done > 10
    assert raised == done


@contextlib.contextmanager
def not_held_off() -> Iterator[None]:
    """``held`` and ``Section`` do nothing about signals."""
    enter, leave = interrupts._enter, interrupts._leave
    interrupts._enter = interrupts._leave = lambda: None
    try:
        yield
    finally:
        interrupts._enter, interrupts._leave = enter, leave


@pytest.mark.parametrize("action", ["transaction, pause", "create, delete", "move"])
def test_without_holding_signals_off_the_same_sweep_fails(action: str) -> None:
    """At places of the engine: elsewhere it would leave a lock held, and hang."""
    with not_held_off(), machine() as vm:
        ACTIONS[action](vm)
        engine = places(lambda: ACTIONS[action](vm), within="engines/kvm/engine.py")
        assert any(wrong(vm, action) for _ in engine)


def run_sweep(stride: int) -> tuple[int, list[str]]:
    """``run()`` at every place: the guest tells numbers by a port, and none may be missing, or come twice."""
    lost, done, told = [], 0, [0]

    def one() -> None:
        exit_ = vcpu.run()
        assert isinstance(exit_, Io)
        told.append(exit_.data[0])

    with Vm(1, engine="kvm") as vm:
        vm.memory.create(0, gpa=0, size=0x4000)
        vcpu = vm.vcpus[0]
        vcpu.load_code(TELL, 0x1000)
        vcpu.set_registers(rax=0)
        for _ in range(3):
            one()
        for place, _ in places(one, stride):
            done += 1
            one()
            if told[-1] != (told[-2] + 1) % 256:
                lost.append(str(place))
            told = [told[-1]]
    return done, lost


def test_run_loses_no_exit() -> None:
    """Also at places where CPython looks for no signals, but for the last: the exit is handed out there already."""
    done, lost = run_sweep(1)
    assert done > 50
    assert all(place.split()[1].startswith(("KvmGuestVcpu.run+", "KvmVcpu.taken+")) for place in lost), lost
    assert len(lost) <= 6, lost


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = False
    for name in ACTIONS:
        number, times, found = sweep(name, 1)
        failed |= bool(found)
        say = f"{name:30} SIGINT at {number:5} places, raised at {times:5}: {found or 'nothing differs'}"
        sys.stdout.write(say + "\n")
        sys.stdout.flush()
    number, found = run_sweep(1)
    sys.stdout.write(f"{'run':30} SIGINT at {number:5} places: {len(found)} where it was handed out already {found}\n")
    sys.exit(failed)
