"""What the vCPUs of an engine touch, and how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..atomics import store_relaxed
from ..compiled import U64, Own, Words, compiled, own, u64
from ..errors import UsageError
from . import load_words as at

__all__ = ["PATTERNS", "Access", "Load", "Target", "host_words", "write_load"]

PATTERNS = {"sequential": int(at.SEQUENTIAL), "random": int(at.RANDOM), "hot": int(at.HOT)}


class Target(NamedTuple):
    """Eight bytes of guest memory that vCPUs touch, and where they are before and after the next update.

    ``old`` and ``new`` are real host addresses of these bytes, 0 for no slot.
    """

    gpa: int
    old: int
    new: int
    old_readonly: bool = False
    new_readonly: bool = False
    changed: bool = False
    """Whether the next update changes the range it lies in."""
    old_tag: int = 0
    new_tag: int = 0
    """The byte at ``TAG_BYTE`` of the eight at ``old`` and at ``new``, 0 for none: what a guest tells them by."""
    private: bool = False
    """Whether accesses are private ones, to a guest_memfd's private pages."""
    marked: bool = False
    """Whether private writes leave ``load_words.SECRET`` in the word, so that a shared access that reads it is told."""
    old_denied: int = 0
    new_denied: int = 0
    """What has no right before and after: NR 1, NW 2, NX 4, as in ``Update.deny``."""

    @property
    def must(self) -> bool:
        """Whether it has memory before and after, so should have it throughout."""
        return bool(self.old and self.new)


class Load:
    """Targets of one update, in one address space: those in ranges that it changes come first."""

    __slots__ = ("as_id", "targets", "words")

    def __init__(self, targets: Iterable[Target] = (), as_id: int = 0) -> None:
        self.targets = tuple(sorted(targets, key=lambda target: not target.changed))
        self.as_id = as_id
        changed = sum(target.changed for target in self.targets)
        flat = [changed, len(self.targets) - changed, as_id, 0, 0, 0, 0, 0]
        for target in self.targets:
            flags = (
                int(at.MUST) * target.must
                + int(at.OLD_READONLY) * target.old_readonly
                + int(at.NEW_READONLY) * target.new_readonly
                + int(at.CHANGED) * target.changed
                + int(at.PRIVATE) * target.private
                + int(at.MARKED) * target.marked
                + (target.old_tag << int(at.OLD_TAG))
                + (target.new_tag << int(at.NEW_TAG))
                + (target.old_denied << int(at.OLD_DENIED))
                + (target.new_denied << int(at.NEW_DENIED))
            )
            flat += (target.gpa, flags, target.old, target.new)
        self.words = own(len(flat))
        """As the vCPUs read it."""
        for index, word in enumerate(flat):
            self.words[index] = word


@compiled
def write_load(load: Words, base: U64, source: Own, count: U64, window: U64) -> None:
    """Write a load where no vCPU reads; it comes into force by LOAD, which is released after it."""
    index = u64(0)
    while index < count:
        store_relaxed(load, base + index, source[index])
        index += u64(1)
    store_relaxed(load, base + at.LOAD_WINDOW, window)


@dataclass(frozen=True, slots=True)
class Access:
    """How a vCPU accesses its targets. Shares are of 1.

    ``changed`` is the share of accesses that goes to ranges that the next update changes: a fixed one, since 256 KiB
    of firmware area would never be hit by chance in 1 TiB.
    """

    pattern: str = "random"
    writes: float = 0.3
    fetches: float = 0.1
    changed: float = 0.5

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise UsageError(f"pattern: {self.pattern!r} is not one of {', '.join(PATTERNS)}")
        for name in ("writes", "fetches", "changed"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not a share from 0 to 1")
        if self.writes + self.fetches > 1:
            raise UsageError(f"writes + fetches: {self.writes + self.fetches} is more than 1")

    def shares(self) -> tuple[int, int, int]:
        """The shares of writes, of fetches among the rest, and of changed targets, of 2**16."""
        rest = 1 - self.writes
        return tuple(  # type: ignore[return-value]  # three of them
            min(0xFFFF + 1, round(65536 * share))
            for share in (self.writes, self.fetches / rest if rest else 0, self.changed)
        )


def host_words(loads: Sequence[Load]) -> set[int]:
    """Every host address that some target has before or after its update."""
    return {address for load in loads for target in load.targets for address in (target.old, target.new) if address}
