"""After every random operation a naive walker sees what a dict of pages says, and ``check()`` holds; in both formats,
all disciplines, real tables and tables of 8 entries."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2.arm import ArmFormat, arm_stage2
from guestmem.stage2.descriptor import Rights
from guestmem.stage2.format import Annotations, Format
from guestmem.stage2.geometry import Geometry
from guestmem.stage2.npt import NptFormat, amd_npt
from guestmem.stage2.pool import Pool
from guestmem.stage2.table import DISCIPLINES, PageTable
from naive_walker import arm_owned, arm_pages, npt_pages, reader
from pages_oracle import Leaf, PagesOracle, Refused

pytestmark = pytest.mark.slow

TINY = Geometry(12, 3, 1, 22)
TINY_X86 = Geometry(12, 3, 0, 24)
FORMATS: dict[str, Callable[[], Format]] = {
    "arm-8-entries": lambda: ArmFormat(TINY, 48, Annotations.LINUX_7_1),
    "npt-8-entries": lambda: NptFormat(TINY_X86, 48, Annotations.LINUX_7_1),
    "arm-4k": lambda: arm_stage2(0x1000, 40),
    "arm-16k": lambda: arm_stage2(0x4000, 40),
    "arm-64k-52": lambda: arm_stage2(0x10000, 40, large=True),
    "arm-4k-52": lambda: arm_stage2(0x1000, 48, large=True),
    "npt": amd_npt,
}


class Pair:
    """A table and what it should be."""

    def __init__(self, kind: str, format_: Format, discipline: str) -> None:
        geometry = format_.geometry
        self.small = "8-entries" in kind
        self.pool = Pool(400, geometry.page_shift, base=0x1000_0000)
        self.table = PageTable(format_, self.pool, discipline=discipline, walkers=2, queue=1024)
        first = int(self.table._check_level(None))
        self.sizes = [geometry.size(level) for level in range(first, 4)]
        self.oracle = PagesOracle(self.sizes)
        self.kind, self.geometry, self.format = kind, geometry, format_
        # Real tables are too large to compare whole: a few pages around the bounds of a block.
        block = self.sizes[-2]
        self.window = (0, 1 << geometry.ipa_bits) if self.small else (2 * block, 2 * block + 2 * block)

    def seen(self) -> tuple[dict[int, Any], dict[int, int]]:
        read = reader(self.pool.words, self.pool.base)
        stride = self.geometry.stride if self.small else None
        if self.kind.startswith("npt"):
            return npt_pages(read, self.table.root, stride=stride), {}
        where: dict[str, Any] = {
            "granule": self.geometry.page_size >> 10,
            "ipa_bits": self.geometry.ipa_bits,
            "start": self.geometry.start_level,
            "stride": stride,
        }
        owned = {at: word for at, (word, _level) in arm_owned(read, self.table.root, **where).items()}
        wide = self.kind.endswith("52")
        return arm_pages(read, self.table.root, wide=wide, **where), owned

    def compare(self) -> None:
        leaves, owned = self.seen()
        expected = {leaf.start: leaf for leaf in self.oracle.at.values() if isinstance(leaf, Leaf)}
        assert {at: (leaf.pa, leaf.rights, self.geometry.size(leaf.level)) for at, leaf in leaves.items()} == {
            at: (leaf.pa, leaf.rights, leaf.size) for at, leaf in expected.items()
        }
        if not self.kind.startswith("npt"):
            assert owned == {page: mark for page, mark in self.oracle.at.items() if isinstance(mark, int)}
        self.table.check()


def text(rights: Rights) -> str:
    return format(rights)


def step(pair: Pair, rng: random.Random) -> str:
    """One random operation on both; returns its name."""
    table, oracle, page = pair.table, pair.oracle, pair.sizes[-1]
    low, high = pair.window
    units = rng.choice([[page], [page], pair.sizes])
    unit = rng.choice([size for size in units if size <= high - low])
    ipa = rng.randrange(low // unit, high // unit) * unit
    size = min(rng.choice([1, 1, 2, 3, 8, 20]) * unit, high - ipa)
    if not pair.small:
        size = min(size, rng.choice([40 * page, high - low]))
    level = rng.choice([None, None, 3, 2])
    first = int(table._check_level(None))
    if level is not None and level < first:
        level = None
    largest = pair.geometry.size(first if level is None else level)
    name = rng.choice(
        [
            "map",
            "map",
            "map",
            "map",
            "unmap",
            "unmap",
            "protect",
            "relax",
            "young",
            "clear",
            "split",
            "collapse",
            "annotate",
            "again",
        ]
    )
    shared, walker, exact = rng.random() < 0.5, rng.randrange(2), rng.random() < 0.5
    if name in {"map", "again"}:
        # Of a few places, so that runs meet.
        shift = rng.choice([0, 0, 0, page, pair.sizes[0]])
        pa = 0x8000_0000 - 0x8000_0000 % pair.sizes[0] + ipa + shift
        rights = rng.choice([Rights.READ, Rights.RW, Rights.RWX])
        skip = rng.random() < 0.5
        wanted: object = None
        got: object = None
        try:
            wanted = oracle.map(ipa, size, pa, text(rights), largest, skip, exact)
        except Refused as refused:
            wanted = str(refused)
        try:
            got = table.map(
                ipa, size, pa, rights, level=level, shared=shared, ignore_eagain=skip, exact=exact, walker=walker
            )
        except Stage2Error as error:
            got = errno.errorcode[error.errno or 0]
        assert got == wanted
    elif name == "unmap":
        oracle.cut_both(ipa, ipa + size, exact)
        assert table.unmap(ipa, size, defer=rng.random() < 0.5, exact=exact) == oracle.unmap(ipa, size)
    elif name == "protect":
        oracle.cut_both(ipa, ipa + size, exact)
        assert table.write_protect(ipa, size, exact=exact) == oracle.write_protect(ipa, size)
    elif name == "relax":
        leaf = oracle.leaf(ipa)
        if leaf is None:
            with pytest.raises(Stage2Error, match="EAGAIN"):
                table.relax(ipa, Rights.WRITE, shared=shared, walker=walker)
        else:
            table.relax(ipa, Rights.WRITE, shared=shared, walker=walker)
            oracle.change(leaf, rights=leaf.rights[0] + "w" + leaf.rights[2])
    elif name in {"young", "clear"}:
        clear = name == "clear"
        assert table.young(ipa, size, clear=clear) == oracle.young(ipa, size, clear)
        if leaf := oracle.leaf(ipa):
            table.mark_young(ipa, shared=shared, walker=walker)
            oracle.change(leaf, young=True)
        assert table.flush(ipa, size) == len(oracle.leaves(ipa, size))
    elif name == "split":
        table.split(ipa, size, level=level, chunk=rng.choice([1, 2, 1000]), bbm=rng.randrange(3))
        oracle.split(ipa, size, pair.sizes[-1] if level is None else largest)
    elif name == "collapse":
        assert table.collapse(ipa, size, level=level, shared=shared, bbm=rng.randrange(3)) == oracle.collapse(
            ipa, size, largest
        )
    else:
        mark = pair.format.owned(2, rng.randrange(1, 8))
        size = min(size, 40 * page)
        oracle.cut_both(ipa, ipa + size, exact)
        table.annotate(ipa, size, mark, exact=exact)
        oracle.annotate(ipa, size, mark)
    found = table.lookup(ipa + 8, walker=walker)
    leaf = oracle.leaf(ipa)
    assert (found and found.address) == (leaf and leaf.pa + ipa - leaf.start + 8)
    return name


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("kind", FORMATS)
def test_random_operations(kind: str, discipline: str, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    small = "8-entries" in kind
    if not small and sized(0, 1) and discipline != "rcu":
        pytest.skip("interpreted, large tables are walked in one discipline only")
    pair = Pair(kind, FORMATS[kind](), discipline)
    names: dict[str, int] = {}
    for number in range(150 if small else sized(12, 8)):
        name = step(pair, rng)
        names[name] = names.get(name, 0) + 1
        if number % 30 == 29:
            pair.table.reclaim()
        pair.compare()
    if small:
        assert len(names) == 10, names
    pair.table.reclaim()
    used = pair.table.destroy()
    assert used > 0
    assert pair.pool.used == 0
    pair.pool.check(held=[])
