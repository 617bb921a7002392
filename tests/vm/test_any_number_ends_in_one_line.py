"""NumPy's integers are numbers; what cannot be meant is one line: NumPy's bools, huge numbers, short structures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from guestmem.engines.kvm import unusable
from guestmem.errors import GuestmemError, UsageError
from guestmem.vm import Vm

HUGE = 10**5000
VALUES: tuple[Any, ...] = (
    *(HUGE, -HUGE, 1 << 70, -1, 1.5, np.float64(2), None),
    *("1", np.bool_(True), [1], np.array([1, 2])),
)
KVM = pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))


@pytest.fixture(params=["soft", KVM])
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    with Vm(engine=request.param) as made:
        yield made


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.uint64, bool])
def test_integers_of_any_kind_are_numbers(vm: Vm, kind: type) -> None:
    memory: Any = vm.memory
    vm_: Any = vm
    slot = memory.create(kind(1), gpa=np.uint64(0x1000), size=np.int32(0x3000), flags=kind(1))
    assert slot == memory[kind(1)] == memory.get(kind(1))
    memory.write(np.uint64(0x3FF0), b"abcd")
    assert memory.read(np.uint16(0x3FF0), np.uint8(4)) == b"abcd"
    assert memory.view(np.int32(0x3FF0), kind(1)).tobytes() == b"a"
    assert memory.overlapping(np.uint16(0xFFFF), np.uint64(0x10)) == []
    assert memory.overlapping(np.uint16(0x3FFF), np.int8(1)) == [slot]
    assert vm_.dirty_log(kind(1)).tolist() == [False] * 3
    assert vm_.check_extension(np.int64(3)) == 1
    with memory.transaction() as update:
        update.move(kind(1), np.uint32(0x8000))
    memory.delete(kind(1))


def calls(vm: Any) -> Iterator[Callable[[], object]]:
    memory, make = vm.memory, cast("Any", Vm)
    values: tuple[Any, ...] = (
        HUGE,
        -HUGE,
        1 << 70,
        -1,
        1.5,
        np.float64(2),
        None,
        "1",
        np.bool_(True),
        [1],
        np.array([1, 2]),
    )
    for bad in values:
        yield partial(memory.create, bad, gpa=0x10000, size=0x1000)
        yield partial(memory.create, 5, gpa=bad, size=0x1000)
        yield partial(memory.create, 5, gpa=0x10000, size=bad)
        yield partial(memory.create, 5, gpa=0x10000, size=0x1000, flags=bad)
        yield partial(memory.delete, bad)
        yield partial(memory.move, 0, bad)
        yield partial(memory.read, bad, 8)
        yield partial(memory.read, 0, bad)
        yield partial(memory.view, 0, bad)
        yield partial(memory.find, bad)
        yield partial(memory.by_hva, bad)
        yield partial(vm.dirty_log, bad)
        yield partial(vm.check_extension, bad)
        yield partial(vm.ioctl, bad)
        yield partial(make, bad)
        yield partial(make, ring_entries=bad)


def test_what_is_no_number_is_one_line(vm: Vm) -> None:
    vm.memory.create(0, gpa=0, size=0x1000)
    before = list(vm.memory)
    for call in calls(vm):
        with pytest.raises(GuestmemError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert list(vm.memory) == before


@pytest.mark.parametrize("request_", [0x4010AE67, 0x8208AE62, 0x4020AE46, 0xC008AE6A, 0x8070AE9F])
@pytest.mark.parametrize("size", [0, 1, 7, 4096])
def test_a_structure_of_another_size_never_gets_to_the_kernel(vm: Vm, request_: int, size: int) -> None:
    """Which would read, or write, past the end of the buffer."""
    with pytest.raises(GuestmemError, match=r"EFAULT: .*bytes, not|ENOTTY"):
        vm.ioctl(request_, bytes(size))


def test_a_number_is_no_structure(vm: Vm) -> None:
    with pytest.raises(GuestmemError, match=r"EINVAL: .*it takes a number|ENOTTY|UsageError|number"):
        vm.ioctl(0xAE47, b"12345678")  # KVM_SET_TSS_ADDR


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("mine")


@pytest.mark.parametrize(
    "given",
    [np.zeros((20, 20)), 10**5000, -(10**5000), BadRepr(), "a\nb", [1, 2], None],
    ids=lambda given: type(given).__name__,
)
def test_whatever_is_given_is_told_on_one_short_line(given: Any) -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=0x1000)
        calls: tuple[Callable[[], object], ...] = (
            lambda: vm.memory.read(given, 1),
            lambda: vm.memory.create(given, gpa=0x4000, size=0x1000),
            lambda: vm.ioctl(given, b""),
            lambda: vm.ioctl(0xAE03, given),
            lambda: vm.memory.transaction(design=cast(Any, [given])),
            lambda: Vm(engine=given),
            lambda: Vm(word_bits=given),
            lambda: Vm(given),
        )
        for call in calls:
            with pytest.raises(GuestmemError) as caught:
                call()
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 300


def test_a_vm_is_not_copied() -> None:
    with Vm() as vm, pytest.raises(UsageError, match="it cannot be copied"):
        copy.copy(vm)
