"""Start level and concatenated root from granule and input size: KVM's choice, Arm's limits, errors for the rest."""

from __future__ import annotations

import itertools

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import Geometry, stage2_geometry

K = 1024
# The fact sheet's table: IPA bits to (start level, root pages) for 4K, 16K, 64K.
KVM = {
    32: ((2, 4), (2, 1), (2, 1)),
    36: ((1, 1), (2, 1), (2, 1)),
    40: ((1, 2), (2, 16), (2, 1)),
    43: ((1, 16), (1, 1), (2, 2)),
    44: ((0, 1), (1, 1), (2, 4)),
    48: ((0, 1), (1, 2), (1, 1)),
    52: ((0, 16), (0, 1), (1, 1)),
}
# Its legal input sizes by granule and start level.
LEGAL = {
    4: {3: (13, 25), 2: (22, 34), 1: (31, 43), 0: (40, 52)},
    16: {3: (15, 29), 2: (26, 40), 1: (37, 51), 0: (48, 62)},
    64: {3: (17, 33), 2: (30, 46), 1: (43, 59)},
}


@pytest.mark.parametrize("bits", KVM)
def test_kvm_choice(bits: int) -> None:
    found = [stage2_geometry(granule * K, bits, large=bits > 48) for granule in (4, 16, 64)]
    assert tuple((each.start_level, each.root_pages) for each in found) == KVM[bits]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("granule", [4, 16, 64])
def test_legal_pairs_and_no_others(granule: int, large: bool) -> None:
    allowed = 0
    for bits, level in itertools.product(range(10, 60), range(-1, 5)):
        low, high = LEGAL[granule].get(level, (99, 0))
        legal = low <= bits <= high and 25 <= bits <= (52 if large else 48)
        if (granule, level) == (16, 0):
            legal = legal and large
        if not legal:
            with pytest.raises(Stage2Error, match=r"^EINVAL: "):
                stage2_geometry(granule * K, bits, level, large=large)
            continue
        geometry = stage2_geometry(granule * K, bits, level, large=large)
        allowed += 1
        assert geometry.root_pages <= 16
        assert geometry.root_entries == 2**bits // geometry.size(level)
        assert geometry.root_pages == max(1, geometry.root_entries // geometry.entries)
        last = geometry.index(2**bits - geometry.page_size, level)
        assert last == geometry.root_entries - 1
    assert allowed > 30


@pytest.mark.parametrize("granule", [4, 16, 64])
def test_kvm_starts_as_deep_as_sixteen_tables_reach(granule: int) -> None:
    for bits in range(32, 53):
        start = stage2_geometry(granule * K, bits, large=True).start_level
        deeper = [level for level, (low, high) in LEGAL[granule].items() if low <= bits <= high and level < 3]
        assert start == max(deeper)


BAD = [
    (lambda: stage2_geometry(0x2000, 40), "EINVAL: granule: 0x2000 is not 0x1000, 0x4000 or 0x10000"),
    (lambda: stage2_geometry(0x1000, 49), "EINVAL: ipa_bits: 49 is not in 25..48 for granule 0x1000"),
    (lambda: stage2_geometry(0x1000, 24), "EINVAL: ipa_bits: 24 is not in 25..48 for granule 0x1000"),
    (
        lambda: stage2_geometry(0x10000, 28),
        "EINVAL: granule 0x10000: ipa_bits: 28 cannot start at level 2: 30..46 bits can",
    ),
    (lambda: stage2_geometry(0x10000, 48, 0), "EINVAL: start_level: 0 is not in 1..3 for granule 0x10000"),
    (lambda: stage2_geometry(0x4000, 48, 0), "EINVAL: start_level: 0 is not in 1..3 for granule 0x4000 without LPA2"),
    (
        lambda: stage2_geometry(0x1000, 40, -1),
        "EINVAL: granule 0x1000: start_level: -1 is not in 0..3",
    ),
    (lambda: Geometry(12, 10, 1, 40), "EINVAL: stride: 10 is not in 1..9"),
    (lambda: stage2_geometry(0x1000, 40).check_range(0x800, 0x1000), "EINVAL: ipa: 0x800 is not a multiple of 0x1000"),
    (lambda: stage2_geometry(0x1000, 40).check_range(0, 0x800), "EINVAL: size: 0x800 is not a multiple of 0x1000"),
    (lambda: stage2_geometry(0x1000, 40).check_range(0, 0), "EINVAL: size: 0 is not a positive number of bytes"),
    (
        lambda: stage2_geometry(0x1000, 40).check_range((1 << 40) - 0x1000, 0x2000),
        "ERANGE: ipa: [0xfffffff000, 0x10000001000) is outside 40 bits of input",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_input(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(Stage2Error) as caught:
        call()
    assert str(caught.value) == message


def test_tables_of_eight_entries() -> None:
    tiny = Geometry(12, 3, 1, 23)
    assert (tiny.entries, tiny.root_pages, tiny.root_entries, tiny.levels) == (8, 4, 32, 3)
    assert [tiny.index(0x7FFFFF, level) for level in (1, 2, 3)] == [31, 7, 7]
    tiny.check_range(0x7FF000, 0x1000)
