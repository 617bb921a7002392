"""While logs are taken from running vCPUs, every page that changes is in a log: a migration that copies the pages which
logs name ends with the guest's memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import guestmem.engines.soft
from guestmem.compiled import INTERPRETED
from guestmem.engines import HostMemory
from guestmem.engines.soft.dirty_log import DISABLES, ENABLES, DirtyLogging
from guestmem.errors import InvariantError, MemslotError, UsageError
from guestmem.explore import load
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change
from soft_guest import HVA, PAGE, until

pytestmark = pytest.mark.slow

PAGES = 2 * 512 + 100
TOUCHED = 48


def bits(taken: bytes) -> Iterator[int]:
    """Pages that a log names."""
    word = int.from_bytes(taken, "little")
    while word:
        yield (word & -word).bit_length() - 1
        word &= word - 1


class Migration:
    """A guest whose vCPUs write, and the copy that is made of it by the log. ``room``: where the engine is from."""

    def __init__(self, vcpus: int, how: DirtyLogging, room: Any = None, **options: Any) -> None:
        engines: Any = room("engines") if room else guestmem.engines
        soft: Any = room("engines.soft") if room else guestmem.engines.soft
        self.memory = HostMemory([(HVA, HVA + PAGES * PAGE)], low=True)
        self.base = self.memory.translate(HVA)
        self.engine: Any = soft.SoftEngine(vcpus, strict=how.flush, logging=how, **options)
        self.engine.set_access(engines.Access(writes=0.8, fetches=0))
        self._load, self._target = engines.Load, engines.Target
        self.copy = [0] * PAGES
        self.region(0)

    def __enter__(self) -> Migration:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.engine.stop()
        self.memory.close()

    def region(self, flags: int) -> None:
        """The slot, with these flags."""
        self.engine.set_memory_region(Change(0, 0, PAGES, self.base, flags))

    def word(self, page: int) -> int:
        """The counter in a page."""
        return self.memory.word(self.base + page * PAGE)

    def touch(self, pages: list[int]) -> None:
        """vCPUs work on these pages from now on."""
        hosts = [(page, self.base + page * PAGE) for page in pages]
        self.engine.set_load(self._load([self._target(page * PAGE, host, host) for page, host in hosts]))

    def pass_on(self, taken: bytes) -> set[int]:
        """Copy the pages that a log names."""
        pages = set(bits(taken))
        for page in pages:
            self.copy[page] = self.word(page)
        return pages

    def lost(self) -> list[int]:
        """Pages whose copy is not what is in memory. No vCPU runs."""
        return [page for page in range(PAGES) if self.copy[page] != self.word(page)]

    def moves(self, count: int) -> None:
        """Wait for so many writes of all vCPUs together."""
        goal = self.written() + count
        until(lambda: self.written() >= goal, "writes")

    def levels(self, pages: Iterable[int]) -> set[int | None]:
        """Levels of these pages' leaves. No vCPU runs."""
        found = [self.engine.stage2.tables[0].lookup(page * PAGE) for page in pages]
        return {None if leaf is None else leaf.level for leaf in found}

    def written(self) -> int:
        return int(sum(counts["writes"] for counts in self.engine.vcpu_counts()))


