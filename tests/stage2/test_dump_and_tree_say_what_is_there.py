"""Dump and tree: random tables, written entry by entry, read back as what was written, merged where it goes on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.stage2 import (
    Annotations,
    ArmFormat,
    Format,
    Geometry,
    Leaf,
    Locked,
    NptTable,
    Owned,
    Pool,
    Range,
    Rights,
    amd_npt,
    arm_stage2,
    dump,
    format_dump,
    format_tree,
)
from naive_walker import Seen, arm_pages, arm_walk, npt_pages, npt_walk, reader

TINY = ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1)
FORMATS: dict[str, Format] = {
    "4K": arm_stage2(0x1000, 40),
    "4K LPA2": arm_stage2(0x1000, 52, large=True),
    "4K level 2": arm_stage2(0x1000, 32),
    "16K": arm_stage2(0x4000, 40),
    "16K LPA2": arm_stage2(0x4000, 52, large=True),
    "64K": arm_stage2(0x10000, 44),
    "64K LPA": arm_stage2(0x10000, 52, large=True),
    "8 entries": TINY,
    "NPT": amd_npt(),
}
TABLES = 24
"""Tables of a random tree, at most."""
formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def naive(format_: Format, pool: Pool, root: int) -> dict[int, Seen]:
    read = reader(pool.words, pool.base)
    if not isinstance(format_, ArmFormat):
        return npt_pages(read, root)
    return arm_pages(read, root, **arm_options(format_))


def arm_options(arm: ArmFormat) -> Any:
    geometry = arm.geometry
    options = {"granule": geometry.page_size >> 10, "ipa_bits": geometry.ipa_bits, "wide": arm.large}
    return options | ({"stride": 3, "start": 1} if geometry.stride == 3 else {})


def fill(
    format_: Format,
    pool: Pool,
    rng: random.Random,
    table: int,
    level: int,
    start: int,
    written: dict[int, tuple[int, object]],
) -> None:
    """Random entries, in runs, and in ``written`` what each input address should say."""
    geometry = format_.geometry
    count = geometry.root_entries if level == geometry.start_level else geometry.entries
    index = 0
    while index < count:
        index += rng.choice([0, 0, 1, count // 4 + 1])
        kind, run = rng.random(), rng.choice([1, 1, 2, 5])
        rights = rng.choice([Rights.RW, Rights.RWX, Rights.READ])
        size = geometry.size(level)
        output = rng.randrange(1, (1 << format_.pa_bits) // size - 8) * size
        for index_ in range(index, min(index + run, count)):
            at = start + index_ * size
            if level < 3 and (kind < 0.5 or level not in format_.block_levels):
                if pool.used >= TABLES:
                    break
                child = pool.alloc()
                pool.store(table, index_, format_.table(child))
                fill(format_, pool, rng, child, level + 1, at, written)
                break
            if kind < 0.9:
                entry: object = (output, rights)
                word = format_.leaf(level, output, format_.attributes(rights, software=run))
                output += size
            else:
                owned = Owned(2, run)
                entry, word = (owned, format_.encode(owned)) if kind < 0.97 else (Locked(), format_.locked)
            pool.store(table, index_, word)
            written[at] = level, entry
        index += run


@formats
def test_random_tables(format_: Format, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    geometry = format_.geometry
    leaves = merged = 0
    for _ in range(sized(4, 2)):
        pool = Pool(2048, geometry.page_shift, base=0x8000_0000)
        root = pool.alloc(geometry.root_pages)
        written: dict[int, tuple[int, object]] = {}
        fill(format_, pool, rng, root, geometry.start_level, 0, written)
        ranges = dump(format_, pool.load, root)
        found: dict[int, tuple[int, object]] = {}
        for each in ranges:
            size = geometry.size(each.level)
            for place, at in enumerate(range(each.start, each.end, size)):
                assert at not in found
                if isinstance(each.entry, Leaf):
                    assert each.address is not None
                    found[at] = each.level, (each.address + place * size, each.rights)
                else:
                    found[at] = each.level, each.entry
        assert found == written
        assert [each.start for each in ranges] == sorted(each.start for each in ranges)
        assert not any(first.continued_by(second) for first, second in itertools.pairwise(ranges))
        seen = {
            at: Seen(what[0], str(what[1]), level) for at, (level, what) in written.items() if isinstance(what, tuple)
        }
        assert naive(format_, pool, root) == seen
        leaves, merged = leaves + len(seen), merged + len(written) - len(ranges)
        tree = format_tree(format_, pool.load, root).splitlines()
        assert sum(" table " in line for line in tree) == pool.used - geometry.root_pages
        assert len(tree) >= len(ranges)
    assert leaves > 20
    assert merged > 5


def test_naive_walk_and_naive_pages_agree(rng: random.Random) -> None:
    for format_ in FORMATS.values():
        geometry = format_.geometry
        pool = Pool(2048, geometry.page_shift, base=0x8000_0000)
        root = pool.alloc(geometry.root_pages)
        fill(format_, pool, rng, root, geometry.start_level, 0, {})
        read = reader(pool.words, pool.base)
        for at, seen in naive(format_, pool, root).items():
            offset = rng.randrange(geometry.size(seen.level))
            if isinstance(format_, ArmFormat):
                walked = arm_walk(read, root, at + offset, **arm_options(format_))
            else:
                walked = npt_walk(read, root, at + offset)
            assert walked == seen._replace(pa=seen.pa + offset)


def test_rights_of_tables_limit_what_is_below() -> None:
    npt, pool = amd_npt(), Pool(8, base=0x8000_0000)
    root = table = pool.alloc()
    for rights in (Rights.RWX, Rights.RW, Rights.READ | Rights.X):
        child = pool.alloc()
        pool.store(table, 0, npt.encode(NptTable(0, child, rights)))
        table = child
    pool.store(table, 2, npt.leaf(3, 0x9000, npt.attributes(Rights.RWX)))
    (only,) = dump(npt, pool.load, root)
    assert (only.start, only.rights, only.address) == (0x2000, Rights.READ, 0x9000)
    assert str(only) == "[0x2000, 0x3000) 4 KiB r-- level 3 -> 0x9000 normal"
    assert format_tree(npt, pool.load, root).splitlines()[2:4] == [
        "   └─ [0x0, 0x40000000) table 0x80002000 level 2, 1 of 512 rw-",
        "      └─ [0x0, 0x200000) table 0x80003000 level 3, 1 of 512 r--",
    ]


def test_whole_text() -> None:
    arm, pool = TINY, Pool(8, base=0x8000_0000)
    root, table = pool.alloc(2), pool.alloc()
    attributes = arm.attributes(Rights.READ)
    pool.store(root, 0, arm.leaf(1, 0x4000_0000, arm.attributes(Rights.RWX, accessed=False)))
    pool.store(root, 1, arm.leaf(1, 0x4004_0000, arm.attributes(Rights.RWX, accessed=False)))
    pool.store(root, 9, arm.table(table))
    for index in range(3):
        pool.store(table, index, arm.leaf(2, 0x8000 * index, attributes))
    pool.store(table, 4, arm.leaf(2, 0, attributes | 3 << 55))
    pool.store(table, 5, arm.locked)
    pool.store(table, 6, arm.owned(3, 0))
    pool.store(table, 7, 0x1001 | 1 << 63)
    text = format_tree(arm, pool.load, root)
    assert text == (
        "Arm stage 2, 4K, 22 bits: root 0x80000000 level 1, 2 pages\n"
        "├─ [0x0, 0x80000) 512 KiB rwx level 1 -> 0x40000000 normal old\n"
        "└─ [0x240000, 0x280000) table 0x80002000 level 2, 7 of 8\n"
        "   ├─ [0x240000, 0x258000) 96 KiB r-- level 2 -> 0x0 normal\n"
        "   ├─ [0x260000, 0x268000) 32 KiB r-- level 2 -> 0x0 normal software 0x3\n"
        "   ├─ [0x268000, 0x270000) 32 KiB locked, level 2\n"
        "   ├─ [0x270000, 0x278000) 32 KiB owned, level 2, kind 3, payload 0x0\n"
        "   └─ [0x278000, 0x280000) 32 KiB malformed, level 2: 0x8000000000001001: a leaf has bits 0x8000000000001000"
    )
    assert len(format_dump(dump(arm, pool.load, root)).splitlines()) == 6
    assert dump(arm, pool.load, root)[0] == Range(
        0, 0x80000, 1, arm.decode(pool.load(root, 0), 1), Rights.RWX, 0x4000_0000
    )
