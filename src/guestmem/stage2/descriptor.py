"""What one entry of a table says, whatever the format: a leaf, a table, nothing, the locked mark, an owner's note.

Frozen values that ``decode`` of a format returns and ``encode`` takes; no bits here. Names as in Linux
``arch/arm64/include/asm/kvm_pgtable.h`` (prot, annotation, locked).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = [
    "Annotations",
    "Empty",
    "Entry",
    "InvalidType",
    "Leaf",
    "Locked",
    "Malformed",
    "Memory",
    "Owned",
    "Rights",
    "Table",
]


class Rights(enum.IntFlag):
    """What a leaf allows. PX: privileged execution (Arm EL1, x86 any), UX: unprivileged; X is both.

    >>> format(Rights.READ | Rights.X), format(Rights.READ | Rights.WRITE), format(Rights.UX)
    ('r-x', 'rw-', '--u')
    """

    NONE = 0
    READ = 1
    WRITE = 2
    PX = 4
    UX = 8
    X = 12
    RW = 3
    RWX = 15

    def __str__(self) -> str:
        execute = {Rights.X: "x", Rights.PX: "p", Rights.UX: "u"}.get(self & Rights.X, "-")
        return ("r" if self & Rights.READ else "-") + ("w" if self & Rights.WRITE else "-") + execute

    __format__ = lambda self, spec: format(str(self), spec)  # noqa: E731 - an int's own __format__ prints a number


class Memory(enum.Enum):
    """Memory type of a leaf. AS_S1: what stage 1 says (Arm with FWB; elsewhere it is NORMAL)."""

    NORMAL = "normal"
    NORMAL_NC = "non-cacheable"
    DEVICE = "device"
    AS_S1 = "as stage 1"


class Annotations(enum.Enum):
    """How invalid entries are written: by Linux 6.2 to 7.0, or since 7.1."""

    LINUX_6_2 = "6.2"
    """Owner id in bits 9:2, locked: bit 10."""
    LINUX_7_1 = "7.1"
    """Type in bits 63:60, payload in 59:1."""


class InvalidType(enum.IntEnum):
    """Types of invalid entries since Linux 7.1 (bits 63:60)."""

    LOCKED = 1
    HOST_DONATION = 2
    GUEST_POISONED = 3


@dataclass(frozen=True, slots=True)
class Leaf:
    """A valid block or page: ``address`` is its output, in bytes; ``software`` four bits for software.

    ``memory`` is None for an attribute encoding that has no name here. ``dirty``: x86 the D bit, Arm with DBM the
    write permission that hardware gave; False where nothing is tracked.
    """

    level: int
    address: int
    rights: Rights
    memory: Memory | None = Memory.NORMAL
    accessed: bool = True
    dirty: bool = False
    software: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A valid entry that points to the table page of the next level."""

    level: int
    address: int


@dataclass(frozen=True, slots=True)
class Empty:
    """The word 0."""


@dataclass(frozen=True, slots=True)
class Locked:
    """An invalid entry that a walker holds while it breaks before it makes. It owns no reference."""


@dataclass(frozen=True, slots=True)
class Owned:
    """An invalid entry with a note: as in Linux 7.1, a ``kind`` and a payload; before, kind 0 and an owner id."""

    kind: int
    payload: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A word that no software writes; ``why`` names what is wrong. ``faults``: hardware does not translate by it."""

    word: int
    level: int
    why: str
    faults: bool


Entry = Leaf | Table | Empty | Locked | Owned | Malformed
