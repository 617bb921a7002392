"""Which changes the VMM meant as one step.

No trace says where a VMM's transaction begins and ends, so it is inferred from what VMMs do: QEMU's listener, and
every VMM that replaces a slot, first deletes and then creates (QEMU ``accel/kvm/kvm-all.c``, ``kvm_region_commit()``).
A transaction is a run of deletes, then a run of creates and moves, in one address space, by one thread, where
neighbours are at most ``gap`` seconds apart. A delete after a create begins the next one, and so does a move of a slot
that this one created or moved: nothing that a transaction gave does it take away. Flag-only changes, which open no
hole, form transactions of their own; a change that changed nothing joins whatever goes on. Where a stamp is
missing, order alone decides. A change of the same address space by another thread ends the transaction, so that
transactions never interleave and can be replayed one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..memslots.changes import ChangeKind
from .timeline import RecordedChange, Transaction

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT_GAP", "group"]

DEFAULT_GAP = 0.005
"""Seconds. In the recorded boots neighbours inside a transaction are at most 1.4 ms apart (2.4 ms under strace); of
those that only time tells apart, the nearest are 6.9 ms apart."""


def group(changes: Iterable[RecordedChange], gap: float = DEFAULT_GAP) -> list[Transaction]:
    """The transactions that ``changes`` form, by first change; every applied change is in exactly one. O(n)."""
    ordered: list[list[RecordedChange]] = []
    current: dict[int, list[RecordedChange]] = {}
    phase: dict[int, ChangeKind] = {}
    given: dict[int, set[int]] = {}
    create, delete, move, nothing = ChangeKind.CREATE, ChangeKind.DELETE, ChangeKind.MOVE, ChangeKind.NOTHING
    for each in changes:
        if each.ret < 0:
            continue
        kind = each.kind
        slot, as_id = each.change.slot, each.change.as_id
        run = current.get(as_id)
        if kind is move:
            kind = create
            if slot in given.get(as_id, ()):
                run = None
        if run is not None:
            now = phase[as_id]
            follows = kind is now or kind is nothing or (now is delete and kind is create)
            if follows and _is_near(run[-1], each, gap):
                run.append(each)
                if kind is not nothing:
                    phase[as_id] = kind
                if kind is create:
                    given[as_id].add(slot)
                continue
        current[as_id] = run = [each]
        ordered.append(run)
        phase[as_id] = kind
        given[as_id] = {slot} if kind is create else set()
    return [Transaction(index, run[0].change.as_id, tuple(run)) for index, run in enumerate(ordered)]


def _is_near(before: RecordedChange, after: RecordedChange, gap: float) -> bool:
    """Whether one thread issued both within ``gap`` seconds."""
    if before.thread != after.thread:
        return False
    return before.time is None or after.time is None or abs(after.time - before.time) <= gap
