"""Readers in threads, while updates go on: each section sees one whole set, and no frame is ever without its slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chance import until_met
from guestmem import Change, Memslots
from guestmem.atomics import load_relaxed, peek, poke
from guestmem.compiled import U64, Own, Words, compiled, const, own, u64, words
from guestmem.memslots.layout import active_set, slot_base_gfn, slot_npages, slot_userspace_addr
from guestmem.memslots.lookup import find, find_hinted, gfn_next, gfn_seek, hva_next, hva_seek
from guestmem.rcu.srcu import Srcu, srcu_enter, srcu_exit

pytestmark = pytest.mark.slow

_ONE = const(1)
_LARGEST = const((1 << 64) - 1)
_FRAMES = const(1 << 52)


@compiled(nogil=True)
def read_until(memslots: Words, srcu: Words, reader: U64, slots: U64, stop: Words, own_: Own) -> U64:
    """Sections until stopped; returns how many saw something torn. Sections and stamps go to words 50 and 51."""
    torn = u64(0)
    while load_relaxed(stop, u64(0)) == 0:
        srcu_enter(srcu, u64(0), reader)
        set_ = active_set(memslots, u64(0))
        stamp = _LARGEST
        for_hva = u64(0)
        while for_hva < 2:
            if for_hva == 0:
                gfn_seek(memslots, own_, set_, u64(0), _FRAMES)
            else:
                hva_seek(memslots, own_, set_, u64(0), _LARGEST)
            count = u64(0)
            record = gfn_next(memslots, own_) if for_hva == 0 else hva_next(memslots, own_)
            while record != 0:
                seen = slot_userspace_addr(memslots, record) >> 40
                if stamp == _LARGEST:
                    stamp = seen
                if seen != stamp:
                    torn += _ONE
                count += _ONE
                record = gfn_next(memslots, own_) if for_hva == 0 else hva_next(memslots, own_)
            if count != slots:
                torn += _ONE
            for_hva += _ONE
        if stamp != own_[u64(51)]:
            own_[u64(51)] = stamp
            own_[u64(52)] += _ONE
        gfn = u64(0)
        while gfn < slots * u64(4):
            record = find(memslots, u64(0), gfn)
            if record == 0 or gfn - slot_base_gfn(memslots, record) >= slot_npages(memslots, record):
                torn += _ONE
            record = find_hinted(memslots, u64(0), gfn, own_, u64(54))
            if record == 0 or gfn - slot_base_gfn(memslots, record) >= slot_npages(memslots, record):
                torn += _ONE
            gfn += u64(3)
        srcu_exit(srcu, u64(0), reader)
        own_[u64(50)] += _ONE
    return torn


def _stamped(count: int, stamp: int, shift: int) -> list[Change]:
    """All frames 0 .. 4 * count, cut into ``count`` slots at places that depend on ``shift``."""
    cuts = [0, *(4 * index + shift for index in range(1, count)), 4 * count]
    return [
        Change(index, cuts[index], cuts[index + 1] - cuts[index], (stamp << 40) + (cuts[index] << 12))
        for index in range(count)
    ]


@pytest.mark.parametrize("node_words", [17, 64])
def test_a_section_sees_one_stamp(node_words: int, sized: Callable[[int, int], int]) -> None:
    count = sized(60, 12)
    srcu = Srcu(readers=3)
    memslots = Memslots(srcu=srcu, max_slots=count, node_words=node_words)
    with memslots.update() as update:
        update.stage_all(_stamped(count, 1, 0))
        update.publish()
    stop = words(1)
    poke(stop, 0, 1)
    assert read_until(memslots.words, srcu.words, 1, count, stop, own(64)) == 0  # compiled before the clock runs
    poke(stop, 0, 0)
    private = [own(64), own(64)]
    with ThreadPoolExecutor(2) as pool:
        readers = [
            pool.submit(read_until, memslots.words, srcu.words, reader + 1, count, stop, private[reader])
            for reader in range(2)
        ]
        deadline = time.monotonic() + sized(1500, 2500) / 1000

        def another(number: int) -> bool:
            """Whether it was long enough, and the readers ran while updates went on."""
            with memslots.update() as update:
                update.stage_all([Change(index) for index in range(count)])
                update.stage_all(_stamped(count, 1 + (number + 1) % 1000, (number + 1) % 3))
                update.publish()
            assert len({slot.userspace_addr >> 40 for slot in memslots}) == 1
            met = all(each[50] > 10 and each[52] > 5 for each in private)  # sections, and stamps seen
            return met and number >= 10 and time.monotonic() > deadline

        try:
            until_met(another, "two readers that saw several updates")
        finally:
            poke(stop, 0, 1)
        torn = [reader.result() for reader in readers]
    assert peek(stop, 0) == 1
    assert torn == [0, 0]
    memslots.check()


def test_python_threads_read_while_one_updates(sized: Callable[[int, int], int]) -> None:
    memslots = Memslots()
    memslots.create(0, 0, 8, 0x100000)
    wrong: list[object] = []
    looks = [0, 0]
    stop = threading.Event()

    def look(worker: int) -> None:
        while not stop.is_set():
            slot = memslots.find(4)
            if slot is None or slot.userspace_addr != 0x100000 + slot.id * 0x10000:
                wrong.append(slot)
            slots = list(memslots.overlapping(0, 100))
            if len(slots) != 1 or memslots.by_hva(0, 1 << 40)[0].npages != 8:
                wrong.append(slots)
            looks[worker] += 1

    threads = [threading.Thread(target=look, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    try:
        number = 0
        deadline = time.monotonic() + 100
        while number < sized(3000, 300) or (min(looks) <= 3 and time.monotonic() < deadline):
            with memslots.update() as update:
                update.stage(Change(number % 7))
                number += 1
                update.stage(Change(number % 7, 0, 8, 0x100000 + number % 7 * 0x10000))
                update.publish()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(looks) > 3
    memslots.check()


def test_updaters_take_turns(sized: Callable[[int, int], int]) -> None:
    memslots = Memslots()
    each = sized(300, 60)

    def work(worker: int) -> None:
        for number in range(each):
            memslots.create(worker, 100 * worker + number % 50, 3, 0)
            memslots.delete(worker)
        memslots.create(worker, 100 * worker, 3, 0)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, worker) for worker in range(4)]:
            done.result()
    memslots.check()
    assert [slot.id for slot in memslots] == [0, 1, 2, 3]
    assert memslots.generation() == 4 * (3 * each + 1)
