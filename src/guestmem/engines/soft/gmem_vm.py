"""A VM whose memory is one guest_memfd: vCPU threads and host threads in compiled loops, while a caller converts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...atomics import poke
from ...compiled import Own, own, words
from ...errors import UsageError
from ...gmem import GuestMemfd
from ...gmem.backing import Backing
from ...gmem.layout import PRIVATE
from ...gmem.vm_attributes import VmMemoryAttributes
from ...memslots.slot import Slot
from ...units import PAGE_SIZE
from . import gmem_vcpu as at
from .gmem_vcpu import clear_words, host_run, vcpu_run
from .stage2 import Stage2

__all__ = ["GmemVm"]

SHARED_GFN = 1 << 27
"""Bit of a frame's input address by which shared accesses go: 512 GiB."""
SHARED_READ, SHARED_WRITE, PRIVATE_READ, PRIVATE_WRITE = 1, 2, 3, 4
_LAST = 9
_SECRET = 1 << 63


class GmemVm:
    """``vcpus`` vCPUs and ``hosts`` threads of the host on a guest_memfd of ``size`` bytes, bound from frame 0 on.

    ``targets``: pages that they access. ``pins``: of 1024 accesses of the host, how many pin a page for a while.
    ``zaps`` false: conversions leave the guest's mappings alone, which is wrong, and has to be caught.

    >>> with GmemVm(1 << 20, targets=[3]) as vm:
    ...     vm.file.convert(0, 1 << 20, private=True)
    ...     vm.access(PRIVATE_READ, 3), vm.access(SHARED_READ, 3), vm.exit(0)
    (True, False, (0, 12288, 4096))
    """

    def __init__(
        self,
        size: int,
        *,
        vcpus: int = 2,
        hosts: int = 1,
        targets: Sequence[int] = (0,),
        states: str = "attributes",
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
        pins: int = 0,
        zaps: bool = True,
        seed: int = 1,
    ) -> None:
        if not 1 <= vcpus <= 64 or not 1 <= hosts < 16:
            raise UsageError(f"vcpus: {vcpus} is not within 1 to 64, or hosts: {hosts} not within 1 to 15")
        if size // PAGE_SIZE > SHARED_GFN:
            raise UsageError(f"size: {size:#x} is more than {SHARED_GFN * PAGE_SIZE:#x}")
        self.vcpus, self.hosts, self.zaps = vcpus, hosts, zaps
        of_vm = states == "vm-attributes"
        self.attributes = VmMemoryAttributes(invalidate=self._vm_invalidation) if of_vm else None
        self.file = GuestMemfd(
            size,
            0 if of_vm else 3,
            states=states,
            attributes=self.attributes,
            invalidate=self._invalidation,
            folio_size=folio_size,
            joins=joins,
        )
        self.userspace = Backing(size) if of_vm else None
        self.file.bind(Slot(0, 0, 0, size // PAGE_SIZE, self.userspace.address if self.userspace else 0), 0)
        self.kinds = states != "mappability"
        self.inode = self.file.inode
        self.stage2 = Stage2("x86", vcpus, 1, discipline="rcu", zaps="slot", strict=False)
        self._targets = own(len(targets))
        for place, page in enumerate(targets):
            self._targets[place] = page
        self.inode.on_shared = self._on_shared
        self._run = words(int(at.RUN.words_taken))
        self._own = [self._new_own(seed, thread, pins if thread >= vcpus else 0) for thread in range(vcpus + hosts)]
        self._out = [own(4) for _ in range(vcpus + hosts)]
        self._threads: list[threading.Thread] = []
        if of_vm:  # the file has no state of its own: guest faults look at the VM's
            poke(self.inode.words, int(PRIVATE), 8)

    def _new_own(self, seed: int, thread: int, pins: int) -> Own:
        mine = own(int(at.OWN.words_taken))
        mine[int(at.SEED)] = (seed * 0x9E3779B97F4A7C15 + (thread + 1) * 0xD1B54A32D192ED03) % (1 << 64) or 1
        mine[int(at.KINDS)], mine[int(at.TARGETS)] = int(self.kinds), len(self._targets)
        mine[int(at.SHARED_BIT)], mine[int(at.ATTRIBUTES)] = SHARED_GFN * PAGE_SIZE, self.stage2.write_attributes
        mine[int(at.USERSPACE)] = self.userspace.address if self.userspace else 0
        mine[int(at.HOST)], mine[int(at.PINS)] = 1 + thread - self.vcpus if thread >= self.vcpus else 0, pins
        return mine

    # -- invalidations -----------------------------------------------------------------------------------------------

    @contextmanager
    def _invalidation(self, _slot: Slot, start: int, end: int, kinds: str) -> Iterator[None]:
        """Zap leaves of ``kinds``. One that a vCPU is about to make is not made: see ``gmem_abort``.

        A fault that saw the old state has read the invalidation sequence before this zap, and retries; one that reads
        it afterwards looks at the state later still, for which it needs the file's lock, which is held here.
        """
        if self.zaps:
            ranges = [(start, end)] if kinds != "shared" else []
            if kinds != "private":
                ranges.append((start + SHARED_GFN, end + SHARED_GFN))
            self.stage2.zap(0, ranges)
        yield

    @contextmanager
    def _vm_invalidation(self, start: int, end: int) -> Iterator[None]:
        """Attributes of the VM: both kinds go; faults that look at them hold the file's lock, or see the sequence."""
        with self.inode.changing(), self._invalidation(Slot(0, 0, 0, 1, 0), start, end, "both"):
            yield

    def _on_shared(self, first: int, last: int) -> None:
        clear_words(self.inode.words, self._targets, len(self._targets), first, last, 0)

    # -- accesses ----------------------------------------------------------------------------------------------------

    def convert(self, first: int, last: int, *, private: bool) -> None:
        """Pages [first, last], by the file or by the VM, as the generation has it; errors as ``GuestMemfd.convert``."""
        if self.attributes is not None:
            self.attributes.set(first * PAGE_SIZE, (last + 1 - first) * PAGE_SIZE, 8 * private)
        else:
            self.file.convert(first * PAGE_SIZE, (last + 1 - first) * PAGE_SIZE, private=private)
        if private and not self.kinds:  # no access says that it is private: this thread writes for the guest
            for start, end, state in list(self.inode.states.overlapping(first, last + 1)):
                if not state & self.inode.generation.GUEST_BARS and state & self.inode.generation.HOST_BARS:
                    self.write_private(start, end - 1)

    def write_private(self, first: int, last: int | None = None) -> None:
        """Private words in those of pages [first, last] that are there and are accessed, as the guest would leave."""
        last = first if last is None else last
        clear_words(self.inode.words, self._targets, len(self._targets), first, last, _SECRET)

    def state_private(self, page: int) -> bool:
        """Whether page ``page`` is private now."""
        if self.attributes is not None:
            return bool(self.attributes.get(page))
        return bool(self.inode.states.get(page) & self.inode.generation.HOST_BARS)

    def access(self, kind: int, page: int, vcpu: int = 0) -> bool:
        """One access of a vCPU, while none runs: SHARED_READ to PRIVATE_WRITE; whether it came to memory."""
        mine, targets = self._own[vcpu], own(1)
        targets[0] = page
        before = (
            int(mine[int(at.ACCESSES)]),
            int(mine[int(at.LIMIT)]),
            int(mine[int(at.KIND)]),
            int(mine[int(at.TARGETS)]),
        )
        mine[int(at.LIMIT)], mine[int(at.KIND)], mine[int(at.TARGETS)] = 1, kind, 1
        self._run_vcpu(vcpu, targets)
        mine[int(at.LIMIT)], mine[int(at.KIND)], mine[int(at.TARGETS)] = before[1:]
        return int(mine[int(at.ACCESSES)]) > before[0]

    def host_access(self, kind: int, page: int) -> bool:
        """One access of the host, SHARED_READ or SHARED_WRITE, while none of its threads runs; as ``access``."""
        mine, targets = self._own[self.vcpus], own(1)
        targets[0] = page
        before = int(mine[int(at.ACCESSES)]), int(mine[int(at.PINS)]), int(mine[int(at.TARGETS)])
        mine[int(at.LIMIT)], mine[int(at.KIND)], mine[int(at.TARGETS)], mine[int(at.PINS)] = 1, kind, 1, 0
        self._run_host(self.vcpus, targets)
        mine[int(at.LIMIT)] = mine[int(at.KIND)] = 0
        mine[int(at.PINS)], mine[int(at.TARGETS)] = before[1:]
        return int(mine[int(at.ACCESSES)]) > before[0]

    def exit(self, vcpu: int) -> tuple[int, int, int]:
        """Flags, gpa and size of the last KVM_EXIT_MEMORY_FAULT of a vCPU."""
        mine = self._own[vcpu]
        return int(mine[int(at.EXIT_FLAGS)]), int(mine[int(at.EXIT_GPA)]), PAGE_SIZE

    def _run_vcpu(self, vcpu: int, targets: Own) -> None:
        table, tlb = self.stage2.tables[0], self.stage2.tlbs[0][vcpu]
        states = self.inode.states if self.attributes is None else self.attributes.ranges
        vcpu_run(
            self.inode.words,
            states.words,
            self._run,
            self._own[vcpu],
            targets,
            self._out[vcpu],
            table.at(1 + vcpu),
            tlb.words,
        )

    def _run_host(self, thread: int, targets: Own) -> None:
        mine = self._own[thread]
        arguments = self.inode.words, self.inode.states.words, self._run, mine, targets, self._out[thread]
        while int(host_run(*arguments)) == _LAST:
            self.inode.generation.last_put(self.inode, int(mine[int(at.EXIT_GPA)]))

    def start(self) -> None:
        """Start all threads."""
        poke(self._run, int(at.STOP), 1)
        self._run_vcpu(0, self._targets)  # compiled here, not in a thread whose first moments are measured
        self._run_host(self.vcpus, self._targets)
        poke(self._run, int(at.STOP), 0)
        for thread in range(self.vcpus + self.hosts):
            body = self._run_vcpu if thread < self.vcpus else self._run_host
            started = threading.Thread(target=body, args=(thread, self._targets), daemon=True)
            started.start()
            self._threads.append(started)

    def stop(self) -> None:
        """Stop them, and wait for them."""
        poke(self._run, int(at.STOP), 1)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        poke(self._run, int(at.STOP), 0)

    @property
    def cores(self) -> int:
        """Cores of this machine that the threads may use."""
        return len(os.sched_getaffinity(0))

    def counts(self) -> dict[str, int]:
        """What all threads counted, by name, and the longest fault of a vCPU; exact once they are stopped."""
        first, found = at.OWN.first_counter, dict[str, int]()
        for thread, mine in enumerate(self._own):
            whose = "vcpu" if thread < self.vcpus else "host"
            for place, name in enumerate(at.OWN.counter_names):
                found[f"{whose}_{name}"] = found.get(f"{whose}_{name}", 0) + int(mine[first + place])
            found["worst_fault_ns"] = max(found.get("worst_fault_ns", 0), int(mine[int(at.WORST)]))
        return found

    def close(self) -> None:
        """Stop, and give all memory back."""
        self.stop()
        self.inode.unmapped_if_unused()
        if not self.file.closed:
            self.file.close()
        if self.userspace is not None:
            self.userspace.close()

    def __enter__(self) -> GmemVm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
