"""KVM_PRE_FAULT_MEMORY: what is done stays and is said, an error means that nothing was done, no update is held up."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from guestmem import GuestmemError, MemslotError, UsageError
from guestmem.abi.versions import LINUX_6_12, LINUX_6_18, LINUX_7_3, LINUX_7_4
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.pre_fault import PreFault, pre_fault_memory
from guestmem.memslots import Change

PAGE = 4096
HVA = 0x7F00_0000_0000


@pytest.fixture(scope="module")
def engine() -> SoftEngine:
    made = SoftEngine(vcpus=2)
    made.set_memory_region(Change(0, 0, 16, HVA))
    made.set_memory_region(Change(1, 32, 16, HVA + 0x100000))
    return made


def mapped(engine: SoftEngine) -> list[int]:
    assert engine.stage2 is not None
    return [gfn for gfn in range(64) if engine.stage2.tables[0].lookup(gfn * PAGE) is not None]


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(MemslotError) as caught:
        call()
    return caught.value.errno


def test_a_range(engine: SoftEngine) -> None:
    engine.stage2.zap_all()
    assert pre_fault_memory(engine, 0, 4 * PAGE, 3 * PAGE) == PreFault(7 * PAGE, 0)
    assert mapped(engine) == [4, 5, 6]
    assert pre_fault_memory(engine, 1, 4 * PAGE, 3 * PAGE) == PreFault(7 * PAGE, 0), "again is fine"


def test_partial_progress(engine: SoftEngine) -> None:
    """The end of a slot, and a signal: what was done is done; called again, nothing can be."""
    engine.stage2.zap_all()
    assert pre_fault_memory(engine, 0, 14 * PAGE, 4 * PAGE) == PreFault(16 * PAGE, 2 * PAGE)
    assert errno_of(lambda: pre_fault_memory(engine, 0, 16 * PAGE, 2 * PAGE)) == errno.ENOENT
    signals = iter([False, False, True])
    assert pre_fault_memory(engine, 0, 32 * PAGE, 8 * PAGE, interrupted=lambda: next(signals)) == PreFault(
        34 * PAGE, 6 * PAGE
    )
    assert mapped(engine) == [14, 15, 32, 33]
    assert errno_of(lambda: pre_fault_memory(engine, 0, 34 * PAGE, PAGE, interrupted=lambda: True)) == errno.EINTR


@pytest.mark.parametrize(
    ("gpa", "size", "flags"),
    [(0, 0, 0), (1, PAGE, 0), (0, PAGE + 1, 0), ((1 << 64) - PAGE, PAGE, 0), (-PAGE, PAGE, 0), (0, PAGE, 1)],
)
def test_what_is_refused(engine: SoftEngine, gpa: int, size: int, flags: int) -> None:
    assert errno_of(lambda: pre_fault_memory(engine, 0, gpa, size, flags)) == errno.EINVAL


def test_a_slot_that_is_invalid_just_now(engine: SoftEngine) -> None:
    engine.stage2.zap_all()
    with engine.update() as update:
        update.invalidate(0)
        update.swap()
        assert errno_of(lambda: pre_fault_memory(engine, 0, 0, PAGE, version=LINUX_6_18)) == errno.EAGAIN
        assert engine.srcu.inside() == [], "the update waits for nobody"
        with pytest.raises(GuestmemError, match=r"Linux 6\.12 would not return"):
            pre_fault_memory(engine, 0, 0, PAGE, version=LINUX_6_12)
    assert pre_fault_memory(engine, 0, 0, PAGE).size == 0


def test_arm64_has_it_from_7_4_on() -> None:
    engine = SoftEngine(arch="arm64")
    engine.set_memory_region(Change(0, 0, 16, HVA))
    with pytest.raises(MemslotError, match=r"EINVAL: pre-fault: Linux 7\.3 on arm64 has no such ioctl of a vCPU"):
        pre_fault_memory(engine, 0, 0, PAGE, version=LINUX_7_3)
    assert mapped(engine) == []
    assert pre_fault_memory(engine, 0, 14 * PAGE, 4 * PAGE, version=LINUX_7_4) == PreFault(16 * PAGE, 2 * PAGE)
    assert mapped(engine) == [14, 15]
    engine.stage2.zap_all()
    with engine.update() as update:
        update.invalidate(0)
        update.swap()
        assert errno_of(lambda: pre_fault_memory(engine, 0, 0, PAGE, version=LINUX_7_4)) == errno.EAGAIN
        assert engine.srcu.inside() == [], "at once: the update waits for nobody"


def test_where_it_is_not() -> None:
    with pytest.raises(UsageError, match="vcpu: 1 is not one of 1"):
        pre_fault_memory(SoftEngine(), 1, 0, PAGE)
