"""What is done to a part of a block changes nothing outside that part: page by page, in both formats, to the last page
of the pool; only ``exact=False`` does as Linux."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import Annotations, ArmFormat, Format, Geometry, NptFormat, PageTable, Pool, Rights, arm_stage2
from naive_walker import arm_owned, arm_pages, npt_pages, reader

HOST = 0x8000_0000
RW = format(Rights.RW)
FORMATS: dict[str, Callable[[], Format]] = {
    "arm-8-entries": lambda: ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1),
    "npt-8-entries": lambda: NptFormat(Geometry(12, 3, 0, 24), 48, Annotations.LINUX_7_1),
}


def seen(table: PageTable) -> dict[int, Any]:
    """What each page of the input is, by a walker that shares no code: (host page, rights), or a mark."""
    geometry = table.format.geometry
    read, page = reader(table.pool.words, table.pool.base), geometry.page_size
    if isinstance(table.format, NptFormat):
        leaves, marks = npt_pages(read, table.root, stride=3), {}
    else:
        where: dict[str, Any] = {"ipa_bits": geometry.ipa_bits, "start": geometry.start_level, "stride": 3}
        leaves = arm_pages(read, table.root, **where)
        marks = {at: word for at, (word, _) in arm_owned(read, table.root, **where).items()}
    pages: dict[int, Any] = dict(marks)
    for start, leaf in leaves.items():
        for offset in range(0, geometry.size(leaf.level), page):
            pages[start + offset] = leaf.pa + offset, leaf.rights
    return pages


def act(table: PageTable, pages: dict[int, Any], name: str, ipa: int, size: int, rng: random.Random) -> None:
    """One operation on the table, and on each page of the dict."""
    inside = range(ipa, ipa + size, 0x1000)
    shared = rng.random() < 0.5
    if name == "unmap":
        table.unmap(ipa, size, defer=shared)
        for page in inside:
            pages.pop(page, None)
    elif name == "write_protect":
        table.write_protect(ipa, size)
        for page in inside:
            if isinstance(found := pages.get(page), tuple):
                pages[page] = found[0], found[1].replace("w", "-")
    elif name == "annotate":
        mark = table.format.owned(2, rng.randrange(1, 8))
        table.annotate(ipa, size, mark)
        pages.update(dict.fromkeys(inside, mark))
    else:
        # Other host pages than there were: never mapped already.
        host = HOST + rng.randrange(1, 1 << 20) * 0x1000
        table.map(ipa, size, host, Rights.RW, shared=shared and name == "map", over_owner=True, ignore_eagain=True)
        pages.update({page: (host + page - ipa, RW) for page in inside})


@pytest.mark.parametrize("discipline", ["rcu", "walk_refs"])
@pytest.mark.parametrize("kind", FORMATS)
def test_random_parts_of_blocks(
    kind: str, discipline: str, rng: random.Random, sized: Callable[[int, int], int]
) -> None:
    table = PageTable(FORMATS[kind](), Pool(300, base=0x1000_0000), discipline=discipline, queue=1024)
    names = ["unmap", "write_protect", "map", "over"] + ["annotate"] * ("arm" in kind)
    for _ in range(sized(6, 2)):
        table.unmap(0, 1 << 18)
        table.map(0, 1 << 18, HOST, Rights.RW)  # eight blocks of the largest size
        pages: dict[int, Any] = {page: (HOST + page, RW) for page in range(0, 1 << 18, 0x1000)}
        for _ in range(8):
            count = rng.choice([1, 1, 3, 9, 20])
            ipa = rng.randrange(64 - count) * 0x1000
            name = rng.choice(names)
            act(table, pages, name, ipa, count * 0x1000, rng)
            now = seen(table)
            wrong = {hex(page) for page in pages.keys() | now.keys() if pages.get(page) != now.get(page)}
            assert not wrong, f"{name} of {count} pages at {ipa:#x} changed {sorted(wrong)}"
            table.reclaim()
            table.check()


OPERATIONS: dict[str, Callable[[PageTable, int, int], object]] = {
    "unmap": lambda table, ipa, size: table.unmap(ipa, size),
    "write_protect": lambda table, ipa, size: table.write_protect(ipa, size),
    "annotate": lambda table, ipa, size: table.annotate(ipa, size, table.format.owned(2, 1)),
    "map": lambda table, ipa, size: table.map(ipa, size, 0x1000, Rights.RW),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_pages_nothing_changes(name: str) -> None:
    """A gigabyte's middle needs two tables; there is one page."""
    table = PageTable(arm_stage2(0x1000, 40), Pool(3, base=0x1000_0000), cache=2)
    table.map(1 << 30, 1 << 30, 1 << 30, Rights.RW)
    looked = [(1 << 30) + at for at in (0, 0x4000, 0x5000, 0x6000, 0x20_0000, 0x3FFF_F000)]
    with pytest.raises(Stage2Error, match=f"ENOMEM: {name}") as raised:
        OPERATIONS[name](table, (1 << 30) + 0x5000, 0x1000)
    assert raised.value.errno == errno.ENOMEM
    for ipa in looked:
        found = table.lookup(ipa)
        assert found is not None
        assert found.address == ipa
        assert format(table.format.decode(found.descriptor, found.level).rights) == RW  # type: ignore[union-attr]
    table.check()
    assert table.unmap(1 << 30, 1 << 30) in {1, 512}
    table.check()


@pytest.mark.parametrize(("name", "pages"), [("unmap", 4), ("write_protect", 4), ("annotate", 4), ("map", 4)])
def test_just_enough_pages(name: str, pages: int) -> None:
    """Both bounds in one 2M block of a gigabyte: two tables, and not one more."""
    table = PageTable(arm_stage2(0x1000, 40), Pool(pages, base=0x1000_0000), cache=2)
    table.map(1 << 30, 1 << 30, 1 << 30, Rights.RW)
    OPERATIONS[name](table, (1 << 30) + 0x5000, 0x3000)
    for ipa in (1 << 30, (1 << 30) + 0x4000, (1 << 30) + 0x8000, (1 << 30) + 0x20_0000):
        found = table.lookup(ipa)
        assert found is not None
        assert (found.address, found.level) == (ipa, 3 if ipa < (1 << 30) + 0x20_0000 else 2)
    table.check()


def test_linux_loses_the_rest() -> None:
    table = PageTable(arm_stage2(0x1000, 40), Pool(16, base=0x1000_0000))
    losing: list[Callable[[], object]] = [
        lambda: table.unmap(0x1000, 0x1000, exact=False),
        lambda: table.annotate(0x1000, 0x1000, table.format.owned(2, 1), exact=False),
        lambda: table.map(0x1000, 0x1000, 0x5000, Rights.RW, exact=False),
    ]
    for lose in losing:
        table.unmap(0, 0x20_0000)
        table.map(0, 0x20_0000, 0x20_0000, Rights.RW)
        lose()
        assert table.lookup(0x2000) is None
        table.check()
    table.unmap(0, 0x20_0000)
    table.map(0, 0x20_0000, 0x20_0000, Rights.RW)
    assert table.write_protect(0x1000, 0x1000, exact=False) == 1
    found = table.lookup(0x2000)
    assert found is not None
    assert found.level == 2
