"""An access of something that is updated: when, and between which updates it must have been."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Access", "Update"]

Span = tuple[int, int]
"""Updates by number: the last that must have been done, and the first that must not."""


@dataclass(frozen=True, slots=True)
class Access:
    """It took effect at one moment of ``[start, end]``, both included, on a clock that all accesses share.

    ``after``: the number of the last update that it saw done (0: none). ``before``: that of the first update that it
    saw not done (None: it saw nothing undone). Of one update, ``Access.old`` saw it not done and ``Access.new`` done.
    ``others``: further (after, before) that would explain it as well, where what it saw does not tell. ``neither``: it
    saw what was never there, so nothing explains it. ``who`` and ``where`` are for people.

    >>> Access.old(3, 7, who="vCPU 1")
    Access(start=3, end=7, after=0, before=1, others=(), neither=False, who='vCPU 1', where='')
    """

    start: float
    end: float
    after: int = 0
    before: int | None = None
    others: tuple[tuple[int, int | None], ...] = ()
    neither: bool = False
    who: str = ""
    where: str = ""

    def __post_init__(self) -> None:
        if not self.start <= self.end:
            raise ValueError(f"access: it ends at {self.end}, before it starts at {self.start}")
        for after, before in ((self.after, self.before), *self.others):
            if after < 0 or (before is not None and before <= after):
                raise ValueError(f"access: after update {after} and before update {before} cannot both be")

    @classmethod
    def old(cls, start: float, end: float, update: int = 1, *, who: str = "", where: str = "") -> Access:
        """It saw ``update`` not done."""
        return cls(start, end, 0, update, who=who, where=where)

    @classmethod
    def new(cls, start: float, end: float, update: int = 1, *, who: str = "", where: str = "") -> Access:
        """It saw ``update`` done."""
        return cls(start, end, update, None, who=who, where=where)


@dataclass(frozen=True, slots=True)
class Update:
    """Update ``number`` (from 1 on, in the order in which they are made); its moment is in ``[start, end]``."""

    number: int
    start: float = float("-inf")
    end: float = float("inf")

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"update: number {self.number} is not at least 1")
        if not self.start <= self.end:
            raise ValueError(f"update {self.number}: it ends at {self.end}, before it starts at {self.start}")
