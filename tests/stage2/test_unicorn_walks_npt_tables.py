"""Unicorn's own x86 MMU translates the same addresses through NPT tables made here, and faults at the same ones."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from guestmem.errors import Stage2Error
from guestmem.low_memory import low_memory
from guestmem.stage2 import Leaf, NptFormat, NptTable, Pool, Rights, amd_npt
from guestmem.stage2.table import PageTable
from naive_walker import Fault, Read, Seen, npt_pages, npt_walk, reader
from unicorn_guest import CODE, CODE_SLOT, PA_BITS, Guest

GIB = 1 << 30
SIZE = 3 * GIB
RIGHTS = [Rights.READ, Rights.RW, Rights.READ | Rights.X, Rights.RWX]


class Bench(NamedTuple):
    pool: Pool
    format: NptFormat
    memory: int
    code: int
    keep: object


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A pool, and sparse memory for leaves, both below 2**40; its last page is the guest's code."""
    memory, view, fd = low_memory(SIZE, GIB)
    os.close(fd)
    pool = Pool(512)
    yield Bench(pool, amd_npt(PA_BITS), memory, memory + SIZE - 0x1000, view)
    pool.close()


def new_root(bench: Bench) -> int:
    """A table that maps nothing but the code page."""
    root = table = bench.pool.alloc()
    index = CODE_SLOT
    for _ in range(3):
        below = bench.pool.alloc()
        bench.pool.store(table, index, bench.format.table(below))
        table, index = below, 0
    attributes = bench.format.attributes(Rights.RWX)
    bench.pool.store(table, index, bench.format.leaf(3, bench.code, attributes))
    return root


