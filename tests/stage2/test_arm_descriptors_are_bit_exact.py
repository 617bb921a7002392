"""Arm descriptors: each bit is where the architecture and KVM have it, for all granules, 48 and 52 bits."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import (
    ArmFormat,
    ArmLeaf,
    Empty,
    Leaf,
    Malformed,
    Memory,
    Rights,
    Table,
    arm_stage2,
)
from naive_walker import Fault, Seen, arm_walk

FORMATS = {
    f"{granule}K{bits}": arm_stage2(granule << 10, bits, large=bits == 52)
    for granule in (4, 16, 64)
    for bits in (40, 52)
}
formats = pytest.mark.parametrize("arm", FORMATS.values(), ids=FORMATS)

# Worked out by hand from the fact sheet: normal memory 0xf, inner shareable, AF.
KNOWN = [
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0x1234000, Rights.RWX), 0x12347FF),
    (arm_stage2(0x1000, 40), ArmLeaf(2, 0x40000000, Rights.READ), 0x004000004000077D),
    (arm_stage2(0x1000, 40), ArmLeaf(1, 0x40000000, Rights.RW | Rights.UX), 0x00200000400007FD),
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0x1000, Rights.PX), 0x006000000000173F),
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0x1000, Rights.NONE, Memory.DEVICE, accessed=False), 0x0040000000001307),
    (arm_stage2(0x1000, 40, fwb=True), ArmLeaf(3, 0, Rights.RWX), 0x7DB),
    (arm_stage2(0x1000, 40, fwb=True), ArmLeaf(3, 0, Rights.RWX, Memory.AS_S1), 0x7DF),
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0, Rights.RWX, Memory.NORMAL_NC), 0x7D7),
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0, Rights.RWX, software=0xA), 0x05000000000007FF),
    (arm_stage2(0x1000, 40), ArmLeaf(3, 0, Rights.RWX, dbm=True, contiguous=True, pbha=1), 0x08180000000007FF),
    (arm_stage2(0x1000, 40), ArmLeaf(2, 0, Rights.RWX, nt=True, fnxs=True), 0x10FFD),
    (arm_stage2(0x10000, 40), ArmLeaf(2, 0x20000000, Rights.RWX), 0x200007FD),
    (arm_stage2(0x4000, 40), ArmLeaf(3, 0x4000, Rights.RWX), 0x47FF),
    # 52 bits: 64K has 51:48 in 15:12; LPA2 51:50 in 9:8, 49:48 in place.
    (arm_stage2(0x10000, 52, large=True), ArmLeaf(3, 0xA_0000_0001_0000, Rights.RWX), 0x1A7FF),
    (arm_stage2(0x1000, 52, large=True), ArmLeaf(3, 0xF_0000_0000_1000, Rights.RWX), 0x00030000000017FF),
    (arm_stage2(0x1000, 52, large=True), ArmLeaf(0, 0x8_0000_0000_0000, Rights.RWX), 0x6FD),
]


@pytest.mark.parametrize(("arm", "leaf", "word"), KNOWN)
def test_known_words(arm: ArmFormat, leaf: ArmLeaf, word: int) -> None:
    assert hex(arm.encode(leaf)) == hex(word)
    back = arm.decode(word, leaf.level)
    assert isinstance(back, ArmLeaf)
    assert (back.level, back.address, back.rights, back.memory) == (leaf.level, leaf.address, leaf.rights, leaf.memory)
    assert (back.accessed, back.software, back.pbha, back.nt) == (leaf.accessed, leaf.software, leaf.pbha, leaf.nt)
    assert (back.dbm, back.contiguous, back.fnxs) == (leaf.dbm, leaf.contiguous, leaf.fnxs)


def _leaves(arm: ArmFormat, rng: random.Random, count: int) -> Iterator[ArmLeaf]:
    for _ in range(count):
        level = rng.choice([*arm.block_levels, 3])
        size = arm.geometry.size(level)
        rights = Rights(rng.randrange(16))
        dbm = rng.random() < 0.3
        yield ArmLeaf(
            level,
            rng.randrange((1 << arm.pa_bits) // size) * size,
            rights,
            None,
            rng.random() < 0.5,
            dbm and bool(rights & Rights.WRITE),
            rng.randrange(16),
            rng.choice([2, 3, 4, 8, 9, 10, 11, 12, 13, 14]),
            0 if arm.lpa2 else rng.randrange(4),
            dbm,
            rng.random() < 0.3,
            rng.random() < 0.3,
            level < 3 and rng.random() < 0.3,
            rng.randrange(16),
        )


@formats
def test_leaves_come_back(arm: ArmFormat, rng: random.Random) -> None:
    words = set()
    for leaf in _leaves(arm, rng, 300):
        word = arm.encode(leaf)
        assert arm.decode(word, leaf.level) == leaf
        words.add(word)
    assert len(words) > 290


def clean(arm: ArmFormat, word: int, level: int) -> int:
    """A word without bits that are reserved in a leaf (and, without 52 bits, some that are not)."""
    high = 0 if arm.lpa2 else 3 << 48
    return word & ~(1 << 63 | 1 << 50 | high | (1 << arm.geometry.shift(level)) - (1 << 12))


@formats
def test_what_decode_takes_encode_gives(arm: ArmFormat, rng: random.Random) -> None:
    taken = refused = 0
    for _ in range(3000):
        level = rng.randrange(4)
        word = rng.getrandbits(64) | 1
        if rng.random() < 0.8:
            word = clean(arm, word, level)
        entry = arm.decode(word, level)
        if isinstance(entry, Malformed):
            assert entry.word == word
            refused += 1
        elif isinstance(entry, Table):
            assert arm.encode(entry) == word
        else:
            assert arm.encode(entry) == word
            taken += 1
    assert taken > 100
    assert refused > 100


@formats
def test_hardware_sees_what_decode_says(arm: ArmFormat, rng: random.Random) -> None:
    """One word, as a root of the naive walker: the same output, rights and faults."""
    granule = arm.geometry.page_size >> 10
    seen_leaves = faults = 0
    for _ in range(3000):
        level = rng.randrange(1 if granule == 64 else 0, 4)
        word = clean(arm, rng.getrandbits(64), level) if rng.random() < 0.5 else rng.getrandbits(64)
        bits = arm.geometry.shift(level) + 1
        seen = (
            arm_walk(
                lambda _table, _index, word=word: word,  # type: ignore[misc]
                0,
                0,
                granule=granule,
                ipa_bits=bits,
                start=level,
                wide=arm.large,
            )
            if not (level < 3 and word & 3 == 3)
            else None
        )
        entry = arm.decode(word, level)
        match entry:
            case Leaf():
                assert seen == Seen(entry.address, _text(entry.rights), level)
                seen_leaves += 1
            case Table():
                assert seen is None
            case Malformed(faults=True):
                assert isinstance(seen, Fault)
                faults += 1
            case Malformed(faults=False):
                assert not isinstance(seen, Fault)
            case _:
                assert isinstance(seen, Fault)
    assert faults > 300
    assert seen_leaves > 100


def _text(rights: Rights) -> str:
    execute = {Rights.X: "x", Rights.NONE: "-", Rights.PX: "p", Rights.UX: "u"}[rights & Rights.X]
    return ("r" if Rights.READ in rights else "-") + ("w" if Rights.WRITE in rights else "-") + execute


def test_without_xnx_only_bit_54_counts() -> None:
    arm = arm_stage2(0x1000, 40, xnx=False)
    assert arm.attributes(Rights.RW) >> 53 == 2
    assert arm.attributes(Rights.RWX) >> 53 == 0
    with pytest.raises(Stage2Error, match=r"EINVAL: rights: r-u: px and ux differ, which needs FEAT_XNX"):
        arm.attributes(Rights.READ | Rights.UX)
    assert isinstance(arm.decode(1 << 53 | 0x7FF, 3), Malformed)


@formats
def test_map_and_encode_write_the_same(arm: ArmFormat) -> None:
    for level in (*arm.block_levels, 3):
        address = arm.geometry.size(level) * 3
        for rights in (Rights.RW, Rights.RWX, Rights.READ):
            word = arm.leaf(level, address, arm.attributes(rights, software=5))
            assert word == arm.encode(Leaf(level, address, rights, software=5))
    table = arm.decode(arm.table(0x7 << 40), 2)
    assert table == Table(2, 0x7 << 40)
    assert arm.decode(0, 1) == Empty()


BAD = [
    ("EINVAL: address: 0x201000 is not a multiple of 0x200000", lambda arm: arm.leaf(2, 0x201000, 0)),
    ("EINVAL: address: 0x80 is not a multiple of 0x1000", lambda arm: arm.leaf(3, 0x80, 0)),
    ("ERANGE: address: 0x1000000000000 is outside 48 bits of output", lambda arm: arm.leaf(3, 1 << 48, 0)),
    ("ERANGE: table: 0x1000000000000 is outside 48 bits of output", lambda arm: arm.table(1 << 48)),
    ("EINVAL: table: 0x1800 is not a multiple of 0x1000", lambda arm: arm.table(0x1800)),
    (
        "EINVAL: level: 0 allows no block in Arm stage 2, 4K: 1, 2 do, 3 holds pages",
        lambda arm: arm.leaf(0, 0, 0),
    ),
    (
        "EINVAL: rights: rwx of device memory may not be executable",
        lambda arm: arm.attributes(Rights.RWX, Memory.DEVICE),
    ),
    (
        "EINVAL: rights: r-u of non-cacheable memory may not be executable",
        lambda arm: arm.attributes(Rights.READ | Rights.UX, Memory.NORMAL_NC),
    ),
    ("EINVAL: software: 0x10 is not in 0..0xf", lambda arm: arm.attributes(Rights.RW, software=16)),
    ("EINVAL: attributes: 0x1000 is not within 0xfffc000000000ffc", lambda arm: arm.leaf(3, 0, 0x1000)),
    ("EINVAL: pbha: 0x10 is not in 0..0xf", lambda arm: arm.encode(ArmLeaf(3, 0, Rights.RW, pbha=16))),
    (
        "EINVAL: nt: level 3 of Arm stage 2, 4K has none, only a block has",
        lambda arm: arm.encode(ArmLeaf(3, 0, Rights.RW, nt=True)),
    ),
    ("EINVAL: memory: None needs memory_attributes", lambda arm: arm.encode(Leaf(3, 0, Rights.RW, None))),
    ("EINVAL: word: 0x10000000000000000 at level 2 is not 64 bits at 0..3", lambda arm: arm.decode(1 << 64, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message[:40] for message, _ in BAD])
def test_bad_input(message: str, call: object) -> None:
    assert callable(call)
    with pytest.raises(Stage2Error) as caught:
        call(arm_stage2(0x1000, 40))
    assert str(caught.value) == message
    assert caught.value.errno == (34 if message.startswith("ERANGE") else 22)


def test_faulting_and_reserved_words_are_told_apart() -> None:
    arm = arm_stage2(0x1000, 40)
    for word, level, faults in [
        (0x1001, 3, True),
        (1 << 39 | 1, 0, True),
        (1 << 63 | 0x7FF, 3, False),
        (0x1FF001, 2, False),
    ]:
        entry = arm.decode(word, level)
        assert isinstance(entry, Malformed)
        assert entry.faults == faults, entry
