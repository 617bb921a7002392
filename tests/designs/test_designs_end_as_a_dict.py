"""After any valid program every design leaves the slots that a dict says, and memory behind each frame that it says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem.designs import DESIGNS, Design
from guestmem.engines import Access, Load
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Change, Slot
from slices import sliced
from soft_guest import Guest

pytestmark = pytest.mark.slow

FRAMES, PAGES, IDS = 48, 96, 8
RUN_HERE = [design for design in DESIGNS if not design.needs & ~SoftEngine.capabilities]
READONLY, LOG = KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES


def free(slots: dict[int, Slot], gfn: int, npages: int, but: int) -> bool:
    """Whether no slot but ``but`` has one of these frames."""
    return all(
        slot.end_gfn <= gfn or gfn + npages <= slot.base_gfn for slot_id, slot in slots.items() if slot_id != but
    )


def random_program(guest: Guest, slots: dict[int, Slot], rng: random.Random) -> list[Change]:
    """Up to six changes that KVM accepts one after another; ``slots`` is what they make of it."""
    changes: list[Change] = []
    wanted = rng.randrange(1, 7)
    while len(changes) < wanted:
        slot_id = rng.randrange(IDS)
        old = slots.get(slot_id)
        npages = rng.randrange(1, 9) if old is None else old.npages
        gfn = rng.randrange(FRAMES - npages)
        if old is None:
            flags = rng.choice((0, 0, 0, READONLY, LOG))
            # Now and then the memory that the frames had, so that something is kept.
            page = gfn if rng.random() < 0.5 else rng.randrange(PAGES - npages)
            change = guest.change(slot_id, gfn, npages, page, flags)
        elif rng.random() < 0.5:
            change = guest.change(slot_id)
        elif rng.random() < 0.5:
            change = Change(slot_id, gfn, npages, old.userspace_addr, old.flags)
        else:
            change = Change(slot_id, old.base_gfn, npages, old.userspace_addr, old.flags ^ rng.choice((0, LOG)))
        if change.deletes:
            del slots[slot_id]
        elif free(slots, change.base_gfn, npages, slot_id):
            slots[slot_id] = change.as_slot()
        else:
            continue
        changes.append(change)
    return changes


def frames_of(guest: Guest, slots: dict[int, Slot]) -> dict[int, tuple[int, bool]]:
    """gfn -> host page, read-only."""
    return {
        gfn: ((slot.hva(gfn) - guest.base) // 4096, slot.readonly)
        for slot in slots.values()
        for gfn in range(slot.base_gfn, slot.end_gfn)
    }


def compare(guest: Guest, slots: dict[int, Slot]) -> None:
    """The engine's slots and memory against the dict's."""
    memslots = guest.engine.memslots
    memslots.check()
    assert {slot.id: slot for slot in memslots} == slots
    frames = frames_of(guest, slots)
    for gfn in range(FRAMES + 8):
        found = memslots.find(gfn)
        if gfn not in frames:
            assert found is None
        else:
            assert found is not None
            assert guest.memory.word(found.hva(gfn) + 8) == 1_000_000 + frames[gfn][0]


@pytest.mark.parametrize("design", RUN_HERE, ids=[design.name for design in RUN_HERE])
def test_random_programs(design: Design, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with Guest(1, PAGES) as guest:
        apply = design.prepare(guest.engine)
        for page in range(PAGES):
            stamp(guest, page)
        slots: dict[int, Slot] = {}
        for _ in range(sized(sliced(60, 250), 25)):
            apply(guest.engine, random_program(guest, slots, rng))
            compare(guest, slots)


def stamp(guest: Guest, page: int) -> None:
    """What tells a host page from all others, beside its counter."""
    import ctypes

    ctypes.c_uint64.from_address(guest.hva(page) + 8).value = 1_000_000 + page


@pytest.mark.parametrize("design", RUN_HERE, ids=[design.name for design in RUN_HERE])
def test_running_vcpus_write_where_the_dict_says(
    design: Design, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    """Between programs, writes to every frame land in its page if it may be written, and nowhere else."""
    with Guest(2, PAGES, access=Access("sequential", 1, 0)) as guest:
        apply = design.prepare(guest.engine)
        slots: dict[int, Slot] = {}
        guest.engine.start()
        for _ in range(sized(15, 4)):
            guest.engine.set_load(Load())
            apply(guest.engine, random_program(guest, slots, rng))
            guest.engine.kick()
            frames = frames_of(guest, slots)
            before = [guest.word(page) for page in range(PAGES)]
            guest.engine.set_load(
                Load(guest.target(gfn, page, page, readonly=(ro, ro)) for gfn, (page, ro) in frames.items())
            )
            if not frames:
                continue
            goal = [guest.accesses(vcpu) + 3 * len(frames) + 300 for vcpu in range(2)]
            for vcpu in range(2):
                while guest.accesses(vcpu) < goal[vcpu]:
                    guest.moves(vcpu)
            guest.engine.set_load(Load())
            written = {page for page in range(PAGES) if guest.word(page) != before[page]}
            assert written == {page for page, readonly in frames.values() if not readonly}
        guest.engine.stop()
        assert guest.written() == guest.total("writes")
        assert guest.total("holes_write") == 0
