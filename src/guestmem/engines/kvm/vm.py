"""A VM of ``/dev/kvm``: its file (``vm_file``), and vCPUs in threads, kicks, pauses, held exits, and its end.

Updates that no vCPU can see half-done
are the designs' business (``designs/exit_retry.py``, ``designs/pause_if_overlap.py``); this holds what they need.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from ...abi.structures import MemoryCap
from ...atomics import peek, poke, wake_all
from ...compiled import own, words
from ...errors import CapabilityError, GuestmemError, MemslotError, UsageError
from ...interrupts import Section, held
from . import layout as at
from .abi import Ioctl
from .address_map import forget_readonly, map_begin, map_words, readonly_gone
from .calls import Calls
from .capabilities import Cap
from .device import DEVICE, REDELIVERING, Device, Host, host, left_alone
from .exits import Exit
from .kicks import kick_all, pause_all, resume_all, settle_all
from .signals import block_all_but, kick_signal
from .update_lock import give_exclusive, take_exclusive
from .vcpu import KvmVcpu
from .vm_file import VmFile
from .x86 import physical_bits, supported_cpuid

__all__ = ["KvmVm"]

_EMULATION_FAILURE = 1
_AGAIN_S = 0.001


class KvmVm(VmFile):
    """A VM with ``vcpus`` vCPUs, none of which runs yet, and no memory.

    ``ring_bytes``: a dirty ring of so many bytes a vCPU instead of bitmaps. CapabilityError, in one line, for all that
    this machine or kernel cannot do.
    """

    def __init__(self, vcpus: int = 1, *, ring_bytes: int = 0, path: str = DEVICE) -> None:
        if vcpus < 1:
            raise UsageError(f"vcpus: {vcpus} is not at least 1")
        if why := left_alone():
            raise CapabilityError(why)
        super().__init__(rings=bool(ring_bytes))
        self.vcpus: list[KvmVcpu] = []
        self._threads: list[threading.Thread] = []
        self.ended: dict[int, Exit | GuestmemError] = {}
        """vCPU threads that ended by themselves, and what they ended with."""
        self.harvesting, self._ending = Section(), Section()
        self.owner: object = None
        """Keeps the host memory that slots name; let go when the kernel has no slot any more."""
        self._updater = 0
        """The thread that holds exits."""
        try:
            with held:  # no file without an owner
                self.device = Device(path)
                _all.add(self)
                self._open(vcpus, ring_bytes)
        except BaseException as error:
            if hasattr(self, "device"):
                self.close()
            if isinstance(error, OSError):
                raise CapabilityError(f"engine kvm: no VM of {vcpus} vCPUs can be made: {error.strerror}") from None
            raise

    def _open(self, vcpus: int, ring_bytes: int) -> None:
        device = self.device
        device.need(Cap.IMMEDIATE_EXIT)
        self.host: Host = host()
        most = device.check_extension(Cap.MAX_VCPUS)
        if vcpus > most:
            raise CapabilityError(f"engine kvm: {vcpus} vCPUs; this kernel allows {most}")
        self.max_slots = device.check_extension(MemoryCap.NR_MEMSLOTS)
        self.address_spaces = max(1, device.check_extension(MemoryCap.MULTI_ADDRESS_SPACE))
        self.file = fcntl.ioctl(device.fd, Ioctl.CREATE_VM, 0)
        self.exits_on_emulation_failure = bool(device.check_extension(Cap.EXIT_ON_EMULATION_FAILURE))
        if self.exits_on_emulation_failure:
            # A failed fetch then leaves the vCPU as it was; else KVM queues #UD before it exits.
            self.enable_cap(Cap.EXIT_ON_EMULATION_FAILURE, _EMULATION_FAILURE)
        if ring_bytes:
            device.need(MemoryCap.DIRTY_LOG_RING_ACQ_REL)
            self.enable_cap(MemoryCap.DIRTY_LOG_RING_ACQ_REL, ring_bytes)
        self.words = words(at.vm_words(vcpus))
        self.map = words(map_words(self.max_slots))
        map_begin(self.map, self.max_slots)
        poke(self.words, int(at.PID), os.getpid())
        poke(self.words, int(at.SIGNAL), kick_signal())
        poke(self.words, int(at.REDELIVERS), int(self.host.module in REDELIVERING))
        self.cpuid = supported_cpuid(device.fd)
        """``struct kvm_cpuid2``: all that this kernel can give its guests."""
        run_bytes = fcntl.ioctl(device.fd, Ioctl.GET_VCPU_MMAP_SIZE, 0)
        for index in range(vcpus):
            self.vcpus.append(KvmVcpu(self, index, cpuid=self.cpuid, run_bytes=run_bytes, ring_bytes=ring_bytes))

    @property
    def physical_bits(self) -> int:
        """Width of a guest physical address, by CPUID leaf 0x80000008; 36 if there is none."""
        return physical_bits(self.cpuid)

    def start(self) -> None:
        """Run every vCPU in a thread, until ``stop()`` or until it has an exit that the loop leaves to others."""
        if self.file < 0:
            raise MemslotError(errno.EBADF, "vm: it is closed")
        if self._threads:
            raise GuestmemError("start: vCPUs are running already")
        if busy := [vcpu.index for vcpu in self.vcpus if vcpu.is_run_elsewhere]:
            raise GuestmemError(f"start: vCPU {busy[0]} is run by another thread already")
        self.vcpus[0].compile()  # here, not in a thread whose first moments are measured
        with held:
            self.ended = {}
            atexit.register(self.stop)
            for vcpu in self.vcpus:
                thread = threading.Thread(target=self._run, args=(vcpu,), name=f"kvm-vcpu{vcpu.index}", daemon=True)
                if vcpu.claim(at.STARTING):
                    raise GuestmemError(f"start: vCPU {vcpu.index} is run by another thread already")
                try:
                    thread.start()
                except BaseException:  # no more threads, say
                    vcpu.release()
                    raise
                self._threads.append(thread)

    def _run(self, vcpu: KvmVcpu) -> None:
        block_all_but(kick_signal())
        exit_ = vcpu.thread()
        if exit_ is not None:
            self.ended[vcpu.index] = exit_
        elif vcpu.words[int(at.ERRNO)]:
            self.ended[vcpu.index] = vcpu.failure()

    @property
    def running(self) -> int:
        """How many vCPU threads run."""
        return sum(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Stop the vCPU threads, paused or waiting ones too, and wait for them; calls of ``KvmVcpu.run``, too.

        Interrupted by Ctrl-C, it is still being stopped: call it again.
        """
        stops = int(at.STOPS)
        with held:
            poke(self.words, stops, peek(self.words, stops) + 1)
            poke(self.words, int(at.STOP), 1)
        while self.running or any(vcpu.is_run_elsewhere for vcpu in self.vcpus):
            with contextlib.suppress(MemslotError), self.calls:  # else somebody has closed it
                kick_all(self.words, len(self.vcpus), own(len(self.vcpus)))
            for word in (at.PAUSED, at.UPDATES):  # what a vCPU may sleep on
                wake_all(self.words, int(word))
            time.sleep(_AGAIN_S)
        with held:
            self._threads = []
            poke(self.words, int(at.STOP), 0)
            atexit.unregister(self.stop)
        if not self._updates_here:
            self._settle()

    def pause(self) -> int:
        """Stop all vCPUs; they nest. Returns, when none is in KVM_RUN, how often it slept.

        What exits still have to do is done first, so that registers and memory belong together; in the thread that
        holds exits, when they are no longer held. Ctrl-C meanwhile is raised afterwards, and there is no pause then.
        """
        count = len(self.vcpus)
        paused = False
        try:
            with self.calls:
                slept = int(pause_all(self.words, count, own(count), not self._updates_here))
                paused = True
        except BaseException:
            if paused:
                self.resume()
            raise
        return slept

    @property
    def _updates_here(self) -> bool:
        return self._updater == threading.get_ident()

    def _settle(self) -> None:
        """Have done what exits still have to do of vCPUs that a stop or a pause keeps from it."""
        for vcpu in self.vcpus:
            vcpu.finish()
        if peek(self.words, int(at.PAUSED)):
            settle_all(self.words, len(self.vcpus), own(len(self.vcpus)))

    def resume(self) -> None:
        """End one pause."""
        resume_all(self.words)

    def kick(self) -> int:
        """Have every vCPU leave the guest once; returns how often the wait slept."""
        with self.calls:
            return int(kick_all(self.words, len(self.vcpus), own(len(self.vcpus))))

    @contextmanager
    def exits_held(self) -> Iterator[None]:
        """Exits that fall into it are answered when it ends (HOLES: RETRY). One thread at a time; no signals."""
        with held:
            take_exclusive(self.words)
            self._updater = threading.get_ident()
            try:
                yield
            finally:
                give_exclusive(self.words)
                self._updater = 0
                self._settle()
                if readonly_gone(self.map):
                    # What was a write to one of these has left the guest by now; see that it is done, too.
                    self.pause()
                    forget_readonly(self.map)
                    self.resume()

    def set_holes(self, holes: int) -> None:
        """What becomes of exits in holes: ``layout.REPORT``, ``ANSWER`` or ``RETRY``."""
        poke(self.words, int(at.HOLES), int(holes))

    def counts(self) -> list[dict[str, int]]:
        """What each vCPU's loop counted so far, by ``layout.COUNTER_NAMES``; exact once they are stopped."""
        first = int(at.COUNTERS)
        return [
            {name: int(vcpu.words[first + place]) for place, name in enumerate(at.COUNTER_NAMES)} for vcpu in self.vcpus
        ]

    def close(self) -> None:
        """Stop the vCPUs and close everything, when no call is under way any more; calls are EBADF from then on.

        Host memory is let go last, when nothing can reach it any more.
        """
        self.retire()
        with self._ending:  # one thread closes files: a number that is closed twice may be somebody else's by then
            self.calls.end()
            self.calls.wait()
            with self.harvesting:
                self._let_go()

    def retire(self) -> None:
        """Stop the vCPUs for good."""
        while not all(vcpu.is_retired for vcpu in self.vcpus):
            self.stop()
            with held:
                if sum(vcpu.retire() for vcpu in self.vcpus) == len(self.vcpus):  # else a caller's thread was faster
                    break

    def _let_go(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vcpus = []
        self.close_files()
        self.owner = None

    def leave_to_parent(self) -> None:
        """After fork: files and memory are copies, the vCPUs are the parent's. The VM is closed here."""
        self._threads = []
        self.calls = Calls()
        self.calls.end()
        if hasattr(self, "words"):
            self.words = words(at.vm_words(len(self.vcpus)))
            for vcpu in self.vcpus:
                vcpu.claim(at.CLOSED)
        self._let_go()

    def __del__(self) -> None:
        # Files are numbers here: nobody else closes them.
        with held, contextlib.suppress(Exception):  # Ctrl-C ends it afterwards
            if peek(self.words, int(at.PID)) == os.getpid():
                self.close()

    def __enter__(self) -> KvmVm:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


_all: weakref.WeakSet[KvmVm] = weakref.WeakSet()


def _close_in_a_child() -> None:
    for vm in list(_all):
        with contextlib.suppress(Exception):  # one that was being made, or closed, when the process was copied
            vm.leave_to_parent()


os.register_at_fork(after_in_child=_close_in_a_child)
