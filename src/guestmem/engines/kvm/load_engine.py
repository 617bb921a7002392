"""The kernel engine with a load: real vCPUs run ``load_guest`` over all the VM's memory while it is updated."""

from __future__ import annotations

import ctypes
import mmap
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...atomics import host_load, host_store
from ...compiled import U64, Own, compiled, u64
from ...errors import CapabilityError, GuestmemError, UsageError
from ...gmem.file import GuestMemfd
from ...memslots import KVM_MEM_READONLY, Slot
from ...units import PAGE_SIZE
from ..load import PATTERNS, Access, Load
from ..load_words import ONE_REPORT
from ..protocol import Capability
from ..report import LoadReport, VcpuCounts
from ..stalls import HISTOGRAM_SIZE
from . import layout as at
from . import load_layout as area
from .engine import KvmEngine
from .x86 import REG_NAMES, REGS, share_tsc, user_mode
from .x86.load_guest import CODE_BYTES

__all__ = ["KvmLoadEngine"]

_TABLE = 0x67
_LARGE = 0x80
_LOAD_WAIT_S = 10.0
_KINDS = ("reads", "writes", "fetches")


@compiled
def peek_host(address: U64) -> U64:
    """From Python: the 8 bytes at a host address."""
    return host_load(address)


@compiled
def poke_host(address: U64, value: U64) -> None:
    """From Python: write 8 bytes."""
    host_store(address, value)


@compiled
def copy_words(address: U64, source: Own, count: U64) -> None:
    """Write ``count`` words to host memory."""
    word = u64(0)
    while word < count:
        host_store(address + (word << 3), source[word])
        word += u64(1)


