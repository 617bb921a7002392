"""What a design needs of an engine, and how an engine says what it cannot do.

Nothing above ``engines/`` asks which engine it is: it looks into ``capabilities``, or calls and gets a
CapabilityError.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

from ..memslots import Change, ChangeKind, Slot
from ..memslots.batch import Effect
from .load import Access, Load
from .report import LoadReport, VcpuCounts

if TYPE_CHECKING:
    from ..gmem import GuestMemfd

__all__ = ["Capability", "Counts", "Engine", "MeasuredEngine", "Update"]


class Capability(enum.Flag):
    """What an engine can do."""

    SET_MEMORY_REGION = enum.auto()
    """One change at a time, as KVM_SET_USER_MEMORY_REGION."""
    PAUSE = enum.auto()
    """Stop all vCPUs and let them go on."""
    ANSWER_MMIO = enum.auto()
    """Answer MMIO that falls into a hole from the memory behind it."""
    UPDATE = enum.auto()
    """Several changes as phases of one update: stage, invalidate, swap, stall, publish."""
    RETRY_EXITS = enum.auto()
    """Exits that fall into an update wait for its end and are carried out then."""
    RETRY_FETCHES = enum.auto()
    """The same for failed fetches alone."""
    ABOVE_SLOTS = enum.auto()
    """Overlays and permissions above slots: ``Update.overlay``, ``Update.deny``."""
    GUEST_MEMFD = enum.auto()
    """Slots may have a guest_memfd, and vCPUs access its pages by their kind (``MeasuredEngine.take_files``)."""
    DIRTY_LOGS = enum.auto()
    """vCPUs mark logs that the model of KVM's ioctls reads: ``memslots``, and ``dirty`` (``abi.dirty_state``)."""
    GET_DIRTY_LOG = enum.auto()
    """The kernel has the logs: ``get_dirty_log(slot)`` takes one."""


@dataclass(slots=True)
class Counts:
    """What an engine did, and where an updater's time went. Times in ns."""

    swaps: int = 0
    srcu_waits: int = 0
    kicks: int = 0
    flushes: int = 0
    pauses: int = 0
    ranges_in_flux: int = 0
    """Ranges of frames that updates put in flux (``Update.stall``)."""
    zaps: int = 0
    """Stage-2 translations removed, or made read-only."""
    private_zaps: int = 0
    """Of them, those of private pages: a TDX guest loses what is in each (TDH.MEM.PAGE.REMOVE)."""
    slept: int = 0
    """Waits for vCPUs or readers that really slept."""
    lock_ns: int = 0
    """Waiting for other updaters (slots_lock)."""
    edit_ns: int = 0
    """Checking and editing the sets."""
    request_ns: int = 0
    """Making requests of vCPUs; until they acknowledge: ``acks_ns``."""
    acks_ns: int = 0
    """Waiting for the slowest vCPU to acknowledge."""
    grace_ns: int = 0
    """Waiting for readers of the old set."""

    def copy(self) -> Counts:
        """The counts as they are now."""
        return Counts(*(getattr(self, field.name) for field in fields(self)))

    def __sub__(self, before: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) - getattr(before, field.name) for field in fields(self)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class Update(Protocol):
    """An update in phases, under the lock that serialises updaters. Left without ``publish``, nothing has changed."""

    def stage(self, change: Change) -> ChangeKind:
        """Carry out one change on the inactive set; MemslotError leaves it as it was."""

    def stage_all(self, changes: Sequence[Change]) -> None:
        """Carry out changes in order on the inactive set; BatchError names the entry, and nothing has changed.

        MemslotError (E2BIG) for more than ``entries_at_once``.
        """

    def invalidate(self, slot: int) -> None:
        """Mark a slot INVALID on the inactive set."""

    def swap(self) -> None:
        """KVM's swap: publish, wait for readers, bring the other set up to date, kick."""

    def flush(self) -> None:
        """Have every vCPU forget its translations, and wait until no vCPU can use an old one."""

    def net_effect(self) -> list[Effect]:
        """What the staged changes mean for running vCPUs, range by range."""

    def stall(self, effects: Sequence[Effect], *, wait: bool = True) -> None:
        """Put ranges that need it in flux and zap them; ``wait`` for acknowledgements.

        However many ranges there are: where the engine holds fewer, frames between them wait as well.
        """

    def overlay(self, gfn: int, userspace_addr: int) -> None:
        """Show a page at one frame, whatever the slots say, until ``settle``: an instant of its own.

        MemslotError (E2BIG) for more than 64 (Capability.ABOVE_SLOTS).
        """

    def deny(self, start_gfn: int, end_gfn: int, rights: int) -> None:
        """The same for a range where accesses exit that need one of ``rights``: NR 1, NW 2, NX 4.

        NR only with NW and NX (else MemslotError, EINVAL). Without the update's slots it is undone.
        """

    def publish(self) -> None:
        """The instant: the staged set becomes the active one."""

    def release(self) -> None:
        """Nothing is in flux any more; stalled vCPUs fault again."""

    def settle(self) -> None:
        """Wait for readers of the old set and bring it up to date."""


