"""VTCR_EL2 and VTTBR_EL2: fields where Arm has them, and a value that says the geometry it was made from."""

from __future__ import annotations

import itertools

import pytest

from guestmem.errors import Stage2Error
from guestmem.stage2 import Annotations, ArmFormat, Geometry, Vtcr, arm_stage2, vtcr_el2, vttbr_el2


def field(value: int, high: int, low: int) -> int:
    return value >> low & (1 << (high - low + 1)) - 1


def test_known_value() -> None:
    """4K, 40 bits from level 1, 44 bits of output: by hand."""
    value = vtcr_el2(arm_stage2(0x1000, 40, pa_bits=44))
    assert field(value, 5, 0) == 24
    assert field(value, 7, 6) == 1  # SL0: level 1
    assert (field(value, 9, 8), field(value, 11, 10), field(value, 13, 12)) == (1, 1, 3)
    assert field(value, 15, 14) == 0
    assert field(value, 18, 16) == 4
    assert (field(value, 19, 19), field(value, 21, 21), field(value, 22, 22)) == (1, 1, 0)
    assert (field(value, 31, 31), field(value, 63, 32)) == (1, 0)


def test_each_field() -> None:
    assert field(vtcr_el2(arm_stage2(0x10000, 40)), 15, 14) == 1
    assert field(vtcr_el2(arm_stage2(0x4000, 40)), 15, 14) == 2
    assert field(vtcr_el2(arm_stage2(), vmid_bits=8), 19, 19) == 0
    assert field(vtcr_el2(arm_stage2(), ha=False), 21, 21) == 0
    assert field(vtcr_el2(arm_stage2(dbm=True)), 22, 22) == 1
    assert field(vtcr_el2(arm_stage2(0x1000, 52, large=True)), 32, 32) == 1
    assert field(vtcr_el2(arm_stage2(0x10000, 52, large=True)), 32, 32) == 0
    assert [field(vtcr_el2(arm_stage2(pa_bits=bits)), 18, 16) for bits in (32, 36, 40, 42, 44, 48)] == list(range(6))
    assert field(vtcr_el2(arm_stage2(0x10000, 52, large=True)), 18, 16) == 6
    starts = [(0x1000, 0, 2), (0x1000, 1, 1), (0x1000, 2, 0), (0x4000, 1, 2), (0x4000, 2, 1), (0x10000, 2, 1)]
    for granule, level, sl0 in starts:
        bits = {(0x1000, 2): 33, (0x4000, 2): 38, (0x10000, 2): 38, (0x1000, 1): 40}.get((granule, level), 46)
        assert field(vtcr_el2(arm_stage2(granule, bits, start_level=level)), 7, 6) == sl0


@pytest.mark.parametrize("granule", [0x1000, 0x4000, 0x10000])
def test_the_value_says_the_geometry(granule: int) -> None:
    count = 0
    for bits, level, large in itertools.product(range(25, 53), range(4), (False, True)):
        try:
            arm = arm_stage2(granule, bits, start_level=level, large=large)
        except Stage2Error:
            continue
        fields = Vtcr.decode(vtcr_el2(arm))
        assert fields.geometry() == arm.geometry
        assert fields.pa_bits == arm.pa_bits
        assert fields.encode() == vtcr_el2(arm)
        count += 1
    assert count > 40


def test_bad_values() -> None:
    tiny = ArmFormat(Geometry(12, 3, 1, 22), 48, Annotations.LINUX_7_1)
    for call, message in (
        (lambda: vtcr_el2(tiny), "stride: 3 is not 9, as hardware has it"),
        (lambda: vtcr_el2(arm_stage2(), vmid_bits=9), "vmid_bits: 9 is not 8 or 16"),
        (lambda: vtcr_el2(arm_stage2(pa_bits=41)), "pa_bits: 41 is not one of 32, 36, 40, 42, 44, 48, 52, 56"),
        (lambda: vtcr_el2(arm_stage2(0x1000, 44, pa_bits=42)), "start_level: 0 needs 44 bits of output, there are 42"),
        (lambda: Vtcr.decode(0), "VTCR_EL2: 0x0 has bits 0x80000000"),
        (lambda: Vtcr.decode(1 << 31 | 1 << 36), "VTCR_EL2: 0x1080000000 has bits 0x1000000000"),
        (lambda: Vtcr(24, 1, tg0=3).geometry(), "VTCR_EL2.TG0: 3 is not 0 (4K), 1 (64K) or 2 (16K)"),
        (lambda: Vtcr(24, 0, ds=1, sl2=1).geometry(), "VTCR_EL2.SL2: 1 starts at level -1, which KVM never does"),
        (lambda: Vtcr(64, 0).encode(), "VTCR_EL2.T0SZ: 0x40 does not fit bits 5:0"),
        (lambda: Vtcr(30, 2).geometry(), "granule 0x1000: ipa_bits: 34 cannot start at level 0: 40..52 bits can"),
    ):
        with pytest.raises(Stage2Error) as caught:
            call()
        assert str(caught.value) == f"EINVAL: {message}"


def test_vttbr() -> None:
    arm = arm_stage2(0x1000, 40)
    assert vttbr_el2(arm, 0x8000_2000, 0xFFFF, common=True) == 0xFFFF_0000_8000_2001
    large = arm_stage2(0x10000, 52, large=True)
    assert vttbr_el2(large, 0xA_0000_0001_0000, 0) == 0x1_0000 | 0xA << 2
    with pytest.raises(Stage2Error, match="EINVAL: root: 0x80001000 is not a multiple of 0x2000"):
        vttbr_el2(arm, 0x8000_1000, 0)
    with pytest.raises(Stage2Error, match="EINVAL: vmid: 0x10000 is not within 16 bits"):
        vttbr_el2(arm, 0x8000_2000, 1 << 16)
