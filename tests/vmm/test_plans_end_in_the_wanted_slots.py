"""Whatever slots there are, each way ends in what the view wants: ``fewest`` with no more slots than there are pieces
that cannot be joined, ``least`` without taking away a frame that could stay. Costs are what a walk page by page counts.
"""

from __future__ import annotations

import random

import pytest

from guestmem.errors import UsageError
from guestmem.explore import load
from guestmem.memslots import Change, Slot
from guestmem.vmm import MemoryMap, Piece, cost_of, difference, fewest, fewest_pieces, least
from guestmem.vmm.cost import Primitive
from guestmem.vmm.plan import slots_after

FRAMES = 40
Page = tuple[int, int]
"""Host address and flags."""


def pages(slots: list[Slot] | list[Piece]) -> dict[int, Page]:
    found: dict[int, Page] = {}
    for each in slots:
        for page in range(each.npages):
            assert each.base_gfn + page not in found, "slots overlap"
            found[each.base_gfn + page] = (each.userspace_addr + (page << 12), each.flags)
    return found


def drawn(rng: random.Random) -> list[Piece]:
    """Pieces of three pieces of host memory, some of which go on in each other."""
    found: list[Piece] = []
    gfn = 0
    while gfn < FRAMES:
        size = rng.randrange(1, 9)
        kind = rng.randrange(5)
        if kind:
            host = (kind if kind < 3 else 1) << 24
            found.append(Piece(gfn, min(size, FRAMES - gfn), host + (gfn << 12), rng.choice([0, 0, 0, 1, 2])))
        gfn += size
    return joined(found)


def joined(pieces: list[Piece]) -> list[Piece]:
    """Page by page: a page goes on where host memory and flags do."""
    found: list[Piece] = []
    for gfn, (host, flags) in sorted(pages(pieces).items()):
        last = found[-1] if found else None
        if last is not None and (last.end_gfn, last.userspace_addr + (last.npages << 12), last.flags) == (
            gfn,
            host,
            flags,
        ):
            found[-1] = last._replace(npages=last.npages + 1)
        else:
            found.append(Piece(gfn, 1, host, flags))
    return found


def scattered(rng: random.Random, pieces: list[Piece]) -> list[Slot]:
    """Slots for ``pieces``, cut here and there, with ids in no order."""
    cut: list[Piece] = []
    for piece in pieces:
        at = rng.randrange(1, piece.npages) if piece.npages > 1 and rng.random() < 0.4 else piece.npages
        cut.append(piece._replace(npages=at))
        if at < piece.npages:
            cut.append(Piece(piece.base_gfn + at, piece.npages - at, piece.userspace_addr + (at << 12), piece.flags))
    ids = rng.sample(range(60), len(cut))
    return [piece.as_slot(number) for number, piece in zip(ids, cut, strict=True)]


def carried_out(slots: list[Slot], changes: list[Change]) -> tuple[list[Slot], set[int]]:
    """As KVM would, one by one: nothing overlaps, nothing is deleted that is not there. And frames that were away."""
    now = {slot.id: slot for slot in slots}
    away: set[int] = set()
    for change in changes:
        old = now.pop(change.slot, None)
        if change.deletes:
            assert old is not None
            away |= set(range(old.base_gfn, old.end_gfn))
            continue
        new = change.as_slot()
        if old is not None:
            assert (old.npages, old.userspace_addr, old.flags & ~1) == (new.npages, new.userspace_addr, new.flags & ~1)
            if old.base_gfn != new.base_gfn:
                away |= set(range(old.base_gfn, old.end_gfn))
        assert all(other.end_gfn <= new.base_gfn or new.end_gfn <= other.base_gfn for other in now.values())
        now[change.slot] = new
    return list(now.values()), away


