"""Each bad argument is its own error, with the kernel's errno and the values; and nothing changes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

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


BAD: dict[str, tuple[int, str, Callable[[PageTable], object]]] = {
    "unaligned ipa": (errno.EINVAL, "ipa: 0x1800", lambda t: t.map(0x1800, 0x1000, 0, RW)),
    "unaligned size": (errno.EINVAL, "size: 0x1800", lambda t: t.unmap(0x1000, 0x1800)),
    "no size": (errno.EINVAL, "size: 0", lambda t: t.write_protect(0x1000, 0)),
    "unaligned address": (errno.EINVAL, "address: 0x10", lambda t: t.map(0x1000, 0x1000, 0x10, RW)),
    "ipa out of range": (errno.ERANGE, "40 bits", lambda t: t.map((1 << 40) - 0x1000, 0x2000, 0, RW)),
    "negative ipa": (errno.EINVAL, "ipa", lambda t: t.unmap(-0x1000, 0x1000)),
    "address out of range": (errno.ERANGE, "48 bits", lambda t: t.map(0x2000, 0x2000, (1 << 48) - 0x1000, RW)),
    "lookup out of range": (errno.ERANGE, "40 bits", lambda t: t.lookup(1 << 40)),
    "a level without blocks": (errno.EINVAL, "level: 0", lambda t: t.map(0, 1 << 30, 0, RW, level=0)),
    "no such level": (errno.EINVAL, "level: 4", lambda t: t.split(0, 0x1000, level=4)),
    "mapped already": (errno.EAGAIN, "0x1000", lambda t: t.map(0x1000, 0x1000, 0x8000_0000, Rights.READ)),
    "owned": (errno.EPERM, "0x5000: an owner's mark", lambda t: t.map(0x4000, 0x2000, 0x9000_0000, RW)),
    "owned, below a block": (errno.EPERM, "0x0: an owner's mark", lambda t: t.map(0, 0x20_0000, 0x8000_0000, RW)),
    "owned, shared": (errno.EPERM, "0x5000", lambda t: t.map(0x5000, 0x1000, 0x9000_0000, RW, shared=True)),
    "relax nothing": (errno.EAGAIN, "0x9000", lambda t: t.relax(0x9000, RW)),
    "young nothing": (errno.EAGAIN, "0x9000", lambda t: t.mark_young(0x9000, shared=True)),
    "a mark that is valid": (errno.EINVAL, "mark: 0x3", lambda t: t.annotate(0x1000, 0x1000, 3)),
    "an empty mark": (errno.EINVAL, "mark: 0x0", lambda t: t.annotate(0x1000, 0x1000, 0)),
    "the locked mark": (errno.EINVAL, "mark", lambda t: t.annotate(0x1000, 0x1000, t.format.locked)),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused(what: str) -> None:
    number, message, call = BAD[what]
    table = made()
    with pytest.raises(Stage2Error, match=message) as raised:
        call(table)
    assert raised.value.errno == number
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
        with pytest.raises(Stage2Error, match="EAGAIN"):
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
    with pytest.raises(Stage2Error, match=r"ENOMEM: map: .* 8 of 8 table pages") as raised:
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
