"""Dirty logging while a trace is replayed: whether every write of vCPUs is in a log that the caller was handed.

The caller of a design is a VMM that migrates its guest. It takes a slot's log before a call that ends the slot, as
QEMU does (``kvm_set_phys_mem()``), since KVM frees the log with the slot; where the design keeps bits, it takes what
the design hands back instead. It copies each page that a log names, and whatever differs at the end was lost.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, cast

from ..abi.checks import Host
from ..abi.dirty_state import MarkedLogs
from ..abi.model import KvmModel
from ..dirty.bitmap import DirtyBitmap
from ..engines import Capability, MeasuredEngine, Update
from ..memslots import Change, ChangeKind, Memslots, Slot, SlotKey
from ..units import PAGE_SHIFT, PAGE_SIZE
from .plan import Plan

__all__ = ["Copied", "KernelLoggedEngine", "LoggedEngine", "LoggingEngine", "TakesLogs", "logged_engine"]

_clock = time.perf_counter_ns


class LoggingEngine(MeasuredEngine, Protocol):
    """An engine with Capability.DIRTY_LOGS: vCPUs mark logs that the model of KVM's ioctls reads."""

    memslots: Memslots

    @property
    def dirty(self) -> MarkedLogs:
        """The logs, by slot."""


class KernelLoggingEngine(MeasuredEngine, Protocol):
    """An engine with Capability.GET_DIRTY_LOG: the kernel has the logs, and nobody sees what it frees."""

    def get_dirty_log(self, slot: Slot) -> bytes:
        """KVM_GET_DIRTY_LOG of a slot that logs."""


