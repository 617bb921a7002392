"""Changes of both address spaces in one call of ``atomic``: all or none, whatever happens, and one instant.

The instant itself is searched in ``explore`` (``production-spaces-*``), with mutants.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guestmem.atomics import peek
from guestmem.designs import find
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft import layout as at
from guestmem.errors import BatchError, CapabilityError
from guestmem.memslots import Change, Slot
from guestmem.rcu.srcu import srcu_enter, srcu_exit
from guestmem.vm import Mmio, Read, Vm

HVA = 0x7F0000000000
PLACES = 6


def oracle(slots: dict[tuple[int, int], Slot], changes: list[Change]) -> dict[tuple[int, int], Slot] | int:
    """Slots afterwards, or the entry that is refused."""
    made = dict(slots)
    for entry, change in enumerate(changes):
        key = change.as_id, change.slot
        if change.deletes:
            if made.pop(key, None) is None:
                return entry
            continue
        if made.get(key) == change.as_slot():
            continue
        mine = range(change.base_gfn, change.base_gfn + change.npages)
        others = [slot for other, slot in made.items() if other != key and other[0] == change.as_id]
        if key in made or any(slot.base_gfn < mine.stop and mine.start < slot.end_gfn for slot in others):
            return entry
        made[key] = change.as_slot()
    return made


def drawn(rng: random.Random) -> Change:
    slot, as_id = rng.randrange(4), rng.randrange(2)
    if rng.random() < 0.4:
        return Change(slot, as_id=as_id)
    gfn = 4 * rng.randrange(PLACES)
    return Change(slot, gfn, 4, HVA + (rng.randrange(3) << 20) + (gfn << 12), 2 * (rng.random() < 0.3), as_id)


def shown(engine: SoftEngine) -> dict[tuple[int, int], Slot]:
    return {(slot.as_id, slot.id): slot for slot in engine.memslots}


def test_random_batches_end_as_a_dict(rng: random.Random, sized: Callable[[int, int], int]) -> None:
    with SoftEngine(2, address_spaces=2) as engine:
        apply = find("atomic").prepare(engine)
        slots: dict[tuple[int, int], Slot] = {}
        went_through = 0
        for number in range(sized(400, 60)):
            changes = [drawn(rng) for _ in range(rng.randrange(1, 5))]
            wanted = oracle(slots, changes)
            generations = [engine.memslots.generation(as_id) for as_id in range(2)]
            if isinstance(wanted, int):
                with pytest.raises(BatchError, match=f"entry {wanted}: "):
                    apply(engine, changes)
                assert [engine.memslots.generation(as_id) for as_id in range(2)] == generations
            else:
                apply(engine, changes)
                slots = wanted
                went_through += len({change.as_id for change in changes}) == 2
            assert shown(engine) == slots, f"round {number}: {changes}"
            assert engine.memslots.slots_lock.acquire(blocking=False), f"round {number}: the lock is held"
            engine.memslots.slots_lock.release()
            if number % 20 == 0:
                engine.memslots.check()
        assert went_through > sized(10, 1)


BOTH = [Change(0, as_id=0), Change(1, 8, 4, HVA), Change(0, as_id=1), Change(1, 8, 4, HVA, 0, 1)]


def started() -> SoftEngine:
    engine = SoftEngine(1, address_spaces=2)
    for as_id in range(2):
        engine.set_memory_region(Change(0, 0, 4, HVA, 0, as_id))
    return engine


@pytest.mark.parametrize("place", ["stage_all", "net_effect", "stall", "ready", "publish", "settle"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("read", [False, True], ids=["", "while a reader is inside"])
def test_an_interrupt_leaves_both_or_neither(
    place: str, after: bool, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guestmem.engines.soft.spaces import SpacesUpdate

    with started() as engine:
        before, real = shown(engine), getattr(SpacesUpdate, place)

        def interrupted(self: SpacesUpdate, *arguments: object, **named: object) -> None:
            if after and (place != "settle" or not read):
                real(self, *arguments, **named)
            raise KeyboardInterrupt

        monkeypatch.setattr(SpacesUpdate, place, interrupted)
        srcu = engine.srcu.words
        if read:
            srcu_enter(srcu, 0, 1)
        with pytest.raises(KeyboardInterrupt):
            find("atomic").prepare(engine)(engine, BOTH)
        if read:
            srcu_exit(srcu, 0, 1)
        monkeypatch.undo()
        engine.set_memory_region(Change(3, 100, 1, HVA))  # who comes next ends what was left
        engine.memslots.check()
        now = shown(engine)
        del now[0, 3]
        done = place == "settle" or (place == "publish" and after)
        assert now == ({(each, 1): Slot(each, 1, 8, 4, HVA) for each in range(2)} if done else before)
        assert not peek(engine.words, int(at.FLUX)) & 255


def test_a_transaction_of_both() -> None:
    with Vm(smm=True) as vm:
        there = vm.memory.create(0, gpa=0, size=0x4000)
        vm.memory.write(0, b"both")
        with vm.memory.transaction() as change:
            host = change.delete(0)
            change.create(1, gpa=0x8000, size=0x4000, host=host)
            change.create(1, gpa=0x8000, size=0x4000, host=host, as_id=1)
        assert [(slot.as_id, slot.id, slot.userspace_addr) for slot in vm.memory] == [
            (0, 1, there.userspace_addr),
            (1, 1, there.userspace_addr),
        ]
        vm.vcpus[0].load([Read(0x8000, 4), Read(0, 4)])
        assert isinstance(vm.vcpus[0].run(), Mmio)
        vm.check()
        change = vm.memory.transaction(design="pause")
        for as_id in range(2):
            change.delete(1, as_id=as_id)
        with pytest.raises(CapabilityError, match=r"design pause: .* one address space"):
            change.__exit__(None, None, None)
        assert len(vm.memory) == 2


def test_dirty_pages_that_end_say_in_which_space() -> None:
    from guestmem.vm import Write

    with Vm(smm=True) as vm:
        vm.memory.create(0, gpa=0, size=0x2000, flags=1)
        vm.memory.create(0, gpa=0, size=0x2000, flags=1, as_id=1)
        vm.vcpus[0].load([Write(0x1000, b"x")])
        vm.vcpus[0].run()
        with vm.memory.transaction() as change:
            change.delete(0)
            change.delete(0, as_id=1)
        assert [(page.as_id, page.slot, page.gfn) for page in change.dirty] == [(0, 0, 1)]
        vm.check()
