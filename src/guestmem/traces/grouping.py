"""Which changes the VMM meant as one step.

No trace says where a VMM's transaction begins and ends, so it is inferred from what VMMs do: QEMU's listener, and
every VMM that replaces a slot, first deletes and then creates (QEMU ``accel/kvm/kvm-all.c``, ``kvm_region_commit()``),
and QEMU finishes one address space before it begins the next (``memory_region_transaction_commit()`` calls the
listeners' ``commit`` one after the other). So a transaction is a run of deletes, then a run of creates and moves, in
one address space, by one thread, which changes no other address space meanwhile, where neighbours are at most ``gap``
seconds apart, and between which the thread runs no vCPU. A delete after a create begins the next one, and so does a
move of a slot that this one created or moved: nothing that a transaction gave does it take away. Flag-only changes,
which open no hole, form transactions of their own; a change that changed nothing joins whatever goes on. Where a stamp
is missing, order alone decides. A change of the same address space by another thread ends the transaction, so that
transactions never interleave and can be replayed one after the other.

Why a transaction does not belong to the one before it in its address space is kept with it: where only time or thread
tells them apart, and frames come back, ``check`` asks whether they were one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..memslots.changes import ChangeKind
from .timeline import RecordedChange, Separation, Transaction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .run_state import RunState

__all__ = ["DEFAULT_GAP", "SLOW_GAP", "group"]

DEFAULT_GAP = 0.005
"""Seconds. In the recorded boots neighbours inside a transaction are at most 1.4 ms apart (2.4 ms under strace); of
those that only time tells apart, the nearest are 6.9 ms apart."""

SLOW_GAP = 0.1
"""The same, in seconds, for a recorder that takes 8 to 20 ms a call, as ``strace -k`` does."""


def group(
    changes: Iterable[RecordedChange], gap: float = DEFAULT_GAP, run_state: RunState | None = None
) -> list[Transaction]:
    """The transactions that ``changes`` form, by first change; every applied change is in exactly one.

    ``run_state`` tells where the thread that issues them runs a vCPU in between. O(n), or O(n log events) with it.
    """
    vcpus = {vcpu.thread for vcpu in run_state.vcpus} if run_state is not None else set()
    ordered: list[list[RecordedChange]] = []
    whys: list[tuple[Separation, float]] = []
    current: dict[int, list[RecordedChange]] = {}
    phase: dict[int, ChangeKind] = {}
    given: dict[int, set[int]] = {}
    space_of: dict[int | None, int] = {}
    create, delete, move, nothing = ChangeKind.CREATE, ChangeKind.DELETE, ChangeKind.MOVE, ChangeKind.NOTHING
    for each in changes:
        if each.ret < 0:
            continue
        kind = each.kind
        slot, as_id = each.change.slot, each.change.as_id
        run = current.get(as_id)
        why, pause = Separation.FIRST, 0.0
        if run is not None:
            now = phase[as_id]
            begins_anew = False
            if kind is move:
                kind = create
                begins_anew = slot in given[as_id]
            if run[-1].thread != each.thread:
                why = Separation.THREAD
            elif space_of[each.thread] != as_id:
                why = Separation.SPACE
            elif begins_anew or not (kind is now or kind is nothing or (now is delete and kind is create)):
                why = Separation.ORDER
            elif each.thread in vcpus and run_state is not None and _ran(run_state, run[-1], each):
                why = Separation.RUN
            else:
                pause = _pause(run[-1], each)
                if pause <= gap:
                    run.append(each)
                    if kind is not nothing:
                        phase[as_id] = kind
                    if kind is create:
                        given[as_id].add(slot)
                    continue
                why = Separation.PAUSE
        elif kind is move:
            kind = create
        current[as_id] = run = [each]
        ordered.append(run)
        whys.append((why, pause))
        phase[as_id] = kind
        given[as_id] = {slot} if kind is create else set()
        space_of[each.thread] = as_id
    return [Transaction(index, run[0].change.as_id, tuple(run), *whys[index]) for index, run in enumerate(ordered)]


def _ran(run_state: RunState, before: RecordedChange, after: RecordedChange) -> bool:
    """Whether the thread of two changes ran its vCPU between them, so that its KVM_RUN ended in an exit."""
    if before.time is None or after.time is None or after.thread is None:
        return False
    return run_state.ran_between(after.thread, before.time, after.time)


def _pause(before: RecordedChange, after: RecordedChange) -> float:
    """Seconds between the stamps of two changes; 0 without stamps, where order alone decides."""
    return 0.0 if before.time is None or after.time is None else abs(after.time - before.time)
