"""The software engine: vCPU threads that really touch real memory, and updates that they feel.

Each vCPU is a thread in a compiled loop (``stage2_vcpu.py``) without the GIL; memslots, SRCU, kicks, zaps, pauses and
stalls are the rooms' own; between a vCPU's TLB and the slots stands a stage-2 table in memory. What it cannot show:
guest code, devices.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...atomics import peek, poke, wake_all
from ...clock import stopwatch as _clock
from ...compiled import INTERPRETED, Own, Words, own
from ...errors import GuestmemError, UsageError
from ...gmem.file import GuestMemfd
from ...memslots import Change, ChangeKind, Slot
from ...memslots.no_memory import no_memory_for_all
from ...memslots.set import Memslots
from ...memslots.update import Update as SlotUpdate
from ...patience import patiently
from ...rcu import Srcu
from ..listeners import Attached
from ..protocol import Capability, Counts
from . import layout as at
from .at_once import Room, at_once, reshape
from .dirty_log import DirtyLogging, DirtyLogs
from .flux import flux_mark, flux_release
from .region import TOOK_WORDS, set_memory_region
from .requests import (
    pause_all,
    resume_all,
    wait_for_acknowledgements,
    wait_until_outside,
    wake_retries,
)
from .spaces import SpacesUpdate
from .stage2 import Stage2
from .update import ENTRIES_MAX, SoftUpdate
from .vcpu_threads import VcpuThreads

__all__ = ["FLUX_MAX", "SoftEngine"]

FLUX_MAX = at.FLUX_MAX
_ARCHITECTURES = ("x86", "arm64")


class SoftEngine(VcpuThreads):
    """A VM of ``vcpus`` vCPU threads on the software engine.

    ``cores`` limits how many are in the guest at once (all of the machine's unless given). ``arch`` decides what an
    access to an INVALID slot does: x86 retries, arm64 exits. ``slow_vcpu_ns``: vCPU 0 spends that long inside a
    read-side section, again and again. Between TLBs and slots stands a stage-2 table that vCPUs' faults build, of pages
    that are freed by ``discipline``; what goes with a slot is its range or everything (``zaps``: slot, as on arm64, or
    all, as on x86); ``strict`` TLBs tell the use of an entry that should be gone.
    ``logging``: what switching dirty logging on and off does to large leaves; ``dirty`` are the logs.

    >>> engine = SoftEngine(vcpus=2)
    >>> engine.set_memory_region(Change(slot=0, base_gfn=0, npages=16, userspace_addr=0x7f0000000000))
    <ChangeKind.CREATE: 'create'>
    >>> engine.counts.swaps
    1
    """

    name = "soft"
    capabilities = (
        Capability.SET_MEMORY_REGION
        | Capability.PAUSE
        | Capability.ANSWER_MMIO
        | Capability.UPDATE
        | Capability.RETRY_EXITS
        | Capability.RETRY_FETCHES
        | Capability.GUEST_MEMFD
        | Capability.ABOVE_SLOTS
        | Capability.DIRTY_LOGS
    )
    entries_at_once = ENTRIES_MAX
    host = ""
    unmeasured: frozenset[str] = frozenset()
    short_cut = not INTERPRETED
    """Whether ``at_once`` is tried; as in production also in ``explore.small_engine``, but not in ``small_vm``."""

    def __init__(
        self,
        vcpus: int = 1,
        *,
        cores: int | None = None,
        address_spaces: int = 1,
        arch: str = "x86",
        slow_vcpu_ns: int = 0,
        seed: int = 1,
        discipline: str = "rcu",
        zaps: str | None = None,
        strict: bool = False,
        logging: DirtyLogging | None = None,
    ) -> None:
        if vcpus < 1:
            raise UsageError(f"vcpus: {vcpus} is not at least 1")
        if cores is not None and cores < 1:
            raise UsageError(f"cores: {cores} is not at least 1")
        if arch not in _ARCHITECTURES:
            raise UsageError(f"arch: {arch!r} is not one of {', '.join(_ARCHITECTURES)}")
        if slow_vcpu_ns < 0:
            raise UsageError(f"slow_vcpu_ns: {slow_vcpu_ns} is negative")
        if zaps is None:
            zaps = "all" if arch == "x86" else "slot"
        logging = logging or DirtyLogging()
        bbm = 2 if logging.disable == "bbm2" else 0
        tables = Stage2(arch, vcpus, address_spaces, discipline=discipline, zaps=zaps, strict=strict, bbm=bbm)
        memslots = Memslots(address_spaces=address_spaces, srcu=Srcu(readers=1 + vcpus))
        super().__init__(vcpus, memslots, tables, cores=cores, arch=arch, slow_vcpu_ns=slow_vcpu_ns, seed=seed)
        self.counts = Counts()
        self.dirty = DirtyLogs(memslots, tables, logging)
        self._ranges = own(3 * at.FLUX_MAX)
        self._targets, self._took = own(vcpus), own(int(TOOK_WORDS))
        self._holding = threading.Lock()
        self.listeners: list[Attached] = []
        """Other maps of guest memory; changed under ``slots_lock``."""
        self._answers = self._retries = False
        self.room = Room()
        """Of ``at_once``."""

    def start(self) -> None:
        """Start the vCPU threads."""
        self.dirty.attach_all()
        super().start()

    # -- what every engine can do --------------------------------------------------------------------------------

    def set_memory_region(self, change: Change) -> ChangeKind:
        """One change as KVM does it today: DELETE and MOVE with two swaps and a zap, CREATE and FLAGS_ONLY with one."""
        return set_memory_region(self, change)

    @property
    def words(self) -> Words:
        """What vCPUs and updaters share: ``layout.VM``."""
        return self._vm

    def region_words(self) -> tuple[Words, int, Own, Words, Own, Words, Own]:
        """What the compiled functions of ``region`` take first."""
        memslots = self.memslots
        return self._vm, self.vcpus, self._targets, memslots.words, memslots.desk, self.srcu.words, self._took

    def take_files(self, files: Sequence[GuestMemfd]) -> None:
        """Let slots have these files, by number from 1 on: through files of its own on their inodes."""
        for number, file in enumerate(files, 1):
            self.files.add(file.link(self), number)

    def slot(self, slot: int, as_id: int = 0) -> Slot | None:
        """The slot that has this id now."""
        return self.memslots.by_id(slot, as_id)

    def pause(self) -> None:
        """Stop all vCPUs; returns when each is outside KVM_RUN."""
        counts = self.counts
        begun = _clock()
        pause_all(self._vm)
        try:
            self._spare.append(self.request_all())
            asked = _clock()
            counts.slept += patiently(wait_until_outside, self._vm, self.vcpus)
        except BaseException:  # Ctrl-C: the caller has no pause to end
            resume_all(self._vm)
            raise
        counts.request_ns += asked - begun
        counts.acks_ns += _clock() - asked
        counts.kicks += self.vcpus
        counts.pauses += 1

    def resume(self) -> None:
        """End one pause; GuestmemError if there is none."""
        if not peek(self._vm, int(at.PAUSED)):
            raise GuestmemError("resume: no pause is in force")
        begun = _clock()
        resume_all(self._vm)
        self.counts.request_ns += _clock() - begun

    def kick(self) -> None:
        """Kick all vCPUs and wait until those in the guest have acknowledged."""
        self.request(wait=True)
        self.counts.kicks += self.vcpus

    def answer_mmio(self, answer: bool) -> None:
        """Whether the VMM answers data accesses in a hole from the memory behind it."""
        self._answers = answer
        poke(self._vm, int(at.ANSWERS), int(answer))

    def retry_exits(self, retry: bool, *, fetches_only: bool = False) -> None:
        """Whether accesses that find a hole during ``exits_held()`` wait for its end and are made again."""
        self._retries = retry
        poke(self._vm, int(at.FETCHES_ONLY), int(fetches_only))

    @property
    def exits_plainly(self) -> bool:
        """Whether neither ``answer_mmio`` nor ``retry_exits`` is on."""
        return not (self._answers or self._retries)

    @contextmanager
    def exits_held(self) -> Iterator[None]:
        """An update of several calls: exits wait for its end. vCPUs run on."""
        if not self._retries:
            yield
            return
        begun = _clock()
        with self._holding:
            self.counts.lock_ns += _clock() - begun
            updates = int(peek(self._vm, int(at.UPDATES)))
            poke(self._vm, int(at.UPDATES), updates + 1)
            try:
                yield
            finally:
                poke(self._vm, int(at.UPDATES), updates + 2)
                wake_all(self._vm, int(at.UPDATES))

    def at_once(self, changes: Sequence[Change], *, wait: bool = True) -> bool:
        """Carry out changes in one address space as one instant, in one compiled call.

        Without ``wait`` old translations may be in use at the instant. False: nothing is changed. Then it is for the
        phases of ``update`` to do, or to refuse: where a dirty log, a guest_memfd or another map follows the slots,
        where more than ``FLUX_MAX`` ranges wait, or where there was no memory. O(k log n).
        """
        try:
            return self.short_cut and at_once(self, changes, wait=wait)
        except MemoryError:
            return False

    def reshape(self, words: Sequence[int]) -> bool:
        """As ``at_once``, of deletes and creates as words (BATCH_WORDS each), which have to be just that."""
        try:
            return self.short_cut and reshape(self, words)
        except MemoryError:
            return False

    @contextmanager
    def update(self, as_id: int = 0, *others: int) -> Iterator[SoftUpdate]:
        """An update in phases, under the lock that serialises updaters; undone unless published.

        ``others``: address spaces that are published in the same instant. What there is none of is left to the checks
        of the entries. MemslotError (ENOMEM) for memory that cannot be had before the instant; after it there is none.
        """
        begun = _clock()
        there = self.memslots.address_spaces
        try:
            both = [each for each in {as_id, *others} if each < there] if others else ()
            slots = self.memslots.update_both(*both) if len(both) == 2 else self.memslots.update(as_id)
        except MemoryError:
            raise no_memory_for_all() from None
        update: SoftUpdate | None = None
        patient = True
        try:
            self.counts.lock_ns += _clock() - begun
            update = SpacesUpdate(self, slots) if isinstance(slots, list) else SoftUpdate(self, slots, as_id)
            yield update
        except MemoryError:
            # From the instant on there is no way back, and none is needed: what is left is done below.
            if update is None or not update.happened:
                raise no_memory_for_all() from None
        except BaseException as error:
            patient = isinstance(error, Exception)
            raise
        finally:
            try:
                self._leave(update, slots, patient=patient)
            except MemoryError:  # what it did can be done again
                self._leave(update, slots, patient=patient)

    def _leave(self, update: SoftUpdate | None, slots: SlotUpdate | list[SlotUpdate], *, patient: bool) -> None:
        """An update is over, or was left: nobody waits, what was published is carried out, and the rest undone."""
        parts = slots if isinstance(slots, list) else (slots,)
        try:
            if update is not None:
                update.release()
                update.uncover()
        finally:
            left = [each for each in parts if not each.ended]
            if left:
                if update is not None:
                    update.left(patient=patient)
                for each in left:
                    each.abort(patient=patient)
                self.wake_retries()

    # -- what updates are made of --------------------------------------------------------------------------------

    def request(self, *, wait: bool) -> None:
        """Make a request to every vCPU and maybe wait until none in the guest has it open."""
        begun = _clock()
        targets = self.request_all()
        asked = _clock()
        self.counts.request_ns += asked - begun
        if wait:
            self.counts.slept += patiently(wait_for_acknowledgements, self._vm, self.vcpus, targets)
            self.counts.acks_ns += _clock() - asked
        self._spare.append(targets)

    def flush(self, *, wait: bool) -> None:
        """Zap all translations, so that every vCPU forgets what it had."""
        with self.zapping():
            self.counts.zaps += self.stage2.zap_all(wait=wait)

    @contextmanager
    def zapping(self) -> Iterator[None]:
        """Count what goes on inside as one flush of all vCPUs."""
        begun = _clock()
        yield
        self._flushed(begun)

    def _flushed(self, begun: int) -> None:
        self.counts.acks_ns += _clock() - begun
        self.counts.private_zaps += self.stage2.private_zaps
        self.stage2.private_zaps = 0
        self.counts.flushes += 1
        self.counts.kicks += self.vcpus

    def flush_shadow(self, as_id: int, gone: Sequence[tuple[int, int]], protected: Sequence[tuple[int, int]]) -> None:
        """Zap the ranges of slots that go, in KVM's way, and write-protect those of slots that lose the right.

        With neither, everything is.
        """
        if not (gone or protected):
            self.flush(wait=True)
            return
        begun, zapped = _clock(), 0
        if gone:
            zapped = self.stage2.zap_all() if self.stage2.zaps_all else self.stage2.zap(as_id, gone)
        if protected:
            zapped += self.stage2.protect(as_id, protected)
        self.counts.zaps += zapped
        self._flushed(begun)

    @contextmanager
    def host_invalidation(self, start_gfn: int, end_gfn: int, as_id: int = 0) -> Iterator[None]:
        """Host memory of a range changes meanwhile (an MMU notifier): zapped, and mapped again only afterwards.

        vCPUs that fault in the range retry until the end.
        """
        self.stage2.begin(as_id, start_gfn, end_gfn)
        try:
            with self.zapping():
                self.counts.zaps += self.stage2.zap(as_id, [(start_gfn, end_gfn)])
            yield
        finally:
            self.stage2.end(as_id)

    @property
    def table_pages(self) -> int:
        """Stage-2 table pages in use."""
        return self.stage2.table_pages

    def swapped(self) -> None:
        """A swap is over: kick all vCPUs, as x86 does to have them re-validate their caches, and wake who retries."""
        self.counts.kicks += self.vcpus
        self.request(wait=False)
        self.wake_retries()

    def wake_retries(self) -> None:
        """Have vCPUs that met an INVALID slot look again."""
        wake_retries(self._vm)

    def mark(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Put ranges (start_gfn, end_gfn, STALLS_ALL or STALLS_WRITES) in flux, instead of those that are."""
        for index, word in enumerate(word for item in ranges for word in item):
            self._ranges[index] = word
        flux_mark(self._vm, self._ranges, len(ranges))

    def release(self) -> None:
        """Nothing is in flux any more."""
        flux_release(self._vm)

    def __enter__(self) -> SoftEngine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self.files.close()
