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

import itertools
import operator
from typing import TYPE_CHECKING

from .columns import (
    CREATE,
    DELETE,
    IMPLIED,
    KIND,
    MOVE,
    NO_THREAD,
    NOTHING,
    REFUSED,
    SEPARATIONS,
    Changes,
    Transactions,
)
from .timeline import Separation

if TYPE_CHECKING:
    from .run_state import RunState

__all__ = ["DEFAULT_GAP", "SLOW_GAP", "group"]

DEFAULT_GAP = 0.005
"""Seconds. In the recorded boots neighbours inside a transaction are at most 1.4 ms apart (2.4 ms under strace); of
those that only time tells apart, the nearest are 6.9 ms apart."""

SLOW_GAP = 0.1
"""The same, in seconds, for a recorder that takes 8 to 20 ms a call, as ``strace -k`` does."""

PAUSE, THREAD, ORDER = (SEPARATIONS.index(each) for each in (Separation.PAUSE, Separation.THREAD, Separation.ORDER))


class _Space:
    """The transaction that goes on in one address space."""

    __slots__ = ("given", "number", "phase", "thread", "time")

    def __init__(self, thread: int) -> None:
        self.number, self.phase, self.thread, self.time = 0, NOTHING, thread, 0.0
        self.given: set[int] = set()
        """The slots that it created or moved."""


def group(changes: Changes, gap: float = DEFAULT_GAP, run_state: RunState | None = None) -> Transactions:
    """The transactions that ``changes`` form, by first change; every applied change is in exactly one.

    ``run_state`` tells where the thread that issues them runs a vCPU in between. O(n), or O(n log events) with it.
    """
    vcpus = {vcpu.thread for vcpu in run_state.vcpus} if run_state is not None else set()
    found = Transactions(changes)
    if _is_plain(changes) and vcpus.isdisjoint(changes.thread):
        return _group_plain(found, gap)
    spaces: dict[int, _Space] = {}
    space_of: dict[int, int] = {}
    moves = bytes((MOVE,)) in changes.code.tobytes()
    here, by = -1, NO_THREAD
    space: _Space | None = None
    number, after, more = -1, -1, 0
    """The transaction of the change before, the place behind that, and how many are still to be told of it."""
    for index, (code, slot, thread, time) in enumerate(
        zip(changes.code, changes.slot, changes.thread, changes.time, strict=True)
    ):
        if code >= REFUSED:
            continue
        kind, as_id = code & KIND, slot >> 16
        if as_id != here:
            space = spaces.get(as_id)
            here = as_id
        elif (
            thread == by  # issued the one before, in this address space
            and space is not None
            and kind <= space.phase <= DELETE  # a create, or one more delete
            and not abs(time - space.time) > gap
            and not (run_state is not None and thread in vcpus and _ran(run_state, thread, space.time, time))
        ):
            space.phase, space.time = kind, time
            if moves and kind == CREATE:
                space.given.add(slot)
            if index == after and space.number == number:
                after += 1
                more += 1
                continue
            if more:
                found.go_on_by(number, more)
            number, after, more = space.number, index + 1, 0
            found.go_on(number, index)
            continue
        if more:
            found.go_on_by(number, more)
            more = 0
        number = -1
        by = thread
        why, pause = Separation.FIRST, 0.0
        if space is None:
            space = spaces[as_id] = _Space(thread)
            kind = CREATE if kind == MOVE else kind
        else:
            now = space.phase
            begins_anew = False
            if kind == MOVE:
                kind = CREATE
                begins_anew = slot in space.given
            if space.thread != thread:
                why = Separation.THREAD
            elif space_of[thread] != as_id:
                why = Separation.SPACE
            elif begins_anew or not (kind in (now, NOTHING) or (now == DELETE and kind == CREATE)):
                why = Separation.ORDER
            elif run_state is not None and thread in vcpus and _ran(run_state, thread, space.time, time):
                why = Separation.RUN
            else:
                pause = abs(time - space.time)
                if not pause > gap:  # without stamps order alone decides
                    found.go_on(space.number, index)
                    space.time = time
                    if kind != NOTHING:
                        space.phase = kind
                    if moves and kind == CREATE:
                        space.given.add(slot)
                    continue
                why = Separation.PAUSE
        number = space.number = found.begin(index, why, pause)
        after = index + 1
        space.phase, space.thread, space.time = kind, thread, time
        space.given.clear()
        if moves and kind == CREATE:
            space.given.add(slot)
        space_of[thread] = as_id
    if more:
        found.go_on_by(number, more)
    return found


def _is_plain(changes: Changes) -> bool:
    """Whether there are only deletes and creates, all carried out, in one address space."""
    if not set(changes.code) <= {CREATE, DELETE, DELETE | IMPLIED} or not len(changes):
        return False
    return max(changes.slot) >> 16 == min(changes.slot) >> 16


def _group_plain(found: Transactions, gap: float) -> Transactions:
    """``group`` of plain changes: each goes on with the one before, or says why not, by the two alone."""
    changes = found.changes
    codes = changes.code.tobytes().translate(bytes(code & KIND for code in range(256)))
    threads, times = changes.thread, changes.time
    same = map(operator.eq, threads, itertools.islice(threads, 1, None))
    in_order = map(operator.ge, codes, itertools.islice(codes, 1, None))
    pauses = list(map(abs, map(operator.sub, itertools.islice(times, 1, None), times)))
    firsts, whys = [0], bytearray((SEPARATIONS.index(Separation.FIRST),))
    for index, (by, on, pause) in enumerate(zip(same, in_order, pauses, strict=True), 1):
        if by and on and not pause > gap:
            continue
        firsts.append(index)
        whys.append(THREAD if not by else ORDER if not on else PAUSE)
    found.begin_all(firsts, whys, [pauses[i - 1] if why == PAUSE else 0.0 for i, why in zip(firsts, whys, strict=True)])
    return found


def _ran(run_state: RunState, thread: int, before: float, after: float) -> bool:
    """Whether the thread of two changes ran its vCPU between them, so that its KVM_RUN ended in an exit."""
    if before != before or after != after or thread == NO_THREAD:  # noqa: PLR0124 (not a number)
        return False
    return run_state.ran_between(thread, before, after)
