"""The software engine: vCPU threads that really touch real memory, and updates that they feel.

Each vCPU is a thread in a compiled loop (``vcpu.py``) without the GIL; memslots, SRCU, kicks, flushes, pauses and
stalls are the rooms' own; between a vCPU's TLB and the slots stands a stage-2 table in memory. What it cannot show:
guest code, devices.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...atomics import peek, poke, wake_all
from ...compiled import INTERPRETED, Own, own, words
from ...errors import GuestmemError, UsageError
from ...memslots import Change, ChangeKind, Slot
from ...memslots.set import Memslots
from ...rcu import Srcu
from ..protocol import Capability, Counts
from . import layout as at
from .flux import flux_mark, flux_release
from .load import PATTERNS, Access, Load, write_load
from .requests import (
    ask_for_flush,
    pause_all,
    request_all,
    resume_all,
    wait_for_acknowledgements,
    wait_until_outside,
    wake_retries,
)
from .stage2 import Stage2
from .stage2_vcpu import stage2_vcpu_run
from .update import SoftUpdate
from .vcpu import vcpu_run

__all__ = ["FLUX_MAX", "Report", "SoftEngine", "VcpuCounts"]

FLUX_MAX = at.FLUX_MAX
_ARCHITECTURES = ("x86", "arm64")
_LOAD_WORDS = 1 << 15
"""Room for one load: 8 190 targets."""
_WAKE_AGAIN_S = 0.01
_clock = time.perf_counter_ns


class Report(tuple[int, int]):
    """Start of the last access that saw old, end of the first that saw new; in ns, 0 and 2**64-1 if there is none."""

    __slots__ = ()


class VcpuCounts(dict[str, int]):
    """What one vCPU counted, by the names of ``layout.COUNTER_NAMES``, and its ``histogram`` of stalls."""

    histogram: list[int]


class SoftEngine:
    """A VM of ``vcpus`` vCPU threads on the software engine.

    ``cores`` limits how many are in the guest at once (all of the machine's unless given). ``arch`` decides what an
    access to an INVALID slot does: x86 retries, arm64 exits. ``slow_vcpu_ns``: vCPU 0 spends that long inside a
    read-side section, again and again. ``stage2``: between TLBs and slots stands a stage-2 table that vCPUs' faults
    build, of pages that are freed by ``discipline``; what goes with a slot is its range or everything (``zaps``: slot,
    as on arm64, or all, as on x86); ``strict`` TLBs tell the use of an entry that should be gone.

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
    )
    host = ""
    unmeasured: frozenset[str] = frozenset()

    def __init__(
        self,
        vcpus: int = 1,
        *,
        cores: int | None = None,
        address_spaces: int = 1,
        arch: str = "x86",
        slow_vcpu_ns: int = 0,
        seed: int = 1,
        stage2: bool = True,
        discipline: str = "rcu",
        zaps: str | None = None,
        strict: bool = False,
    ) -> None:
        if vcpus < 1:
            raise UsageError(f"vcpus: {vcpus} is not at least 1")
        if cores is not None and cores < 1:
            raise UsageError(f"cores: {cores} is not at least 1")
        if arch not in _ARCHITECTURES:
            raise UsageError(f"arch: {arch!r} is not one of {', '.join(_ARCHITECTURES)}")
        if slow_vcpu_ns < 0:
            raise UsageError(f"slow_vcpu_ns: {slow_vcpu_ns} is negative")
        self.vcpus, self.arch = vcpus, arch
        self.cores = cores or len(os.sched_getaffinity(0))
        self.counts = Counts()
        self.srcu = Srcu(readers=1 + vcpus)
        self.memslots = Memslots(address_spaces=address_spaces, srcu=self.srcu)
        self._vm = words(at.vm_words(vcpus))
        self._load = words(2 * _LOAD_WORDS)
        self._ranges = own(3 * at.FLUX_MAX)
        self._spare: list[Own] = []
        self._epoch = 0
        self._window = 0
        self._threads: list[threading.Thread] = []
        self._holding = threading.Lock()
        if zaps is None:
            zaps = "all" if arch == "x86" else "slot"
        self.stage2 = (
            Stage2(arch, vcpus, address_spaces, discipline=discipline, zaps=zaps, strict=strict) if stage2 else None
        )
        self._retries = False
        poke(self._vm, int(at.CORES), self.cores)
        poke(self._vm, int(at.RETRIES_INVALID), int(arch == "x86"))
        self._own = [own(at.OWN_WORDS) for _ in range(vcpus)]
        for vcpu, mine in enumerate(self._own):
            mine[int(at.SEED)] = (seed * 0x9E3779B97F4A7C15 + (vcpu + 1) * 0xD1B54A32D192ED03) % (1 << 64) or 1
            mine[int(at.READER)] = 1 + vcpu
            mine[int(at.SLICE)] = 512 if INTERPRETED else 16384
            mine[int(at.LOAD_HALF)] = _LOAD_WORDS
            mine[int(at.LOADED)] = (1 << 64) - 1
            if self.stage2 is not None:
                mine[int(at.READ_ATTRIBUTES)] = self.stage2.read_attributes
                mine[int(at.WRITE_ATTRIBUTES)] = self.stage2.write_attributes
                mine[int(at.BLOCK_LEVEL)] = self.stage2.block_level
        if slow_vcpu_ns:
            self._own[0][int(at.SLOW_NS)] = slow_vcpu_ns
            self._own[0][int(at.SLICE)] = 64 if INTERPRETED else 2048

    # -- vCPUs ---------------------------------------------------------------------------------------------------

    def set_access(self, access: Access, vcpu: int | None = None) -> None:
        """How vCPU ``vcpu`` (all unless given) accesses its targets. Before ``start()``."""
        if self._threads:
            raise GuestmemError("set_access: vCPUs are running")
        writes, fetches, changed = access.shares()
        for mine in self._own if vcpu is None else [self._own[vcpu]]:
            mine[int(at.WRITE_SHARE)], mine[int(at.FETCH_SHARE)] = writes, fetches
            mine[int(at.CHANGED_SHARE)], mine[int(at.PATTERN)] = changed, PATTERNS[access.pattern]

    def start(self) -> None:
        """Start the vCPU threads."""
        if self._threads:
            raise GuestmemError("start: vCPUs are running already")
        # With STOP set the loop ends at once: this compiles it here, not in a thread whose first moments are measured.
        poke(self._vm, int(at.STOP), 1)
        for vcpu in range(self.vcpus):
            self._run(vcpu)
        poke(self._vm, int(at.STOP), 0)
        atexit.register(self.stop)  # a thread that runs on while the interpreter goes would touch freed memory
        for vcpu in range(self.vcpus):
            thread = threading.Thread(target=self._run, args=(vcpu,), name=f"vcpu{vcpu}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, vcpu: int) -> None:
        shared = self._vm, self.memslots.words, self.srcu.words, self._load, self._own[vcpu]
        if self.stage2 is None:
            vcpu_run(*shared, vcpu)
            return
        running = True
        while running:  # one turn an address space: another root is loaded
            as_id = int(self._own[vcpu][int(at.AS_ID)])
            table, tlb = self.stage2.tables[as_id], self.stage2.tlbs[as_id][vcpu]
            running = stage2_vcpu_run(*shared, *table.words, table.desks[1 + vcpu], tlb.words, vcpu, as_id)

    def stop(self) -> None:
        """Stop the vCPU threads, paused or stalled ones too, and wait for them. Their counts stay."""
        poke(self._vm, int(at.STOP), 1)
        for thread in self._threads:
            while thread.is_alive():
                # STOP is not the word they sleep on: one that looked at it just before falls asleep after this wake.
                for word in (at.STOP, at.PAUSED, at.FLUX, at.SWAPS, at.UPDATES):
                    wake_all(self._vm, int(word))
                thread.join(_WAKE_AGAIN_S)
        self._threads = []
        atexit.unregister(self.stop)

    def set_load(self, load: Load) -> list[Report | None]:
        """Have the vCPUs work on ``load`` from now on.

        Returns, by vCPU, what the vCPUs report of the load before (None from one that never worked on it).
        """
        if len(load.words) > _LOAD_WORDS:
            raise UsageError(f"load: {len(load.targets)} targets need {len(load.words)} words, there are {_LOAD_WORDS}")
        half = (self._epoch + 1) & 1
        write_load(self._load, half * _LOAD_WORDS, load.words, len(load.words), self._window)
        self._epoch += 1
        poke(self._vm, int(at.LOAD), self._epoch)
        self._shake_hands()
        return [self._report(vcpu) for vcpu in range(self.vcpus)]

    def _report(self, vcpu: int) -> Report | None:
        base = int(at.VCPUS) + int(at.VCPU) * vcpu + int(at.REPORT) + int(at.REPORT_SIZE) * ((self._epoch - 1) & 1)
        if self._epoch == 1 or peek(self._vm, base) != self._epoch - 1:
            return None  # there was no load before, or this vCPU never took it up
        return Report((peek(self._vm, base + 1), peek(self._vm, base + 2)))

    def _shake_hands(self) -> None:
        """Have every vCPU look at what was asked for; not counted."""
        targets = self._request_all()
        wait_for_acknowledgements(self._vm, self.vcpus, targets)
        self._spare.append(targets)

    def _request_all(self) -> Own:
        """Make a request to every vCPU; returns what to wait for, to be given back to ``_spare``."""
        try:
            targets = self._spare.pop()
        except IndexError:  # the first, or another thread is at it
            targets = own(self.vcpus)
        request_all(self._vm, self.vcpus, targets)
        return targets

    @contextmanager
    def window(self) -> Iterator[None]:
        """Accesses made meanwhile count as inside an update."""
        self._window += 1
        poke(self._vm, int(at.WINDOW), self._window)
        try:
            yield
        finally:
            self._window += 1
            poke(self._vm, int(at.WINDOW), self._window)

    def vcpu_counts(self) -> list[VcpuCounts]:
        """What each vCPU counted so far; exact once they are stopped."""
        result = []
        first, histogram = int(at.COUNTERS), int(at.HISTOGRAM)
        for vcpu, mine in enumerate(self._own):
            counts = VcpuCounts(zip(at.COUNTER_NAMES, (int(mine[first + i]) for i in range(64)), strict=False))
            if self.stage2 is not None:
                counts["tlb_misses"] = self.stage2.tlb_misses(vcpu)
            counts.histogram = [int(mine[histogram + i]) for i in range(int(at.HISTOGRAM_SIZE))]
            result.append(counts)
        return result

    # -- what every engine can do --------------------------------------------------------------------------------

    def set_memory_region(self, change: Change) -> ChangeKind:
        """One change as KVM does it today: DELETE and MOVE with two swaps and a zap, CREATE and FLAGS_ONLY with one."""
        with self.update(change.as_id) as update:
            kind = update.kind(change)
            if kind in {ChangeKind.DELETE, ChangeKind.MOVE}:
                update.invalidate(change.slot)
                update.swap()
                update.flush()
            if kind is not ChangeKind.NOTHING:
                update.stage(change)
                update.swap()
            if kind is ChangeKind.FLAGS_ONLY:
                update.flush()
        return kind

    def slot(self, slot: int, as_id: int = 0) -> Slot | None:
        """The slot that has this id now."""
        return self.memslots.by_id(slot, as_id)

    def pause(self) -> None:
        """Stop all vCPUs; returns when each is outside KVM_RUN."""
        counts = self.counts
        begun = _clock()
        pause_all(self._vm)
        try:
            self._spare.append(self._request_all())
            asked = _clock()
            counts.slept += wait_until_outside(self._vm, self.vcpus)
        except BaseException:  # Ctrl-C: the caller has no pause to end
            resume_all(self._vm)
            raise
        counts.kick_ns += asked - begun
        counts.acks_ns += _clock() - asked
        counts.kicks += self.vcpus
        counts.pauses += 1

    def resume(self) -> None:
        """End one pause; GuestmemError if there is none."""
        if not peek(self._vm, int(at.PAUSED)):
            raise GuestmemError("resume: no pause is in force")
        begun = _clock()
        resume_all(self._vm)
        self.counts.kick_ns += _clock() - begun

    def kick(self) -> None:
        """Kick all vCPUs and wait until those in the guest have acknowledged."""
        self.request(wait=True)
        self.counts.kicks += self.vcpus

    def answer_mmio(self, answer: bool) -> None:
        """Whether the VMM answers data accesses in a hole from the memory behind it."""
        poke(self._vm, int(at.ANSWERS), int(answer))

    def retry_exits(self, retry: bool) -> None:
        """Whether accesses that find a hole during ``exits_held()`` wait for its end and are made again."""
        self._retries = retry

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

    @contextmanager
    def update(self, as_id: int = 0) -> Iterator[SoftUpdate]:
        """An update in phases, under the lock that serialises updaters; undone unless published."""
        begun = _clock()
        slots = self.memslots.update(as_id)
        self.counts.lock_ns += _clock() - begun
        update = SoftUpdate(self, slots, as_id)
        try:
            yield update
        finally:
            try:
                update.release()  # published or not, nobody has to wait any longer
            finally:
                if not slots.ended:
                    slots.abort()  # of what was published, the rest is carried out
                    self.wake_retries()

    # -- what updates are made of --------------------------------------------------------------------------------

    def request(self, *, wait: bool) -> None:
        """Make a request to every vCPU and maybe wait until none in the guest has it open."""
        begun = _clock()
        targets = self._request_all()
        asked = _clock()
        self.counts.kick_ns += asked - begun
        if wait:
            self.counts.slept += wait_for_acknowledgements(self._vm, self.vcpus, targets)
            self.counts.acks_ns += _clock() - asked
        self._spare.append(targets)

    def flush(self, *, wait: bool) -> None:
        """Have every vCPU forget its translations; with stage 2, zap them all, which comes to the same."""
        if self.stage2 is not None:
            with self.zapping():
                self.counts.zaps += self.stage2.zap_all(wait=wait)
            return
        ask_for_flush(self._vm)
        self.counts.flushes += 1
        self.counts.kicks += self.vcpus
        self.request(wait=wait)

    @contextmanager
    def zapping(self) -> Iterator[None]:
        """Count what goes on inside as one flush of all vCPUs."""
        begun = _clock()
        yield
        self.counts.acks_ns += _clock() - begun
        self.counts.flushes += 1
        self.counts.kicks += self.vcpus

    def flush_shadow(self, as_id: int, gone: Sequence[tuple[int, int]], protected: Sequence[tuple[int, int]]) -> None:
        """Zap the ranges of slots that go, in KVM's way, and write-protect those of slots that lose the right.

        With neither, and without stage 2, everything is flushed.
        """
        if self.stage2 is None or not (gone or protected):
            self.flush(wait=True)
            return
        with self.zapping():
            if gone:
                all_ = self.stage2.zaps_all
                self.counts.zaps += self.stage2.zap_all() if all_ else self.stage2.zap(as_id, gone)
            self.counts.zaps += self.stage2.protect(as_id, protected)

    @contextmanager
    def host_invalidation(self, start_gfn: int, end_gfn: int, as_id: int = 0) -> Iterator[None]:
        """Host memory of a range changes meanwhile (an MMU notifier): zapped, and mapped again only afterwards.

        Needs ``stage2``; vCPUs that fault in the range retry until the end.
        """
        if self.stage2 is None:
            raise UsageError("host_invalidation: this engine has no stage 2")
        self.stage2.begin(as_id, start_gfn, end_gfn)
        try:
            with self.zapping():
                self.counts.zaps += self.stage2.zap(as_id, [(start_gfn, end_gfn)])
            yield
        finally:
            self.stage2.end(as_id)

    @property
    def table_pages(self) -> int:
        """Stage-2 table pages in use; 0 without stage 2."""
        return 0 if self.stage2 is None else self.stage2.table_pages

    def swapped(self) -> None:
        """A swap is over: kick all vCPUs, as x86 does to have them re-validate their caches, and wake who retries."""
        self.counts.kicks += self.vcpus
        self.request(wait=False)
        self.wake_retries()

    def wake_retries(self) -> None:
        """Have vCPUs that met an INVALID slot look again."""
        wake_retries(self._vm)

    def mark(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Put ranges (start_gfn, end_gfn, STALLS_ALL or STALLS_WRITES) in flux."""
        for index, word in enumerate(word for item in ranges for word in item):
            self._ranges[index] = word
        flux_mark(self._vm, self._ranges, len(ranges))
        self.counts.stalls += len(ranges)

    def release(self) -> None:
        """Nothing is in flux any more."""
        flux_release(self._vm)

    def __enter__(self) -> SoftEngine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