def moved(rng: random.Random, slots: list[Slot]) -> list[Piece]:
    """The same pieces in another order, one after the other."""
    found, gfn = [], rng.randrange(3)
    for slot in rng.sample(slots, len(slots)):
        found.append(Piece(gfn, slot.npages, slot.userspace_addr, slot.flags))
        gfn += slot.npages + rng.choice([0, 0, 1])
    return joined(found)


def fixed(page: Page | None) -> Page | None:
    """Without logging, which a slot can switch."""
    return None if page is None else (page[0], page[1] & ~1)


def problem(rng: random.Random, plan: object, *, fewest_wanted: bool) -> str:
    slots = scattered(rng, drawn(rng))
    wanted = moved(rng, slots) if rng.random() < 0.3 else drawn(rng)
    changes = plan(slots, wanted)  # type: ignore[operator]
    try:
        after, away = carried_out(slots, changes)
        if pages(after) != pages(wanted):
            return "other memory than wanted"
    except AssertionError as error:
        return f"KVM refuses it: {error}"
    if fewest_wanted:
        return "too many slots" if len(after) != len(joined(wanted)) else ""
    goal = pages(wanted)
    for slot in slots:
        here = pages([slot])
        stays = all(
            gfn in goal and goal[gfn][0] == host and goal[gfn][1] & ~1 == flags & ~1
            for gfn, (host, flags) in here.items()
        )
        one_log = len({goal[gfn][1] for gfn in here if gfn in goal}) == 1
        if stays and one_log and away & set(here):
            return f"{slot} could have stayed"
    return ""


@pytest.mark.parametrize("way", ["fewest", "least"])
def test_on_random_slots(way: str, rng: random.Random) -> None:
    plan = {"fewest": fewest, "least": least}[way]
    for _ in range(2500):
        assert problem(rng, plan, fewest_wanted=way == "fewest") == ""


