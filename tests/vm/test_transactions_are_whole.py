"""A transaction is carried out when its block ends, or not at all; dirty bits follow their pages through it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem import BatchError, MemslotError, UsageError
from guestmem.abi.model import KvmModel
from guestmem.dirty import DirtyBitmap
from guestmem.engines.kvm.device import unusable
from guestmem.engines.soft import SoftEngine
from guestmem.vm import Vm, Write

PAGE = 0x1000


def dirty(vm: Vm, slot: int) -> list[int]:
    return [int(page) for page in vm.dirty_log(slot).nonzero()[0]]


@pytest.mark.parametrize(
    "engine", ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))]
)
def test_split_and_merge_keep_contents(engine: str) -> None:
    with Vm(engine=engine) as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        vm.memory.write(5 * PAGE, b"kept")
        with vm.memory.transaction() as change:
            whole = change.delete(0)
            change.create(1, gpa=0, size=4 * PAGE, host=whole)
            change.create(2, gpa=4 * PAGE, size=4 * PAGE, host=whole + 4 * PAGE, flags=2)
        assert [slot.id for slot in vm.memory] == [1, 2]
        assert vm.memory.read(5 * PAGE, 4) == b"kept"
        with vm.memory.transaction() as change:
            low, _ = change.delete(1), change.delete(2)
            change.create(0, gpa=0, size=8 * PAGE, host=low)
        assert vm.memory.read(5 * PAGE, 4) == b"kept"
        assert vm.design in {"atomic", "pause_if_overlap"}
        assert vm.design_why
        vm.check()


def test_an_exception_leaves_everything() -> None:
    with Vm() as vm:
        before = vm.memory.create(0, gpa=0, size=8 * PAGE)
        with pytest.raises(ZeroDivisionError), vm.memory.transaction() as change:  # noqa: PT012 - the block is the subject
            change.delete(0)
            _ = 1 // 0
        with pytest.raises(BatchError) as caught, vm.memory.transaction() as change:  # noqa: PT012 - as above
            change.move(0, 64 * PAGE)
            change.create(1, gpa=65 * PAGE, size=PAGE)
        assert caught.value.entry == 1
        with pytest.raises(MemslotError), vm.memory.transaction() as change:
            change.move(7, 0)
        with pytest.raises(UsageError, match="it is over"):
            change.delete(0)
        assert list(vm.memory) == [before]
        vm.check()


def test_dirty_bits_follow_pages() -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=8 * PAGE, flags=1)
        vm.vcpus[0].load([Write(page * PAGE, b"w") for page in (1, 4, 6)])
        vm.vcpus[0].run()
        with vm.memory.transaction() as change:
            whole = change.delete(0)
            change.create(1, gpa=0, size=2 * PAGE, host=whole, flags=1)
            change.create(2, gpa=4 * PAGE, size=2 * PAGE, host=whole + 4 * PAGE)
            change.create(3, gpa=6 * PAGE, size=2 * PAGE, host=whole + 2 * PAGE, flags=1)
        assert (dirty(vm, 1), dirty(vm, 3)) == ([1], [])
        # Page 4 is logged no more, frame 6 has other host memory now: both can still be copied.
        assert [(page.slot, page.gfn, page.userspace_addr - whole) for page in change.dirty] == [
            (0, 4, 4 * PAGE),
            (0, 6, 6 * PAGE),
        ]
        vm.check()


def bitmap_of(vm: Vm[SoftEngine, KvmModel], slot: int) -> DirtyBitmap | None:
    held = vm.model.slot(slot)
    assert held is not None
    return held.bitmap


def test_dirty_bits_against_a_dict_per_page(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with Vm() as vm:
        anchor = vm.memory.create(100, gpa=1 << 30, size=64 * PAGE).userspace_addr
        for _ in range(sized(60, 12)):
            slots = [slot for slot in vm.memory if slot.id < 4]
            pairs = {
                (gfn, slot.hva(gfn)): bool(bit)
                for slot in slots
                if slot.logs_dirty_pages and (log := bitmap_of(vm, slot.id)) is not None
                for gfn, bit in enumerate(log.array(), slot.base_gfn)
            }
            try:
                with vm.memory.transaction() as change:
                    for id_ in rng.sample(range(4), 3):
                        if id_ in {slot.id for slot in slots}:
                            change.delete(id_)
                        if rng.random() < 0.8:
                            base, size = rng.randrange(24), rng.randrange(1, 9)
                            host = anchor + (base + rng.choice((0, 0, 0, 8))) * PAGE
                            flags = rng.choice((0, 1, 1))
                            change.create(id_, gpa=base * PAGE, size=size * PAGE, host=host, flags=flags)
            except BatchError:
                continue
            after: dict[tuple[int, int], bool] = {}
            for slot in vm.memory:
                if (log := bitmap_of(vm, slot.id)) is not None:
                    after |= {(gfn, slot.hva(gfn)): bool(bit) for gfn, bit in enumerate(log.array(), slot.base_gfn)}
            assert after == {pair: pairs.get(pair, False) for pair in after}
            ended = {pair for pair, bit in pairs.items() if bit and pair not in after}
            assert {(page.gfn, page.userspace_addr) for page in change.dirty} == ended
            vm.vcpus[0].load([Write(rng.randrange(32) * PAGE, b"w") for _ in range(6)])
            for _ in range(7):
                vm.vcpus[0].run()
            vm.check()


@pytest.mark.parametrize("design", ["sequential", "pause", "batch", "atomic"])
def test_by_any_design(design: str) -> None:
    with Vm() as vm:
        vm.memory.create(0, gpa=0, size=PAGE)
        with vm.memory.transaction(design=design) as change:
            change.delete(0)
            change.create(1, gpa=0, size=2 * PAGE, flags=1)
        assert [slot.id for slot in vm.memory] == [1]
        vm.check()
