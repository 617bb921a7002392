"""What every descriptor format offers: encode, decode, attributes, and the words that describe it to compiled code.

Also the invalid encodings, which are software's own and the same on Arm and x86: the locked mark and the owner's note,
in the form of Linux 6.2 to 7.0 and in that of 7.1 (``arch/arm64/kvm/hyp/pgtable.c``, ``asm/kvm_pgtable.h``).
"""

from __future__ import annotations

import abc
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import LevelError, OutOfRangeError, Stage2Error, UnalignedError
from .descriptor import Annotations, Empty, Entry, InvalidType, Locked, Malformed, Memory, Owned, Rights
from .geometry import LAST_LEVEL, Geometry

if TYPE_CHECKING:
    from ..compiled import Own

__all__ = [
    "Annotations",
    "Format",
    "InvalidType",
    "Shape",
    "bits",
    "check_software",
    "guest_payload",
    "host_payload",
    "stray",
]


_OWNER_6_2 = 0xFF << 2
_LOCKED_6_2 = 1 << 10
_TYPE_SHIFT = 60
_PAYLOAD_BITS = 59
_VALID = 1


@dataclass(frozen=True)
class Shape:
    """The words of ``layout`` that differ between formats, by their names there."""

    table_mask: int
    table_kind: int
    block_kind: int
    page_mask: int
    page_kind: int
    table_bits: int
    address_mask: int
    address_high_mask: int
    address_high_shift: int
    attributes_mask: int
    read: tuple[int, int, int]
    """Mask, value that grants, value that denies."""
    write: tuple[int, int, int]
    execute: tuple[int, int, int]
    accessed: int
    dirty: int
    modifier: int
    nt: int
    software_mask: int


def bits(high: int, low: int) -> int:
    """The mask of bits ``high`` to ``low``, as Arm writes ranges.

    >>> hex(bits(11, 2))
    '0xffc'
    """
    return (1 << (high + 1)) - (1 << low)


def host_payload(owner: int, metadata: int = 0) -> int:
    """Payload of a HOST_DONATION: the owner component (entry bits 3:1) and what it wants to remember (59:4)."""
    if not 0 <= owner < 1 << 3 or not 0 <= metadata < 1 << 56:
        raise Stage2Error(errno.EINVAL, f"owner: {owner:#x} and metadata {metadata:#x} are not within 3 and 56 bits")
    return owner | metadata << 3


def guest_payload(owner: int, handle: int, gfn: int) -> int:
    """Payload of a donation to a guest: its VM's handle (16 bits), then the frame it got the page as (40 bits)."""
    if not 0 <= handle < 1 << 16 or not 0 <= gfn < 1 << 40:
        raise Stage2Error(errno.EINVAL, f"handle: {handle:#x} and gfn {gfn:#x} are not within 16 and 40 bits")
    return host_payload(owner, handle | gfn << 16)