class Engine(Protocol):
    """What designs call: memory, vCPUs, and ways of changing what they see. A VMM calls ``vm``'s ``Backend``."""

    name: str
    capabilities: Capability
    entries_at_once: int
    """How many changes one update in phases may have, past that E2BIG; 0 where there is none (Capability.UPDATE)."""
    vcpus: int
    counts: Counts

    def set_memory_region(self, change: Change) -> ChangeKind:
        """One change, as the kernel does it today; MemslotError with the kernel's errno."""

    def slot(self, slot: int, as_id: int = 0) -> Slot | None:
        """The slot that has this id now."""

    def pause(self) -> None:
        """Stop all vCPUs; they nest. Returns when none is in the guest."""

    def resume(self) -> None:
        """End one pause."""

    def kick(self) -> None:
        """Kick all vCPUs once and wait for their acknowledgement: the floor of every pause."""

    def answer_mmio(self, answer: bool) -> None:
        """Whether MMIO in a hole is answered from the memory behind it."""

    def retry_exits(self, retry: bool, *, fetches_only: bool = False) -> None:
        """Whether exits that fall into ``exits_held()`` wait for its end, and are carried out then.

        ``fetches_only``: those of failed fetches alone (Capability.RETRY_FETCHES).
        """

    def exits_held(self) -> AbstractContextManager[None]:
        """An update goes on; vCPUs run, and only exits wait (if ``retry_exits``)."""

    def update(self, as_id: int = 0, *others: int) -> AbstractContextManager[Update]:
        """Start an update in phases; of several address spaces, with one instant for them all, if there are others."""

    def at_once(self, changes: Sequence[Change], *, wait: bool = True) -> bool:
        """Carry out changes with one instant, in one call, if that can be; False: nothing is changed.

        Without ``wait`` old translations may be in use at the instant.
        """


class MeasuredEngine(Engine, Protocol):
    """An engine whose vCPUs work on a load and count what they saw: what ``compare`` and ``demo`` need."""

    cores: int
    """How many vCPUs can be in the guest at once."""
    host: str
    """What must stand beside each figure: kernel, module, settings; "" for an engine that depends on none."""
    unmeasured: frozenset[str]
    """What this engine cannot measure, shown as "-" and never as 0: names of a row's fields, and ``counts.NAME``."""

    @property
    def table_pages(self) -> int:
        """Stage-2 table pages in use now."""

    def take_files(self, files: Sequence[GuestMemfd]) -> None:
        """Let slots have these files, by number from 1 on; closed with the engine (Capability.GUEST_MEMFD)."""

    def set_access(self, access: Access, vcpu: int | None = None) -> None:
        """How vCPU ``vcpu`` (all unless given) accesses its targets. Before ``start()``."""

    def set_load(self, load: Load) -> Sequence[LoadReport | None]:
        """Have the vCPUs work on ``load``; returns, by vCPU, their reports of the load before, if there are any."""

    def reports(self) -> Sequence[LoadReport | None]:
        """By vCPU, what it has seen so far under the load in force; None: nothing, or the engine cannot tell."""

    def start(self) -> None:
        """Start the vCPUs."""

    def stop(self) -> None:
        """Stop them; their counts stay."""

    def window(self) -> AbstractContextManager[None]:
        """Accesses made meanwhile count as inside an update."""

    def vcpu_counts(self) -> Sequence[VcpuCounts]:
        """What each vCPU counted so far, by name; exact once they are stopped."""

    def __enter__(self) -> MeasuredEngine: ...

    def __exit__(self, *exception: object) -> None: ...
