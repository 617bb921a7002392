"""NR, NW and NX: accesses that lost their right exit, others go on, and ``attributes`` touches no slot for that.

By any other design the same rights come with slots, so that what a right does is the same for all.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator

import pytest

from guestmem.designs import DESIGNS, find
from guestmem.designs.attributes import NR, NW, NX
from guestmem.engines import Access, HostMemory, Load, Target
from guestmem.engines.soft import SoftEngine
from guestmem.engines.soft.update import SoftUpdate
from guestmem.errors import MemslotError
from guestmem.memslots import KVM_MEM_READONLY, KVM_MEMSLOT_NR, KVM_MEMSLOT_NX, Change
from holes_held_open import count, wait_until

PAGE, PAGES = 0x1000, 16
FORMS = (0, NW, NX, NW | NX, NR | NW | NX)
KINDS = {
    "read": (NR, Access(writes=0, fetches=0, changed=1), "denied_reads", "reads"),
    "write": (NW, Access(writes=1, fetches=0, changed=1), "readonly_writes", "writes"),
    "fetch": (NX, Access(writes=0, fetches=1, changed=1), "denied_fetches", "fetches"),
}
HOLES = ("holes_read", "holes_write", "killed_fetches", "strange", "stale", "refused_writes")
ABLE = [design.name for design in DESIGNS if not design.broken]


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory([(0x7F0000000000, 0x7F0000000000 + PAGES * PAGE)])
    yield made
    made.close()


def flags_of(rights: int) -> int:
    return (
        KVM_MEMSLOT_NR * bool(rights & NR) | KVM_MEM_READONLY * bool(rights & NW) | KVM_MEMSLOT_NX * bool(rights & NX)
    )


def whole(memory: HostMemory, rights: int = 0) -> Change:
    return Change(0, 0, PAGES, memory.address, flags_of(rights))


def parts(memory: HostMemory, rights: int) -> list[Change]:
    """Frames 4 to 8 get these rights: a slot of their own."""

    def slot(number: int, gfn: int, npages: int, flags: int = 0) -> Change:
        return Change(number, gfn, npages, memory.address + gfn * PAGE, flags)

    return [Change(0), slot(0, 0, 4), slot(1, 4, 4, flags_of(rights)), slot(2, 8, PAGES - 8)]


def load(memory: HostMemory, before: int, after: int) -> Load:
    """Frames 4 to 8, with rights denied before and after."""
    return Load(
        Target(
            gfn * PAGE,
            word := memory.address + gfn * PAGE,
            word,
            changed=True,
            old_denied=before,
            new_denied=after,
        )
        for gfn in range(4, 8)
    )


def holes(engine: SoftEngine) -> dict[str, int]:
    return {name: count(engine, name) for name in HOLES if count(engine, name)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rights", FORMS[1:])
def test_who_lost_the_right_exits_and_nobody_else(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch, kind: str, rights: int
) -> None:
    """Above the slots, which are as they were; and so when the slots say the same."""
    bit, access, exits, made = KINDS[kind]
    real = SoftUpdate.publish
    seen = exits if rights & bit else made

    def goes_on(engine: SoftEngine, what: str) -> None:
        before = count(engine, seen)
        wait_until(engine, lambda: count(engine, seen) > before + 20, what)

    def publish(self: SoftUpdate) -> None:
        assert engine.slot(1) is None, "no slot was touched"
        goes_on(engine, "accesses under what stands above the slots")
        real(self)

    with SoftEngine(1) as engine:
        engine.set_memory_region(whole(memory))
        engine.set_access(access)
        engine.set_load(load(memory, 0, rights))
        engine.start()
        wait_until(engine, lambda: count(engine, made) > 1000, "accesses before")
        monkeypatch.setattr(SoftUpdate, "publish", publish)
        with engine.window():
            find("attributes").prepare(engine)(engine, parts(memory, rights))
        engine.set_load(load(memory, rights, rights))
        goes_on(engine, "accesses by the slots' rights")
        performed = count(engine, made)
        goes_on(engine, "more of them")
        engine.stop()
        engine.memslots.check()
        assert holes(engine) == {}
        assert (count(engine, made) == performed) == bool(rights & bit)
        assert bool(count(engine, exits)) == bool(rights & bit)


@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(FORMS, 2)])
def test_rights_are_taken_and_given_with_no_hole(memory: HostMemory, before: int, after: int) -> None:
    with SoftEngine(1) as engine:
        apply = find("attributes").prepare(engine)
        engine.set_memory_region(whole(memory))
        engine.set_access(Access(writes=0.4, fetches=0.3, changed=1))
        engine.set_load(load(memory, 0, before))
        engine.start()
        apply(engine, parts(memory, before))
        engine.set_load(load(memory, before, after))
        accesses = count(engine, "accesses")
        wait_until(engine, lambda: count(engine, "accesses") > accesses + 50, "accesses before")
        swaps = engine.counts.swaps
        with engine.window():
            apply(engine, [Change(1), parts(memory, after)[2]])
        assert engine.counts.swaps == swaps + 1, "not by sequential"
        engine.set_load(load(memory, after, after))
        begun = {name: count(engine, name) for _, _, exits, made in KINDS.values() for name in (exits, made)}
        for bit, _, exits, made in KINDS.values():
            name = exits if after & bit else made
            wait_until(engine, lambda name=name: count(engine, name) > begun[name] + 5, name)  # type: ignore[misc]
        engine.stop()
        assert holes(engine) == {}


@pytest.mark.parametrize("name", ABLE)
def test_the_same_rights_by_every_design(memory: HostMemory, name: str) -> None:
    """On vCPUs that had them, and translations for them."""
    with SoftEngine(1) as engine:
        apply = find(name).prepare(engine)
        engine.set_memory_region(whole(memory))
        engine.set_access(Access(writes=0.4, fetches=0.3, changed=1))
        engine.set_load(load(memory, 0, NW | NX))
        engine.start()
        for made in ("reads", "writes", "fetches"):
            wait_until(engine, lambda made=made: count(engine, made) > 100, made)  # type: ignore[misc]
        apply(engine, parts(memory, NW | NX))
        engine.set_load(load(memory, NW | NX, NW | NX))
        performed: dict[str, int] = {}
        for _ in range(2):
            before = {seen: count(engine, seen) for seen in ("reads", "readonly_writes", "denied_fetches")}
            for seen, was in before.items():
                wait_until(engine, lambda seen=seen, was=was: count(engine, seen) > was + 5, seen)  # type: ignore[misc]
            performed = performed or {made: count(engine, made) for made in ("writes", "fetches")}
        engine.stop()
        assert performed == {made: count(engine, made) for made in ("writes", "fetches")}


@pytest.mark.parametrize("rights", [0, NR, NR | NX, NR | NW, 8])
def test_rights_that_have_no_form_are_refused(memory: HostMemory, rights: int) -> None:
    with SoftEngine(1) as engine:
        engine.set_memory_region(whole(memory))
        with engine.update() as update, pytest.raises(MemslotError) as caught:
            update.deny(4, 8, rights)
        assert caught.value.errno == errno.EINVAL


def test_no_flags_of_a_slot_can_take_them_in_place(memory: HostMemory) -> None:
    with SoftEngine(1) as engine:
        engine.set_memory_region(whole(memory))
        with pytest.raises(MemslotError) as caught:
            engine.set_memory_region(whole(memory, NX))
        assert caught.value.errno == errno.EINVAL
