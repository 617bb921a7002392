"""A load's words are its targets, changed ones first; accesses keep to their shares; nonsense is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.engines import Access, Load, Target, host_words, load_words
from guestmem.engines.soft import SoftEngine
from guestmem.errors import GuestmemError, UsageError
from soft_guest import Guest


def test_words_are_a_header_and_four_words_a_target() -> None:
    targets = [
        Target(0x1008, 0x7000, 0x7000),
        Target(0x2000, 0x8000, 0x9000, False, True, True),
        Target(0x3000, 0, 0xA000, changed=True),
        Target(0x4000, 0xB000, 0, True, False, True),
    ]
    load = Load(targets, as_id=1)
    must, old_readonly, new_readonly, changed = (
        int(flag) for flag in (load_words.MUST, load_words.OLD_READONLY, load_words.NEW_READONLY, load_words.CHANGED)
    )
    assert [int(load.words[index]) for index in range(len(load.words))] == [
        *(3, 1, 1, 0, 0, 0, 0, 0),
        *(0x2000, must + new_readonly + changed, 0x8000, 0x9000),
        *(0x3000, changed, 0, 0xA000),
        *(0x4000, old_readonly + changed, 0xB000, 0),
        *(0x1008, must, 0x7000, 0x7000),
    ]
    assert host_words([load]) == {0x7000, 0x8000, 0x9000, 0xA000, 0xB000}
    assert [target.must for target in load.targets] == [True, False, False, True]


def test_a_load_that_does_not_fit_is_refused() -> None:
    engine = SoftEngine(1)
    with pytest.raises(UsageError, match="9000 targets need 36008 words"):
        engine.set_load(Load([Target(gfn << 12, 0, 0) for gfn in range(9000)]))
    assert engine.set_load(Load([Target(gfn << 12, 0, 0) for gfn in range(8190)])) == [None]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "zigzag"}, "pattern: 'zigzag'"),
        ({"writes": 1.5}, "writes: 1.5"),
        ({"fetches": -0.1}, "fetches: -0.1"),
        ({"changed": 2}, "changed: 2"),
        ({"writes": 0.7, "fetches": 0.4}, r"writes \+ fetches"),
    ],
)
def test_shares_that_are_none_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(Access(), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vcpus": 0}, "vcpus: 0"),
        ({"cores": 0}, "cores: 0"),
        ({"arch": "mips"}, "arch: 'mips'"),
        ({"slow_vcpu_ns": -1}, "slow_vcpu_ns: -1"),
    ],
)
def test_engines_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SoftEngine(**fields)


@pytest.mark.parametrize("pattern", ["sequential", "random", "hot"])
@pytest.mark.parametrize(("writes", "fetches", "changed"), [(0.25, 0.5, 0.75), (1, 0, 1), (0, 1, 0), (0, 0, 0.5)])
def test_accesses_keep_to_their_shares(
    pattern: str, writes: float, fetches: float, changed: float, sized: Callable[[int, int], int]
) -> None:
    wanted = sized(20_000, 2_000)
    with Guest(1, access=Access(pattern, writes, fetches, changed)) as guest:
        guest.create(0, 0, 32, 0)
        frames = {gfn: gfn for gfn in range(32)}
        first = {gfn: page for gfn, page in frames.items() if gfn < 16}
        rest = {gfn: page for gfn, page in frames.items() if gfn >= 16}
        guest.run(guest.same(first, changed=True) + guest.same(rest))
        while guest.accesses(0) < wanted:
            guest.moves(0)
    counts = guest.engine.vcpu_counts()[0]
    total = counts["accesses"]
    assert counts["reads"] + counts["writes"] + counts["fetches"] == total
    assert counts["writes"] / total == pytest.approx(writes, abs=0.06)
    assert counts["fetches"] / total == pytest.approx(fetches, abs=0.06)


def test_the_changed_share_decides_where_writes_go(sized: Callable[[int, int], int]) -> None:
    for changed in (0.0, 0.25, 1.0):
        with Guest(1, access=Access("random", 1, 0, changed)) as guest:
            guest.create(0, 0, 32, 0)
            first, rest = {gfn: gfn for gfn in range(2)}, {gfn: gfn for gfn in range(2, 32)}
            guest.run(guest.same(first, changed=True) + guest.same(rest))
            while guest.accesses(0) < sized(20_000, 2_000):
                guest.moves(0)
            guest.engine.stop()
            there = guest.word(0) + guest.word(1)
            assert there / guest.written() == pytest.approx(changed, abs=0.06)


def test_each_pattern_reaches_every_target() -> None:
    for pattern in ("sequential", "random", "hot"):
        with Guest(1, access=Access(pattern, 1, 0)) as guest:
            guest.create(0, 0, 32, 0)
            guest.run(guest.same({gfn: gfn for gfn in range(32)}))
            while guest.accesses(0) < 50_000 and not all(guest.word(page) for page in range(32)):
                guest.moves(0)
            guest.engine.stop()
            assert all(guest.word(page) for page in range(32)), pattern


def test_an_empty_load_touches_nothing() -> None:
    with Guest(2, access=Access(writes=1, fetches=0)) as guest:
        guest.create(0, 0, 32, 0)
        guest.engine.start()
        for _ in range(3):
            guest.engine.set_load(Load())
            guest.rest()
        guest.engine.kick()
    assert guest.total("accesses") == 0


def test_access_is_fixed_while_vcpus_run() -> None:
    with Guest(1) as guest:
        guest.engine.start()
        with pytest.raises(GuestmemError, match="running"):
            guest.engine.set_access(Access())
        with pytest.raises(GuestmemError, match="running already"):
            guest.engine.start()
