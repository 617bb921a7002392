"""A Vm as a library: slots by name, host memory made or given, lookups, contents, errors with errno, maps."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import guestmem
from guestmem import CapabilityError, MemslotError, UsageError
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Vm

PAGE = 0x1000
ENGINES = ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))]


@pytest.fixture(params=ENGINES)
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    with Vm(engine=request.param) as made:
        yield made
        made.check()


def test_it_is_a_public_name() -> None:
    assert guestmem.Vm is Vm


def test_slots(vm: Vm) -> None:
    memory = vm.memory
    first = memory.create(0, gpa=0, size=4 * PAGE)
    second = memory.create(3, gpa=8 * PAGE, size=PAGE, flags=1)
    assert list(memory) == [first, second]
    assert len(memory) == 2
    assert memory[3] == second == memory.find(8 * PAGE + 5)
    assert memory.get(1) is None
    assert memory.by_hva(first.userspace_addr + 4 * PAGE - 1) == [first]
    assert memory.hva(PAGE + 1) == first.userspace_addr + PAGE + 1
    assert 4 * PAGE not in memory
    moved = memory.move(3, 20 * PAGE)
    assert (moved.base_gfn, moved.userspace_addr) == (20, second.userspace_addr)
    assert not memory.set_flags(3, 0).logs_dirty_pages
    memory.delete(0)
    assert [slot.id for slot in memory] == [3]


def test_errors_have_the_kernels_errno(vm: Vm) -> None:
    memory = vm.memory
    memory.create(0, gpa=0, size=4 * PAGE)
    refused: list[tuple[int, Callable[[], object]]] = [
        (errno.EEXIST, lambda: memory.create(1, gpa=PAGE, size=PAGE)),
        (errno.EEXIST, lambda: memory.create(0, gpa=8 * PAGE, size=PAGE)),
        (errno.EINVAL, lambda: memory.create(1, gpa=0x8800, size=PAGE)),
        (errno.EINVAL, lambda: memory.create(40000, gpa=8 * PAGE, size=PAGE)),
        (errno.EINVAL, lambda: memory.delete(1)),
        (errno.EINVAL, lambda: memory.set_flags(0, 2)),
        (errno.ENOENT, lambda: memory[1]),
        (errno.ENOENT, lambda: vm.dirty_log(0)),
        (errno.ENOENT, lambda: vm.dirty_log(9)),
        (errno.EFAULT, lambda: memory.read(3 * PAGE, 2 * PAGE)),
        (errno.EFAULT, lambda: memory.write(3 * PAGE, bytes(2 * PAGE))),
        (errno.EFAULT, lambda: memory.hva(9 * PAGE)),
        (errno.ENOTTY, lambda: vm.ioctl(0xAEFE)),
    ]
    for number, act in refused:
        with pytest.raises(MemslotError) as caught:
            act()
        assert caught.value.errno == number
    assert [slot.id for slot in memory] == [0]


def test_contents_go_across_slots(vm: Vm) -> None:
    memory = vm.memory
    memory.create(0, gpa=0, size=PAGE)
    memory.create(1, gpa=PAGE, size=PAGE)
    memory.write(PAGE - 3, b"abcdef")
    assert memory.read(PAGE - 3, 6) == b"abcdef"
    assert memory.read(PAGE, 3) == b"def"
    memory.write(8, np.arange(4, dtype="<u2"))
    assert memory.read(8, 8) == bytes([0, 0, 1, 0, 2, 0, 3, 0])
    with pytest.raises(UsageError, match="not one piece"):
        memory.view(PAGE - 3, 6)


def test_views_are_the_memory_itself(vm: Vm) -> None:
    memory = vm.memory
    memory.create(0, gpa=0, size=4 * PAGE)
    view = memory.view(PAGE, 16).view("<u4")
    view[:] = [1, 2, 3, 4]
    assert memory.read(PAGE + 4, 4) == b"\2\0\0\0"
    memory.write(PAGE, b"\7")
    assert view[0] == 7
    assert view.nbytes == 16
    memory.delete(0)
    assert view[0] == 7  # the view keeps its memory


def test_host_memory_that_is_given(vm: Vm) -> None:
    memory = vm.memory
    with pytest.raises(UsageError, match="read-only"):
        memory.create(0, gpa=0, size=PAGE, host=bytes(PAGE))
    backing = mmap.mmap(-1, 4 * PAGE)
    with pytest.raises(UsageError, match="the buffer has 0x4000 bytes, the slot 0x5000"):
        memory.create(0, gpa=0, size=5 * PAGE, host=backing)
    slot = memory.create(0, gpa=0, size=2 * PAGE, host=backing)
    alias = memory.create(1, gpa=4 * PAGE, size=PAGE, host=slot.userspace_addr + PAGE)
    memory.write(4 * PAGE, b"here")
    assert backing[PAGE : PAGE + 4] == b"here" == memory.read(PAGE, 4)
    assert memory.by_hva(alias.userspace_addr) == [slot, alias]


def test_a_map_to_look_at(vm: Vm) -> None:
    assert repr(vm).endswith("Memory: no slots")
    vm.memory.create(0, gpa=0, size=PAGE, flags=1)
    vm.memory.create(1, gpa=16 * PAGE, size=2 * PAGE, flags=2)
    text = repr(vm)
    assert f"engine {vm.engine.name}, 1 vCPU, 2 slots" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["[0x0,", "[0x1000,", "[0x10000,"]
    assert "log" in text
    assert "hole" in text
    assert "read-only" in text
    html = vm._repr_html_()
    assert html.count("<tr>") == 4
    assert "<script" not in html


def test_a_long_map_is_cut() -> None:
    with Vm() as vm:
        for slot in range(50):
            vm.memory.create(slot, gpa=slot * PAGE, size=PAGE)
        assert repr(vm).endswith("… and 10 more")
        assert "… and 10 more" in vm._repr_html_()


def test_unknown_engines() -> None:
    with pytest.raises(UsageError, match="engine: 'hard' is not one of soft, kvm"):
        Vm(engine="hard")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        with pytest.raises(CapabilityError, match="engine kvm"):
            Vm(engine="kvm")


def test_two_address_spaces() -> None:
    with Vm(smm=True) as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        vm.memory.create(0, gpa=0, size=PAGE, as_id=1)
        vm.memory.write(0, b"smm", as_id=1)
        assert vm.memory.read(0, 3) == bytes(3)
        assert vm.check_extension(118) == 2
        assert "1:0" in repr(vm)
        vm.check()