class KvmLoadEngine(KvmEngine):
    """A KvmEngine whose vCPUs run the load guest: the ``MeasuredEngine`` of the real kernel.

    What it cannot measure is in ``unmeasured``: what the kernel does inside its ioctls is not seen from outside, nor
    writes that it refuses. Old and new memory the guest tells by the tags in them (``load_words.TAG_BYTE``), and which
    access was when by the TSC, where all vCPUs can have the same.
    """

    unmeasured = frozenset(
        {
            *("refused", "refaults", "table_pages"),
            *("counts.swaps", "counts.srcu_waits", "counts.flushes", "counts.ranges_in_flux", "counts.zaps"),
            *("counts.private_zaps", "dropped"),
            *("counts.request_ns", "counts.grace_ns"),
        }
    )

    capabilities = KvmEngine.capabilities | Capability.GET_DIRTY_LOG
    table_pages = 0

    def __init__(
        self,
        vcpus: int = 1,
        *,
        cores: int | None = None,
        address_spaces: int = 1,
        arch: str = "x86",
        slow_vcpu_ns: int = 0,
        seed: int = 1,
    ) -> None:
        if arch != "x86":
            raise UsageError(f"arch: engine kvm runs x86 guests only, not {arch}")
        if slow_vcpu_ns:
            raise UsageError("slow_vcpu_ns: engine kvm cannot keep a vCPU inside the kernel")
        if vcpus > area.VCPUS_MAX:
            raise UsageError(f"vcpus: {vcpus} is not at most {area.VCPUS_MAX}")
        super().__init__(vcpus)
        self.cores = cores or self.cores
        try:
            self._set_up(seed, address_spaces)
        except BaseException:
            self.close()
            raise

    def _set_up(self, seed: int, address_spaces: int) -> None:
        if address_spaces > self.vm.address_spaces:
            raise CapabilityError(
                f"engine kvm: {address_spaces} address spaces; this kernel has {self.vm.address_spaces}"
            )
        self._area = mmap.mmap(-1, area.AREA_BYTES)
        self._view = ctypes.c_char.from_buffer(self._area)
        self._host = ctypes.addressof(self._view)
        # Above anything that a machine has memory at, below half of what the guest's tables can name.
        self._gpa = 1 << (min(self.vm.physical_bits, 47) - 1)
        self._tables, self._reached = 1, set[int]()
        self._reach(self._gpa)
        self._area[area.CODE : area.CODE + len(CODE_BYTES)] = CODE_BYTES
        self._loads, self._window = 0, 0
        if not share_tsc([vcpu.fd for vcpu in self.vm.vcpus]):
            self.unmeasured |= {"torn", "instants"}
        self._reset: list[tuple[ctypes.Array[ctypes.c_char], ...]] = []
        for slot, (start, end, flags) in enumerate(
            [(0, area.BLOCKS, KVM_MEM_READONLY), (area.BLOCKS, area.AREA_BYTES, 0)], self.vm.max_slots - 2
        ):
            place = self._gpa + start, end - start, self._host + start, int(flags)
            self.vm.set_user_memory_region(slot, *place)
            self.vm.map_insert(*place)
        for vcpu in self.vm.vcpus:
            block = area.BLOCKS + area.BLOCK_BYTES * vcpu.index
            state = (seed * 0x9E3779B97F4A7C15 + (vcpu.index + 1) * 0xD1B54A32D192ED03) % (1 << 64) or 1
            struct.pack_into("<Q", self._area, block + area.BLOCK_SEED, state)
            registers = dict.fromkeys(REG_NAMES, 0) | {
                "rip": self._gpa + area.CODE,
                "rsp": self._gpa + block + area.BLOCK_STACK,
                "r14": self._gpa + area.COMMON,
                "r15": self._gpa + block,
                "rflags": 2,
            }
            vcpu.set_sregs(user_mode(vcpu.sregs(), self._gpa + area.TABLES))
            vcpu.set_registers(registers)
            reset = tuple(
                ctypes.create_string_buffer(state, len(state))
                for state in (vcpu.sregs(), REGS.pack(*(registers[name] for name in REG_NAMES)), vcpu.events())
            )
            self._reset.append(reset)
            for word, buffer in zip((at.RESET_SREGS, at.RESET_REGS, at.RESET_EVENTS), reset, strict=True):
                vcpu.words[int(word)] = ctypes.addressof(buffer)
            vcpu.words[int(at.GUEST)] = self._host + block
            vcpu.words[int(at.GUEST_HOST)] = self._host
            vcpu.words[int(at.GUEST_GPA)] = self._gpa
        self.set_access(Access())

    def _reach(self, gpa: int) -> None:
        """Have the guest's tables name the GiB around ``gpa`` in pages of 2 MiB: 1 GiB pages are not everywhere."""
        gib = gpa >> 30
        if gib in self._reached:
            return
        if gpa >> 47:
            raise UsageError(f"load: {gpa:#x} cannot be named by a user-mode guest; the limit is {1 << 47:#x}")
        leaf = self._table(self._table(area.TABLES, gib >> 9), gib & 511)
        struct.pack_into("<512Q", self._area, leaf, *(gib << 30 | page << 21 | _LARGE | _TABLE for page in range(512)))
        self._reached.add(gib)

    def _table(self, above: int, index: int) -> int:
        """Where the table at entry ``index`` of the table ``above`` is; made if there is none."""
        (entry,) = struct.unpack_from("<Q", self._area, above + 8 * index)
        if not entry:
            if self._tables == area.TABLE_PAGES:
                raise UsageError(f"load: its targets lie in too many GiB; there are {area.TABLE_PAGES} tables for them")
            entry = self._gpa + area.TABLES + self._tables * PAGE_SIZE | _TABLE
            self._tables += 1
            struct.pack_into("<Q", self._area, above + 8 * index, entry)
        return int(entry & ~0xFFF) - self._gpa

    def get_dirty_log(self, slot: Slot) -> bytes:
        """KVM_GET_DIRTY_LOG: a bit for each page that was written since it was asked last. O(pages)."""
        return self.vm.get_dirty_log(slot.id, slot.npages, slot.as_id)

    # -- the load --------------------------------------------------------------------------------------------------

    def take_files(self, files: Sequence[GuestMemfd]) -> None:
        """CapabilityError: its guests access no private memory."""
        del files
        raise CapabilityError("engine kvm: its load has no guest_memfd")

    def set_access(self, access: Access, vcpu: int | None = None) -> None:
        """How vCPU ``vcpu`` (all unless given) accesses its targets. Before ``start()``."""
        if self.vm.running:
            raise GuestmemError("set_access: vCPUs are running")
        for index in range(self.vcpus) if vcpu is None else [vcpu]:
            block = area.BLOCKS + area.BLOCK_BYTES * index
            struct.pack_into("<4Q", self._area, block + area.BLOCK_SHARES, *access.shares(), PATTERNS[access.pattern])

    def set_load(self, load: Load) -> list[LoadReport | None]:
        """Have the vCPUs work on ``load``; returns when all do, by vCPU what they report of the load before.

        None from one that never worked on it, and from all where their stamps cannot be compared.
        """
        if len(load.words) * 8 > int(area.LOAD_BYTES):
            most = (int(area.LOAD_BYTES) // 8 - 8) // 4
            raise UsageError(f"load: {len(load.targets)} targets; there is room for {most}")
        for target in load.targets:
            self._reach(target.gpa)
        self._loads += 1
        before, place = (
            self._host + int(area.LOADS) + int(area.LOAD_BYTES) * (number & 1)
            for number in (self._loads - 1, self._loads)
        )
        load.words[3] = self._window
        copy_words(place, load.words, len(load.words))
        poke_host(self._host + area.COMMON + area.COMMON_LOAD, self._loads)
        end = time.monotonic() + _LOAD_WAIT_S
        for vcpu in self.vm.vcpus:
            loaded = self._host + area.BLOCKS + area.BLOCK_BYTES * vcpu.index + area.BLOCK_LOADED
            while self.vm.running and peek_host(loaded) != self._loads:
                self._check_alive()
                if time.monotonic() > end:
                    raise GuestmemError(f"vCPU {vcpu.index} has not come to its new load in {_LOAD_WAIT_S:g} s")
                time.sleep(1e-4)
        # Nobody is at the load before any more, and its memory may be gone soon: see find_target.
        poke_host(before, 0)
        poke_host(before + 8, 0)
        return self._reports(self._loads - 1)

    def reports(self) -> list[LoadReport | None]:
        """By vCPU, what it has seen so far under the load in force; None where stamps cannot be compared."""
        return self._reports(self._loads)

    def _reports(self, load: int) -> list[LoadReport | None]:
        return [self._report(index, load) for index in range(self.vcpus)]

    def _report(self, vcpu: int, load: int) -> LoadReport | None:
        place = area.BLOCKS + area.BLOCK_BYTES * vcpu + area.BLOCK_REPORTS + 8 * ONE_REPORT.size * (load & 1)
        number, *report = struct.unpack_from("<5Q", self._area, place)
        return LoadReport(*report) if load and number == load and "torn" not in self.unmeasured else None

    def _check_alive(self) -> None:
        for index, what in self.vm.ended.items():
            raise GuestmemError(f"vCPU {index} has ended: {what}")

    @contextmanager
    def window(self) -> Iterator[None]:
        """Accesses made meanwhile count as inside an update."""
        word = self._host + area.COMMON + area.COMMON_WINDOW
        self._window += 1
        poke_host(word, self._window)
        try:
            yield
        finally:
            self._window += 1
            poke_host(word, self._window)

    def start(self) -> None:
        """Start the vCPUs."""
        self.vm.start()

    def stop(self) -> None:
        """Stop them; GuestmemError if one had an exit that the load guest cannot have caused."""
        self.vm.stop()
        self._check_alive()

    def vcpu_counts(self) -> list[VcpuCounts]:
        """What each vCPU counted so far, by the software engine's names; exact once they are stopped."""
        result = []
        for vcpu, loop in zip(self.vm.vcpus, self.vm.counts(), strict=True):
            block = area.BLOCKS + area.BLOCK_BYTES * vcpu.index
            table = struct.unpack_from(f"<{area.KINDS * area.OUTCOMES}Q", self._area, block + area.BLOCK_COUNTS)
            inside, changed = struct.unpack_from("<2Q", self._area, block + area.BLOCK_INSIDE)
            stale, strange = struct.unpack_from("<2Q", self._area, block + area.BLOCK_STALE)
            reads, writes, fetches = (
                table[kind * area.OUTCOMES : (kind + 1) * area.OUTCOMES] for kind in range(area.KINDS)
            )
            killed = loop["killed_fetches"]
            counts = VcpuCounts(
                loop
                | dict(zip(_KINDS, (int(row[int(area.MEMORY)]) for row in (reads, writes, fetches)), strict=True))
                | {
                    "accesses": sum(table) + killed + loop["internal_errors"],
                    "inside": inside + killed,
                    "inside_changed": changed + killed,
                    "holes_read": reads[int(area.HOLE)] + fetches[int(area.HOLE)],
                    "writes": writes[int(area.MEMORY)] + writes[int(area.DEVICE + area.LANDED)],
                    "holes_write": writes[int(area.HOLE)] + writes[int(area.HOLE + area.LANDED)],
                    "answered_reads": reads[int(area.ANSWERED)] + fetches[int(area.ANSWERED)],
                    "answered_writes": writes[int(area.ANSWERED)] + writes[int(area.ANSWERED + area.LANDED)],
                    "mmio_reads": reads[int(area.DEVICE)],
                    "mmio_writes": writes[int(area.DEVICE)],
                    "readonly_writes": writes[int(area.READONLY_WRITE)],
                    "stale": stale,
                    "strange": loop["strange"] + strange,
                }
            )
            first = int(at.HISTOGRAM)
            counts.histogram = [int(vcpu.words[first + place]) for place in range(int(HISTOGRAM_SIZE))]
            result.append(counts)
        return result

    def close(self) -> None:
        """Stop the vCPUs and close the VM; the load guest's memory goes with it."""
        super().close()
        if hasattr(self, "_view"):
            del self._view
            self._area.close()

    def __enter__(self) -> KvmLoadEngine:
        return self
