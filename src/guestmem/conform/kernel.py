"""Calls carried out on ``/dev/kvm``: what the kernel of this machine answers.

Raw ioctls on one VM a sequence; memory at fixed addresses, so that every process sends the same bytes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..abi.memory_attributes import FileIoctl, MemoryAttributes, MemoryAttributes2
from ..abi.structures import (
    ClearDirtyLog,
    CreateGuestMemfd,
    DirtyLog,
    EnableCap,
    MemoryCap,
    MemoryIoctl,
    MemoryRegion,
)
from ..engines.kvm import abi
from ..engines.kvm.device import Device
from ..engines.kvm.device import host as kvm_host
from ..engines.kvm.exits import DirtyRingFull, Exit, InternalError, Mmio, Shutdown, decode
from ..engines.kvm.ioctls import raw_ioctl
from ..engines.kvm.x86 import REG_NAMES, REGS, SREGS_BYTES, X86Ioctl, supported_cpuid, user_mode
from ..errors import CapabilityError, GuestmemError, UsageError
from ..interrupts import held
from .calls import (
    ARENA,
    ARENA_BYTES,
    BUFFER,
    BUFFER_BYTES,
    DONE_GPA,
    HOME_GPA,
    HOME_HVA,
    HOME_SLOT,
    LOG_BYTES,
    SECOND_VCPU,
    Answer,
    Call,
    in_short,
)
from .guest import CODE_GPA, HOME_BYTES, READ_CODE_GPA, RFLAGS, TABLES_GPA, home_memory
from .host import host_of

__all__ = ["Kernel", "KernelVm", "host_of"]

_PROT, _FLAGS = 3, 0x22 | 0x4000 | 0x100000  # private, anonymous, no reserve, fixed without replacing
_UNTOUCHED = b"\xa5" * LOG_BYTES
_CLOSED, _DEVICE, _VM, _FIRST = 0, 1, 2, 3
_RING_PAGES = 64
_NO_HUGE_PAGES = 15
_MEMORY = ((ARENA, ARENA_BYTES), (BUFFER, BUFFER_BYTES))
_EXITS_MAX = 512


class Kernel:
    """An open ``/dev/kvm`` and memory at fixed addresses, for VMs one after another.

    All of a process share the memory, so they take turns. CapabilityError, in a line, without a usable device.
    """

    _users = 0

    def __init__(self, path: str = "/dev/kvm") -> None:
        if os.environ.get("GUESTMEM_KVM") == "0":
            raise CapabilityError("conform: GUESTMEM_KVM=0 leaves the kernel's KVM alone")
        self.device = Device(path)
        self.name = str(kvm_host())
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._open = True
        try:
            if Kernel._users == 0:
                for address, size in _MEMORY:
                    self._map(address, size)
        except BaseException:
            self.device.close()
            raise
        Kernel._users += 1
        self.run_bytes = fcntl.ioctl(self.device.fd, abi.Ioctl.GET_VCPU_MMAP_SIZE, 0)
        home = home_memory()
        ctypes.memmove(HOME_HVA, home, len(home))
        self.cpuid = supported_cpuid(self.device.fd)

    def _map(self, address: int, size: int) -> None:
        if self._libc.mmap(address, size, _PROT, _FLAGS, -1, 0) != address:
            raise GuestmemError(f"conform: address {address:#x} is taken in this process")
        self._libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _NO_HUGE_PAGES)  # each page by itself

    def ioctl(self, fd: int, request: int, argument: int | bytes = 0) -> int:
        """The kernel's result, or minus its errno. Bytes are passed by address."""
        return raw_ioctl(fd, request, argument)

    def vm(self) -> KernelVm:
        """A new VM."""
        return KernelVm(self)

    def close(self) -> None:
        """Close; the last one unmaps."""
        with held:
            if self._open:
                self._open = False
                Kernel._users -= 1
                if Kernel._users == 0:
                    for address, size in _MEMORY:
                        self._libc.munmap(address, size)
                self.device.close()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


@dataclasses.dataclass(slots=True)
class _Guest:
    """A vCPU that writes and reads: its file, its ``kvm_run``, its ring if the VM has rings; how far that is read."""

    fd: int
    run: mmap.mmap
    ring: mmap.mmap | None
    ring_next: int = 0