MUTANTS = {
    "a slot with other rights stays": (
        "least",
        "_fixed(piece.flags) != _fixed(slot.flags) or flags not in (None, piece.flags)",
        "flags not in (None, piece.flags)",
    ),
    "a slot whose frames disagree on logging stays": ("least", " or flags not in (None, piece.flags)", ""),
    "a slot of other host memory stays": (
        "least",
        "slot.hva(gfn) == piece.userspace_addr + ((gfn - piece.base_gfn) << PAGE_SHIFT)",
        "True",
    ),
    "what a kept slot has is created once more": (
        "least",
        "stop = min(kept[j].base_gfn, piece.end_gfn)",
        "stop = piece.end_gfn",
    ),
    "moves onto what has not moved yet": ("least", "if not any(", "if True or not any("),
    "logging is not switched": ("fewest", "if flags != slot.flags", "if False"),
    "ids are used twice": ("fewest", "if slot not in used)", ")"),
    "what is the same goes, too": ("fewest", "if key not in wanted]", "]"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_plan_is_caught(name: str, rng: random.Random) -> None:
    way, old, new = MUTANTS[name]
    with load([("vmm/plan.py", old, new)]) as twin:
        plan = getattr(twin.room("vmm.plan"), way)
        assert any(problem(rng, plan, fewest_wanted=way == "fewest") for _ in range(3000))


def test_what_cannot_have_an_id_is_said() -> None:
    wanted = [Piece(gfn * 2, 1, gfn << 24, 0) for gfn in range(5)]
    assert len(fewest([], wanted, max_slots=5)) == 5
    with pytest.raises(UsageError, match="slots: the view needs 5, and 4 can be"):
        fewest([], wanted, max_slots=4)
    with pytest.raises(UsageError, match="slots: the view needs 5"):
        least([], wanted, max_slots=6, taken={0, 3})
    assert [change.slot for change in least([], wanted, taken={0, 3})] == [1, 2, 4, 5, 6]


def test_where_ids_run_out_slots_are_joined() -> None:
    slots = [Piece(gfn, 1, 0x1000000 + (gfn << 12), 0).as_slot(gfn) for gfn in range(4)]
    wanted = [Piece(0, 4, 0x1000000, 0), Piece(8, 1, 0x5000000, 0)]
    assert len(least(slots, wanted, max_slots=5)) == 1
    assert len(slots_after(slots, least(slots, wanted, max_slots=4))) == 2


def test_costs_are_what_a_walk_page_by_page_counts(rng: random.Random) -> None:
    for _ in range(1500):
        slots, wanted = scattered(rng, drawn(rng)), drawn(rng)
        for plan in (fewest, least):
            changes = plan(slots, wanted)
            after, away = carried_out(slots, changes)
            old, new = pages(slots), pages(after)
            cost = cost_of(slots, changes)
            assert cost.calls == len(changes) == cost.deletes + cost.creates + cost.moves + cost.flags
            assert cost.dropped == len(away)
            assert cost.hole == len(away & set(new))
            assert cost.hole_same == sum(old[gfn] == new[gfn] for gfn in away & set(new))
            assert cost.stalled == sum(gfn not in new or new[gfn][0] != old[gfn][0] for gfn in old)
            both = [gfn for gfn in old if gfn in new and new[gfn][0] == old[gfn][0]]
            assert cost.writes_stalled == sum(bool(new[gfn][1] & ~old[gfn][1]) for gfn in both)
            found = difference(slots, after)
            touched = {gfn for each in found for gfn in range(each.start, each.end)}
            assert {gfn for gfn in set(old) | set(new) if old.get(gfn) != new.get(gfn)} <= touched | {
                gfn for each in found for slot in each.old for gfn in range(slot.base_gfn, slot.end_gfn)
            }


def names(before: list[Piece], after: list[Piece]) -> list[str]:
    slots = [[piece.as_slot(number) for number, piece in enumerate(pieces)] for pieces in (before, after)]
    return ["+".join(primitive.value for primitive in each.primitives) for each in difference(*slots)]


def test_differences_are_named() -> None:
    whole, host = Piece(0, 8, 0x1000000, 0), 0x1000000
    halves = [Piece(0, 4, host, 0), Piece(4, 4, host + 0x4000, 0)]
    assert names([whole], halves) == ["split"]
    assert names(halves, [whole]) == ["merge"]
    assert names([halves[0]], [whole]) == ["grow"]
    assert names([whole], [halves[0]]) == ["truncate"]
    assert names([whole], [whole._replace(userspace_addr=0)]) == ["re-host"]
    assert names([whole], [whole._replace(flags=2)]) == ["read-only toggle"]
    assert names([whole], [whole._replace(flags=1)]) == ["log toggle"]
    assert names([whole], [whole._replace(base_gfn=100)]) == ["move"]
    assert names([], [whole]) == ["create"]
    assert names([whole], []) == ["delete"]
    assert names([whole], [whole]) == []
    assert len(Primitive) == 10


def test_a_slot_spans_regions_whose_memory_goes_on_and_pages_that_two_share() -> None:
    memory = MemoryMap()
    root = memory.container("root")
    for name, at, size in (("a", 0, 0x1800), ("b", 0x1800, 0x2800)):
        root.add_subregion(at, memory.ram(name, size, userspace_addr=0x10000000 + at))
    far = root.add_subregion(0x4000, memory.ram("c", 0x1000, userspace_addr=0x10004000))
    odd = root.add_subregion(0x8000, memory.ram("odd", 0x1000, userspace_addr=0x20000800))
    space = memory.address_space("memory", root)
    assert fewest_pieces(space.view) == [Piece(0, 5, 0x10000000, 0)]
    far.set_unmergeable(True)
    assert fewest_pieces(space.view) == [Piece(0, 4, 0x10000000, 0), Piece(4, 1, 0x10004000, 0)]
    odd.set_enabled(False)
    far.set_readonly(True)
    assert fewest_pieces(space.view)[1].flags == 2
    assert fewest_pieces(space.view, max_pages=3)[:2] == [Piece(0, 3, 0x10000000, 0), Piece(3, 1, 0x10003000, 0)]
