"""x86 nested-paging entries: each bit is where long mode has it."""

from __future__ import annotations

import random

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import Leaf, Malformed, Memory, NptLeaf, NptTable, Rights, Table, amd_npt
from naive_walker import Fault, Seen, npt_walk

NX = 1 << 63
KNOWN = [
    (NptLeaf(3, 0x1234000, Rights.RWX), 0x1234027),
    (NptLeaf(3, 0x1234000, Rights.READ, accessed=False), NX | 0x1234005),
    (NptLeaf(2, 0x200000, Rights.RW, dirty=True), NX | 0x2000E7),
    (NptLeaf(1, 0x40000000, Rights.RWX, Memory.NORMAL_NC), 0x400000AF),
    (NptLeaf(3, 0, Rights.RW, Memory.DEVICE), NX | 0x3F),
    (NptLeaf(3, 0, Rights.RWX, None, pat=5), 0xAF),
    (NptLeaf(2, 0, Rights.RWX, None, pat=4), 0x10A7),
    (NptLeaf(3, 0, Rights.RWX, software=0xF, global_=True), 0x0780000000000127),
    (NptTable(0, 0x5000), 0x5027),
    (NptTable(1, 0x5000, Rights.READ, accessed=False), NX | 0x5005),
]


@pytest.mark.parametrize(("entry", "word"), KNOWN)
def test_known_words(entry: NptLeaf | NptTable, word: int) -> None:
    assert hex(amd_npt().encode(entry)) == hex(word)
    assert amd_npt().encode(amd_npt().decode(word, entry.level)) == word


@pytest.mark.parametrize("pa_bits", [40, 48, 52])
def test_hardware_sees_what_decode_says(pa_bits: int, rng: random.Random) -> None:
    """One random word at the end of a walk whose tables allow everything."""
    npt = amd_npt(pa_bits)
    counts = {Seen: 0, Fault: 0}
    for _ in range(4000):
        level = rng.randrange(4)
        word = rng.getrandbits(64)
        if rng.random() < 0.8:
            word &= ~(((1 << 52) - (1 << pa_bits)) | (1 << (39, 30, 21, 12)[level]) - (1 << 13) | 0x7 << 9 | 0xF << 59)
            word |= 5
            word &= ~(7 << 52)
        words = [0x1007, 0x2007, 0x3007][:level]

        def read(table: int, index: int, word: int = word, words: list[int] = words) -> int:
            depth = table >> 12
            return words[depth] if depth < len(words) else word

        entry = npt.decode(word, level)
        if isinstance(entry, Table) or (level < 3 and word & 0x81 == 1):
            continue  # the walk goes on
        seen = npt_walk(read, 0, 0, pa_bits=pa_bits)
        counts[type(seen)] += 1
        match entry:
            case Leaf():
                x = "x" if entry.rights & Rights.X else "-"
                w = "w" if entry.rights & Rights.WRITE else "-"
                assert seen == Seen(entry.address, f"r{w}{x}", level)
                assert npt.encode(entry) == word
            case Malformed(faults=False):
                assert isinstance(seen, Seen)
            case _:
                assert isinstance(seen, Fault)
    assert counts[Seen] > 300
    assert counts[Fault] > 300


BAD = [
    ("EINVAL: rights: -w-: an x86 entry that is present can be read", lambda npt: npt.attributes(Rights.WRITE)),
    ("EINVAL: rights: r-p: px and ux differ, x86 has one NX", lambda npt: npt.attributes(Rights.READ | Rights.PX)),
    ("EINVAL: level: 0 allows no block in x86 NPT: 1, 2 do, 3 holds pages", lambda npt: npt.leaf(0, 0, 0)),
    ("EINVAL: address: 0x1000 is not a multiple of 0x40000000", lambda npt: npt.leaf(1, 0x1000, 0)),
    ("ERANGE: address: 0x1000000000000 is outside 48 bits of output", lambda npt: npt.leaf(3, 1 << 48, 0)),
    ("EINVAL: pat: 8 is not in 0..7", lambda npt: npt.encode(NptLeaf(3, 0, Rights.RW, pat=8))),
    ("EINVAL: memory: None needs pat", lambda npt: npt.encode(Leaf(3, 0, Rights.RW, None))),
    (
        "EINVAL: rights: r-x of device memory may not be executable",
        lambda npt: npt.attributes(Rights.READ | Rights.X, Memory.DEVICE),
    ),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message[:40] for message, _ in BAD])
def test_bad_input(message: str, call: object) -> None:
    assert callable(call)
    with pytest.raises(Stage2Error) as caught:
        call(amd_npt())
    assert str(caught.value) == message
    assert caught.value.errno == (34 if message.startswith("ERANGE") else 22)


def test_pa_bits_are_checked() -> None:
    with pytest.raises(Stage2Error, match=r"EINVAL: pa_bits: 53 is not in 32..52"):
        amd_npt(53)
