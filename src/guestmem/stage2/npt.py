"""x86 nested page tables (AMD NPT): the ordinary four-level long-mode format, behind the same interface.

PML4 is level 0 here, the page table level 3. A nested walk counts as a user access, so U/S must be set at every level;
rights of a table limit all below it. A leaf that is present can be read. Source: AMD APM volume 2, 5.3 and 15.25.

bits: 0 P, 1 R/W, 2 U/S, 3 PWT, 4 PCD, 5 A, 6 D, 7 PS (level 3: PAT), 8 G, 11:9 free, 12 PAT (blocks),
51:12 address, 58:52 free, 63 NX. Software bits are 58:55, as on Arm. Memory types go by the PAT that Linux programs.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import cached_property

from ..errors import Stage2Error
from .descriptor import Entry, Leaf, Malformed, Memory, Rights, Table
from .format import Annotations, Format, Shape, bits, check_software, stray
from .geometry import LAST_LEVEL, Geometry

__all__ = ["NptFormat", "NptLeaf", "NptTable", "amd_npt"]

_P, _RW, _US, _PWT, _PCD, _A, _D, _PS, _G = (1 << bit for bit in range(9))
_PAT_BLOCK = 1 << 12
_NX = 1 << 63
_SW_SHIFT, _SW = 55, bits(58, 55)
_TYPES = {Memory.NORMAL: 0, Memory.NORMAL_NC: 1, Memory.DEVICE: 3}
"""Index into the page attribute table: WB, WC, UC-, UC, then again WB, WP, UC-, WT."""
_KINDS = {index: memory for memory, index in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class NptLeaf(Leaf):
    """A leaf with all that an x86 one says. ``pat``: index PAT, PCD, PWT; None: as ``memory`` says."""

    pat: int | None = None
    global_: bool = False


@dataclass(frozen=True, slots=True)
class NptTable(Table):
    """A table entry; ``rights`` limit all below it."""

    rights: Rights = Rights.RWX
    accessed: bool = True


@dataclass(frozen=True)
class NptFormat(Format):
    """Nested tables for one geometry; make it with ``amd_npt``."""

    @property
    def name(self) -> str:
        """What it is called."""
        return "x86 NPT"

    @property
    def block_levels(self) -> frozenset[int]:
        """1 GiB and 2 MiB."""
        return frozenset({1, 2})

    @property
    def min_block_level(self) -> int:
        """1 GiB."""
        return 1

    def attributes(
        self, rights: Rights, memory: Memory = Memory.NORMAL, *, software: int = 0, accessed: bool = True
    ) -> int:
        """The bits of a leaf beside address and kind; D is set by who writes.

        >>> hex(amd_npt().attributes(Rights.READ | Rights.WRITE))
        '0x8000000000000026'
        """
        index = _TYPES[Memory.NORMAL if memory is Memory.AS_S1 else memory]
        if memory in {Memory.DEVICE, Memory.NORMAL_NC} and rights & Rights.X:
            raise Stage2Error(errno.EINVAL, f"rights: {rights} of {memory.value} memory may not be executable")
        check_software(software, 1 << 4)
        word = self._rights(rights) | index << 3 | software << _SW_SHIFT
        return word | (_A if accessed else 0)

    @staticmethod
    def _rights(rights: Rights) -> int:
        if not rights & Rights.READ:
            raise Stage2Error(errno.EINVAL, f"rights: {rights}: an x86 entry that is present can be read")
        if rights & Rights.X not in {Rights.X, Rights.NONE}:
            raise Stage2Error(errno.EINVAL, f"rights: {rights}: px and ux differ, x86 has one NX")
        return _US | (_RW if rights & Rights.WRITE else 0) | (0 if rights & Rights.X else _NX)

    @staticmethod
    def _rights_of(word: int) -> Rights:
        rights = Rights.READ | (Rights.WRITE if word & _RW else Rights.NONE)
        return rights | (Rights.NONE if word & _NX else Rights.X)

    def encode(self, entry: Entry) -> int:
        """The word of an entry. A plain Leaf or Table gets what KVM writes where it says nothing."""
        if isinstance(entry, Table):
            self.check_address("table", entry.address, self.geometry.page_size)
            extra = entry if isinstance(entry, NptTable) else NptTable(entry.level, entry.address)
            return entry.address | _P | self._rights(extra.rights) | (_A if extra.accessed else 0)
        if not isinstance(entry, Leaf):
            return self._encode_invalid(entry)
        leaf = entry if isinstance(entry, NptLeaf) else NptLeaf(entry.level, entry.address, entry.rights)
        index = leaf.pat
        if index is None:
            if entry.memory is None:
                raise Stage2Error(errno.EINVAL, "memory: None needs pat")
            index = _TYPES[Memory.NORMAL if entry.memory is Memory.AS_S1 else entry.memory]
        if not 0 <= index < 8:
            raise Stage2Error(errno.EINVAL, f"pat: {index} is not in 0..7")
        check_software(entry.software, 1 << 4)
        self.check_leaf(entry.level, entry.address)
        word = entry.address | _P | self._rights(entry.rights) | entry.software << _SW_SHIFT | (index & 3) << 3
        if entry.level != LAST_LEVEL:
            word |= _PS
        if index & 4:
            word |= _PS if entry.level == LAST_LEVEL else _PAT_BLOCK
        flags = (entry.accessed, _A), (entry.dirty, _D), (leaf.global_, _G)
        return word | sum(bit for flag, bit in flags if flag)

    def _decode_valid(self, word: int, level: int) -> Entry:
        if word & bits(51, 0) >> self.pa_bits << self.pa_bits:
            return Malformed(word, level, f"its address is outside {self.pa_bits} bits", faults=True)
        if not word & _US:
            return Malformed(word, level, "U/S is 0: nested accesses are user accesses", faults=True)
        known = _P | _RW | _US | _A | _NX
        if level != LAST_LEVEL and not word & _PS:
            if malformed := stray(word, known | self._shape().address_mask, level, "a table"):
                return malformed
            return NptTable(level, self._output(word), self._rights_of(word), bool(word & _A))
        if level != LAST_LEVEL and level not in self.block_levels:
            return Malformed(word, level, f"level {level} allows no block", faults=True)
        pat = _PS if level == LAST_LEVEL else _PAT_BLOCK
        shift = self.geometry.shift(level)
        if level != LAST_LEVEL and word & bits(shift - 1, self.geometry.page_shift) & ~pat:
            return Malformed(word, level, f"its address is not a multiple of {1 << shift:#x}", faults=True)
        if malformed := stray(word, known | _PWT | _PCD | _D | _PS | _G | pat | bits(51, shift) | _SW, level, "a leaf"):
            return malformed
        index = word >> 3 & 3 | (4 if word & pat else 0)
        return NptLeaf(
            level,
            word & bits(51, shift),
            self._rights_of(word),
            _KINDS.get(index),
            bool(word & _A),
            bool(word & _D),
            word >> _SW_SHIFT & 0xF,
            index,
            bool(word & _G),
        )

    def _shape(self) -> Shape:
        return self._shape_

    @cached_property
    def _shape_(self) -> Shape:
        address = bits(self.pa_bits - 1, self.geometry.page_shift)
        return Shape(
            table_mask=_PS | _P,
            table_kind=_P,
            block_kind=_PS | _P,
            page_mask=_P,
            page_kind=_P,
            table_bits=_P | _RW | _US | _A,
            address_mask=address,
            address_high_mask=0,
            address_high_shift=0,
            attributes_mask=bits(63, 0) & ~(address | _P | _PS | bits(51, self.geometry.page_shift)),
            read=(0, 0, 0),
            write=(_RW, _RW, 0),
            execute=(_NX, 0, _NX),
            accessed=_A,
            dirty=_D,
            modifier=0,
            nt=0,
            software_mask=_SW,
        )


def amd_npt(pa_bits: int = 48, *, annotations: Annotations = Annotations.LINUX_7_1) -> NptFormat:
    """Nested tables of four levels, 48 bits of input. ``pa_bits``: 32 to 52 (CPUID 8000_0008).

    >>> hex(amd_npt().table(0x5000)), amd_npt().decode(0x5027, 1).address == 0x5000
    ('0x5027', True)
    """
    if not 32 <= pa_bits <= 52:
        raise Stage2Error(errno.EINVAL, f"pa_bits: {pa_bits} is not in 32..52")
    return NptFormat(Geometry(12, 9, 0, 48), pa_bits, annotations)
