"""The default number of MMU pages: 2 % of all pages in three forms, at least 64, until user space sets a number."""

from __future__ import annotations

import errno
import random

import pytest

from guestmem import MemslotError
from guestmem.abi.accounting import MmuPagesForm, default_mmu_pages
from guestmem.abi.checks import Host
from guestmem.abi.structures import MemoryIoctl, MemoryRegion
from guestmem.vm import KvmModel, Vm

PERMILLE, DO_DIV, RATIO = MmuPagesForm
KVM_PERMILLE_MMU_PAGES = 20


def test_the_forms_agree_as_long_as_no_product_wraps(rng: random.Random) -> None:
    for bits in (32, 64):
        for _ in range(200):
            pages = rng.randrange((1 << bits) // KVM_PERMILLE_MMU_PAGES)
            assert {default_mmu_pages(pages, form, bits) for form in MmuPagesForm} == {max(64, pages // 50)}


def test_the_trap_of_integer_division() -> None:
    """20 / 1000 is 0: taken first, every VM has the floor. And pages / 1000 * 20 loses up to 19 pages."""
    pages = 12_345_678
    assert pages * (KVM_PERMILLE_MMU_PAGES // 1000) == 0
    assert pages // 1000 * KVM_PERMILLE_MMU_PAGES == 246_900
    assert {default_mmu_pages(pages, form) for form in MmuPagesForm} == {246_913}


def test_a_product_that_wraps() -> None:
    """The oldest form in a 32-bit word: 820 GiB of memory gave the floor. do_div() has 64 bits."""
    pages = (1 << 32) // 20 + 1
    assert default_mmu_pages(pages, PERMILLE, 32) == 64
    assert default_mmu_pages(pages, DO_DIV, 32) == default_mmu_pages(pages, RATIO, 32) == pages // 50
    pages = (1 << 64) // 20 + 1
    assert default_mmu_pages(pages, DO_DIV) == default_mmu_pages(pages, PERMILLE) == 64
    assert default_mmu_pages(pages, RATIO) == pages // 50


def test_create_and_delete_recompute_and_nothing_else_does() -> None:
    vm = KvmModel()

    def set_region(slot: int, base_gfn: int, npages: int, flags: int = 0) -> None:
        region = MemoryRegion(slot, flags, base_gfn << 12, npages << 12, 0)
        vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())

    assert vm.accounting.mmu_pages == 0
    set_region(0, 0, 100)
    assert vm.accounting.mmu_pages == 64
    set_region(1, 1 << 20, 1 << 20)
    assert vm.accounting.mmu_pages == (100 + (1 << 20)) // 50
    vm.accounting.mmu_pages = 7777  # to see who touches it
    set_region(1, 1 << 21, 1 << 20)
    set_region(1, 1 << 21, 1 << 20, flags=1)
    assert vm.accounting.mmu_pages == 7777
    set_region(0, 0, 0)
    assert vm.accounting.mmu_pages == (1 << 20) // 50


def test_what_user_space_sets_stays() -> None:
    vm = KvmModel()
    with pytest.raises(MemslotError) as caught:
        vm.ioctl(MemoryIoctl.SET_NR_MMU_PAGES, 63)
    assert caught.value.errno == errno.EINVAL
    vm.ioctl(MemoryIoctl.SET_NR_MMU_PAGES, 100)
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(0, memory_size=1 << 32).pack())
    assert vm.accounting.mmu_pages == 100
    vm.ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(0).pack())
    assert vm.accounting.mmu_pages == 100


def test_a_transaction_recomputes_when_slots_come_or_go() -> None:
    """By a design that changes slots in ways of its own: what counts is what it came to."""
    with Vm() as vm:
        accounting = vm.model.accounting
        vm.memory.create(0, gpa=0, size=1 << 30)
        accounting.mmu_pages = 7777  # to see who touches it
        with vm.memory.transaction() as change:
            change.move(0, 1 << 32)
        with vm.memory.transaction() as change:
            change.set_flags(0, 1)
            change.move(0, 1 << 33)
        assert accounting.mmu_pages == 7777
        with vm.memory.transaction() as change:
            change.delete(0)
            change.create(0, gpa=0, size=1 << 29)
            change.create(1, gpa=1 << 32, size=1 << 30)
        assert accounting.mmu_pages == 3 * (1 << 17) // 50
        vm.ioctl(MemoryIoctl.SET_NR_MMU_PAGES, 100)
        with vm.memory.transaction() as change:
            change.delete(1)
        assert (accounting.mmu_pages, accounting.pages) == (100, 1 << 17)
        vm.check()


@pytest.mark.parametrize("form", MmuPagesForm)
@pytest.mark.parametrize("word_bits", [32, 64])
def test_a_vm_has_the_form_it_was_made_with(form: MmuPagesForm, word_bits: int) -> None:
    """820 GiB in two slots: in 32 bits the oldest form has come round by then."""
    vm = KvmModel(Host(word_bits=word_bits), mmu_pages=form)
    first, second = 1 << 27, (1 << 32) // 20 + 1 - (1 << 27)
    vm.accounting.create(first)
    assert vm.accounting.mmu_pages == first // 50
    vm.accounting.create(second)
    wrapped = form is PERMILLE and word_bits == 32
    assert vm.accounting.mmu_pages == (64 if wrapped else (first + second) // 50)
    vm.accounting.delete(second)
    assert vm.accounting.mmu_pages == first // 50
