"""A vCPU of a VM that has no slots at all leaves KVM_RUN at once, with an error or an exit: nothing hangs.

A case of the kernel's set_memory_region_test, in our own words.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from guestmem.abi.structures import MemoryIoctl
from guestmem.engines.kvm import InternalError, KvmEngine, Shutdown, real_mode
from guestmem.errors import GuestmemError
from guestmem.vm import Fetch, Vm
from guestmem.vm import InternalError as ModelInternalError


@pytest.fixture
def engine() -> Iterator[KvmEngine]:
    with KvmEngine(1) as made:
        vcpu = made.vm.vcpus[0]
        vcpu.set_sregs(real_mode(vcpu.sregs()))
        vcpu.set_registers(rip=0x1000, rflags=2)
        yield made


def test_with_mmu_pages_it_is_an_exit(engine: KvmEngine) -> None:
    fcntl.ioctl(engine.vm.file, MemoryIoctl.SET_NR_MMU_PAGES, 64)
    exit_ = engine.vm.vcpus[0].run()
    assert isinstance(exit_, InternalError | Shutdown)
    assert not isinstance(exit_, InternalError) or exit_.suberror == 1


def test_without_them_shadow_paging_has_no_room(engine: KvmEngine) -> None:
    """Their default number comes from slots that were created, and is 0 before the first."""
    if engine.vm.host.tdp:
        pytest.skip("with TDP, shadow pages are not counted")
    with pytest.raises(GuestmemError, match="No space left"):
        engine.vm.vcpus[0].run()


@pytest.mark.no_kvm
def test_the_software_engine() -> None:
    with Vm() as vm:
        assert vm.model.accounting.mmu_pages == 0
        vm.vcpus[0].load([Fetch(0x1000)])
        exit_ = vm.vcpus[0].run()
        assert isinstance(exit_, ModelInternalError)
        assert exit_.suberror == 1