@dataclass(frozen=True)
class Format(abc.ABC):
    """One way of writing entries, for one geometry.

    ``pa_bits``: size of an output address. Everything that cannot be written raises Stage2Error: EINVAL for alignment,
    levels and combinations, ERANGE for addresses outside.
    """

    geometry: Geometry
    pa_bits: int
    annotations: Annotations

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What it is called."""

    @property
    @abc.abstractmethod
    def block_levels(self) -> frozenset[int]:
        """Levels above the last at which hardware takes a block."""

    @property
    @abc.abstractmethod
    def min_block_level(self) -> int:
        """Lowest level at which KVM puts a block."""

    @abc.abstractmethod
    def attributes(
        self, rights: Rights, memory: Memory = Memory.NORMAL, *, software: int = 0, accessed: bool = True
    ) -> int:
        """The bits of a leaf beside address and kind, as KVM would write them; for map.

        EINVAL for what KVM refuses: rights that the format cannot tell apart, device memory that is executable.
        """

    @abc.abstractmethod
    def encode(self, entry: Entry) -> int:
        """The word of an entry: the inverse of ``decode``. O(1)."""

    @abc.abstractmethod
    def _decode_valid(self, word: int, level: int) -> Entry:
        """What a word with the valid bit says."""

    @abc.abstractmethod
    def _shape(self) -> Shape:
        """The format's words for compiled code."""

    def leaf(self, level: int, address: int, attributes: int) -> int:
        """The leaf at ``level`` that maps to ``address``, with attributes of ``attributes()``."""
        self.check_leaf(level, address)
        shape = self._shape()
        if attributes & ~shape.attributes_mask:
            raise Stage2Error(errno.EINVAL, f"attributes: {attributes:#x} is not within {shape.attributes_mask:#x}")
        return self._packed(address) | attributes | (shape.page_kind if level == LAST_LEVEL else shape.block_kind)

    def table(self, address: int) -> int:
        """The entry that points to the table page at ``address``, with all rights."""
        self.check_address("table", address, self.geometry.page_size)
        return self._packed(address) | self._shape().table_bits

    @property
    def locked(self) -> int:
        """The word that a walker puts where it is between break and make."""
        return self._owned(InvalidType.LOCKED, 0) if self.annotations is Annotations.LINUX_7_1 else _LOCKED_6_2

    def owned(self, kind: int, payload: int) -> int:
        """The word of an owner's note: 7.1 a type (not 0, not LOCKED) and 59 bits, 6.2 kind 0 and an id up to 255.

        EINVAL as ``kvm_pgtable_stage2_annotate()``.
        """
        if self.annotations is Annotations.LINUX_6_2:
            if kind or not 1 <= payload <= 0xFF:
                raise Stage2Error(errno.EINVAL, f"owner: {payload:#x} of kind {kind} is not kind 0 and 0x1..0xff")
            return payload << 2
        if not 0 < kind < 1 << 4 or kind == InvalidType.LOCKED:
            raise Stage2Error(errno.EINVAL, f"kind: {kind} is not in 2..15: 0 is an empty entry, 1 a locked one")
        return self._owned(kind, payload)

    @staticmethod
    def _owned(kind: int, payload: int) -> int:
        if not 0 <= payload < 1 << _PAYLOAD_BITS:
            raise Stage2Error(errno.EINVAL, f"payload: {payload:#x} is not within {_PAYLOAD_BITS} bits")
        return kind << _TYPE_SHIFT | payload << 1

    def decode(self, word: int, level: int) -> Entry:
        """What ``word`` says at ``level``; never raises for 64 bits. O(1)."""
        if not 0 <= word < 1 << 64 or not 0 <= level <= LAST_LEVEL:
            raise Stage2Error(errno.EINVAL, f"word: {word:#x} at level {level} is not 64 bits at 0..{LAST_LEVEL}")
        if word & _VALID:
            return self._decode_valid(word, level)
        if word == 0:
            return Empty()
        if word == self.locked:
            return Locked()
        kind = 0
        if self.annotations is Annotations.LINUX_6_2:
            if word & ~_OWNER_6_2 == 0:
                return Owned(0, word >> 2)
        elif (kind := word >> _TYPE_SHIFT) and kind != InvalidType.LOCKED:
            return Owned(kind, (word >> 1) & ((1 << _PAYLOAD_BITS) - 1))
        return Malformed(word, level, f"invalid, but neither locked nor an owner's (type {kind})", faults=True)

    def _encode_invalid(self, entry: Entry) -> int:
        match entry:
            case Empty():
                return 0
            case Locked():
                return self.locked
            case Owned():
                return self.owned(entry.kind, entry.payload)
            case Malformed():
                return entry.word
        raise TypeError(f"entry: {entry!r} is no entry of {self.name}")

    def check_leaf(self, level: int, address: int) -> None:
        """Raise Stage2Error unless a leaf at ``level`` may map to ``address``."""
        if level != LAST_LEVEL and level not in self.block_levels:
            allowed = ", ".join(map(str, sorted(self.block_levels)))
            raise LevelError(
                errno.EINVAL, f"level: {level} allows no block in {self.name}: {allowed} do, {LAST_LEVEL} holds pages"
            )
        self.check_address("address", address, self.geometry.size(level))

    def check_address(self, name: str, address: int, size: int) -> None:
        """Raise Stage2Error unless ``address`` is a multiple of ``size`` within the output's bits."""
        if address % size:
            raise UnalignedError(errno.EINVAL, f"{name}: {address:#x} is not a multiple of {size:#x}")
        if not 0 <= address < 1 << self.pa_bits:
            raise OutOfRangeError(errno.ERANGE, f"{name}: {address:#x} is outside {self.pa_bits} bits of output")

    def _packed(self, address: int) -> int:
        """An output address as bits of a descriptor."""
        shape = self._shape()
        return (address & shape.address_mask) | (address >> shape.address_high_shift & shape.address_high_mask)

    def _output(self, word: int) -> int:
        """The output address in a descriptor, whole pages."""
        shape = self._shape()
        return (word & shape.address_mask) | (word & shape.address_high_mask) << shape.address_high_shift

    def shape(self, pool_base: int) -> Own:
        """The words (``layout``) that tell compiled code this format and geometry. Loads NumPy or Numba."""
        from .shape import format_shape

        return format_shape(self, self._shape(), pool_base)


def check_software(software: int, limit: int) -> None:
    """Raise Stage2Error unless ``software`` fits."""
    if not 0 <= software < limit:
        raise Stage2Error(errno.EINVAL, f"software: {software:#x} is not in 0..{limit - 1:#x}")


def stray(word: int, allowed: int, level: int, what: str) -> Malformed | None:
    """Malformed if ``word`` has bits beside ``allowed``: hardware ignores them, software never sets them."""
    if extra := word & ~allowed:
        return Malformed(word, level, f"{what} has bits {extra:#x}", faults=False)
    return None
