"""One vCPU: its file, its ``struct kvm_run``, registers, dirty ring, and running it.

``run()`` is for whoever wants exits one by one, in the calling thread; ``KvmVm.start()`` runs all vCPUs in threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import struct
import threading
from typing import TYPE_CHECKING

from ...abi.structures import MemoryIoctl
from ...atomics import peek, poke
from ...compiled import own, words
from ...errors import GuestmemError, MemslotError, UsageError
from ...interrupts import held
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
from .run_loop import claim, vcpu_run, vcpu_run_for
from .x86 import Registers, X86Ioctl, address_of_list, has_local_apic, instruction_met, set_cpuid

if TYPE_CHECKING:
    from .vm import KvmVm

__all__ = ["KvmVcpu"]

_UNTAKEN = int(at.UNTAKEN)
_RUN_DATA = 40
_IMMEDIATE_EXIT = 1
_FRAGMENTS = 4096
"""More than any instruction has."""


class KvmVcpu(Registers):
    """vCPU ``index`` of a VM. Made by ``KvmVm``."""

    def __init__(self, vm: KvmVm, index: int, *, cpuid: bytearray, run_bytes: int, ring_bytes: int) -> None:
        self._vm, self.index = vm, index
        self.fd = fcntl.ioctl(vm.file, MemoryIoctl.CREATE_VCPU, index)
        try:
            self._map(run_bytes, ring_bytes)
            set_cpuid(self.fd, cpuid)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = ctypes.c_char.from_buffer(self._run)
        self.words = own(at.OWN_WORDS)
        self.words[int(at.FD)] = self.fd
        self.words[int(at.RUN)] = ctypes.addressof(self._view)
        self.words[int(at.LISTED)] = address_of_list()
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
        with self._vm.calls:
            # In KVM_RUN, or on its way in: the kernel would wait for it, for ever. In a pause it is out, or soon.
            holder = claim(self._vm.words, self.index, at.AT_REGISTERS)
            try:
                if self.fd < 0 or holder == at.CLOSED:
                    raise self._closed()
                if holder not in (0, threading.get_native_id()) and not peek(self._vm.words, int(at.PAUSED)):
                    raise GuestmemError(
                        f"vCPU {self.index} is in KVM_RUN: pause or stop the VM before KVM_{request.name}"
                    )
                self._see_that_nothing_is_held(request)
                fcntl.ioctl(self.fd, request, argument)
            except OSError as error:
                raise MemslotError(error.errno or 0, f"vCPU {self.index}: KVM_{request.name}") from None
            finally:
                if not holder:
                    self.release()

    def _see_that_nothing_is_held(self, request: X86Ioctl) -> None:
        """A store that an exit holds is behind rip, and not in memory; registers that are set now would be lost."""
        waits = peek(self._vm.words, self._base + int(at.STATE)) == at.HOLDING
        kept = bool(self.words[int(at.PENDING)])
        in_update = peek(self._vm.words, int(at.UPDATES)) & 1
        if waits or (kept and (in_update or request.sets_registers)):
            raise GuestmemError(
                f"vCPU {self.index}: it has met what an update changes, and the exit is not answered yet: "
                f"KVM_{request.name} after the update{'' if in_update else ', or after end_instruction()'}"
            )

    @functools.cached_property
    def has_local_apic(self) -> bool:
        """Whether the kernel has its local APIC, as decided when the vCPU was made."""
        with self._vm.calls:
            return has_local_apic(self.fd)

    @property
    def held_exit(self) -> Exit | None:
        """The exit that a stop or an error kept from being answered; the next run goes on with it."""
        return self._decoded() if self.fd >= 0 and self.words[int(at.PENDING)] else None

    def finish(self) -> None:
        """Carry out what a stop kept from being answered, if no thread runs the vCPU. Waits for an update's end."""
        with held:
            if self.fd < 0 or not self.words[int(at.PENDING)] or self.claim(at.AT_REGISTERS):
                return  # its thread, which is between two looks for signals, waits for us
            try:
                finish_pending(self._vm.words, self._vm.map, self.words, self.index)
            finally:
                self.release()

    def _closed(self) -> MemslotError:
        return MemslotError(errno.EBADF, f"vCPU {self.index}: the VM is closed")

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> Exit:
        """Run until an exit that is none of the engine's business, and decode it. Ctrl-C ends it.

        GuestmemError with errno if KVM_RUN fails, or if the VM was told to stop, or if another thread runs the vCPU.
        Inside a pause, waits for its end. An exit that an exception kept from being returned is the next call's.
        """
        exit_ = self.next_exit()
        self.words[_UNTAKEN] = 0
        return exit_

    def next_exit(self) -> Exit:
        """As ``run``, but until ``taken()`` it is the same exit again."""
        try:
            return self._next_exit()
        except GuestmemError:
            raise
        except BaseException:
            self._let_hold()
            raise

    def _let_hold(self) -> None:
        """Left while an exit waits for an update's end: it is carried out then, without this thread."""
        state = self._base + int(at.STATE)
        with held:
            if peek(self._vm.words, state) == at.HOLDING:
                poke(self._vm.words, state, int(at.OUTSIDE))
            if not peek(self._vm.words, int(at.UPDATES)) & 1:  # who ends one that is under way looks after us
                self.finish()

    def _next_exit(self) -> Exit:
        words, tid = self._vm.words, threading.get_native_id()
        stops = peek(words, int(at.STOPS))
        while True:
            status = vcpu_run_for(words, self._vm.map, self.words, self.index, tid, stops)
            if status == at.EXIT:
                return self._decoded()
            if status == at.TAKEN:
                if self.fd < 0 or peek(words, self._base + int(at.TID)) == at.CLOSED:
                    raise self._closed()
                raise GuestmemError(f"vCPU {self.index}: another thread runs it; stop the VM first")
            if status == at.STOPPED:
                raise GuestmemError(f"vCPU {self.index}: the VM has been stopped")
            if status == at.FAILED:
                raise self.failure()

    def _decoded(self) -> Exit:
        """The exit in ``struct kvm_run``; EBADF if the VM was closed meanwhile."""
        try:
            return decode(memoryview(self._run))
        except ValueError:  # unmapped
            raise self._closed() from None

    def taken(self) -> None:
        """Whoever runs the vCPU has the exit that ``next_exit`` gave."""
        self.words[_UNTAKEN] = 0

    @property
    def has_untaken(self) -> bool:
        """Whether there is an exit that nobody was given yet."""
        return bool(self.words[_UNTAKEN])

    def claim(self, tid: int) -> int:
        """Have the vCPU until ``release()``: 0, or whoever has it (``layout.TID``)."""
        return int(claim(self._vm.words, self.index, tid))

    def release(self) -> None:
        """Nobody has it."""
        poke(self._vm.words, self._base + int(at.TID), 0)

    def end_instruction(self) -> None:
        """End an instruction that an MMIO or port exit has cut short, entering no guest; further exits are dropped.

        What nobody answered reads whatever is in ``struct kvm_run``. So new registers can be set: KVM keeps the old
        ones until then, and would go on with them.
        """
        with self._vm.calls:
            holder = self.claim(at.AT_REGISTERS)
            if self.fd < 0 or holder == at.CLOSED:
                raise self._closed()
            if holder:
                raise GuestmemError(f"vCPU {self.index}: another thread runs it; stop the VM first")
            try:
                self._run[_IMMEDIATE_EXIT] = 1
                for _ in range(_FRAGMENTS):
                    fcntl.ioctl(self.fd, Ioctl.RUN, 0)
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise MemslotError(error.errno or 0, f"vCPU {self.index}: KVM_RUN") from None
            finally:
                self._run[_IMMEDIATE_EXIT] = 0
                for word in (at.DEVICE, at.KNOWN, at.PENDING, at.UNTAKEN):
                    self.words[int(word)] = 0
                self.release()

    def compile(self) -> None:
        """Have the loop compiled, on words of its own that say to stop: else the first run does it."""
        vm, mine, page = words(at.vm_words(1)), own(at.OWN_WORDS), ctypes.create_string_buffer(64)
        poke(vm, int(at.STOP), 1)
        mine[int(at.RUN)] = ctypes.addressof(page)
        vcpu_run(vm, words(8), mine, 0)
        vcpu_run_for(vm, words(8), mine, 0, 1, 0)

    def run_compiled(self) -> int:
        """One call of the compiled loop; see ``run_loop.vcpu_run`` for what it returns."""
        return int(vcpu_run(self._vm.words, self._vm.map, self.words, self.index))

    def failure(self) -> GuestmemError:
        """What to raise after FAILED."""
        number = int(self.words[int(at.ERRNO)])
        if number == errno.EOPNOTSUPP and self.words[int(at.PENDING)]:
            error = GuestmemError(
                f"vCPU {self.index}: what an update changes was met by an instruction that is not on the list of those "
                f"which KVM emulates as the processor carries them out: {self._met()}; the guest cannot go on "
                "(docs/exit-retry.md)"
            )
            error.errno = number
            return error
        error = GuestmemError(f"vCPU {self.index}: KVM_RUN: {os.strerror(number)}")
        error.errno = number
        return error

    def _met(self) -> str:
        """The instruction whose exit was refused, as bytes: x86 code cannot be read backwards."""
        with self._vm.calls:
            return instruction_met(self._run)

    @property
    def is_run_elsewhere(self) -> bool:
        """Whether another thread runs it, or is about to."""
        holder = peek(self._vm.words, self._base + int(at.TID))
        return holder not in (0, at.AT_REGISTERS, at.CLOSED, threading.get_native_id())

    def thread(self) -> Exit | None:
        """Body of a vCPU thread: run until the VM stops (None) or until an exit that the loop leaves to others."""
        poke(self._vm.words, self._base + int(at.TID), threading.get_native_id())
        try:
            status = self.run_compiled()
            while status == at.SIGNALLED:
                status = self.run_compiled()
        finally:
            self.release()
        return self._decoded() if status == at.EXIT else None

    def answer(self, exit_: Mmio | Io, data: bytes) -> None:
        """Answer a read or an ``in`` before the next run: ``data`` is as long as what was asked for."""
        if self.fd < 0:
            raise self._closed()
        size = exit_.size if isinstance(exit_, Mmio) else exit_.size * exit_.count
        if len(data) != size:
            raise UsageError(f"data: {len(data)} bytes; the exit asks for {size}")
        try:
            place = _RUN_DATA
            if not isinstance(exit_, Mmio):
                (place,) = struct.unpack_from("<Q", self._run, _RUN_DATA)
            self._run[place : place + size] = data
        except ValueError:  # closed since
            raise self._closed() from None

    # -- dirty ring ------------------------------------------------------------------------------------------------

    def harvest(self) -> list[tuple[int, int]]:
        """Take the filled entries of the dirty ring: (``SlotKey.word``, frame in the slot). The VM resets them.

        Those that answers under exit_retry wrote are among them, any vCPU's.

        UsageError if the VM has no rings. O(entries).
        """
        if self._ring is None:
            raise UsageError("dirty ring: the VM was made without (ring_bytes)")
        found: list[tuple[int, int]] = []
        with self._vm.calls, self._vm.harvesting:  # one thread, no interrupt between an entry's mark and our count
            count = len(self._ring) // DIRTY_GFN.size
            for _ in range(count):
                place = self._ring_next % count * DIRTY_GFN.size
                flags, slot, offset = DIRTY_GFN.unpack_from(self._ring, place)
                if flags != DIRTY_GFN_DIRTY:
                    break
                found.append((slot, offset))
                struct.pack_into("<I", self._ring, place, DIRTY_GFN_RESET)
                self._ring_next += 1
            return found + self._vm.answered.harvest()

    @property
    def is_retired(self) -> bool:
        """Whether nobody will run it any more."""
        return bool(peek(self._vm.words, self._base + int(at.TID)) == at.CLOSED)

    def retire(self) -> bool:
        """Nobody will run it any more; False if somebody does."""
        return self.claim(at.CLOSED) in (0, at.CLOSED)

    def close(self) -> None:
        """Unmap and close; the vCPU has retired, or this is a child of fork, which has copies."""
        if self.fd >= 0:
            poke(self._vm.words, self._base + int(at.RUN_PAGE), 0)
            del self._view
            with contextlib.suppress(BufferError):  # an exit is being decoded: it is unmapped when that is over
                self._run.close()
            if self._ring is not None:
                self._ring.close()
            os.close(self.fd)
            self.fd = -1