class KernelVm:
    """One VM of the kernel that answers calls."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        fd = kernel.ioctl(kernel.device.fd, abi.Ioctl.CREATE_VM, 0)
        if fd < 0:
            raise GuestmemError(f"conform: KVM_CREATE_VM: {os.strerror(-fd)}")
        self.fd = fd
        self._open = [fd]
        self._files: list[int] = []
        self._guests: list[_Guest] = []
        self._ring_bytes = 0
        self._harvested = 0
        self._calls: dict[str, Callable[..., Answer]] = {
            name[1:]: getattr(self, name)
            for name in (
                *("_region", "_region2", "_get_log", "_clear_log", "_cap", "_extension", "_vcpu", "_guest_memfd"),
                *("_mmu_pages", "_bad_pointer", "_unknown", "_home", "_write", "_read", "_harvest", "_reset"),
                *("_second", "_write2", "_read2", "_harvest2", "_attributes", "_file_attributes"),
            )
        }

    def answer(self, call: Call) -> Answer:
        """What this kernel answers."""
        return self._calls[call.kind](*call.args)

    def _ioctl(self, request: int, argument: int | bytes) -> Answer:
        return Answer(self._kernel.ioctl(self.fd, request, argument))

    def _region(self, *fields: int) -> Answer:
        return self._ioctl(MemoryIoctl.SET_USER_MEMORY_REGION, MemoryRegion(*fields).pack())

    def _region2(self, *fields: int) -> Answer:
        *region, file, padding = fields
        argument = bytearray(MemoryRegion._make((*region, self._file(file))).pack2())
        argument[44:] = bytes([padding]) * len(argument[44:])
        return self._ioctl(MemoryIoctl.SET_USER_MEMORY_REGION2, bytes(argument))

    def _file(self, file: int) -> int:
        if file == _DEVICE:
            return self._kernel.device.fd
        if file == _VM:
            return self.fd
        if file >= _FIRST and self._files:
            return self._files[(file - _FIRST) % len(self._files)]
        return 0x7FFFFFFF

    def _get_log(self, slot: int, padding: int, address: int) -> Answer:
        ctypes.memmove(BUFFER, _UNTOUCHED, LOG_BYTES)
        result = self._kernel.ioctl(self.fd, MemoryIoctl.GET_DIRTY_LOG, DirtyLog(slot, padding, address).pack())
        return Answer(result, ctypes.string_at(BUFFER, LOG_BYTES) if result >= 0 else b"")

    def _clear_log(self, slot: int, num_pages: int, first_page: int, address: int, pattern: int) -> Answer:
        ctypes.memset(BUFFER, pattern, BUFFER_BYTES)
        return self._ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, ClearDirtyLog(slot, num_pages, first_page, address).pack())

    def _cap(self, cap: int, flags: int, argument: int) -> Answer:
        answer = self._ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(cap, flags, argument).pack())
        if answer.result == 0 and cap in {MemoryCap.DIRTY_LOG_RING, MemoryCap.DIRTY_LOG_RING_ACQ_REL}:
            self._ring_bytes = argument & 0xFFFFFFFF
        return answer

    def _extension(self, cap: int) -> Answer:
        return self._ioctl(MemoryIoctl.CHECK_EXTENSION, cap)

    def _vcpu(self, id_: int) -> Answer:
        fd = self._kernel.ioctl(self.fd, MemoryIoctl.CREATE_VCPU, id_)
        return self._file_or_errno(fd)

    def _file_or_errno(self, fd: int) -> Answer:
        if fd < 0:
            return Answer(fd)
        self._open.append(fd)
        return Answer(0)

    def _guest_memfd(self, size: int, flags: int) -> Answer:
        fd = self._kernel.ioctl(self.fd, MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack())
        if fd >= 0:
            self._files.append(fd)
        return self._file_or_errno(fd)

    def _attributes(self, address: int, size: int, attributes: int, flags: int) -> Answer:
        asked = MemoryAttributes(address, size, attributes, flags)
        return self._ioctl(MemoryIoctl.SET_MEMORY_ATTRIBUTES, asked.pack())

    def _file_attributes(self, file: int, *fields: int) -> Answer:
        offset, size, bits, flags, reserved = fields
        argument = MemoryAttributes2(offset, size, bits, flags, reserved=(reserved,) * 11).pack()
        return Answer(self._kernel.ioctl(self._file(file), FileIoctl.SET_MEMORY_ATTRIBUTES2, argument))

    def _mmu_pages(self, count: int) -> Answer:
        return self._ioctl(MemoryIoctl.SET_NR_MMU_PAGES, count)

    def _bad_pointer(self, request: int) -> Answer:
        return self._ioctl(request, 8)

    def _unknown(self, request: int) -> Answer:
        return self._ioctl(request, 0)

    # -- a guest that writes -----------------------------------------------------------------------------------------

    def _home(self) -> Answer:
        kernel = self._kernel
        region = MemoryRegion(HOME_SLOT, 0, HOME_GPA, HOME_BYTES, HOME_HVA)
        result = kernel.ioctl(self.fd, MemoryIoctl.SET_USER_MEMORY_REGION, region.pack())
        if result < 0:
            return Answer(result)
        return self._guest(0)

    def _second(self) -> Answer:
        return self._guest(SECOND_VCPU)

    def _guest(self, id_: int) -> Answer:
        kernel = self._kernel
        fd = kernel.ioctl(self.fd, MemoryIoctl.CREATE_VCPU, id_)
        if fd < 0:
            return Answer(fd)
        self._open.append(fd)
        ring = mmap.mmap(fd, self._ring_bytes, offset=_RING_PAGES * mmap.PAGESIZE) if self._ring_bytes else None
        self._guests.append(_Guest(fd, mmap.mmap(fd, kernel.run_bytes), ring))
        fcntl.ioctl(fd, X86Ioctl.SET_CPUID2, kernel.cpuid)
        sregs = bytearray(SREGS_BYTES)
        fcntl.ioctl(fd, X86Ioctl.GET_SREGS, sregs)
        fcntl.ioctl(fd, X86Ioctl.SET_SREGS, user_mode(bytes(sregs), TABLES_GPA))
        return Answer(0)

    def _write(self, gpa: int, pages: int) -> Answer:
        return self._touch(0, CODE_GPA, gpa, pages)

    def _read(self, gpa: int, pages: int) -> Answer:
        return self._touch(0, READ_CODE_GPA, gpa, pages)

    def _write2(self, gpa: int, pages: int) -> Answer:
        return self._touch(1, CODE_GPA, gpa, pages)

    def _read2(self, gpa: int, pages: int) -> Answer:
        return self._touch(1, READ_CODE_GPA, gpa, pages)

    def _touch(self, which: int, rip: int, gpa: int, pages: int) -> Answer:
        if which >= len(self._guests):
            raise UsageError("conform: a guest's write or read comes after home; of the second vCPU, after second")
        fd, run = self._guests[which].fd, self._guests[which].run
        registers = dict.fromkeys(REG_NAMES, 0) | {"rip": rip, "rflags": RFLAGS, "rax": 1, "rbx": gpa}
        registers["rcx"] = pages
        result = self._kernel.ioctl(fd, X86Ioctl.SET_REGS, REGS.pack(*registers.values()))
        exits: list[tuple[str, int]] = []
        while result >= 0 and len(exits) < _EXITS_MAX:
            result = self._kernel.ioctl(fd, abi.Ioctl.RUN)
            if result == -errno.EINTR:
                result = 0
                continue
            if result < 0:
                return Answer(result, exits=in_short(exits))
            name = _name(decode(memoryview(run)))
            exits.append(name)
            if not name[0].startswith("mmio"):
                break
        run[1] = 1  # immediate_exit: completes the instruction, and does not enter the guest
        self._kernel.ioctl(fd, abi.Ioctl.RUN)
        run[1] = 0
        return Answer(result, exits=in_short(exits))

    def _harvest(self) -> Answer:
        return self._harvest_of(0)

    def _harvest2(self) -> Answer:
        return self._harvest_of(1)

    def _harvest_of(self, which: int) -> Answer:
        guest = self._guests[which] if which < len(self._guests) else None
        if guest is None or guest.ring is None:
            raise UsageError("conform: a harvest comes after rings are enabled, and home (of the second, second)")
        ring = guest.ring
        found: set[str] = set()
        count = len(ring) // abi.DIRTY_GFN.size
        while True:
            at = guest.ring_next % count * abi.DIRTY_GFN.size
            flags, slot, offset = abi.DIRTY_GFN.unpack_from(ring, at)
            if flags != abi.DIRTY_GFN_DIRTY:
                return Answer(0, exits=tuple(sorted(found)))
            found.add(f"{slot:#x}+{offset:#x}")
            struct.pack_into("<I", ring, at, abi.DIRTY_GFN_DIRTY | abi.DIRTY_GFN_RESET)
            guest.ring_next += 1
            self._harvested += 1

    def _reset(self) -> Answer:
        result = self._kernel.ioctl(self.fd, MemoryIoctl.RESET_DIRTY_RINGS)
        if result < 0:
            return Answer(result)
        given, self._harvested = self._harvested, 0
        return Answer(result - given)

    def close(self) -> None:
        """Close the VM and all that belongs to it, also where Ctrl-C came in the midst of something."""
        with held:
            for guest in self._guests:
                for mapped in (guest.run, guest.ring):
                    if mapped is not None:
                        with suppress(BufferError):  # what was cut off looks at it still: it is unmapped with that
                            mapped.close()
            while self._open:
                os.close(self._open.pop())

    def __enter__(self) -> KernelVm:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _name(exit_: Exit) -> tuple[str, int]:
    match exit_:
        case Mmio(gpa=gpa) if gpa == DONE_GPA:
            return "done", -1
        case Mmio(gpa=gpa, size=size, is_write=is_write):
            return f"mmio {'write' if is_write else 'read'} {size}", gpa
        case DirtyRingFull():
            return "dirty ring full", -1
        case Shutdown():
            return "shutdown", -1
        case InternalError(suberror=suberror):
            return f"internal error {suberror}", -1
        case _:
            return str(exit_), -1
