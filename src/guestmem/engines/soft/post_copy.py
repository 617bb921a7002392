"""A VM in the middle of its migration: vCPUs run while their memory comes, page by page, as they touch it.

Post-copy by KVM Userfault. All bits of the slot are set and the flag is on; an access to a page that is not there is an
exit, which the vCPU's own thread answers by asking the source for that page, while another thread sends all pages in
order. Source of the scene: "KVM: Introduce KVM Userfault", and QEMU's ``migration/postcopy-ram.c``.
"""

from __future__ import annotations

import os
import threading
import time

from ...atomics import peek, poke
from ...compiled import Own, own, words
from ...errors import InvariantError, UsageError
from ...gmem.backing import Backing
from ...units import PAGE_SIZE
from . import post_copy_vcpu as at
from .post_copy_vcpu import TAG, fill_page, post_copy_run, stream_run
from .stage2 import Stage2
from .userfault import (
    ENABLED,
    KVM_MEMORY_EXIT_FLAG_USERFAULT,
    userfault_bit,
    userfault_clear,
    userfault_enable,
    userfault_set,
    userfault_words,
)

__all__ = ["PostCopyVm"]

_LOGGED = 1 << 16
_POLL_S = 0.001


class PostCopyVm:
    """``vcpus`` vCPUs with one slot of ``size`` bytes from frame 0 on, none of which is there yet.

    ``latency``: what a request for one page costs beside its copy, ns.

    >>> with PostCopyVm(1 << 20, vcpus=1) as vm:
    ...     vm.enable()
    ...     first = vm.access(3)  # exits: bit 3 is set
    ...     vm.fill(3), vm.clear(3)
    ...     first, vm.access(3), vm.counts()["missing_seen"]
    (None, None)
    (False, True, 0)
    """

    def __init__(self, size: int, *, vcpus: int = 2, latency: int = 0, seed: int = 1) -> None:
        if size <= 0 or size % PAGE_SIZE or size > 1 << 36:
            raise UsageError(f"size: {size:#x} is not a positive multiple of {PAGE_SIZE:#x} up to 64 GiB")
        if not 1 <= vcpus <= 64:
            raise UsageError(f"vcpus: {vcpus} is not within 1 to 64")
        if not 0 <= latency <= 10**9:
            raise UsageError(f"latency: {latency} ns is not within 0 to a second")
        self.vcpus, self.npages = vcpus, size // PAGE_SIZE
        self.memory, self.source = Backing(size), Backing(size)
        for page in range(self.npages):
            self.source.write(page * PAGE_SIZE, (int(TAG) | page).to_bytes(8, "little"))
        self.stage2 = Stage2("x86", vcpus, 1, discipline="rcu", zaps="slot", strict=False)
        self.slot = words(userfault_words(self.npages))
        self._run = words(int(at.CLAIMS) + self.npages)
        self._own = [self._new_own(seed, thread, latency) for thread in range(vcpus + 1)]
        self._logs = [own(min(_LOGGED, self.npages)) for _ in range(vcpus)]
        self._written = [own((self.npages + 63) // 64) for _ in range(vcpus)]
        self._threads: list[threading.Thread] = []
        self._begun = 0
        for page in range(self.npages):
            userfault_set(self.slot, page)

    def _new_own(self, seed: int, thread: int, latency: int) -> Own:
        mine = own(int(at.OWN.words_taken))
        mine[int(at.SEED)] = (seed * 0x9E3779B97F4A7C15 + (thread + 1) * 0xD1B54A32D192ED03) % (1 << 64) or 1
        mine[int(at.NPAGES)], mine[int(at.LATENCY)] = self.npages, latency
        mine[int(at.MEMORY)], mine[int(at.SOURCE)] = self.memory.address, self.source.address
        mine[int(at.ATTRIBUTES)], mine[int(at.MARK)] = self.stage2.write_attributes, 1 + thread
        mine[int(at.WRITES)] = 1
        return mine

    # -- steps -------------------------------------------------------------------------------------------------------

    def enable(self, *, zaps: bool = True) -> None:
        """Switch KVM_MEM_USERFAULT on. ``zaps`` false leaves what is mapped, which is wrong, and has to be caught."""
        table = self.stage2.tables[0]
        userfault_enable(self.slot, table.at(0), self.npages, zaps)

    def disable(self) -> None:
        """Switch it off: bits say nothing any more. Leaves stay pages, as on arm64; x86 makes huge ones again."""
        poke(self.slot, int(ENABLED), 0)

    @property
    def enabled(self) -> bool:
        """Whether the flag is on."""
        return bool(peek(self.slot, int(ENABLED)))

    def missing(self, page: int) -> bool:
        """Whether a page's bit is set."""
        return bool(userfault_bit(self.slot, page))

    def fill(self, page: int) -> None:
        """Copy a page from the source."""
        fill_page(self.source.address, self.memory.address, page)

    def clear(self, page: int) -> None:
        """Clear a page's bit: it is there."""
        userfault_clear(self.slot, page)

    def drop(self, page: int) -> None:
        """A page is lost again: its memory goes, and its bit is set."""
        self.memory.punch(page * PAGE_SIZE, PAGE_SIZE)
        userfault_set(self.slot, page)

    def access(self, page: int, vcpu: int = 0) -> bool:
        """One read of a vCPU, while none runs: whether it came to memory; else it was the exit."""
        if not 0 <= page < self.npages:
            raise UsageError(f"page: {page} is not within 0 to {self.npages - 1}")
        mine = self._own[vcpu]
        before = int(mine[int(at.USERFAULTS)])
        mine[int(at.LIMIT)], mine[int(at.PAGE)], mine[int(at.WAITS)], mine[int(at.WRITES)] = 1, 1 + page, 0, 0
        self._run_vcpu(vcpu)
        mine[int(at.LIMIT)], mine[int(at.PAGE)], mine[int(at.WRITES)] = 0, 0, 1
        return int(mine[int(at.USERFAULTS)]) == before

    def exit(self, vcpu: int = 0) -> tuple[int, int, int]:
        """Flags, gpa and size of the last KVM_EXIT_MEMORY_FAULT of a vCPU, which is for a userfault."""
        return KVM_MEMORY_EXIT_FLAG_USERFAULT, int(self._own[vcpu][int(at.EXIT_GPA)]), PAGE_SIZE

    def _run_vcpu(self, vcpu: int) -> None:
        table, tlb = self.stage2.tables[0], self.stage2.tlbs[0][vcpu]
        mine, log, written = self._own[vcpu], self._logs[vcpu], self._written[vcpu]
        post_copy_run(self.slot, self._run, mine, log, written, table.at(1 + vcpu), tlb.words)

    def populate(self) -> int:
        """All pages come before anything runs; returns how long that took, ns."""
        begun = time.perf_counter_ns()
        stream_run(self.slot, self._run, self._own[-1])
        return time.perf_counter_ns() - begun

    # -- running -----------------------------------------------------------------------------------------------------

    def start(self, *, stream: bool = True) -> None:
        """Let the vCPUs run; with ``stream``, all pages are sent meanwhile."""
        poke(self._run, int(at.STOP), 1)  # compiled here, not in a thread whose first moments are measured
        self._run_vcpu(0)
        stream_run(self.slot, self._run, self._own[-1])
        poke(self._run, int(at.STOP), 0)
        bodies = [(self._run_vcpu, (vcpu,)) for vcpu in range(self.vcpus)]
        for mine in self._own[:-1]:
            mine[int(at.WAITS)] = 1
        self._threads = [threading.Thread(target=body, args=whose, daemon=True) for body, whose in bodies]
        if stream:
            self._threads.append(
                threading.Thread(target=stream_run, args=(self.slot, self._run, self._own[-1]), daemon=True)
            )
        self._begun = time.monotonic_ns()
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> int | None:
        """Wait until the last page is there; how long that took from the start, ns; None after ``seconds``."""
        end = time.monotonic() + seconds
        while not peek(self._run, int(at.FINISHED)):
            if time.monotonic() > end:
                return None
            time.sleep(_POLL_S)
        return int(peek(self._run, int(at.FINISHED))) - self._begun

    def run_for(self, seconds: float) -> float:
        """Let the vCPUs run for so long; returns how long they did."""
        time.sleep(seconds)
        return (time.monotonic_ns() - self._begun) / 1e9

    def stop(self) -> None:
        """Stop all threads, and wait for them."""
        poke(self._run, int(at.STOP), 1)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        poke(self._run, int(at.STOP), 0)

    @property
    def arrived(self) -> int:
        """Pages that were fetched."""
        return int(peek(self._run, int(at.ARRIVED)))

    @property
    def cores(self) -> int:
        """Cores of this machine that the threads may use."""
        return len(os.sched_getaffinity(0))

    def counts(self) -> dict[str, int]:
        """What all threads counted, by name, the longest exit, and writes that are lost; exact once stopped."""
        found = {"worst_exit_ns": 0}
        for mine in self._own:
            for place, name in enumerate(at.OWN.counter_names):
                found[name] = found.get(name, 0) + int(mine[at.OWN.first_counter + place])
            found["worst_exit_ns"] = max(found["worst_exit_ns"], int(mine[int(at.WORST)]))
        found["lost_writes"] = sum(self._lost(vcpu) for vcpu in range(self.vcpus))
        return found

    def _lost(self, vcpu: int) -> int:
        mark, lost = 8 * int(self._own[vcpu][int(at.MARK)]), 0
        for place, bits in enumerate(self._written[vcpu].tolist()):
            for bit in range(64) if bits else ():
                if bits >> bit & 1:
                    word = self.memory.read((64 * place + bit) * PAGE_SIZE + mark, 8)
                    lost += int.from_bytes(word, "little") != int(TAG)
        return lost

    def exit_times(self) -> list[int]:
        """How long exits took, from the fault until the page was there, ns, ascending."""
        return sorted(
            time_
            for mine, log in zip(self._own, self._logs, strict=False)
            for time_ in log.tolist()[: int(mine[int(at.LOGGED)])]
        )

    def check(self) -> None:
        """Raise InvariantError unless what came is there: bits, claims and bytes agree. Only while nothing runs."""
        self.stage2.check()
        for page in range(self.npages):
            came = int(peek(self._run, int(at.CLAIMS) + page)) == 2
            if came and self.missing(page):
                raise InvariantError(f"post-copy: page {page} came, and its bit is set")
            if came and self.memory.read(page * PAGE_SIZE, 8) != (int(TAG) | page).to_bytes(8, "little"):
                raise InvariantError(f"post-copy: page {page} came, and is not the source's")

    def close(self) -> None:
        """Stop, and give all memory back."""
        self.stop()
        self.memory.close()
        self.source.close()

    def __enter__(self) -> PostCopyVm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
