"""The vCPU threads of a software engine: started, stopped, given loads, and asked what they counted.

Each is a compiled loop (``stage2_vcpu.py``) without the GIL. Requests to them (``requests.py``) go through
``request_all`` here, which keeps the words that a wait for acknowledgements needs.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...atomics import peek, poke, wake_all
from ...compiled import INTERPRETED, Own, Words, own, words
from ...errors import GuestmemError, UsageError
from ...memslots.set import Memslots
from ...patience import patiently
from ..load import PATTERNS, Access, Load, write_load
from ..load_words import ONE_REPORT
from ..report import LoadReport, VcpuCounts
from ..stalls import HISTOGRAM_SIZE
from . import layout as at
from .files import Files
from .gmem_slot import Gmem
from .requests import request_all, wait_for_acknowledgements
from .stage2 import Stage2
from .stage2_vcpu import stage2_vcpu_run
from .words import Slots

__all__ = ["VcpuThreads"]

_LOAD_WORDS = 1 << 15
"""Room for one load: 8 190 targets."""
_WAKE_AGAIN_S = 0.01


class VcpuThreads:
    """``vcpus`` vCPUs on ``memslots``, none of which runs yet; see ``SoftEngine`` for the rest."""

    def __init__(
        self,
        vcpus: int,
        memslots: Memslots,
        stage2: Stage2,
        *,
        cores: int | None,
        arch: str,
        slow_vcpu_ns: int,
        seed: int,
    ) -> None:
        self.vcpus, self.memslots, self.srcu, self.stage2, self.arch = vcpus, memslots, memslots.srcu, stage2, arch
        self.cores = cores or len(os.sched_getaffinity(0))
        self._vm = words(at.vm_words(vcpus))
        self._load = words(2 * _LOAD_WORDS)
        self._spare: list[Own] = []
        self._epoch = 0
        self._window = 0
        self._threads: list[threading.Thread] = []
        self.owner: object = None
        """Keeps the host memory that slots name: vCPU threads keep this engine, and so that."""
        self.has_run = False
        """Whether vCPU threads ever ran, or memory was faulted in for them: these leave translations."""
        poke(self._vm, int(at.CORES), self.cores)
        poke(self._vm, int(at.RETRIES_INVALID), int(arch == "x86"))
        self.files = Files(memslots, stage2)
        self._own = [own(at.OWN_WORDS) for _ in range(vcpus)]
        self._pages = [own(3) for _ in range(vcpus)]
        for vcpu, mine in enumerate(self._own):
            mine[int(at.SEED)] = (seed * 0x9E3779B97F4A7C15 + (vcpu + 1) * 0xD1B54A32D192ED03) % (1 << 64) or 1
            mine[int(at.READER)] = 1 + vcpu
            mine[int(at.SLICE)] = 512 if INTERPRETED else 16384
            mine[int(at.LOAD_HALF)] = _LOAD_WORDS
            mine[int(at.LOADED)] = (1 << 64) - 1
            mine[int(at.READ_ATTRIBUTES)] = stage2.read_attributes
            mine[int(at.WRITE_ATTRIBUTES)] = stage2.write_attributes
            mine[int(at.READ_NX_ATTRIBUTES)] = stage2.read_nx_attributes
            mine[int(at.WRITE_NX_ATTRIBUTES)] = stage2.write_nx_attributes
            mine[int(at.BLOCK_LEVEL)] = stage2.block_level
        if slow_vcpu_ns:
            self._own[0][int(at.SLOW_NS)] = slow_vcpu_ns
            self._own[0][int(at.SLICE)] = 64 if INTERPRETED else 2048

    @property
    def running(self) -> bool:
        """Whether the vCPU threads run."""
        return bool(self._threads)

    def set_access(self, access: Access, vcpu: int | None = None) -> None:
        """How vCPU ``vcpu`` (all unless given) accesses its targets. Before ``start()``."""
        if self.running:
            raise GuestmemError("set_access: vCPUs are running")
        writes, fetches, changed = access.shares()
        for mine in self._own if vcpu is None else [self._own[vcpu]]:
            mine[int(at.WRITE_SHARE)], mine[int(at.FETCH_SHARE)] = writes, fetches
            mine[int(at.CHANGED_SHARE)], mine[int(at.PATTERN)] = changed, PATTERNS[access.pattern]

    def will_translate(self) -> None:
        """Before any is made: there may be translations from here on, which whoever changes slots has to take away.

        Who changed slots without it looks at ``has_run`` once more when readers of the old slots are gone.
        """
        self.has_run = True

    def start(self) -> None:
        """Start the vCPU threads."""
        if self.running:
            raise GuestmemError("start: vCPUs are running already")
        self.will_translate()
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

    def vcpu_words(self, vcpu: int) -> tuple[Slots, Words]:
        """What the compiled functions of a vCPU take first: what it looks slots up with, and its load."""
        return Slots(self._vm, self.memslots.words, self.srcu.words, self._own[vcpu]), self._load

    def file_words(self, vcpu: int) -> tuple[Words, Words, Words, Words, Own]:
        """What they take of the guest_memfd that the vCPU asked for last: ``gmem_slot.Gmem``."""
        return *self.files.words(int(self._own[vcpu][int(at.FILE)])), self._pages[vcpu]

    def _run(self, vcpu: int) -> None:
        shared = self.vcpu_words(vcpu)
        running = True
        while running:  # one turn an address space, and a guest_memfd: another root, other words
            as_id = int(self._own[vcpu][int(at.AS_ID)])
            table, tlb = self.stage2.tables[as_id], self.stage2.tlbs[as_id][vcpu]
            gmem = Gmem(*self.file_words(vcpu))
            running = stage2_vcpu_run(*shared, table.at(1 + vcpu), tlb.words, gmem, vcpu, as_id)

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

    def set_load(self, load: Load) -> list[LoadReport | None]:
        """Have the vCPUs work on ``load`` from now on.

        Returns, by vCPU, what the vCPUs report of the load before (None from one that never worked on it).
        """
        if len(load.words) > _LOAD_WORDS:
            raise UsageError(f"load: {len(load.targets)} targets need {len(load.words)} words, there are {_LOAD_WORDS}")
        self.files.check_targets(load.targets)
        half = (self._epoch + 1) & 1
        write_load(self._load, half * _LOAD_WORDS, load.words, len(load.words), self._window)
        self._epoch += 1
        poke(self._vm, int(at.LOAD), self._epoch)
        self._shake_hands()
        return self._reports(self._epoch - 1)

    def reports(self) -> list[LoadReport | None]:
        """By vCPU, what it has seen so far under the load in force; None from one that does not work on it yet."""
        return self._reports(self._epoch)

    def _reports(self, epoch: int) -> list[LoadReport | None]:
        return [self._report(vcpu, epoch) for vcpu in range(self.vcpus)]

    def _report(self, vcpu: int, epoch: int) -> LoadReport | None:
        base = int(at.VCPUS) + int(at.VCPU) * vcpu + int(at.REPORT) + ONE_REPORT.size * (epoch & 1)
        if not epoch or peek(self._vm, base) != epoch:
            return None  # there was no such load, or this vCPU never took it up
        return LoadReport(*(int(peek(self._vm, base + word)) for word in range(1, 5)))

    def _shake_hands(self) -> None:
        """Have every vCPU look at what was asked for; not counted."""
        targets = self.request_all()
        patiently(wait_for_acknowledgements, self._vm, self.vcpus, targets)
        self._spare.append(targets)

    def request_all(self) -> Own:
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
            counts = VcpuCounts(
                zip(at.COUNTER_NAMES, (int(mine[first + i]) for i in range(len(at.COUNTER_NAMES))), strict=True)
            )
            counts["tlb_misses"] = self.stage2.tlb_misses(vcpu)
            counts.histogram = [int(mine[histogram + i]) for i in range(int(HISTOGRAM_SIZE))]
            result.append(counts)
        return result
