"""Arm VMSAv8-64 stage-2 descriptors, 4K, 16K and 64K granules, 48 or 52 bits of output (LPA, LPA2).

=====  ==================================================  =====  =================================================
bits   leaf                                                bits   leaf
=====  ==================================================  =====  =================================================
1:0    01 block, 11 page or table                          16     nT (blocks, FEAT_BBM)
5:2    MemAttr                                             47:n   output address
7:6    S2AP: write, read                                   51     DBM
9:8    SH; with LPA2 output address 51:50                  52     contiguous
10     AF                                                  54:53  XN (without FEAT_XNX: bit 54)
11     FnXS                                                58:55  software
15:12  64K granule: output address 51:48                   62:59  PBHA
=====  ==================================================  =====  =================================================

KVM's values for attributes: Linux ``stage2_set_prot_attr()``, ``arch/arm64/kvm/hyp/pgtable.c``; FEAT_S2PIE and
FEAT_D128 formats are not here.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cached_property

from ..errors import Stage2Error
from .descriptor import Entry, Leaf, Malformed, Memory, Rights, Table
from .format import Annotations, Format, Shape, bits, check_software, stray
from .geometry import LAST_LEVEL, stage2_geometry

__all__ = ["ArmFormat", "ArmLeaf", "arm_stage2"]

_BLOCK, _PAGE, _TABLE = 1, 3, 3
_MEMATTR_SHIFT = 2
_S2AP_R, _S2AP_W = 1 << 6, 1 << 7
_SH_SHIFT, _SH_INNER = 8, 3
_AF, _FNXS, _NT = 1 << 10, 1 << 11, 1 << 16
_DBM, _CONTIGUOUS = 1 << 51, 1 << 52
_XN_SHIFT, _XN1 = 53, 1 << 54
_SW_SHIFT, _SW = 55, bits(58, 55)
_PBHA_SHIFT, _PBHA = 59, bits(62, 59)

_MEMATTR = {Memory.NORMAL: 0xF, Memory.NORMAL_NC: 0x5, Memory.DEVICE: 0x1, Memory.AS_S1: 0xF}
_MEMATTR_FWB = {Memory.NORMAL: 0x6, Memory.NORMAL_NC: 0x5, Memory.DEVICE: 0x1, Memory.AS_S1: 0x7}
_XN = {Rights.X: 0, Rights.UX: 1, Rights.NONE: 2, Rights.PX: 3}
_XN_RIGHTS = {xn: rights for rights, xn in _XN.items()}


@dataclass(frozen=True, slots=True)
class ArmLeaf(Leaf):
    """A leaf with all that an Arm descriptor says. ``memory_attributes``: MemAttr[3:0]; None: as ``memory`` says."""

    memory_attributes: int | None = None
    shareability: int = _SH_INNER
    dbm: bool = False
    contiguous: bool = False
    fnxs: bool = False
    nt: bool = False
    pbha: int = 0


@dataclass(frozen=True)
class ArmFormat(Format):
    """Stage-2 descriptors of one configuration; make it with ``arm_stage2``.

    ``large``: 52-bit addresses (64K: LPA; 4K and 16K: LPA2, VTCR_EL2.DS); ``fwb``: HCR_EL2.FWB; ``xnx``: FEAT_XNX;
    ``dbm``: hardware sets S2AP[1] of a leaf with DBM when it is written (VTCR_EL2.HD; KVM never does).
    """

    large: bool = False
    fwb: bool = False
    xnx: bool = True
    dbm: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return f"Arm stage 2, {self.geometry.page_size >> 10}K" + (", 52-bit" if self.large else "")

    @property
    def lpa2(self) -> bool:
        """Whether output address 51:50 lies in bits 9:8 and shareability in VTCR_EL2 (DS)."""
        return self.large and self.geometry.page_shift != 16

    @cached_property
    def block_levels(self) -> frozenset[int]:
        """Levels that take a block: 4K 1 and 2, else 2; with 52 bits one larger."""
        first = self.min_block_level - self.large
        return frozenset(range(max(0, first), LAST_LEVEL))

    @property
    def min_block_level(self) -> int:
        """KVM_PGTABLE_MIN_BLOCK_LEVEL."""
        return 1 if self.geometry.page_shift == 12 else 2

    def attributes(
        self, rights: Rights, memory: Memory = Memory.NORMAL, *, software: int = 0, accessed: bool = True
    ) -> int:
        """The bits of a leaf beside address and kind, as KVM writes them.

        >>> hex(arm_stage2(0x1000, 40).attributes(Rights.READ | Rights.WRITE))
        '0x400000000007fc'
        """
        if memory in {Memory.DEVICE, Memory.NORMAL_NC} and rights & Rights.X:
            raise Stage2Error(errno.EINVAL, f"rights: {rights} of {memory.value} memory may not be executable")
        word = self._rights(rights) | (_MEMATTR_FWB if self.fwb else _MEMATTR)[memory] << _MEMATTR_SHIFT
        check_software(software, 1 << 4)
        word |= software << _SW_SHIFT
        if not self.lpa2:
            word |= _SH_INNER << _SH_SHIFT
        return word | (_AF if accessed else 0)

    def _rights(self, rights: Rights) -> int:
        xn = _XN[rights & Rights.X]
        if xn & 1 and not self.xnx:
            raise Stage2Error(errno.EINVAL, f"rights: {rights}: px and ux differ, which needs FEAT_XNX")
        word = xn << _XN_SHIFT
        if rights & Rights.READ:
            word |= _S2AP_R
        if rights & Rights.WRITE:
            word |= _S2AP_W
        return word

    def encode(self, entry: Entry) -> int:
        """The word of an entry. A plain Leaf gets what KVM writes where it says nothing."""
        if isinstance(entry, Table):
            return self.table(entry.address)
        if not isinstance(entry, Leaf):
            return self._encode_invalid(entry)
        extra = entry if isinstance(entry, ArmLeaf) else ArmLeaf(entry.level, entry.address, entry.rights)
        attributes = extra.memory_attributes
        if attributes is None:
            if entry.memory is None:
                raise Stage2Error(errno.EINVAL, "memory: None needs memory_attributes")
            attributes = (_MEMATTR_FWB if self.fwb else _MEMATTR)[entry.memory]
        shareability = extra.shareability if not self.lpa2 else 0
        for name, value, limit in (
            ("memory_attributes", attributes, 1 << 4),
            ("shareability", shareability, 1 << 2),
            ("software", entry.software, 1 << 4),
            ("pbha", extra.pbha, 1 << 4),
        ):
            if not 0 <= value < limit:
                raise Stage2Error(errno.EINVAL, f"{name}: {value:#x} is not in 0..{limit - 1:#x}")
        if extra.nt and not self._nt(entry.level):
            raise Stage2Error(errno.EINVAL, f"nt: level {entry.level} of {self.name} has none, only a block has")
        self.check_leaf(entry.level, entry.address)
        word = self._packed(entry.address) | (_PAGE if entry.level == LAST_LEVEL else _BLOCK)
        word |= attributes << _MEMATTR_SHIFT | shareability << _SH_SHIFT
        word |= entry.software << _SW_SHIFT | extra.pbha << _PBHA_SHIFT | self._rights(entry.rights)
        flags = (entry.accessed, _AF), (extra.dbm, _DBM), (extra.contiguous, _CONTIGUOUS), (extra.fnxs, _FNXS)
        return word | sum(bit for flag, bit in (*flags, (extra.nt, _NT)) if flag)

    def _nt(self, level: int) -> int:
        """The nT bit of a leaf: of blocks, and where tables of few entries make the block so small, an address bit."""
        return _NT if level != LAST_LEVEL and self.geometry.size(level) > _NT else 0

    def _decode_valid(self, word: int, level: int) -> Entry:
        if word & 2 and level != LAST_LEVEL:
            return stray(word, self._address_bits | _TABLE, level, "a table") or Table(level, self._output(word))
        if level == LAST_LEVEL and not word & 2:
            return Malformed(word, level, "bit 1 is 0 at the last level: reserved", faults=True)
        if level != LAST_LEVEL and level not in self.block_levels:
            return Malformed(word, level, f"level {level} allows no block", faults=True)
        below = bits(self.geometry.shift(level) - 1, self.geometry.page_shift) & bits(47, 12)
        nt = self._nt(level)
        attributes = self._attribute_bits | nt
        allowed = (self._address_bits & ~below) | attributes | 3
        if malformed := stray(word, allowed, level, "a leaf"):
            return malformed
        address = self._output(word & ~nt)
        memory_attributes = word >> _MEMATTR_SHIFT & 0xF
        known = _MEMATTR_FWB if self.fwb else _MEMATTR
        rights = _XN_RIGHTS[word >> _XN_SHIFT & 3]
        rights |= (Rights.READ if word & _S2AP_R else 0) | (Rights.WRITE if word & _S2AP_W else 0)
        return ArmLeaf(
            level,
            address,
            rights,
            next((memory for memory, value in known.items() if value == memory_attributes), None),
            bool(word & _AF),
            bool(word & _DBM and word & _S2AP_W),
            word >> _SW_SHIFT & 0xF,
            memory_attributes,
            0 if self.lpa2 else word >> _SH_SHIFT & 3,
            bool(word & _DBM),
            bool(word & _CONTIGUOUS),
            bool(word & _FNXS),
            bool(word & nt),
            word >> _PBHA_SHIFT & 0xF,
        )

    @cached_property
    def _address_bits(self) -> int:
        shape = self._shape()
        return shape.address_mask | shape.address_high_mask

    @cached_property
    def _attribute_bits(self) -> int:
        high = _DBM | _CONTIGUOUS | bits(54, 53) | _SW | _PBHA
        return (high & ~(0 if self.xnx else 1 << _XN_SHIFT)) | (bits(11, 2) & ~self._address_bits)

    def _shape(self) -> Shape:
        return self._shape_

    @cached_property
    def _shape_(self) -> Shape:
        low = self.geometry.page_shift
        direct, high, shift = bits(47, low), 0, 0
        if self.lpa2:
            direct, high, shift = bits(49, low), bits(9, 8), 42
        elif self.large:
            high, shift = bits(15, 12), 36
        execute = bits(54, 53) if self.xnx else _XN1
        return Shape(
            table_mask=3,
            table_kind=_TABLE,
            block_kind=_BLOCK,
            page_mask=3,
            page_kind=_PAGE,
            table_bits=_TABLE,
            address_mask=direct,
            address_high_mask=high,
            address_high_shift=shift,
            attributes_mask=(bits(11, 2) | bits(63, 50)) & ~(direct | high),
            read=(_S2AP_R, _S2AP_R, 0),
            write=(_S2AP_W, _S2AP_W, 0),
            execute=(execute, 0, _XN1),
            accessed=_AF,
            dirty=_S2AP_W if self.dbm else 0,
            modifier=_DBM if self.dbm else 0,
            nt=_NT,
            software_mask=_SW,
        )


def arm_stage2(
    granule: int = 0x1000,
    ipa_bits: int = 40,
    *,
    start_level: int | None = None,
    pa_bits: int | None = None,
    large: bool = False,
    fwb: bool = False,
    xnx: bool = True,
    dbm: bool = False,
    annotations: Annotations = Annotations.LINUX_7_1,
) -> ArmFormat:
    """Arm's format for a granule (bytes) and an input size (bits); errors as ``stage2_geometry``.

    ``pa_bits``: 32 to 48, or 52 with ``large`` (the default is the largest).

    >>> arm = arm_stage2(0x1000, 40)
    >>> word = arm.leaf(2, 0x40000000, arm.attributes(Rights.RWX))
    >>> hex(word)
    '0x400007fd'
    >>> arm.decode(word, 2).rights == Rights.RWX
    True
    """
    geometry = stage2_geometry(granule, ipa_bits, start_level, large=large)
    most = 52 if large else 48
    if pa_bits is None:
        pa_bits = most
    if not 32 <= pa_bits <= most:
        raise Stage2Error(errno.EINVAL, f"pa_bits: {pa_bits} is not in 32..{most}")
    return ArmFormat(geometry, pa_bits, annotations, large, fwb, xnx, dbm)
