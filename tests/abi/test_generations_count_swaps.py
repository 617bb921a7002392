"""A create or flag change spends one generation, a delete or move two, a refused move two; 19 bits come round."""

from __future__ import annotations

import errno

import pytest

from guestmem import MemslotError
from guestmem.memslots.abi import MemoryIoctl, MemoryRegion
from guestmem.memslots.checks import Host
from guestmem.vm import KvmModel

SET = MemoryIoctl.SET_USER_MEMORY_REGION


def region(slot: int, base_gfn: int = 0, npages: int = 0, flags: int = 0) -> bytes:
    return MemoryRegion(slot, flags, base_gfn << 12, npages << 12, 0).pack()


@pytest.mark.parametrize("spaces", [1, 2])
def test_what_each_change_spends(spaces: int) -> None:
    vm = KvmModel(Host(address_spaces=spaces))
    before = vm.memslots.generation()
    for change, swaps in (
        (region(0, 0, 4), 1),
        (region(0, 0, 4, 1), 1),
        (region(0, 0, 4, 1), 0),
        (region(0, 8, 4), 2),
        (region(0), 2),
    ):
        vm.ioctl(SET, change)
        assert vm.memslots.generation() - before == swaps * spaces
        before = vm.memslots.generation()


def test_spaces_never_share_a_generation() -> None:
    vm = KvmModel(Host(address_spaces=2))
    for key in (0, 1 << 16, 1, 1 << 16 | 1):
        vm.ioctl(SET, region(key, 16 * (key & 1), 4))
        assert vm.memslots.generation(0) % 2 == 0
        assert vm.memslots.generation(1) % 2 == 1
    assert len(vm.memslots) == 4  # the same frames, once in each space
    vm.check()


def test_a_move_past_the_last_frame_fails_after_it_has_invalidated() -> None:
    vm = KvmModel(Host(max_gfn=0xFFFF))
    vm.ioctl(SET, region(0, 0, 4))
    vm.ioctl(SET, region(1, 0xFFF0, 4))
    before, slot = vm.memslots.generation(), vm.memslots.by_id(0)
    with pytest.raises(MemslotError, match="last frame is past 0xffff") as caught:
        vm.ioctl(SET, region(0, 0xFFFE, 4))
    assert caught.value.errno == errno.EINVAL
    assert vm.memslots.by_id(0) == slot
    assert vm.memslots.generation() == before + 2
    with pytest.raises(MemslotError) as caught:  # but an overlap is found before
        vm.ioctl(SET, region(0, 0xFFF3, 14))
    assert caught.value.errno == errno.EINVAL  # npages differ, even earlier
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(SET, region(2, 0xFFF3, 14))
    assert caught.value.errno == errno.EEXIST
    assert vm.memslots.generation() == before + 2
    vm.check()


@pytest.mark.parametrize("spaces", [1, 2])
def test_mmio_generations_come_round(spaces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = KvmModel(Host(address_spaces=spaces))
    seen = {}
    for generation in ((1 << 19) - spaces, 1 << 19, (1 << 19) + 1, 1 << 20, 1 << 63 | 1 << 19):
        monkeypatch.setattr(vm.memslots, "generation", lambda as_id=0, now=generation: now + as_id if as_id == 0 else 1)
        seen[generation] = vm.mmio_zaps
    assert list(seen.values()) == [0, 1, 1, 2, 1]
