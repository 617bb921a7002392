"""What KVM refuses by itself of a single change is refused in a transaction, with its entry; nothing has changed."""

from __future__ import annotations

import errno

import pytest

from guestmem import BatchError, Change
from guestmem.vm import Vm

PAGE = 0x1000
REFUSED = {
    "flags": Change(1, 64, 1, PAGE, 8),
    "id": Change(32764, 64, 1, PAGE),
    "host range": Change(1, 64, 1, 1 << 62),
    "host alignment": Change(1, 64, 1, 8),
    "guest range": Change(1, (1 << 52) - 1, 1, PAGE),
    "pages": Change(1, 64, 1 << 31, PAGE),
    "last frame": Change(1, 1 << 40, 1, PAGE),
    "the last but one": Change(1, (1 << 40) - 1, 2, PAGE),
}


@pytest.mark.parametrize("design", ["atomic", "sequential", "pause_if_overlap"])
@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_a_refused_entry(change: Change, design: str) -> None:
    with Vm() as vm:
        slot = vm.memory.create(0, gpa=0, size=4 * PAGE, flags=1)
        generation = vm.memory.memslots.generation()
        with pytest.raises(BatchError) as caught, vm.memory.transaction(design=design) as transaction:  # noqa: PT012
            # the block is the subject
            transaction.move(0, 16 * PAGE)
            transaction.changes.append(change)
        assert (caught.value.errno, caught.value.entry) == (errno.EINVAL, 1)
        assert list(vm.memory) == [slot]
        assert vm.memory.memslots.generation() == generation
        vm.check()
        if change is REFUSED["the last but one"]:
            with vm.memory.transaction(design=design) as transaction:
                transaction.changes.append(change._replace(npages=1))
            assert len(vm.memory) == 2
