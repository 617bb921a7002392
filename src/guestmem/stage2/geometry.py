"""How a table is cut: granule, bits per level, start level, and the root that is several tables in a row.

Arm's rule for legal pairs of input size and start level, and KVM's choice among them: the deepest start that 16
concatenated tables can reach (Linux ``asm/stage2_pgtable.h``, ``asm/kvm_pgtable.h``). Levels are 0 to 3 in every format
here; x86's PML4 is level 0, its page table level 3.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ..errors import GeometryError, OutOfRangeError, UnalignedError

__all__ = ["GRANULES", "LAST_LEVEL", "MAX_ROOT_PAGES", "Geometry", "stage2_geometry"]

GRANULES = {0x1000: 12, 0x4000: 14, 0x10000: 16}
"""Page size in bytes to page shift."""
LAST_LEVEL = 3
MAX_ROOT_PAGES = 16
_MIN_IPA, _MAX_IPA, _MAX_LARGE_IPA = 25, 48, 52


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one table. ``stride``: bits that a level resolves; ``ipa_bits``: size of the input.

    Any cut that a walk can follow is allowed here, so that tables of 8 entries can be explored; ``stage2_geometry``
    gives only what Arm allows.

    >>> tiny = Geometry(page_shift=12, stride=3, start_level=1, ipa_bits=22)
    >>> tiny.root_pages, tiny.entries, [hex(tiny.size(level)) for level in (1, 2, 3)]
    (2, 8, ['0x40000', '0x8000', '0x1000'])
    """

    page_shift: int
    stride: int
    start_level: int
    ipa_bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_level <= LAST_LEVEL:
            raise GeometryError(errno.EINVAL, f"start_level: {self.start_level} is not in 0..{LAST_LEVEL}")
        if not 1 <= self.stride <= self.page_shift - 3:
            raise GeometryError(errno.EINVAL, f"stride: {self.stride} is not in 1..{self.page_shift - 3}")
        least, most = self.shift(self.start_level) + 1, self.shift(self.start_level - 1) + 4
        if not least <= self.ipa_bits <= most:
            raise GeometryError(
                errno.EINVAL,
                f"ipa_bits: {self.ipa_bits} cannot start at level {self.start_level}: {least}..{most} bits can",
            )

    def shift(self, level: int) -> int:
        """Bits below an entry of ``level``: it maps 2**shift bytes."""
        return self.page_shift + self.stride * (LAST_LEVEL - level)

    def size(self, level: int) -> int:
        """Bytes that one entry of ``level`` maps."""
        return 1 << self.shift(level)

    def index(self, ipa: int, level: int) -> int:
        """Index of ``ipa`` in its table; in the root, of all concatenated tables."""
        if level == self.start_level:
            return ipa >> self.shift(level)
        return (ipa >> self.shift(level)) & (self.entries - 1)

    @property
    def levels(self) -> int:
        """Number of levels that a walk visits."""
        return LAST_LEVEL + 1 - self.start_level

    @property
    def entries(self) -> int:
        """Entries of one table page."""
        return 1 << self.stride

    @property
    def root_pages(self) -> int:
        """Table pages of the root: one run, aligned to its size."""
        return 1 << max(0, self.ipa_bits - self.shift(self.start_level - 1))

    @property
    def root_entries(self) -> int:
        """Entries of the root that the input can reach."""
        return 1 << (self.ipa_bits - self.shift(self.start_level))

    @property
    def page_size(self) -> int:
        """Bytes of the granule."""
        return 1 << self.page_shift

    def check_range(self, start: int, size: int) -> None:
        """Raise Stage2Error unless ``[start, start + size)`` is whole pages of the input, at least one."""
        for name, value in (("ipa", start), ("size", size)):
            if value % self.page_size or value < 0:
                raise UnalignedError(errno.EINVAL, f"{name}: {value:#x} is not a multiple of {self.page_size:#x}")
        if size == 0:
            raise UnalignedError(errno.EINVAL, "size: 0 is not a positive number of bytes")
        if start + size > 1 << self.ipa_bits:
            raise OutOfRangeError(
                errno.ERANGE, f"ipa: [{start:#x}, {start + size:#x}) is outside {self.ipa_bits} bits of input"
            )


def stage2_geometry(granule: int, ipa_bits: int, start_level: int | None = None, *, large: bool = False) -> Geometry:
    """Arm's geometry for a granule (bytes) and an input size; without ``start_level``, KVM's choice.

    ``large``: input up to 52 bits (64K granule: FEAT_LPA; 4K and 16K: FEAT_LPA2, VTCR_EL2.DS), else up to 48.
    Raises GeometryError (EINVAL) for what the architecture does not allow. Level -1 is not offered: KVM never uses it.

    >>> [stage2_geometry(0x1000, bits).start_level for bits in (32, 40, 43, 44)]
    [2, 1, 1, 0]
    >>> stage2_geometry(0x4000, 40).root_pages
    16
    """
    if granule not in GRANULES:
        raise GeometryError(errno.EINVAL, f"granule: {granule:#x} is not 0x1000, 0x4000 or 0x10000")
    most = _MAX_LARGE_IPA if large else _MAX_IPA
    if not _MIN_IPA <= ipa_bits <= most:
        raise GeometryError(errno.EINVAL, f"ipa_bits: {ipa_bits} is not in {_MIN_IPA}..{most} for granule {granule:#x}")
    page_shift = GRANULES[granule]
    stride = page_shift - 3
    if start_level is None:
        start_level = LAST_LEVEL + 1 - max(2, (ipa_bits - 8) // stride)
    if start_level == 0 and granule != 0x1000 and not (granule == 0x4000 and large):
        without = " without LPA2" if granule == 0x4000 else ""
        raise GeometryError(errno.EINVAL, f"start_level: 0 is not in 1..3 for granule {granule:#x}{without}")
    try:
        return Geometry(page_shift, stride, start_level, ipa_bits)
    except GeometryError as error:
        raise GeometryError(errno.EINVAL, f"granule {granule:#x}: {str(error).partition(': ')[2]}") from None
