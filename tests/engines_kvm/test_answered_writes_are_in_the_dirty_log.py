"""A write that exit_retry carries out is the VMM's, and in no log of KVM's; the dirty log has it all the same."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator

import pytest

from guestmem.abi.structures import ClearDirtyLog, DirtyLog, EnableCap, MemoryCap, MemoryIoctl
from guestmem.compiled import words
from guestmem.engines.kvm.address_map import map_begin, map_find, map_insert, map_log, map_words
from guestmem.engines.kvm.answered_writes import AnsweredWrites, mark_answered
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from guestmem.slot_key import SlotKey
from kvm_window import AFTER, RESTLESS, Window, died

STORE = bytes.fromhex("488903")  # mov [rbx], rax
CROSSING = bytes.fromhex("498902")  # mov [r10], rax
INC = bytes.fromhex("48ff03")
PAGES = 16
MANUAL = 1


def log_of(guest: Window) -> set[int]:
    bits = int.from_bytes(guest.vm.get_dirty_log(1, PAGES), "little")
    return {page for page in range(64) if bits >> page & 1}


@pytest.fixture
def guest() -> Iterator[Window]:
    with Window() as made:
        made.engine.retry_exits(True)
        made.slot1 = made.change(1, RESTLESS, AFTER, KVM_MEM_LOG_DIRTY_PAGES)
        made.engine.set_memory_region(Change(1))
        made.engine.set_memory_region(made.slot1)
        yield made


@pytest.mark.compiled_only
@pytest.mark.parametrize(("code", "pages"), [(STORE, {0}), (CROSSING, {2, 3}), (INC, {0})])
def test_what_is_written_in_a_hole_is_logged_once(guest: Window, code: bytes, pages: set[int]) -> None:
    for _ in range(2):
        guest.prepare(code)
        assert died(guest.run().exit)
        assert log_of(guest) == pages, "natively"
        guest.prepare(code)
        assert died(guest.run_in_a_hole().exit)
        assert guest.counts()["retried_answers"] > 0
        assert log_of(guest) == pages
        assert log_of(guest) == set()


@pytest.mark.compiled_only
def test_by_hand_it_stays_until_it_is_cleared(guest: Window) -> None:
    guest.vm.enable_cap(MemoryCap.MANUAL_DIRTY_LOG_PROTECT2, MANUAL)
    guest.prepare(STORE)
    guest.run_in_a_hole()
    assert log_of(guest) == log_of(guest) == {0}
    guest.vm.clear_dirty_log(1, 0, PAGES, (0b10).to_bytes(8, "little"))
    assert log_of(guest) == {0}
    guest.vm.clear_dirty_log(1, 0, PAGES, (0b01).to_bytes(8, "little"))
    assert log_of(guest) == set()


@pytest.mark.compiled_only
def test_with_a_ring_it_is_harvested() -> None:
    with Window(ring_bytes=4096) as guest:
        guest.engine.retry_exits(True)
        guest.slot1 = guest.change(1, RESTLESS, AFTER, KVM_MEM_LOG_DIRTY_PAGES)
        guest.engine.set_memory_region(Change(1))
        guest.engine.set_memory_region(guest.slot1)
        guest.vcpu.harvest()
        guest.prepare(CROSSING)
        guest.run_in_a_hole()
        assert set(guest.vcpu.harvest()) >= {(1, 2), (1, 3)}
        assert guest.vcpu.harvest() == []


@pytest.mark.compiled_only
@pytest.mark.parametrize("how", ["replaced", "deleted", "logs no more"])
def test_what_is_in_a_ring_stays_there_when_its_slot_goes(how: str) -> None:
    """As natively: a migration that harvests later has the page."""
    for run in (Window.run, Window.run_in_a_hole):
        with Window(ring_bytes=4096) as guest:
            guest.engine.retry_exits(True)
            guest.slot1 = guest.change(1, RESTLESS, AFTER, KVM_MEM_LOG_DIRTY_PAGES)
            guest.engine.set_memory_region(Change(1))
            guest.engine.set_memory_region(guest.slot1)
            guest.vcpu.harvest()
            guest.prepare(STORE)
            run(guest)
            changes = {"replaced": [Change(1), guest.slot1], "deleted": [Change(1)]}
            for change in changes.get(how, [guest.slot1._replace(flags=0)]):
                guest.engine.set_memory_region(change)
            assert guest.vcpu.harvest() == [(1, 0)], run
            assert guest.vcpu.harvest() == []


@pytest.mark.compiled_only
def test_a_move_that_ends_its_log_leaves_no_bits(guest: Window) -> None:
    guest.prepare(STORE)
    guest.run_in_a_hole()
    moved = guest.slot1._replace(base_gfn=0x100, flags=0)
    guest.engine.set_memory_region(moved)
    guest.engine.set_memory_region(moved._replace(base_gfn=guest.slot1.base_gfn))
    guest.engine.set_memory_region(guest.slot1)
    assert log_of(guest) == set()


@pytest.mark.compiled_only
def test_a_slot_that_begins_to_log_later_a_moved_one_and_one_that_logs_no_more(guest: Window) -> None:
    engine, plain = guest.engine, guest.slot1._replace(flags=0)
    guest.prepare(STORE)
    guest.run_in_a_hole()
    down = guest.slot1._replace(base_gfn=0x100)
    engine.set_memory_region(down)
    engine.set_memory_region(guest.slot1)
    assert log_of(guest) == {0}, "the log goes with a slot that is moved"
    guest.prepare(STORE)
    guest.run_in_a_hole()
    engine.set_memory_region(plain)
    engine.set_memory_region(guest.slot1)
    assert log_of(guest) == set(), "a log that begins is empty"
    guest.prepare(STORE)
    guest.run_in_a_hole()
    assert log_of(guest) == {0}
    engine.set_memory_region(Change(1))
    engine.set_memory_region(plain)
    guest.slot1 = plain
    guest.prepare(STORE)
    guest.run_in_a_hole()
    assert guest.vm.answered.harvest() == []


@pytest.mark.no_kvm
@pytest.mark.parametrize("manual", [False, True])
def test_against_a_set_of_pages(manual: bool, rng: random.Random) -> None:
    writes, pages, npages, key = AnsweredWrites(), set[int](), 200, SlotKey(1, 5)
    if manual:
        writes.after(MemoryIoctl.ENABLE_CAP, EnableCap(MemoryCap.MANUAL_DIRTY_LOG_PROTECT2, 0, MANUAL).pack())
    entries = words(map_words(2))
    map_begin(entries, 2)
    map_insert(entries, 0x5000, 0x5000 + (npages << 12), 0, 1)
    assert writes.begin(key, npages)
    map_log(entries, 0x5000, writes.address(key))
    for _ in range(60):
        for page in rng.sample(range(npages), rng.randrange(6)):
            place = 0x5000 + (page << 12) + rng.randrange(4096)
            mark_answered(entries, map_find(entries, place), place)
            pages.add(page)
        given = (ctypes.c_uint64 * 4)(*(rng.getrandbits(64) for _ in range(4)))
        if rng.random() < 0.5:
            before = {page for page in range(256) if given[page // 64] >> page % 64 & 1}
            writes.after(MemoryIoctl.GET_DIRTY_LOG, DirtyLog(key.word, 0, ctypes.addressof(given)).pack())
            assert {page for page in range(256) if given[page // 64] >> page % 64 & 1} == before | pages
            if not manual:
                pages.clear()
        elif manual:
            first = rng.randrange(4)
            clear = ClearDirtyLog(key.word, npages - 64 * first, 64 * first, ctypes.addressof(given))
            writes.after(MemoryIoctl.CLEAR_DIRTY_LOG, clear.pack())
            pages -= {64 * first + page for page in range(256) if given[page // 64] >> page % 64 & 1}
    assert sorted(writes.harvest()) == sorted((key.word, page) for page in pages)
