"""A Timeline: what a VMM did to its memslots, in order, as one trace tells it.

Values only; readers make them, ``check`` and ``compare`` use them. KVM's own word for what happens to a slot is a
*change*; a *transaction* is what the VMM meant as one step, as QEMU's ``memory_region_transaction_commit()`` does.
"""

from __future__ import annotations

import enum
import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..memslots.changes import Change, ChangeKind
from ..memslots.slot import Slot
from ..notebook import SHOWN, html_table
from ..units import format_frames
from .run_state import RunState, Vcpu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .columns import Changes, Transactions
    from .late_start import AssumedSlot

__all__ = [
    "DirtyLogClear",
    "DmaChange",
    "GlobalDirtyChange",
    "RecordedChange",
    "RunState",
    "Separation",
    "Timeline",
    "Transaction",
    "Vcpu",
]


class RecordedChange(NamedTuple):
    """One change as it was recorded.

    ``old`` is the slot that had this id before (for a delete: what is removed). ``time`` is the stamp of the line in
    seconds, on the trace's own clock. The call took effect somewhere between ``began``, when it had not begun yet, and
    ``ended``, when it had returned; each is None where the trace does not tell. QEMU stamps a call when it has
    returned, and makes one at a time, so it began after the one before had returned; strace stamps it when it starts.
    ``ret`` is the result, negative if KVM refused. ``implied`` marks the delete that QEMU issues, without a line of its
    own, before it turns the READONLY flag of a slot. A refused change has the kind that KVM would have given it, or
    NOTHING.
    """

    change: Change
    kind: ChangeKind
    old: Slot | None
    line: int
    path: str
    time: float | None
    thread: int | None
    ret: int
    implied: bool
    began: float | None
    ended: float | None

    @property
    def applied(self) -> bool:
        """Whether KVM carried it out."""
        return self.ret >= 0

    @property
    def removed(self) -> Slot | None:
        """The slot whose frames this change took away (a delete's, or a move's at its old place)."""
        return self.old if self.applied and self.kind in (ChangeKind.DELETE, ChangeKind.MOVE) else None

    @property
    def added(self) -> Slot | None:
        """The slot whose frames this change gave (a create's, or a move's at its new place)."""
        return self.change.as_slot() if self.applied and self.kind in (ChangeKind.CREATE, ChangeKind.MOVE) else None


class Separation(enum.Enum):
    """Why a transaction is not part of the one before it in its address space.

    FIRST: there is none. PAUSE: nothing but the pause between them. THREAD: another thread issued it. SPACE: the
    thread changed another address space in between, which QEMU does only when it is through with this one. RUN: the
    thread ran its vCPU in between. ORDER: it begins with what none goes on with: a delete after a create, a change of
    flags.
    """

    FIRST = "first"
    PAUSE = "pause"
    THREAD = "thread"
    SPACE = "space"
    RUN = "run"
    ORDER = "order"


@dataclass(frozen=True, slots=True)
class Transaction:
    """Changes of one address space that the VMM made as one step: see ``grouping``.

    Refused changes are not in it, and no change takes away what one before it gave. ``separation`` says why it is none
    with the one before; ``pause`` is the pause in seconds before it, if that is the reason.
    """

    index: int
    as_id: int
    changes: tuple[RecordedChange, ...]
    separation: Separation = Separation.FIRST
    pause: float = 0.0

    @property
    def deletes(self) -> tuple[RecordedChange, ...]:
        """The changes that delete a slot, in order."""
        return tuple(each for each in self.changes if each.kind is ChangeKind.DELETE)

    @property
    def adds(self) -> tuple[RecordedChange, ...]:
        """The changes that create or move a slot, in order."""
        return tuple(each for each in self.changes if each.kind in (ChangeKind.CREATE, ChangeKind.MOVE))

    @property
    def first_line(self) -> int:
        """Line of the first change."""
        return self.changes[0].line

    @property
    def last_line(self) -> int:
        """Line of the last change."""
        return self.changes[-1].line

    @property
    def start(self) -> float | None:
        """Stamp of the first change, in seconds."""
        return self.changes[0].time

    @property
    def end(self) -> float | None:
        """Stamp of the last change, in seconds."""
        return self.changes[-1].time

    @property
    def thread(self) -> int | None:
        """The thread that issued all of it."""
        return self.changes[0].thread


class DirtyLogClear(NamedTuple):
    """A KVM_CLEAR_DIRTY_LOG: ``npages`` pages from page ``start`` of the slot on."""

    as_id: int
    slot: int
    start: int
    npages: int
    line: int
    time: float | None
    thread: int | None


