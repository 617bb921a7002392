"""One table of checks judges a change in traces, in the sets and in the model of the ABI, in the kernel's order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest

from guestmem import Change, MemslotError, Memslots
from guestmem.abi.guest_memfds import GuestMemfd
from guestmem.abi.model import KvmModel, ModelSlot
from guestmem.abi.structures import region_of
from guestmem.errors import InvariantError
from guestmem.memslots import KVM_MEM_GUEST_MEMFD, Slot, SlotKey, classify
from guestmem.memslots.checks import CHECKS, FIRST_REASON

SLOTS = (None, Slot(0, 1, 16, 4, 0x4000), Slot(0, 1, 16, 4, 0x4000, 1), Slot(0, 1, 16, 4, 0x4000, 2))
BOUND = Slot(0, 1, 16, 4, 0x4000, KVM_MEM_GUEST_MEMFD, 3, 0x1000)
CHANGES = [
    Change(1, gfn, npages, hva, flags)
    for gfn, npages, hva, flags in product((16, 20), (0, 4, 5), (0x4000, 0x5000), (0, 1, 2, 3))
]


def test_the_table_is_in_the_order_of_steps() -> None:
    steps = [check.step for check in CHECKS if check.step]
    assert steps == sorted(steps)
    assert [check.reason for check in CHECKS] == [*range(FIRST_REASON, FIRST_REASON + len(CHECKS))]
    assert all(check.source and check.errno for check in CHECKS)


@pytest.mark.parametrize("slot", [*SLOTS, BOUND], ids=repr)
def test_whoever_is_asked_says_the_same(slot: Slot | None) -> None:
    for change in CHANGES:
        memslots, model = Memslots(), KvmModel()
        if slot is not None:
            memslots.apply(Change.of(slot))
            model.memslots.apply(Change.of(slot))
            model.slots[slot.key] = _held(slot)
            model.accounting.create(slot.npages)
        said = []
        judges: tuple[tuple[Callable[..., object], tuple[object, ...]], ...] = (
            (classify, (change, slot)),
            (memslots.apply, (change,)),
            (partial(model.set_region, v2=True), (region_of(change),)),
        )
        for judge, arguments in judges:
            try:
                said.append(str(judge(*arguments)))
            except MemslotError as error:
                said.append(str(error))
        assert said[0] == said[1] == said[2], (change, slot)


def _held(slot: Slot) -> ModelSlot:
    if not slot.guest_memfd:
        return ModelSlot(slot)
    file = GuestMemfd(None, 1 << 20)
    file.number = slot.guest_memfd
    file.bound[slot.key] = (slot.guest_memfd_offset, slot.npages << 12)
    return ModelSlot(slot, guest_memfd=file)


@pytest.mark.parametrize(
    "wrong",
    [{"flags": 0}, {"guest_memfd": 4}, {"guest_memfd_offset": 0x2000}, {"attributes": 1}, {"userspace_addr": 0}],
)
def test_the_models_check_compares_every_field(wrong: dict[str, int]) -> None:
    model = KvmModel()
    model.memslots.apply(Change.of(BOUND))
    model.slots[SlotKey(0, 1)] = held = _held(BOUND)
    model.accounting.create(BOUND.npages)
    model.check()
    held.slot = BOUND._replace(**wrong)
    with pytest.raises(InvariantError, match="in the sets"):
        model.check()