def migrate(guest: Migration, rng: random.Random, rounds: int, *, manual: bool) -> int:
    """Switch logging on under load, take logs, stop, take the last one; returns how many pages logs named."""
    pages = rng.sample(range(PAGES), TOUCHED)
    guest.engine.start()
    guest.touch(pages)
    guest.moves(200)
    guest.region(KVM_MEM_LOG_DIRTY_PAGES)
    guest.copy = [guest.word(page) for page in range(PAGES)]
    dirty = guest.engine.dirty
    named = 0
    for turn in range(rounds + 1):
        if turn == rounds:
            guest.engine.stop()
        else:
            guest.moves(20)
        if not manual:
            named += len(guest.pass_on(dirty.get(0)))
            continue
        log = dirty.copy(0)
        for first in range(0, PAGES, 256):  # in pieces, as a VMM does
            count = min(256, PAGES - first)
            part = log[first // 8 : (first + count + 63) // 64 * 8]
            dirty.clear(0, first, count, part)
            named += len(guest.pass_on(bytes(first // 8) + part))
    return named


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("enable", ENABLES)
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_copies_end_as_memory(
    arch: str, enable: str, manual: bool, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    for initially_set in (False, True) if manual else (False,):
        how = DirtyLogging(enable=enable, initially_set=initially_set)
        with Migration(2, how, arch=arch) as guest:
            named = migrate(guest, rng, sized(40, 5), manual=manual)
            assert guest.lost() == []
            assert named > TOUCHED
            guest.engine.dirty.check()
            assert guest.engine.stage2.findings == 0
            guest.engine.stage2.check()
            if not initially_set:
                marks = sum(counts["dirty_marks"] for counts in guest.engine.vcpu_counts())
                assert marks == named, "every mark was taken once"


@pytest.mark.parametrize("disable", DISABLES)
@pytest.mark.parametrize("enable", ENABLES)
def test_logging_goes_on_and_off_under_load(
    enable: str, disable: str, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    """Each time it is on, the copy ends as memory; each time it is off, no small leaf is left where a large fits."""
    with Migration(2, DirtyLogging(enable=enable, disable=disable, chunk=1), arch="arm64") as guest:
        for _ in range(sized(4, 2)):
            migrate(guest, rng, sized(6, 2), manual=True)
            assert guest.lost() == []
            guest.engine.dirty.check()
            guest.engine.start()
            guest.touch(rng.sample(range(PAGES), TOUCHED))
            guest.region(0)
            assert guest.engine.dirty.bitmap(0) is None
            guest.moves(sized(400, 200))
            guest.engine.stop()
            assert guest.engine.stage2.findings == 0
            guest.engine.stage2.check()
            if disable != "lazy":
                assert guest.levels(range(1024)) <= {2, None}


@pytest.mark.parametrize("disable", ["eager", "bbm2"])
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_holes_and_protected_pages_keep_no_table(arch: str, disable: str) -> None:
    """One page of a block was written under logging, the rest was never mapped again: the block is back at once."""
    with Migration(1, DirtyLogging(disable=disable), arch=arch) as guest:
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        guest.touch([5])
        guest.engine.start()
        guest.moves(10)
        guest.engine.stop()
        table = guest.engine.stage2.tables[0]
        before = guest.engine.table_pages
        assert table.lookup(6 * PAGE) is None
        guest.engine.dirty.get(0)
        guest.region(0)
        found = table.lookup(6 * PAGE)
        assert found is not None
        assert (found.level, found.address) == (2, guest.base + 6 * PAGE)
        assert guest.engine.table_pages == before - 1
        guest.touch([5, 6])
        guest.engine.start()
        guest.moves(10)
        guest.engine.stop()
        assert guest.engine.stage2.findings == 0
        guest.engine.stage2.check()


def test_a_lazy_end_leaves_tables_to_the_next_fault() -> None:
    """A protected page faults, and its block is back; pages that may be written never fault, and stay small."""
    with Migration(1, DirtyLogging()) as guest:
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        guest.touch([5, 515])
        guest.engine.start()
        until(lambda: guest.word(5) > 0 and guest.word(515) > 0, "writes")
        guest.engine.stop()
        guest.engine.dirty.clear(0, 0, 64, (1 << 5).to_bytes(8, "little"))
        guest.region(0)
        assert guest.levels([5, 515]) == {3}
        guest.touch([5, 515])
        guest.engine.start()
        guest.moves(50)
        guest.engine.stop()
        assert (guest.levels([5, 7]), guest.levels([515, 517])) == ({2}, {3, None})


def test_a_clear_protects_only_what_it_names() -> None:
    with Migration(1, DirtyLogging()) as guest:
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        guest.touch([3, 70])
        guest.engine.start()
        until(lambda: guest.word(3) > 0 and guest.word(70) > 0, "writes")
        guest.engine.stop()
        assert set(bits(guest.engine.dirty.copy(0))) == {3, 70}
        assert guest.engine.dirty.clear(0, 64, 64, (1 << 6 | 1).to_bytes(8, "little")) == 1
        assert set(bits(guest.engine.dirty.copy(0))) == {3}
        guest.engine.dirty.check()
        faults = guest.engine.vcpu_counts()[0]["stage2_faults"]
        guest.touch([3])
        guest.engine.start()
        guest.moves(20)
        assert guest.engine.vcpu_counts()[0]["stage2_faults"] == faults, "its page may still be written"
        guest.engine.stop()
        guest.touch([70])
        guest.engine.start()
        guest.moves(20)
        guest.engine.stop()
        assert guest.engine.vcpu_counts()[0]["stage2_faults"] == faults + 1
        assert set(bits(guest.engine.dirty.get(0))) == {3, 70}


def test_a_moved_slot_keeps_its_bits_and_a_new_one_has_none() -> None:
    with Migration(1, DirtyLogging()) as guest:
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        guest.touch([3])
        guest.engine.start()
        guest.moves(5)
        guest.engine.stop()
        guest.engine.set_memory_region(Change(0, 1 << 18, PAGES, guest.base, KVM_MEM_LOG_DIRTY_PAGES))
        assert set(bits(guest.engine.dirty.copy(0))) == {3}
        guest.engine.set_memory_region(Change(0))
        with pytest.raises(MemslotError, match="ENOENT"):
            guest.engine.dirty.copy(0)
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        assert not any(guest.engine.dirty.get(0))


def test_the_check_sees_a_page_that_is_writable_without_a_bit() -> None:
    with Migration(1, DirtyLogging()) as guest:
        guest.region(KVM_MEM_LOG_DIRTY_PAGES)
        guest.touch([3])
        guest.engine.start()
        guest.moves(5)
        guest.engine.stop()
        bitmap = guest.engine.dirty.bitmap(0)
        assert bitmap is not None
        guest.engine.dirty.check()
        bitmap.take()  # without protection
        with pytest.raises(InvariantError, match="page 3 can be written and has no bit"):
            guest.engine.dirty.check()


_FAULT, _LOG = "engines/soft/user_mem_abort.py", "engines/soft/dirty_log.py"
MUTANTS = {
    "no mark": [(_FAULT, "    if bitmap != 0 and bitmap_mark(", "    if False and bitmap_mark(")],
    "taken pages stay writable": [
        (_LOG, "    if bitmap_take(bitmap, half) != 0:\n", "    if bitmap_take(bitmap, half) == 7:\n")
    ],
    "no flush": [(_LOG, "        invalidate_range(mmu, gfn << 12, half << 18)", "        pass")],
    "logging maps blocks": [
        (_FAULT, "    if logged or load_relaxed", "    if load_relaxed"),
        (_FAULT, " and (not logged or _is_page(table, gfn))", ""),
    ],
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_what_is_left_out_is_caught(name: str | None, rng: random.Random) -> None:
    with (
        load(MUTANTS[name] if name else []) as twin,
        Migration(1, twin.room("engines.soft.dirty_log").DirtyLogging(), twin.room) as guest,
    ):
        migrate(guest, rng, 4, manual=False)
        assert bool(guest.lost()) == (name is not None)


@pytest.mark.skipif(INTERPRETED, reason="needs vCPUs that write faster than Python looks")
def test_the_broken_design_is_caught(rng: random.Random) -> None:
    with Migration(2, DirtyLogging(flush=False)) as guest:
        migrate(guest, rng, 20, manual=True)
        assert guest.lost()


def test_bad_ways_of_logging_are_refused() -> None:
    for option in ({"enable": "some"}, {"disable": "hope"}, {"chunk": 0}):
        with pytest.raises(UsageError, match=next(iter(option))):
            DirtyLogging(**option)
