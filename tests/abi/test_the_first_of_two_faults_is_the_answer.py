"""Every pair of things that can be wrong with a region: the answer is that of the step that comes first.

Most steps answer EINVAL, so what the model says is held to the step's own words; the kernel's errno must be the same.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import pytest

from abi_words import ARENA, OK, PAGE, Ask
from guestmem import MemslotError
from guestmem.abi.checks import Host
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.conform.calls import Call
from guestmem.conform.kernel import Kernel, host_of
from guestmem.conform.modelled import ModelledVm
from guestmem.engines.kvm.device import unusable
from guestmem.vm import KvmModel

SET, SET2 = MemoryIoctl.SET_USER_MEMORY_REGION, MemoryIoctl.SET_USER_MEMORY_REGION2
SLOT, BLOCKER, CLOSED = 5, 9, 0x7FFFFFFF
Change = Callable[[MemoryRegion], MemoryRegion]


class Fault(NamedTuple):
    """What is done to a region that is good, the step of docs/abi.md that refuses it, and how."""

    step: str
    change: Change
    says: str
    number: int = errno.EINVAL
    forms: tuple[MemoryIoctl, ...] = (SET, SET2)


def bits(**fields: int) -> Change:
    """Set bits in fields."""
    return lambda region: region._replace(**{name: getattr(region, name) | value for name, value in fields.items()})


def with_id(id_: int) -> Change:
    return lambda region: region._replace(slot=region.slot >> 16 << 16 | id_)


def as_is(region: MemoryRegion) -> MemoryRegion:
    """What is wrong with it is elsewhere: in the slots that there are."""
    return region


GMEM = 4
FAULTS = (
    Fault("3", bits(flags=8), r"flags 0x8 are not of KVM_MEM_LOG", forms=(SET,)),
    Fault("4", with_id(40_000), r"slot: 40000 is not in 0\.\."),
    Fault("6", bits(flags=8), r"flags 0x[8cd] are not of 0x", forms=(SET2,)),
    Fault("6, alone", bits(flags=GMEM | 1), r"flags 0x[5d] are not of 0x4", forms=(SET2,)),
    Fault("7", bits(memory_size=0x10), r"memory_size 0x\w+ is not a multiple"),
    Fault("8", bits(guest_phys_addr=8), r"guest_phys_addr 0x\w+ is not a multiple"),
    Fault("9, aligned", bits(userspace_addr=8), r"userspace_addr 0x\w+ is not a multiple"),
    Fault("9, range", bits(userspace_addr=1 << 62), r"userspace_addr 0x\w+ with size 0x\w+ passes"),
    Fault("10, aligned", bits(flags=GMEM, guest_memfd_offset=8), "guest_memfd_offset 0x", forms=(SET2,)),
    Fault("10, range", bits(flags=GMEM, guest_memfd_offset=(1 << 64) - PAGE), "guest_memfd_offset 0x", forms=(SET2,)),
    Fault("11", bits(slot=9 << 16), r"as_id: 9 is not in 0\.\."),
    Fault("12", bits(guest_phys_addr=((1 << 64) - 1) ^ 0xFFF), r"guest_phys_addr 0x\w+ with size 0x\w+ passes 2"),
    Fault("13", bits(memory_size=1 << 44), r"memory_size 0x\w+ is more than 0x7fffffff pages"),
    Fault("15", as_is, "wrap a word of 64 bits"),
    Fault("16", as_is, r"userspace_addr 0x\w+ differs from"),
    Fault("17", as_is, "overlaps", errno.EEXIST),
    Fault("19", bits(flags=GMEM), f"guest_memfd {CLOSED} is not open", errno.EBADF, (SET2,)),
    Fault("21", bits(memory_size=8 * PAGE), "its last frame is past"),
)
IMPOSSIBLE = {("15", "16"), ("16", "19")}
"""15 is without the slot, 16 with it; with it, a guest_memfd is refused by 16 itself."""
PAIRS = [
    (one, other)
    for one, other in combinations(FAULTS, 2)
    if (one.step, other.step) not in IMPOSSIBLE and set(one.forms) & set(other.forms)
]
MODEL_ONLY = {"15"}
TOP = 1 << 52


def region_with(faults: tuple[Fault, ...], top: int) -> MemoryRegion:
    region = MemoryRegion(SLOT, 0, top - 4 * PAGE, 4 * PAGE, ARENA, 0, CLOSED)
    for fault in faults:
        region = fault.change(region)
    return region


@pytest.mark.parametrize(("flags", "offset"), [(0, 8), (1, (1 << 64) - 1), (2, (1 << 64) - PAGE)])
def test_without_the_flag_nothing_is_asked_of_the_file(flags: int, offset: int, ask: Ask) -> None:
    assert ask("region2", 0, flags, 0, PAGE, ARENA, offset, 0, 0xFF).result == OK


def test_user_addresses_end_where_they_end(ask: Ask) -> None:
    end = (Host() if unusable() else host_of()).task_size_max
    assert ask("region", 0, 0, 0, 2 * PAGE, end - 2 * PAGE).result == OK
    assert ask("region", 1, 0, 8 * PAGE, 2 * PAGE, end - PAGE).result == -errno.EINVAL
    assert ask("region", 1, 0, 8 * PAGE, PAGE, end).result == -errno.EINVAL
    assert ask("region", 1, 0, 8 * PAGE, 0, end).result == -errno.EINVAL  # there is no such slot
    assert ask("region", 0, 0, 8 * PAGE, 0, end).result == OK  # but this one is deleted: nothing lies past the end


def before(faults: tuple[Fault, ...], top: int) -> list[MemoryRegion]:
    """Slots that there are already, so that those faults are some."""
    steps = {fault.step for fault in faults}
    blocker, other = (
        MemoryRegion(BLOCKER, 0, top - PAGE, PAGE, ARENA),
        MemoryRegion(SLOT, 0, PAGE, 4 * PAGE, ARENA + PAGE),
    )
    return [blocker] * ("17" in steps) + [other] * ("16" in steps)


def forms(*faults: Fault) -> list[MemoryIoctl]:
    return [form for form in (SET, SET2) if all(form in fault.forms for fault in faults)]


def refused(faults: tuple[Fault, ...], request: MemoryIoctl) -> MemslotError:
    vm = KvmModel(Host(max_gfn=(TOP >> 12) - 1))
    for there in before(faults, TOP):
        vm.ioctl(SET, there.pack())
    if any(fault.step == "15" for fault in faults):
        vm.accounting.pages = (1 << 64) - 2
    region, slots, generation = region_with(faults, TOP), list(vm.memslots), vm.memslots.generation()
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(request, region.pack() if request is SET else region.pack2())
    assert list(vm.memslots) == slots
    assert vm.memslots.generation() == generation
    return caught.value


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.step)
def test_one_fault(fault: Fault) -> None:
    for request in forms(fault):
        error = refused((fault,), request)
        assert error.errno == fault.number
        assert re.search(fault.says, str(error)), error


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].step}; {pair[1].step}")
def test_two_faults(pair: tuple[Fault, Fault]) -> None:
    for request in forms(*pair):
        error = refused(pair, request)
        assert error.errno == pair[0].number
        assert re.search(pair[0].says, str(error)), error


@pytest.mark.parametrize("steps", ["3", "4", "6", "7", "8", "9", "10", "11", "12", "13", "16", "17", "19"])
def test_the_kernel_answers_pairs_as_the_model_does(kernel: Kernel, steps: str) -> None:
    host = host_of()
    top = (host.max_gfn + 1) << 12
    for pair in PAIRS:
        if not pair[0].step.startswith(steps) or MODEL_ONLY & {fault.step for fault in pair}:
            continue
        for request in forms(*pair):
            fields = region_with(pair, top)
            call = Call("region", fields[:5]) if request is SET else Call("region2", (*fields[:6], 0, 0xFF))
            modelled = ModelledVm(host)
            with kernel.vm() as vm:
                for side in (modelled, vm):
                    for there in before(pair, top):
                        answer = side.answer(Call("region", there[:5]))
                        assert answer is not None
                        assert answer.result == OK
                assert vm.answer(call) == modelled.answer(call), (pair[0].step, pair[1].step)
                expected = modelled.answer(call)
                assert expected is not None
                assert expected.result == -pair[0].number


STEPS_OF_A_DELETE = {"4", "6", "6, alone", "8", "9, aligned", "9, range", "10, aligned", "11"}
OF_A_DELETE = [fault for fault in FAULTS if fault.step in STEPS_OF_A_DELETE]
"""The others need a size."""


@pytest.mark.parametrize("fault", OF_A_DELETE, ids=lambda fault: fault.step)
def test_a_delete_is_held_to_the_same_steps(fault: Fault, ask: Ask) -> None:
    """Before it is found whether there is such a slot, and whether the total would underflow."""
    vm = KvmModel()
    vm.ioctl(SET, MemoryRegion(SLOT, 0, 0, PAGE, ARENA).pack())
    vm.accounting.pages = 0
    region = fault.change(MemoryRegion(SLOT, 0, 0, 0, ARENA, 0, CLOSED))
    with pytest.raises(MemslotError, match=fault.says) as caught:
        vm.ioctl(SET2, region.pack2())
    assert caught.value.errno == errno.EINVAL
    assert ask("region", SLOT, 0, 0, PAGE, ARENA).result == OK
    assert ask("region2", *region[:6], 0, 0).result == -errno.EINVAL
    assert ask("region", SLOT, 0, 0, 0, 0).result == OK


def test_a_dead_vm_and_a_bad_pointer_come_before_all_that_is_in_the_structure() -> None:
    vm = KvmModel()
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, 8)
    assert caught.value.errno == errno.EFAULT
    vm.dead = True
    for argument in (8, region_with(FAULTS[:1], TOP).pack()):
        with pytest.raises(MemslotError) as caught:
            vm.ioctl(SET, argument)
        assert caught.value.errno == errno.EIO
