"""Each bad argument is its own error, with the kernel's errno and the values; and nothing changes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from guestmem import errors
from guestmem.errors import Stage2Error, UsageError
from guestmem.stage2.arm import arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.pool import Pool
from guestmem.stage2.table import PageTable

RW = Rights.RW


def made(pages: int = 64) -> PageTable:
    table = PageTable(arm_stage2(0x1000, 40), Pool(pages, base=0x1000_0000), walkers=2, cache=4)
    table.map(0x1000, 0x1000, 0x8000_0000, RW)
    table.annotate(0x5000, 0x1000, table.format.owned(2, 1))
    return table


BAD: dict[str, tuple[type[Stage2Error], int, str, Callable[[PageTable], object]]] = {
    "unaligned ipa": (errors.UnalignedError, errno.EINVAL, "ipa: 0x1800", lambda t: t.map(0x1800, 0x1000, 0, RW)),
    "unaligned size": (errors.UnalignedError, errno.EINVAL, "size: 0x1800", lambda t: t.unmap(0x1000, 0x1800)),
    "no size": (errors.UnalignedError, errno.EINVAL, "size: 0", lambda t: t.write_protect(0x1000, 0)),
    "unaligned address": (
        errors.UnalignedError,
        errno.EINVAL,
        "address: 0x10",
        lambda t: t.map(0x1000, 0x1000, 0x10, RW),
    ),
    "ipa out of range": (
        errors.OutOfRangeError,
        errno.ERANGE,
        "40 bits",
        lambda t: t.map((1 << 40) - 0x1000, 0x2000, 0, RW),
    ),
    "negative ipa": (errors.UnalignedError, errno.EINVAL, "ipa", lambda t: t.unmap(-0x1000, 0x1000)),
    "address out of range": (
        errors.OutOfRangeError,
        errno.ERANGE,
        "48 bits",
        lambda t: t.map(0x2000, 0x2000, (1 << 48) - 0x1000, RW),
    ),
    "lookup out of range": (errors.OutOfRangeError, errno.ERANGE, "40 bits", lambda t: t.lookup(1 << 40)),
    "a level without blocks": (
        errors.LevelError,
        errno.EINVAL,
        "level: 0",
        lambda t: t.map(0, 1 << 30, 0, RW, level=0),
    ),
    "no such level": (errors.LevelError, errno.EINVAL, "level: 4", lambda t: t.split(0, 0x1000, level=4)),
    "mapped already": (
        errors.MappedError,
        errno.EAGAIN,
        "0x1000",
        lambda t: t.map(0x1000, 0x1000, 0x8000_0000, Rights.READ),
    ),
    "owned": (
        errors.OwnedError,
        errno.EPERM,
        "0x5000: an owner's mark",
        lambda t: t.map(0x4000, 0x2000, 0x9000_0000, RW),
    ),
    "owned, below a block": (
        errors.OwnedError,
        errno.EPERM,
        "0x0: an owner's mark",
        lambda t: t.map(0, 0x20_0000, 0x8000_0000, RW),
    ),
    "owned, shared": (
        errors.OwnedError,
        errno.EPERM,
        "0x5000",
        lambda t: t.map(0x5000, 0x1000, 0x9000_0000, RW, shared=True),
    ),
    "relax nothing": (errors.UnmappedError, errno.EAGAIN, "0x9000", lambda t: t.relax(0x9000, RW)),
    "young nothing": (errors.UnmappedError, errno.EAGAIN, "0x9000", lambda t: t.mark_young(0x9000, shared=True)),
    "a mark that is valid": (errors.Stage2Error, errno.EINVAL, "mark: 0x3", lambda t: t.annotate(0x1000, 0x1000, 3)),
    "an empty mark": (errors.Stage2Error, errno.EINVAL, "mark: 0x0", lambda t: t.annotate(0x1000, 0x1000, 0)),
    "the locked mark": (
        errors.Stage2Error,
        errno.EINVAL,
        "mark",
        lambda t: t.annotate(0x1000, 0x1000, t.format.locked),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused(what: str) -> None:
    kind, number, message, call = BAD[what]
    table = made()
    with pytest.raises(Stage2Error, match=message) as raised:
        call(table)
    assert type(raised.value) is kind
    assert raised.value.errno == number
    assert "\n" not in str(raised.value)
    table.check()
    assert table.lookup(0x1000) is not None


def test_a_locked_entry_is_eagain_for_shared_walkers() -> None:
    table = made()
    entry = table.pool.load  # the entry for 0x2000, locked as if a walker was between break and make
    level2 = table.format.decode(entry(table.root, 0), 1).address  # type: ignore[union-attr]
    level3 = table.format.decode(entry(level2, 0), 2).address  # type: ignore[union-attr]
    table.pool.store(level3, 2, table.format.locked)
    for call in (
        lambda: table.map(0x2000, 0x1000, 0x9000_0000, RW, shared=True),
        lambda: table.relax(0x2000, RW, shared=True),
        lambda: table.mark_young(0x2000, shared=True),
    ):
        with pytest.raises(errors.LockedError, match=r"EAGAIN: .*: 0x2000: a walker is between break and make there"):
            call()
    assert entry(level3, 2) == table.format.locked
    table.pool.store(level3, 2, 0)
    table.check()


def test_a_table_page_that_lost_its_place_goes_back_to_the_cache() -> None:
    table = made()
    level2 = table.format.decode(table.pool.load(table.root, 0), 1).address  # type: ignore[union-attr]
    table.pool.store(level2, 2, table.format.locked)
    with pytest.raises(Stage2Error, match="EAGAIN"):
        table.map(0x40_0000, 0x1000, 0x9000_0000, RW, shared=True, walker=1)
    assert len(table.pool.cached(table.desks[1])) == 4
    table.pool.store(level2, 2, 0)
    table.check()
    assert table.map(0x40_0000, 0x1000, 0x9000_0000, RW, shared=True, walker=1) == 1


def test_an_owner_is_replaced_when_asked_for() -> None:
    table = made()
    assert table.map(0x4000, 0x2000, 0x9000_0000, RW, over_owner=True) == 2
    assert table.lookup(0x5000) is not None
    table.check()


def test_an_empty_pool_leaves_the_table_usable() -> None:
    table = made(pages=8)
    with pytest.raises(errors.TablePagesError, match=r"ENOMEM: map: .* 8 of 8 table pages") as raised:
        table.map(1 << 30, 16 << 30, 0, RW, level=3)
    assert raised.value.errno == errno.ENOMEM
    table.check()
    assert table.map(0x2000, 0x1000, 0x8000_1000, RW) == 1
    assert table.lookup((1 << 30) + 0x3000) is not None  # what was done stays
    assert table.unmap(1 << 30, 16 << 30) >= 512
    assert table.map(2 << 30, 0x1000, 0x8000_0000, RW) == 1
    table.check()


@pytest.mark.parametrize(("name", "value"), [("discipline", "none"), ("walkers", 0), ("cache", 1), ("queue", 3)])
def test_a_table_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        PageTable(arm_stage2(0x1000, 40), Pool(64), **{name: value})  # type: ignore[arg-type]


def test_the_pool_is_of_the_granule() -> None:
    with pytest.raises(UsageError, match="page_shift: 14 is not the pool's 12"):
        PageTable(arm_stage2(0x4000, 40), Pool(64))


def test_a_locked_entry_that_nobody_makes_is_eagain_exclusively_too() -> None:
    """A walker died there: the caller may try for ever, and ``check()`` says so."""
    table = made()
    level2 = table.format.decode(table.pool.load(table.root, 0), 1).address  # type: ignore[union-attr]
    level3 = table.format.decode(table.pool.load(level2, 0), 2).address  # type: ignore[union-attr]
    table.pool.store(level3, 2, table.format.locked)
    with pytest.raises(errors.LockedError, match="map: 0x2000: a walker is between break and make"):
        table.map(0x2000, 0x1000, 0x9000_0000, RW)
    table.pool.store(level3, 2, 0)
    with pytest.raises(errors.InvariantError):
        table.check()


AFTER: dict[str, Callable[[PageTable], object]] = {
    "map": lambda t: t.map(0x1000, 0x1000, 0, RW),
    "unmap": lambda t: t.unmap(0x1000, 0x1000),
    "write_protect": lambda t: t.write_protect(0x1000, 0x1000),
    "relax": lambda t: t.relax(0x1000, RW),
    "mark_young": lambda t: t.mark_young(0x1000),
    "young": lambda t: t.young(0x1000, 0x1000),
    "flush": lambda t: t.flush(0x1000, 0x1000),
    "split": lambda t: t.split(0x1000, 0x1000),
    "collapse": lambda t: t.collapse(0, 0x20_0000),
    "annotate": lambda t: t.annotate(0x1000, 0x1000, t.format.owned(2, 1)),
    "lookup": lambda t: t.lookup(0x1000),
    "destroy": lambda t: t.destroy(),
}


@pytest.mark.parametrize("what", AFTER)
def test_a_walk_while_destroyed(what: str) -> None:
    table = made()
    table.destroy()
    with pytest.raises(errors.DestroyedError, match=rf"EINVAL: {what}: 0x[01]000|EINVAL: {what}: 0x0: ") as raised:
        AFTER[what](table)
    assert raised.value.errno == errno.EINVAL
    assert table.pool.used == 0


PAIRS: dict[str, tuple[str, Callable[[], object]]] = {
    "no granule": (r"granule: 0x2000 is not 0x1000, 0x4000 or 0x10000", lambda: arm_stage2(0x2000, 40)),
    "too few bits": (r"ipa_bits: 24 is not in 25..48 for granule 0x1000", lambda: arm_stage2(0x1000, 24)),
    "too many": (r"ipa_bits: 52 is not in 25..48 for granule 0x4000", lambda: arm_stage2(0x4000, 52)),
    "a start too deep": (
        r"granule 0x1000: ipa_bits: 48 cannot start at level 2: 22..34 bits can",
        lambda: arm_stage2(0x1000, 48, start_level=2),
    ),
    "a start too high": (
        r"granule 0x10000: ipa_bits: 36 cannot start at level 1: 43..59 bits can",
        lambda: arm_stage2(0x10000, 36, start_level=1),
    ),
    "no such start": (
        r"start_level: 0 is not in 1..3 for granule 0x10000",
        lambda: arm_stage2(0x10000, 48, start_level=0),
    ),
}


@pytest.mark.parametrize("what", PAIRS)
def test_a_granule_and_input_that_arm_does_not_allow(what: str) -> None:
    message, call = PAIRS[what]
    with pytest.raises(errors.GeometryError, match=message) as raised:
        call()
    assert raised.value.errno == errno.EINVAL
