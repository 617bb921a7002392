"""Conversions while vCPUs run, slots change and the host looks on: nobody sees a private byte by a shared access."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.atomics import poke
from guestmem.compiled import own, words
from guestmem.designs.registry import find
from guestmem.engines.load import Access, Load, Target
from guestmem.engines.load_words import SECRET
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import gmem_vcpu as host_at
from guestmem.engines.soft.gmem_vcpu import clear_words, host_run
from guestmem.errors import GuestMemfdError
from guestmem.gmem import GuestMemfd
from guestmem.memslots import Change
from guestmem.memslots.slot import KVM_MEM_GUEST_MEMFD

PAGE = 0x1000
HVA = 0x7F0000000000
PAGES, GFN = 16, 0x100

pytestmark = pytest.mark.compiled_only


class Guest:
    """vCPUs that access every page by both kinds, and maybe a thread of the host that touches and pins them."""

    def __init__(self, vcpus: int, pages: range, *, writes: float, private: bool = True, seed: int = 1) -> None:
        self.engine = SoftEngine(vcpus, seed=seed)
        self.file = GuestMemfd(PAGES * PAGE, 3)
        self.number = self.engine.files.add(self.file)
        self.engine.set_memory_region(self.create(0))
        self.pages = own(len(pages))
        for place, page in enumerate(pages):
            self.pages[place] = page
        self.file.inode.on_shared = lambda first, last: clear_words(
            self.file.inode.words, self.pages, len(pages), first, last, 0
        )
        kinds = (False, True) if private else (False,)
        self.load = Load(
            Target((GFN + page) * PAGE, 0, 0, private=kind, marked=True) for page in pages for kind in kinds
        )
        self.engine.set_access(Access(writes=writes, fetches=0.0))
        self.engine.set_load(self.load)

    def create(self, slot: int, first: int = 0, count: int = PAGES, at: int = GFN) -> Change:
        flags = KVM_MEM_GUEST_MEMFD
        return Change(slot, at + first, count, HVA + first * PAGE, flags, 0, self.number, first * PAGE)

    def count(self, name: str) -> int:
        return sum(int(each[name]) for each in self.engine.vcpu_counts())

    def until(self, what: Callable[[], bool]) -> bool:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if what():
                return True
            time.sleep(0.001)
        return False

    def end(self) -> None:
        self.engine.stop()
        assert self.engine.stage2 is not None
        self.engine.stage2.check()
        self.engine.memslots.check()
        self.engine.files.check()
        self.engine.files.close()


class Host:
    """A thread that touches and pins pages of the file as the host may."""

    def __init__(self, file: GuestMemfd, pages: Any, seed: int) -> None:
        self.file, self.pages = file, pages
        self.run, self.own = words(int(host_at.RUN.words_taken)), own(int(host_at.OWN.words_taken))
        self.own[int(host_at.SEED)], self.own[int(host_at.TARGETS)] = seed, len(pages)
        self.own[int(host_at.HOST)], self.own[int(host_at.PINS)] = 1, 8
        self.out = own(4)
        self.thread = threading.Thread(target=self.body, daemon=True)

    def body(self) -> None:
        inode = self.file.inode
        host_run(inode.words, inode.states.words, self.run, self.own, self.pages, self.out)

    def stop(self) -> int:
        """Returns how many private words it saw."""
        poke(self.run, int(host_at.STOP), 1)
        self.thread.join()
        return int(self.own[int(host_at.SAW_PRIVATE)])


@pytest.mark.parametrize("zaps", [True, False])
def test_a_mapping_of_the_old_kind_is_gone_when_a_conversion_returns(*, zaps: bool) -> None:
    """One vCPU that only reads by shared accesses; what the guest writes in private is written here."""
    guest = Guest(1, range(1), writes=0.0, private=False)
    guest.engine.files.zaps = zaps
    guest.engine.start()
    try:
        assert guest.until(lambda: guest.count("reads") > 0), "it has the page mapped"
        guest.file.convert(0, PAGE, private=True)
        clear_words(guest.file.inode.words, guest.pages, 1, 0, 0, int(SECRET))
        assert guest.until(lambda: guest.count("memory_faults" if zaps else "saw_private") > 0)
    finally:
        guest.engine.stop()
    assert guest.count("saw_private") == 0 if zaps else guest.count("memory_faults") == 0
    guest.end()


@pytest.mark.parametrize("rounds", [300, pytest.param(6000, marks=[pytest.mark.slow, pytest.mark.night])])
def test_conversions_and_transactions_while_everybody_accesses(rng: random.Random, rounds: int) -> None:
    pages = range(0, PAGES, 2)
    guest = Guest(2, pages, writes=0.5, seed=rng.getrandbits(32))
    file, engine = guest.file, guest.engine
    host = Host(file, guest.pages, rng.getrandbits(63) | 1)
    apply = find("atomic").prepare(engine)
    layouts = [
        [guest.create(0)],
        [guest.create(0, 0, 7), guest.create(1, 7, 9)],
        [guest.create(0, 0, 4), guest.create(1, 12, 4)],  # the middle has no slot
        [guest.create(0, at=GFN + 0x1000)],
    ]
    now = converted = 0
    engine.start()
    host.thread.start()

    def enough(number: int) -> bool:
        """Whether all had their turn: a vCPU may get its core late, and the host lose its own while it pins a page."""
        accessed = guest.count("memory_faults") > 0 and guest.count("accesses") > 1000
        return number >= rounds and converted > rounds // 3 and accessed

    try:
        number, end = 0, time.monotonic() + 100
        while not enough(number):
            if time.monotonic() > end:
                pytest.skip(f"{converted} conversions in {number} tries, {guest.count('accesses')} accesses: too few")
            number += 1
            first = rng.randrange(PAGES)
            last = rng.randrange(first, PAGES)
            try:
                file.convert(first * PAGE, (last + 1 - first) * PAGE, private=rng.random() < 0.5)
                converted += 1
            except GuestMemfdError:
                pass
            if rng.random() < 0.3:
                following = rng.randrange(4)
                deletes = [Change(change.slot) for change in layouts[now]]
                apply(engine, [*deletes, *layouts[following]])
                now = following
            if rng.random() < 0.05:
                file.punch(first * PAGE, PAGE)
    finally:
        seen = host.stop()
        engine.stop()
    assert seen == 0, "the host saw a private word"
    assert guest.count("saw_private") == 0, "a vCPU saw a private word by a shared access"
    guest.end()
