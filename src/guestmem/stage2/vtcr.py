"""VTCR_EL2 and VTTBR_EL2: how hardware is told a stage-2 geometry and where its root is.

Fields and KVM's choice of values: Linux ``kvm_get_vtcr()``, ``arch/arm64/tools/sysreg``; rules of SL0, SL2 and T0SZ:
QEMU ``target/arm/ptw.c``. SH0 outer shareable is 0b10.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..errors import Stage2Error
from .arm import ArmFormat
from .geometry import GRANULES, LAST_LEVEL, Geometry, stage2_geometry

__all__ = ["Vtcr", "vtcr_el2", "vttbr_el2"]

_TG0 = {12: 0, 16: 1, 14: 2}
_TG0_SHIFTS = {value: shift for shift, value in _TG0.items()}
_PS_BITS = (32, 36, 40, 42, 44, 48, 52, 56)
_RES1 = 1 << 31
_FIELDS = {
    "t0sz": (5, 0),
    "sl0": (7, 6),
    "irgn0": (9, 8),
    "orgn0": (11, 10),
    "sh0": (13, 12),
    "tg0": (15, 14),
    "ps": (18, 16),
    "vs": (19, 19),
    "ha": (21, 21),
    "hd": (22, 22),
    "hwu": (28, 25),
    "nsw": (29, 29),
    "nsa": (30, 30),
    "ds": (32, 32),
    "sl2": (33, 33),
}


@dataclass(frozen=True, slots=True)
class Vtcr:
    """The fields of VTCR_EL2 that this format uses, as numbers.

    >>> from guestmem.stage2.arm import arm_stage2
    >>> value = vtcr_el2(arm_stage2(0x1000, 40, pa_bits=44))
    >>> hex(value), Vtcr.decode(value).geometry() == arm_stage2(0x1000, 40).geometry
    ('0x802c3558', True)
    """

    t0sz: int
    sl0: int
    irgn0: int = 1
    orgn0: int = 1
    sh0: int = 3
    tg0: int = 0
    ps: int = 5
    vs: int = 1
    ha: int = 1
    hd: int = 0
    hwu: int = 0
    nsw: int = 0
    nsa: int = 0
    ds: int = 0
    sl2: int = 0

    def encode(self) -> int:
        """The register's value."""
        value = _RES1
        for name, (high, low) in _FIELDS.items():
            field = getattr(self, name)
            if not 0 <= field < 1 << (high - low + 1):
                raise Stage2Error(errno.EINVAL, f"VTCR_EL2.{name.upper()}: {field:#x} does not fit bits {high}:{low}")
            value |= field << low
        return value

    @classmethod
    def decode(cls, value: int) -> Vtcr:
        """The fields of a value; EINVAL if it has others (S2PIE, D128, HAFT and so on are formats of their own)."""
        known = _RES1 | sum((1 << (high + 1)) - (1 << low) for high, low in _FIELDS.values())
        if value & ~known or not value & _RES1:
            raise Stage2Error(errno.EINVAL, f"VTCR_EL2: {value:#x} has bits {(value ^ _RES1) & (~known | _RES1):#x}")
        return cls(**{name: value >> low & ((1 << (high - low + 1)) - 1) for name, (high, low) in _FIELDS.items()})

    @property
    def pa_bits(self) -> int:
        """Size of an output address, from PS."""
        return _PS_BITS[self.ps]

    def geometry(self) -> Geometry:
        """Geometry that hardware takes from these fields; EINVAL where it would fault at level 0 on any address."""
        if self.tg0 not in _TG0_SHIFTS:
            raise Stage2Error(errno.EINVAL, f"VTCR_EL2.TG0: {self.tg0} is not 0 (4K), 1 (64K) or 2 (16K)")
        page_shift = _TG0_SHIFTS[self.tg0]
        if self.sl2:
            raise Stage2Error(errno.EINVAL, "VTCR_EL2.SL2: 1 starts at level -1, which KVM never does")
        start = LAST_LEVEL - self.sl0 if page_shift != 12 else (2, 1, 0, LAST_LEVEL)[self.sl0]
        granule = next(size for size, shift in GRANULES.items() if shift == page_shift)
        return stage2_geometry(granule, 64 - self.t0sz, start, large=bool(self.ds) or page_shift == 16)


def vtcr_el2(arm: ArmFormat, *, vmid_bits: int = 16, ha: bool = True) -> int:
    """The value KVM programs for a format: PS its ``pa_bits``, VS by VMID width, HA access flags, HD ``dbm``.

    EINVAL for a geometry that Arm does not have (tables of 8 entries), for VMIDs of neither 8 nor 16 bits, and for a
    start at level 0 (4K) or 1 (16K and 64K) with fewer output bits than that needs.
    """
    geometry = arm.geometry
    if geometry.stride != geometry.page_shift - 3:
        raise Stage2Error(
            errno.EINVAL, f"stride: {geometry.stride} is not {geometry.page_shift - 3}, as hardware has it"
        )
    if vmid_bits not in {8, 16}:
        raise Stage2Error(errno.EINVAL, f"vmid_bits: {vmid_bits} is not 8 or 16")
    if arm.pa_bits not in _PS_BITS:
        raise Stage2Error(errno.EINVAL, f"pa_bits: {arm.pa_bits} is not one of {', '.join(map(str, _PS_BITS))}")
    top, least = {12: (0, 44), 14: (1, 42), 16: (1, 44)}[geometry.page_shift]
    if geometry.start_level <= top and arm.pa_bits < least:
        raise Stage2Error(
            errno.EINVAL, f"start_level: {geometry.start_level} needs {least} bits of output, there are {arm.pa_bits}"
        )
    base = 2 if geometry.page_shift == 12 else 3
    return Vtcr(
        t0sz=64 - geometry.ipa_bits,
        sl0=(base - geometry.start_level) & 3,
        tg0=_TG0[geometry.page_shift],
        ps=_PS_BITS.index(arm.pa_bits),
        vs=int(vmid_bits == 16),
        ha=int(ha),
        hd=int(arm.dbm),
        ds=int(arm.lpa2),
    ).encode()


def vttbr_el2(arm: ArmFormat, root: int, vmid: int, *, common: bool = False) -> int:
    """VTTBR_EL2: VMID in 63:48, the root in 47:1 (52-bit output: its bits 51:48 in 5:2), CnP.

    >>> from guestmem.stage2.arm import arm_stage2
    >>> hex(vttbr_el2(arm_stage2(0x1000, 40), 0x80002000, 3))
    '0x3000080002000'
    """
    size = arm.geometry.root_pages * arm.geometry.page_size
    arm.check_address("root", root, size)
    if not 0 <= vmid < 1 << 16:
        raise Stage2Error(errno.EINVAL, f"vmid: {vmid:#x} is not within 16 bits")
    return vmid << 48 | root & ((1 << 48) - 1) | root >> 48 << 2 | int(common)