class DmaChange(NamedTuple):
    """QEMU's VFIO listener mapped ``[start, start + size)`` for devices to ``userspace_addr``, or unmapped it."""

    start: int
    size: int
    userspace_addr: int | None
    line: int
    time: float | None
    thread: int | None


class GlobalDirtyChange(NamedTuple):
    """QEMU's dirty tracking of all memory was switched; ``bitmask`` says for whom (1: migration)."""

    bitmask: int
    line: int
    time: float | None
    thread: int | None


class Timeline:
    """All that one trace tells.

    ``changes`` are all changes in the order in which they took effect, refused ones included; ``transactions`` hold
    the others, grouped; ``gap`` is the pause in seconds that ended a transaction. ``skipped`` counts the lines that
    said nothing about memslots or run state, ``lines`` all of them. ``run_state`` is None if nothing is known.
    ``slow`` says what made the recorder slow, if it was; ``resolution`` by how much the stamps of changes may be off,
    in seconds. ``assumed`` are slots that were there before the trace began, by the index in ``changes`` of the change
    that told of them; ``untouched`` are those of --assume-slots that no change was about; ``guest_memfds`` has, by
    line, file descriptor and offset in bytes of what a change binds; ``notes`` says what else the reader found out
    about the recording, a sentence each.
    """

    __slots__ = (
        "assumed",
        "changes",
        "dirty_log_clears",
        "dma_changes",
        "format",
        "gap",
        "global_dirty_changes",
        "guest_memfds",
        "lines",
        "notes",
        "path",
        "resolution",
        "run_state",
        "skipped",
        "slow",
        "transactions",
        "untouched",
    )

    def __init__(
        self,
        path: str,
        format: str,  # noqa: A002 (the word for it)
        changes: Changes,
        transactions: Transactions,
        *,
        gap: float,
        run_state: RunState | None = None,
        dirty_log_clears: Sequence[DirtyLogClear] = (),
        global_dirty_changes: Sequence[GlobalDirtyChange] = (),
        dma_changes: Sequence[DmaChange] = (),
        assumed: Mapping[int, Slot] | None = None,
        untouched: Sequence[AssumedSlot] = (),
        guest_memfds: Mapping[int, tuple[int, int]] | None = None,
        notes: Sequence[str] = (),
        slow: str = "",
        lines: int = 0,
        skipped: int = 0,
        resolution: float = 1e-6,
    ) -> None:
        self.path, self.format, self.gap = path, format, gap
        self.changes, self.transactions, self.run_state = changes, transactions, run_state
        self.dirty_log_clears, self.global_dirty_changes = dirty_log_clears, global_dirty_changes
        self.lines, self.skipped, self.resolution = lines, skipped, resolution
        self.slow = slow
        self.guest_memfds = guest_memfds or {}
        self.dma_changes, self.assumed, self.notes = dma_changes, assumed or {}, tuple(notes)
        self.untouched = untouched

    @property
    def refused(self) -> tuple[RecordedChange, ...]:
        """The changes that KVM refused. O(n)."""
        if min(self.changes.ret, default=0) >= 0:
            return ()
        return tuple([self.changes[i] for i, ret in enumerate(self.changes.ret) if ret < 0])

    @property
    def span(self) -> tuple[float, float] | None:
        """Earliest and latest stamp of a change, in seconds, or None without stamps. O(n)."""
        times = self.changes.time
        if any(map(math.isnan, times)):
            times = array("d", [time for time in times if not math.isnan(time)])
        return (min(times), max(times)) if times else None

    def _repr_html_(self) -> str:
        """For a notebook: each transaction with what it deletes and creates."""
        rows = [
            (
                str(each.index),
                f"{each.first_line}-{each.last_line}",
                "" if each.start is None else f"{each.start:.6f}",
                "" if each.thread is None else str(each.thread),
                "; ".join(format_frames(slot.base_gfn, slot.end_gfn) for one in each.changes if (slot := one.removed)),
                "; ".join(format_frames(slot.base_gfn, slot.end_gfn) for one in each.changes if (slot := one.added)),
            )
            for each in self.transactions[:SHOWN]
        ]
        headings = ("transaction", "lines", "seconds", "thread", "takes away", "gives")
        return html_table(headings, rows, len(self.transactions) - len(rows), caption=repr(self))

    def __repr__(self) -> str:
        return (
            f"Timeline({self.path!r}, {self.format!r}: {len(self.changes)} changes, "
            f"{len(self.transactions)} transactions)"
        )