class Copied:
    """The words of a plan that vCPUs write, as somebody has them who copies the pages that logs name."""

    def __init__(self, plan: Plan) -> None:
        self._read = plan.memory.word
        private = {
            word
            for step in plan.steps
            for target in step.load.targets
            if target.private
            for word in (target.old, target.new)
        }
        self._words = {word: self._read(word) for word in plan.words if word not in private}
        self._of_page: dict[int, list[int]] = defaultdict(list)
        for word in self._words:
            self._of_page[word // PAGE_SIZE].append(word)
        self.pages = 0
        """Pages that logs named."""

    def log(self, slot: Slot, bits: bytes) -> None:
        """A log of a slot, a bit a page, was handed over. O(words + pages named)."""
        import numpy as np

        words = np.frombuffer(bits, "<u8")
        for place in np.flatnonzero(words):
            word = int(words[place])
            while word:
                lowest = word & -word
                self.page(slot.userspace_addr + (64 * int(place) + lowest.bit_length() - 1 << PAGE_SHIFT))
                word ^= lowest

    def page(self, userspace_addr: int) -> None:
        """A log named this page of host memory."""
        self.pages += 1
        for word in self._of_page.get(userspace_addr >> PAGE_SHIFT, ()):
            self._words[word] = self._read(word)

    def missing(self) -> int:
        """Pages that are not as they were copied: what vCPUs wrote there is in no log. They are copied now. O(words).

        No vCPU may write meanwhile, and every log must have been taken since it did.
        """
        differ = {word // PAGE_SIZE for word, value in self._words.items() if self._read(word) != value}
        for word in self._words:
            self._words[word] = self._read(word)
        return len(differ)


class TakesLogs(ABC):
    """What a design is given instead of ``engine``: it passes everything on, and takes the log of a slot that goes."""

    def __init__(self, engine: MeasuredEngine, copied: Copied) -> None:
        self._engine, self.copied = engine, copied
        self._changes: Sequence[Change] = ()
        self.dropped = 0
        """Pages that were dirty in logs when these were freed: written after the log was taken, and in none now."""
        self.handed_back = 0
        """Dirty pages that designs handed back."""
        self.ns = 0
        """Time for logs, in ns."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def counts(self) -> Any:
        """The engine's."""
        return self._engine.counts

    @counts.setter
    def counts(self, counts: Any) -> None:
        self._engine.counts = counts

    def of(self, changes: Sequence[Change]) -> Self:
        """Itself, for a design that is about to make ``changes``."""
        self._changes = changes
        return self

    def set_memory_region(self, change: Change) -> ChangeKind:
        """One change; the log of a slot that it deletes is taken before."""
        if change.deletes:
            self._take([change.key])
        kind = self._engine.set_memory_region(change)
        self._changed([change.key], keeps=False)
        return kind

    def at_once(self, changes: Sequence[Change], *, wait: bool = True) -> bool:
        """Never: who keeps logs follows an update in phases."""
        del changes, wait
        return False

    def _take(self, keys: Iterable[SlotKey]) -> None:
        """KVM_GET_DIRTY_LOG of those of the slots that log."""
        begun = _clock()
        for key in dict.fromkeys(keys):
            slot = self._engine.slot(key.slot, key.as_id)
            bits = None if slot is None else self._log(slot)
            if slot is not None and bits is not None:
                self.copied.log(slot, bits)
        self.ns += _clock() - begun

    @abstractmethod
    def _log(self, slot: Slot) -> bytes | None:
        """The log of a slot, which is empty then; None if it does not log."""

    @abstractmethod
    def _changed(self, keys: Sequence[SlotKey], *, keeps: bool) -> None:
        """The slots are what they are now."""


class KernelLoggedEngine(TakesLogs):
    """The logs of a kernel. What it frees with them is in no count: ``Copied.missing`` alone finds it."""

    _engine: KernelLoggingEngine

    def _log(self, slot: Slot) -> bytes | None:
        return self._engine.get_dirty_log(slot) if slot.logs_dirty_pages else None

    def _changed(self, keys: Sequence[SlotKey], *, keeps: bool) -> None:
        pass


class LoggedEngine(TakesLogs):
    """The logs of the software engine; also those that designs keep.

    ``keeps``: a design that changes slots by an update in phases keeps their bits and hands back those of pairs of
    frame and host page that end (``abi.take_over``). Without it, and with one change at a time, a log is freed with its
    slot, and is taken before. Neither is a check of the other: what was dropped with a log is counted when it is freed
    (``dropped``), and what nobody has at the end by comparing memory (``Copied.missing``).
    """

    _engine: LoggingEngine

    def __init__(self, engine: LoggingEngine, copied: Copied, *, keeps: bool, address_spaces: int = 1) -> None:
        super().__init__(engine, copied)
        self._keeps = keeps
        self._model = KvmModel(Host(address_spaces=address_spaces), memslots=engine.memslots, logs=engine.dirty)

    @contextmanager
    def update(self, as_id: int = 0, *others: int) -> Iterator[Update]:
        """An update in phases, and what becomes of the logs of the slots that it changes."""
        keys = sorted({change.key for change in self._changes})
        if not self._keeps:
            self._take([change.key for change in self._changes if change.deletes])
        try:
            with self._engine.update(as_id, *others) as update:
                yield update
        finally:
            self._changed(keys, keeps=self._keeps)

    def _log(self, slot: Slot) -> bytes | None:
        dirty = self._engine.dirty
        return None if dirty.bitmap(slot.id, slot.as_id) is None else dirty.get(slot.id, slot.as_id)

    def _changed(self, keys: Sequence[SlotKey], *, keeps: bool) -> None:
        """The slots are what they are now; logs that are freed are read once more, to count what they held."""
        begun = _clock()
        if not keeps:
            for key in keys:
                held = self._model.slots.get(key)
                if held is None or held.bitmap is None or not self._is_freed(held.slot, held.bitmap):
                    continue
                self.dropped += int.from_bytes(held.bitmap.copy()).bit_count()
                held.bitmap = None
        for page in self._model.changed_by_a_design(keys):
            self.handed_back += 1
            self.copied.page(page.userspace_addr)
        self.ns += _clock() - begun

    def _is_freed(self, slot: Slot, bitmap: DirtyBitmap) -> bool:
        """Whether a slot's log is gone: KVM frees it with the slot, and keeps it where the slot moves or has new flags.

        A batch gives each slot that it touches a new log, here; one that it does not delete keeps its bits.
        """
        if self._engine.dirty.bitmap(slot.id, slot.as_id) is bitmap:
            return False
        deleted = {change.key for change in self._changes if change.deletes}
        return slot.key in deleted or self._engine.slot(slot.id, slot.as_id) is None


def logged_engine(engine: MeasuredEngine, plan: Plan, *, keeps: bool) -> TakesLogs:
    """``engine`` with the logs of ``plan`` as a VMM keeps them; ``keeps``: by a design that keeps bits."""
    if Capability.GET_DIRTY_LOG in engine.capabilities:
        return KernelLoggedEngine(engine, Copied(plan))
    return LoggedEngine(cast("LoggingEngine", engine), Copied(plan), keeps=keeps, address_spaces=plan.address_spaces)