def fill(bench: Bench, rng: random.Random, table: int, level: int, *, raw: bool) -> None:
    """Random entries below ``table``: blocks, pages, tables with limited rights, marks; ``raw``: also broken words."""
    format_, pool = bench.format, bench.pool
    free = [index for index in range(512) if (level, index) != (0, CODE_SLOT)]
    for index in rng.sample([0, 1, 510, 511, *rng.sample(free, 8)] if level else free, 3 if level < 3 else 10):
        choice = rng.random()
        if level < 3 and (choice < 0.6 or level == 0):
            child = pool.alloc()
            word = format_.encode(NptTable(level, child, rights=rng.choice(RIGHTS)))
            fill(bench, rng, child, level + 1, raw=raw)
            flips = [0, 2, 3, 4, 6, 7, 8, 9, 54, 60, *range(PA_BITS, 52)]
        elif choice < 0.95:
            size = format_.geometry.size(level)
            address = bench.memory + rng.randrange((SIZE - 0x1000) // size) * size
            word = format_.leaf(level, address, format_.attributes(rng.choice(RIGHTS), accessed=rng.random() < 0.5))
            flips = [0, 2, 3, 4, 6, 8, 9, 12, 54, 60, *range(13, (30, 30, 21, 12)[level]), *range(PA_BITS, 52)]
        else:
            word = rng.choice([format_.owned(2, rng.getrandbits(50)), format_.locked])
            flips = [5, 7, 12, 63]
        if raw and rng.random() < 0.3:
            word ^= 1 << rng.choice(flips)  # never one that makes a table of memory, nor an address where nothing is
        pool.store(table, index, word)


def probes(read: Read, root: int, rng: random.Random, leaves: dict[int, Seen]) -> list[int]:
    """Addresses in, at both ends of, and just beside leaves; at other entries; and anywhere. Multiples of 8."""
    found = []
    for start, seen in leaves.items():
        size = 1 << (39, 30, 21, 12)[seen.level]
        found += [start, start + size - 8, start + rng.randrange(0, size, 8)]
        found += [(start + size) % 2**48, (start - 8) % 2**48]
    found += [rng.randrange(0, 2**48, 8) for _ in range(20)]
    roots = [index << 39 for index in range(512) if read(root, index)]
    found += [rng.choice(roots) + rng.randrange(0, GIB, 0x1000) for _ in range(20)]
    return [gpa for gpa in found if gpa >> 39 != CODE_SLOT]


def looked_up(table: PageTable, gpa: int) -> tuple[int, str] | None:
    """What the compiled walk and the decoder say."""
    found = table.lookup(gpa)
    if found is None:
        return None
    entry = table.format.decode(found.descriptor, found.level)
    assert isinstance(entry, Leaf)
    return found.address, str(entry.rights)


def compare(
    bench: Bench, guest: Guest, root: int, rng: random.Random, most: int, table: PageTable | None = None
) -> tuple[int, int]:
    """Every kind of access against the naive walker (and the compiled); how many went through, how many faulted."""
    read = reader(bench.pool.words, bench.pool.base)
    every = probes(read, root, rng, npt_pages(read, root, pa_bits=PA_BITS))
    through = faulted = 0
    for gpa in rng.sample(every, min(most, len(every))):
        seen = npt_walk(read, root, gpa, pa_bits=PA_BITS)
        rights = seen.rights if isinstance(seen, Seen) else "---"
        if table is not None:
            assert looked_up(table, gpa) == (None if isinstance(seen, Fault) else (seen.pa, rights)), (hex(gpa), seen)
        if isinstance(seen, Fault):
            assert guest.read(root, gpa) is None, (hex(gpa), seen)
            assert not guest.write(root, gpa, 1), (hex(gpa), seen)
            assert not guest.fetch(root, gpa), (hex(gpa), seen)
        elif not bench.memory <= seen.pa < bench.code:
            continue  # a broken word that maps the code page
        else:
            cell = ctypes.c_uint64.from_address(seen.pa)
            stamp = rng.getrandbits(64)
            cell.value = stamp
            assert guest.read(root, gpa) == stamp, (hex(gpa), seen)
            new = rng.getrandbits(64)
            assert guest.write(root, gpa, new) == ("w" in rights), (hex(gpa), seen)
            assert cell.value == (new if "w" in rights else stamp), (hex(gpa), seen)
            cell.value = 0x90
            assert guest.fetch(root, gpa) == ("x" in rights), (hex(gpa), seen)
        for asked in ("r" in rights, "w" in rights, "x" in rights):
            through += asked
            faulted += not asked
    return through, faulted


@pytest.mark.parametrize("raw", [False, True], ids=["whole words", "broken words"])
def test_random_tables(raw: bool, bench: Bench, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    through = faulted = 0
    root = new_root(bench)
    pool_region = (bench.pool.base, bench.pool.limit << 12)
    guest = Guest([pool_region, (bench.memory, SIZE)], bench.code, root)
    for _ in range(sized(10, 3)):
        fill(bench, rng, root, 0, raw=raw)
        counts = compare(bench, guest, root, rng, sized(150, 60))
        through, faulted = through + counts[0], faulted + counts[1]
        root = new_root(bench)
    assert through > 100
    assert faulted > 100
    assert guest.accesses > through


def change(table: PageTable, bench: Bench, rng: random.Random) -> str:
    """One random operation on one of four places; its name, or why it was refused."""
    place = rng.choice([0, 0x7F << 39, 0x1FF << 39 | 0x1FF << 30, 5 << 39 | 3 << 30])
    step = rng.choice([0x1000, 0x1000, 0x200000])
    ipa = place + rng.randrange(64) * step
    size = step * rng.randrange(1, 6) if rng.random() < 0.9 else GIB
    ipa, size = (ipa // GIB * GIB, size) if size == GIB else (ipa, size)
    kind = rng.choice(["map"] * 5 + ["unmap", "write_protect", "relax", "split", "collapse", "annotate", "young"])
    at = bench.memory + rng.choice([ipa % GIB, rng.randrange(SIZE // step - 8) * step]) if size < GIB else bench.memory
    try:
        match kind:
            case "map":
                table.map(ipa, size, at, rng.choice(RIGHTS), over_owner=rng.random() < 0.5)
            case "relax":
                table.relax(ipa, rng.choice(RIGHTS))
            case "split":
                table.split(ipa, min(size, 0x400000))
            case "annotate":
                table.annotate(ipa, min(size, 0x5000), bench.format.owned(2, rng.getrandbits(40)))
            case "young":
                table.young(ipa, size, clear=True)
            case _:
                getattr(table, kind)(ipa, size)
    except Stage2Error as error:
        return f"{kind} {errno.errorcode[error.errno or 0]}"
    return kind


def test_tables_of_random_operations(bench: Bench, rng: random.Random, sized: Callable[[int, int], int]) -> None:
    table = PageTable(bench.format, bench.pool)
    table.map(CODE, 0x1000, bench.code, Rights.RWX)
    guest = Guest([(bench.pool.base, bench.pool.limit << 12), (bench.memory, SIZE)], bench.code, table.root)
    through = faulted = 0
    kinds: set[str] = set()
    for _ in range(sized(25, 5)):
        kinds |= {change(table, bench, rng) for _ in range(12)}
        counts = compare(bench, guest, table.root, rng, sized(60, 30), table)
        through, faulted = through + counts[0], faulted + counts[1]
        table.check()  # Unicorn sets A and D, nothing else
    assert through > sized(1000, 50)
    assert faulted > sized(1000, 50)
    assert len(kinds & {"map", "unmap", "write_protect", "relax", "split", "annotate"}) >= sized(6, 3)


def test_hardware_sets_accessed_and_dirty_where_decode_finds_them(bench: Bench) -> None:
    root = new_root(bench)
    table, format_, pool = root, bench.format, bench.pool
    for _ in range(3):
        child = pool.alloc()
        pool.store(table, 0, format_.encode(NptTable(0, child, accessed=False)))
        table = child
    for index in range(2):
        attributes = format_.attributes(Rights.RW, accessed=False)
        pool.store(table, index, format_.leaf(3, bench.memory + 0x1000 * index, attributes))
    guest = Guest([(pool.base, pool.limit << 12), (bench.memory, SIZE)], bench.code, root)
    before = pool.load(table, 0), pool.load(table, 1)
    assert guest.read(root, 0) == 0
    assert guest.write(root, 0x1000, 7)
    entries = [format_.decode(pool.load(table, index), 3) for index in range(2)]
    assert [(entry.accessed, entry.dirty) for entry in entries] == [(True, False), (True, True)]  # type: ignore[union-attr]
    assert [format_.decode(word, 3).accessed for word in before] == [False, False]  # type: ignore[union-attr]
    top = format_.decode(pool.load(root, 0), 0)
    assert isinstance(top, NptTable)
    assert top.accessed
