"""The words that compiled code gets say of every descriptor what the Python codec says."""

from __future__ import annotations

import random

import pytest

from guestmem.stage2 import Annotations, ArmFormat, Format, Geometry, Leaf, Rights, Table, amd_npt, arm_stage2
from guestmem.stage2 import layout as words
from guestmem.stage2.entry import is_counted, is_table, leaf_descriptor, output_address, table_descriptor, table_page
from guestmem.stage2.marks import is_mark

BASE = 0xAB_0000_0000
FORMATS: dict[str, Format] = {
    "4K": arm_stage2(0x1000, 40),
    "4K LPA2": arm_stage2(0x1000, 52, large=True, fwb=True),
    "16K": arm_stage2(0x4000, 48, annotations=Annotations.LINUX_6_2),
    "16K LPA2": arm_stage2(0x4000, 52, large=True),
    "64K": arm_stage2(0x10000, 44, xnx=False),
    "64K LPA": arm_stage2(0x10000, 52, large=True, dbm=True),
    "8 entries": ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1),
    "NPT": amd_npt(),
    "NPT 52": amd_npt(52, annotations=Annotations.LINUX_6_2),
}
formats = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


@formats
def test_descriptors_made_and_read(format_: Format, rng: random.Random) -> None:
    shape = format_.shape(BASE)
    geometry = format_.geometry
    for _ in range(200):
        level = rng.choice([*format_.block_levels, 3])
        address = rng.randrange((1 << format_.pa_bits) // geometry.size(level)) * geometry.size(level)
        rights = rng.choice([Rights.READ, Rights.RW, Rights.RWX])
        attributes = format_.attributes(rights, software=rng.randrange(16), accessed=rng.random() < 0.5)
        word = int(leaf_descriptor(shape, level, address, attributes))
        assert word == format_.leaf(level, address, attributes)
        assert int(output_address(shape, word)) == address
        entry = format_.decode(word, level)
        assert isinstance(entry, Leaf)
        assert not is_table(shape, word, level)
        for right, name in ((Rights.READ, "READ"), (Rights.WRITE, "WRITE"), (Rights.X, "EXECUTE")):
            mask, granted, denied = (
                int(shape[int(getattr(words, f"{name}_{it}"))]) for it in ("MASK", "GRANTED", "DENIED")
            )
            assert (word & mask == granted) == bool(entry.rights & right)
            if mask:
                given = format_.decode(word & ~mask | granted, level)
                taken = format_.decode(word & ~mask | denied, level)
                assert isinstance(given, Leaf)
                assert isinstance(taken, Leaf)
                assert (given.rights, taken.rights) == (entry.rights | right, entry.rights & ~right)
        assert (word & int(shape[int(words.ACCESSED)]) != 0) == entry.accessed
        assert word & int(shape[int(words.SOFTWARE_MASK)]) == entry.software << 55
        if level < 3:
            kept = word & int(shape[int(words.ATTRIBUTES_MASK)])
            below = format_.decode(int(leaf_descriptor(shape, 3, address, kept)), 3)
            assert isinstance(below, Leaf)
            assert (below.rights, below.memory, below.software) == (entry.rights, entry.memory, entry.software)
    for page in (0, 1, 77):
        word = int(table_descriptor(shape, page))
        assert word == format_.table(BASE + (page << geometry.page_shift))
        assert isinstance(format_.decode(word, 1), Table)
        assert is_table(shape, word, 1)
        assert not is_table(shape, word, 3)
        assert table_page(shape, word) == page


@formats
def test_geometry(format_: Format) -> None:
    shape, geometry = format_.shape(BASE), format_.geometry
    said = {
        name: int(shape[int(getattr(words, name))])
        for name in ("START_LEVEL", "ROOT_ENTRIES", "IPA_END", "BLOCK_LEVELS")
    }
    assert said == {
        "START_LEVEL": geometry.start_level,
        "ROOT_ENTRIES": geometry.root_entries,
        "IPA_END": 1 << geometry.ipa_bits,
        "BLOCK_LEVELS": sum(1 << level for level in format_.block_levels),
    }
    assert int(shape[int(words.MIN_BLOCK_LEVEL)]) >= min(format_.block_levels)


@formats
def test_invalid_words(format_: Format) -> None:
    shape = format_.shape(BASE)
    kind = 0 if format_.annotations is Annotations.LINUX_6_2 else 2
    for owner in (1, 3, 5):
        mark = format_.owned(kind, owner)
        assert is_mark(shape, mark)
        assert is_counted(shape, mark)
        assert mark & int(shape[int(words.TYPE_MASK)]) == int(shape[int(words.OWNER_TYPE)])
        assert mark >> int(shape[int(words.OWNER_SHIFT)]) & int(shape[int(words.OWNER_MASK)]) == owner
    locked = int(shape[int(words.LOCKED)])
    assert locked == format_.locked
    assert not is_mark(shape, locked)
    assert not is_counted(shape, locked)
    assert locked & int(shape[int(words.TYPE_MASK)]) != int(shape[int(words.OWNER_TYPE)])
    assert not is_mark(shape, 0)
    assert not is_counted(shape, 0)
