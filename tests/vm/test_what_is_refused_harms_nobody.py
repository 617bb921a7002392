"""On the kernel, by the VM's own design: a guest runs on in memory that a refused move or transaction names."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.engines.kvm import KvmEngine, unusable
from guestmem.errors import MemslotError
from guestmem.memslots import Change, ChangeKind
from guestmem.vm import Vm

pytestmark = [
    pytest.mark.compiled_only,
    pytest.mark.skipif(bool(unusable()), reason=unusable() or "-"),
]

TIMES = 30
COUNT = bytes.fromhex("ff060030 a10030 ebf7")
"""inc word [0x3000]; mov ax, [0x3000]; again."""
FAR = 1 << 52


@pytest.fixture
def vm() -> Iterator[Vm[KvmEngine, None]]:
    with Vm(engine="kvm") as made:
        made.memory.create(0, gpa=0, size=0x100000)
        made.vcpus[0].load_code(COUNT, 0x1000)
        yield made


def move(vm: Vm[KvmEngine, None]) -> None:
    vm.memory.move(0, FAR)


def move_by_ioctl(vm: Vm[KvmEngine, None]) -> None:
    slot = vm.memory[0]
    region = MemoryRegion(0, 0, FAR, slot.npages << 12, slot.userspace_addr)
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION2, region.pack2())


def transaction(vm: Vm[KvmEngine, None]) -> None:
    """The second entry is refused at its turn, as the kernel does where it has no memory for a slot."""
    carry_out = vm.engine.set_memory_region

    def refuses(change: Change) -> ChangeKind:
        if change.slot == 7:
            raise MemslotError(errno.ENOMEM, "slot 7: no memory")
        return carry_out(change)

    vm.engine.set_memory_region = refuses  # type: ignore[method-assign]
    try:
        with vm.memory.transaction() as changes:
            changes.delete(0)
            changes.create(7, gpa=1 << 44, size=4096)
    finally:
        vm.engine.set_memory_region = carry_out  # type: ignore[method-assign]


@pytest.mark.parametrize("refused", [move, move_by_ioctl, transaction])
def test_the_guest_runs_on(vm: Vm[KvmEngine, None], refused: Callable[[Vm[KvmEngine, None]], None]) -> None:
    vm.engine.vm.start()
    for _ in range(TIMES):
        with pytest.raises(MemslotError) as error:
            refused(vm)
        assert error.value.errno in {errno.EINVAL, errno.ENOMEM}
        counted, end = vm.memory.read(0x3000, 2), time.monotonic() + 60
        while vm.memory.read(0x3000, 2) == counted and not vm.engine.vm.ended and time.monotonic() < end:
            time.sleep(0.0002)
        assert not vm.engine.vm.ended
    vm.engine.vm.stop()
