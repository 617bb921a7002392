"""Dirty rings: an entry a page since it was last protected; given back in order; soft full, a vCPU exits."""

from __future__ import annotations

import pytest

from abi_words import ARENA, BUFFER, EINVAL, ENXIO, OK, PAGE, Ask
from guestmem.conform.calls import Answer, Call
from guestmem.conform.kernel import Kernel, host_of
from guestmem.conform.modelled import ModelledVm
from guestmem.vm import Vm, Write

RING, RING_ACQ_REL, WITH_BITMAP = 192, 223, 225
E2BIG = -7


def entries(ask: Ask) -> list[str]:
    return list(ask("harvest").exits)


def test_a_page_is_entered_once_until_it_is_reset(ringed: Ask) -> None:
    assert ringed("write", 0, 2).exits == ("done",)
    assert ringed("write", 0, 3).exits == ("done",)
    assert entries(ringed) == ["0x0+0x0", "0x0+0x1", "0x0+0x2"]
    ringed("write", 0, 3)
    assert entries(ringed) == []
    assert ringed("reset").result == OK
    ringed("write", 0, 1)
    assert entries(ringed) == ["0x0+0x0"]


def test_a_delete_elsewhere_has_pages_entered_again(ringed: Ask) -> None:
    """As long as KVM_X86_QUIRK_SLOT_ZAP_ALL is on, a delete throws all translations away."""
    assert ringed("region", 1, 0, 0x200000, PAGE, ARENA).result == OK
    ringed("write", 0, 1)
    assert entries(ringed) == ["0x0+0x0"]
    assert ringed("region", 1, 0, 0, 0, 0).result == OK
    ringed("write", 0, 1)
    assert entries(ringed) == ["0x0+0x0"]


def test_soft_full_exits_and_stays_out(ringed: Ask) -> None:
    assert ringed("write", 0, 200).exits == ("dirty ring full",)
    assert ringed("write", 0, 1).exits == ("dirty ring full",)
    assert len(entries(ringed)) == 192  # 256 without the 64 in reserve
    assert ringed("write", 0, 1).exits == ("dirty ring full",)  # harvested is not given back
    assert ringed("reset").result == OK
    assert ringed("write", 0, 1).exits == ("done",)


def test_logs_are_not_for_rings(ringed: Ask) -> None:
    assert ringed("get_log", 0, 0, BUFFER).result == ENXIO
    assert ringed("get_log", 32764, 0, BUFFER).result == ENXIO
    assert ringed("clear_log", 0, 64, 1, BUFFER, 0).result == ENXIO


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, EINVAL), (2048, EINVAL), (5000, EINVAL), (4096, OK), (1 << 20, OK),
        (1 << 21, E2BIG), (1 << 32, EINVAL), ((1 << 32) + 4096, OK),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cap", [RING, RING_ACQ_REL])
def test_sizes(ask: Ask, cap: int, size: int, expected: int) -> None:
    assert ask("cap", cap, 0, size).result == expected
    if expected == OK:
        assert ask("cap", cap, 0, size).result == EINVAL  # once only


def test_too_late_or_not_there(ask: Ask) -> None:
    assert ask("reset").result == EINVAL
    assert ask("cap", WITH_BITMAP, 0, 0).result == EINVAL
    assert ask("vcpu", 1).result == OK
    assert ask("cap", RING, 0, 4096).result == EINVAL


def test_logging_switched_on_protects_what_was_written_before(ask: Ask) -> None:
    assert ask("cap", RING, 0, 4096).result == OK
    assert ask("home").result == OK
    assert ask("region", 0, 0, 0, 0x100000, ARENA).result == OK
    ask("write", 0, 1)
    assert ask("region", 0, 1, 0, 0x100000, ARENA).result == OK
    ask("write", 0, 1)
    assert entries(ask) == ["0x0+0x0"]


def test_initially_set_protects_nothing_so_such_pages_are_in_no_ring(kernel: Kernel) -> None:
    """KVM leaves the protection to the first clear, which rings do not have. Found by conform."""
    calls = [
        Call("cap", (RING, 0, 4096)),
        Call("cap", (168, 0, 3)),
        Call("home"),
        Call("region", (0, 0, 0, 0x100000, ARENA)),
        Call("write", (0, 1)),
        Call("region", (0, 1, 0, 0x100000, ARENA)),
        Call("write", (0, 1)),
        Call("harvest"),
    ]
    modelled = ModelledVm(host_of())
    assert [modelled.answer(call) for call in calls][-2] is None  # what was mapped ahead, no model can know
    with kernel.vm() as vm:
        assert [vm.answer(call) for call in calls][-1] == Answer(0)


def test_the_model_of_that() -> None:
    with Vm(ring_entries=256, initially_set=True) as vm:
        vm.memory.create(0, gpa=0, size=4 * PAGE)
        vm.vcpus[0].load([Write(0, b"a")])
        vm.vcpus[0].run()
        vm.memory.set_flags(0, 1)
        vm.vcpus[0].load([Write(0, b"b"), Write(PAGE, b"c")])
        vm.vcpus[0].run()
        assert [entry.offset for entry in vm.harvest()] == [1]
