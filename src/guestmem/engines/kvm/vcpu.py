"""One vCPU: its file, its ``struct kvm_run``, registers, dirty ring, and running it.

``run()`` is for whoever wants exits one by one, in the calling thread; ``KvmVm.start()`` runs all vCPUs in threads.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...abi.structures import MemoryIoctl
from ...atomics import peek, poke
from ...compiled import own, words
from ...errors import GuestmemError, MemslotError, UsageError
from . import layout as at
from .abi import (
    DIRTY_GFN,
    DIRTY_GFN_DIRTY,
    DIRTY_GFN_RESET,
    DIRTY_LOG_PAGE_OFFSET,
    Ioctl,
)
from .answers import finish_pending
from .exits import Exit, Io, Mmio, decode
from .run_loop import vcpu_run
from .x86.registers import EVENTS_BYTES, REG_NAMES, REGS, SREGS_BYTES, XCRS, X86Ioctl

if TYPE_CHECKING:
    from .vm import KvmVm

__all__ = ["STARTING", "KvmVcpu"]

STARTING = 1
"""No thread of ours has this number."""
_RUN_DATA = 40
_IMMEDIATE_EXIT = 1
_SETS = (X86Ioctl.SET_REGS, X86Ioctl.SET_SREGS)
_FRAGMENTS = 4096
"""More than any instruction has."""


class KvmVcpu:
    """vCPU ``index`` of a VM. Made by ``KvmVm``."""

    def __init__(self, vm: KvmVm, index: int, *, cpuid: bytearray, run_bytes: int, ring_bytes: int) -> None:
        self._vm, self.index = vm, index
        self.fd = fcntl.ioctl(vm.file, MemoryIoctl.CREATE_VCPU, index)
        try:
            self._map(run_bytes, ring_bytes)
            fcntl.ioctl(self.fd, X86Ioctl.SET_CPUID2, cpuid)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = ctypes.c_char.from_buffer(self._run)
        self._lock = threading.Lock()
        """Nobody begins to run the vCPU while its registers are read or set."""
        self.words = own(at.OWN_WORDS)
        self.words[int(at.FD)] = self.fd
        self.words[int(at.RUN)] = ctypes.addressof(self._view)
        self._base = int(at.VCPUS) + int(at.VCPU) * index
        poke(vm.words, self._base + int(at.RUN_PAGE), ctypes.addressof(self._view))

    def _map(self, run_bytes: int, ring_bytes: int) -> None:
        """``struct kvm_run`` and the dirty ring."""
        self._run = mmap.mmap(self.fd, run_bytes)
        self._ring: mmap.mmap | None = None
        self._ring_next = 0
        if ring_bytes:
            self._ring = mmap.mmap(self.fd, ring_bytes, offset=DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE)

    def _ioctl(self, request: X86Ioctl, argument: bytearray) -> None:
        with self._lock:
            # In KVM_RUN, or on its way in: the kernel would wait for it, for ever. In a pause it is out, or soon.
            if self.is_run_elsewhere and not peek(self._vm.words, int(at.PAUSED)):
                raise GuestmemError(f"vCPU {self.index} is in KVM_RUN: pause or stop the VM before KVM_{request.name}")
            if self.fd < 0:
                raise self._closed()
            self._see_that_nothing_is_held(request)
            try:
                fcntl.ioctl(self.fd, request, argument)
            except OSError as error:
                raise MemslotError(error.errno or 0, f"vCPU {self.index}: KVM_{request.name}") from None

    def _see_that_nothing_is_held(self, request: X86Ioctl) -> None:
        """A store that an exit holds is behind rip, and not in memory; registers that are set now would be lost."""
        waits = peek(self._vm.words, self._base + int(at.STATE)) == at.HOLDING
        kept = bool(self.words[int(at.PENDING)])
        in_update = peek(self._vm.words, int(at.UPDATES)) & 1
        if waits or (kept and (in_update or request in _SETS)):
            raise GuestmemError(
                f"vCPU {self.index}: it has met what an update changes, and the exit is not answered yet: "
                f"KVM_{request.name} after the update{'' if in_update else ', or after end_instruction()'}"
            )

    @property
    def held_exit(self) -> Exit | None:
        """The exit that a stop or an error kept from being answered; the next run goes on with it."""
        return decode(memoryview(self._run)) if self.fd >= 0 and self.words[int(at.PENDING)] else None

    def finish(self) -> None:
        """Carry out what a stop kept from being answered, if no thread runs the vCPU. Waits for an update's end."""
        with self._lock:
            if self.fd < 0 or not self.words[int(at.PENDING)] or peek(self._vm.words, self._base + int(at.TID)):
                return
            poke(self._vm.words, self._base + int(at.TID), threading.get_native_id())
        try:
            finish_pending(self._vm.words, self._vm.map, self.words, self.index)
        finally:
            self.enlist(0)

    def _closed(self) -> MemslotError:
        return MemslotError(errno.EBADF, f"vCPU {self.index}: the VM is closed")

    # -- registers -------------------------------------------------------------------------------------------------

    def registers(self) -> dict[str, int]:
        """General registers, rip and rflags by name."""
        buffer = bytearray(REGS.size)
        self._ioctl(X86Ioctl.GET_REGS, buffer)
        return dict(zip(REG_NAMES, REGS.unpack(buffer), strict=True))

    def set_registers(self, values: Mapping[str, int] | None = None, /, **registers: int) -> None:
        """Set the named ones; the others stay. UsageError for an unknown name."""
        given = {**(values or {}), **registers}
        if unknown := given.keys() - set(REG_NAMES):
            raise UsageError(f"registers: {', '.join(sorted(unknown))}; known are {', '.join(REG_NAMES)}")
        now = self.registers() | given
        try:
            packed = REGS.pack(*(now[name] for name in REG_NAMES))
        except struct.error:
            raise UsageError(f"registers: {given} are not all numbers of 64 bits") from None
        self._ioctl(X86Ioctl.SET_REGS, bytearray(packed))

    def sregs(self) -> bytes:
        """``struct kvm_sregs`` as it is; ``guests`` makes new ones of it."""
        buffer = bytearray(SREGS_BYTES)
        self._ioctl(X86Ioctl.GET_SREGS, buffer)
        return bytes(buffer)

    def set_sregs(self, sregs: bytes) -> None:
        """Set segments, tables, control registers and EFER."""
        if len(sregs) != SREGS_BYTES:
            raise UsageError(f"sregs: {len(sregs)} bytes; struct kvm_sregs has {SREGS_BYTES}")
        self._ioctl(X86Ioctl.SET_SREGS, bytearray(sregs))

    def events(self) -> bytes:
        """``struct kvm_vcpu_events``: what is pending."""
        buffer = bytearray(EVENTS_BYTES)
        self._ioctl(X86Ioctl.GET_VCPU_EVENTS, buffer)
        return bytes(buffer)

    def set_xcr0(self, value: int) -> None:
        """Which state XSAVE and vector instructions may use: 7 for AVX."""
        self._ioctl(X86Ioctl.SET_XCRS, bytearray(XCRS.pack(1, 0, 0, 0, value)))

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> Exit:
        """Run until an exit that is none of the engine's business, and decode it. Ctrl-C ends it.

        GuestmemError with errno if KVM_RUN fails, or if the VM was told to stop, or if another thread runs the vCPU.
        Inside a pause, waits for its end.
        """
        self._claim()
        try:
            while True:
                if self.fd < 0:
                    raise self._closed()
                status = self.run_compiled()
                if status == at.EXIT:
                    return decode(memoryview(self._run))
                if status == at.STOPPED:
                    raise GuestmemError(f"vCPU {self.index}: the VM has been stopped")
                if status == at.FAILED:
                    raise self.failure()
        finally:
            self.enlist(0)

    def _claim(self) -> None:
        """Have the vCPU to ourselves until ``enlist(0)``; GuestmemError if another thread runs it, or is about to."""
        with self._lock:
            if peek(self._vm.words, self._base + int(at.TID)):
                raise GuestmemError(f"vCPU {self.index}: another thread runs it; stop the VM first")
            poke(self._vm.words, self._base + int(at.TID), threading.get_native_id())

    def end_instruction(self) -> None:
        """End an instruction that an MMIO or port exit has cut short, entering no guest; further exits are dropped.

        What nobody answered reads whatever is in ``struct kvm_run``. So new registers can be set: KVM keeps the old
        ones until then, and would go on with them.
        """
        self._claim()
        try:
            if self.fd < 0:
                raise self._closed()
            self._run[_IMMEDIATE_EXIT] = 1
            for _ in range(_FRAGMENTS):
                fcntl.ioctl(self.fd, Ioctl.RUN, 0)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise MemslotError(error.errno or 0, f"vCPU {self.index}: KVM_RUN") from None
        finally:
            if self.fd >= 0:
                self._run[_IMMEDIATE_EXIT] = 0
                for word in (at.DEVICE, at.PENDING):
                    self.words[int(word)] = 0
            self.enlist(0)

    def compile(self) -> None:
        """Have the loop compiled, on words of its own that say to stop."""
        vm, mine, page = words(at.vm_words(1)), own(at.OWN_WORDS), ctypes.create_string_buffer(64)
        poke(vm, int(at.STOP), 1)
        mine[int(at.RUN)] = ctypes.addressof(page)
        vcpu_run(vm, words(8), mine, 0)

    def run_compiled(self) -> int:
        """One call of the compiled loop; see ``run_loop.vcpu_run`` for what it returns."""
        return int(vcpu_run(self._vm.words, self._vm.map, self.words, self.index))

    def failure(self) -> GuestmemError:
        """What to raise after FAILED."""
        number = int(self.words[int(at.ERRNO)])
        if number == errno.EOPNOTSUPP and self.words[int(at.PENDING)]:
            error = GuestmemError(
                f"vCPU {self.index}: a far call, lzcnt or tzcnt has met what an update changes: KVM emulates these "
                "otherwise than the processor carries them out, so the guest cannot go on (docs/exit-retry.md)"
            )
            error.errno = number
            return error
        error = GuestmemError(f"vCPU {self.index}: KVM_RUN: {os.strerror(number)}")
        error.errno = number
        return error

    def enlist(self, tid: int) -> None:
        """Say which thread runs the vCPU, so that it can be kicked; 0: none. STARTING: one that will say so itself."""
        with self._lock:
            poke(self._vm.words, self._base + int(at.TID), tid)

    @property
    def is_run_elsewhere(self) -> bool:
        """Whether another thread runs it, or is about to."""
        return peek(self._vm.words, self._base + int(at.TID)) not in (0, threading.get_native_id())

    def thread(self) -> Exit | None:
        """Body of a vCPU thread: run until the VM stops (None) or until an exit that the loop leaves to others."""
        self.enlist(threading.get_native_id())
        try:
            status = self.run_compiled()
            while status == at.SIGNALLED:
                status = self.run_compiled()
        finally:
            self.enlist(0)
        return decode(memoryview(self._run)) if status == at.EXIT else None

    def answer(self, exit_: Mmio | Io, data: bytes) -> None:
        """Answer a read or an ``in`` before the next run: ``data`` is as long as what was asked for."""
        if isinstance(exit_, Mmio):
            place, size = _RUN_DATA, exit_.size
        else:
            (place,) = struct.unpack_from("<Q", self._run, _RUN_DATA)
            size = exit_.size * exit_.count
        if len(data) != size:
            raise UsageError(f"data: {len(data)} bytes; the exit asks for {size}")
        self._run[place : place + size] = data

    # -- dirty ring ------------------------------------------------------------------------------------------------

    def harvest(self) -> list[tuple[int, int]]:
        """Take the filled entries of the dirty ring: (slot | as_id << 16, frame in the slot). The VM resets them.

        Those that answers under exit_retry wrote are among them, any vCPU's.

        UsageError if the VM has no rings. O(entries).
        """
        if self._ring is None:
            raise UsageError("dirty ring: the VM was made without (ring_bytes)")
        found: list[tuple[int, int]] = []
        count = len(self._ring) // DIRTY_GFN.size
        while True:
            place = self._ring_next % count * DIRTY_GFN.size
            flags, slot, offset = DIRTY_GFN.unpack_from(self._ring, place)
            if flags != DIRTY_GFN_DIRTY:
                return found + self._vm.answered.harvest()
            found.append((slot, offset))
            struct.pack_into("<I", self._ring, place, DIRTY_GFN_RESET)
            self._ring_next += 1

    def close(self) -> None:
        """Unmap and close; the vCPU does not run."""
        if self.fd >= 0:
            poke(self._vm.words, self._base + int(at.RUN_PAGE), 0)
            del self._view
            self._run.close()
            if self._ring is not None:
                self._ring.close()
            os.close(self.fd)
            self.fd = -1
