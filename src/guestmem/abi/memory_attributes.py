"""Memory attributes as ioctls: of the VM (KVM_SET_MEMORY_ATTRIBUTES), and of a guest_memfd, in two generations.

In order, as the kernel's. The VM's: ENOTTY where it is not built, EFAULT, then EINVAL for flags, bits that the VM may
not have, a range that is empty, wraps or is unaligned. The file's: ENOTTY, EFAULT, EINVAL (flags, reserved words, the
VM's type, bits, ranges), then ENOMEM or EAGAIN, which write ``error_offset`` back. Source:
``kvm_vm_ioctl_set_mem_attributes()``, Linux 6.18, ``virt/kvm/kvm_main.c``; "guest_memfd: In-place conversion support",
kvm, 2026, and "1G page support for guest_memfd" RFC v2, May 2025, for the ioctls of files.
"""

from __future__ import annotations

import enum
import errno
import operator
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..errors import GuestMemfdError, MemslotError, UsageError
from ..gmem.checks import check_attributes2, check_range
from .guest_memfds import GuestMemfd
from .structures import misfit, packed, unpacked

if TYPE_CHECKING:
    from ..gmem.vm_attributes import VmMemoryAttributes
    from .model import KvmModel

__all__ = ["FileIoctl", "GmemConvert", "MemoryAttributes", "MemoryAttributes2", "MemoryAttributesState"]

_ATTRIBUTES = struct.Struct("<QQQQ")
_ATTRIBUTES2 = struct.Struct("<" + "Q" * 16)
_CONVERT = struct.Struct("<QQQ40x")
_PRIVATE = 8
_WORD = struct.Struct("<Q")


class FileIoctl(enum.IntEnum):
    """Requests on a guest_memfd: of 7.4, and of the series of May 2025 (``versions.SHAREABILITY_RFC2``)."""

    SET_MEMORY_ATTRIBUTES2 = 0xC080AED2
    GMEM_CONVERT_SHARED = 0xC040AF41
    GMEM_CONVERT_PRIVATE = 0xC040AF42

    @property
    def argument_bytes(self) -> int:
        """Size of the structure that the argument points to."""
        return int(self) >> 16 & 0x3FFF

    @property
    def error_offset_at(self) -> int:
        """Where in the structure the kernel writes ``error_offset``."""
        return 32 if self is FileIoctl.SET_MEMORY_ATTRIBUTES2 else 16


class MemoryAttributes(NamedTuple):
    """``struct kvm_memory_attributes``, 32 bytes: argument of KVM_SET_MEMORY_ATTRIBUTES, in bytes of the guest."""

    address: int
    size: int
    attributes: int = 0
    """KVM_MEMORY_ATTRIBUTE_PRIVATE, 8."""
    flags: int = 0

    def pack(self) -> bytes:
        """The 32 bytes."""
        return packed(_ATTRIBUTES, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> MemoryAttributes:
        """From 32 bytes."""
        return cls._make(unpacked(_ATTRIBUTES, argument, cls.__name__))


class MemoryAttributes2(NamedTuple):
    """``struct kvm_memory_attributes2``, 128 bytes: argument of KVM_SET_MEMORY_ATTRIBUTES2, in bytes of the file.

    >>> asked = MemoryAttributes2(0x1000, 0x2000, 8)
    >>> len(asked.pack()), MemoryAttributes2.unpack(asked.pack()) == asked
    (128, True)
    """

    offset: int
    size: int
    attributes: int = 0
    flags: int = 0
    error_offset: int = 0
    """Written where the conversion itself fails, never read."""
    reserved: tuple[int, ...] = (0,) * 11

    def pack(self) -> bytes:
        """The 128 bytes."""
        try:
            return _ATTRIBUTES2.pack(*self[:5], *self.reserved)
        except struct.error:
            if len(self.reserved) != len(type(self)._field_defaults["reserved"]):
                raise UsageError(f"reserved: {len(self.reserved)} words; there are 11") from None
            names = [*self._fields[:5], *["reserved"] * 11]
            raise misfit(_ATTRIBUTES2, names, (*self[:5], *self.reserved)) from None

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> MemoryAttributes2:
        """From 128 bytes."""
        words = unpacked(_ATTRIBUTES2, argument, cls.__name__)
        offset, size, attributes, flags, error_offset = words[:5]
        return cls(offset, size, attributes, flags, error_offset, words[5:])


class GmemConvert(NamedTuple):
    """``struct kvm_gmem_convert``, 64 bytes, of the series of May 2025: a range of the file, in bytes."""

    offset: int
    size: int
    error_offset: int = 0
    """0; written where the conversion fails."""

    def pack(self) -> bytes:
        """The 64 bytes."""
        return packed(_CONVERT, self)

    @classmethod
    def unpack(cls, argument: bytes | bytearray | memoryview) -> GmemConvert:
        """From 64 bytes."""
        return cls._make(unpacked(_CONVERT, argument, cls.__name__))


class MemoryAttributesState:
    """The attributes of a VM's frames, and of its files as far as these have no memory of their own.

    ``made``: what has the VM's, made when it is first needed.
    """

    def __init__(self, vm: KvmModel, made: Callable[[], VmMemoryAttributes] | None = None) -> None:
        self._vm, self._made = vm, made
        self._of_vm: VmMemoryAttributes | None = None

    @property
    def of_vm(self) -> VmMemoryAttributes:
        """The VM's, by frame."""
        if self._of_vm is None:
            from ..gmem.vm_attributes import VmMemoryAttributes

            bits = self._vm.host.vm_attribute_bits
            self._of_vm = VmMemoryAttributes(bits) if self._made is None else self._made()
        return self._of_vm

    def is_private(self, gfn: int) -> bool:
        """Whether the VM's attributes have a frame private. O(log n); at once where none was ever set."""
        return self._of_vm is not None and bool(self._of_vm.get(gfn) & _PRIVATE)

    def set(self, address: int, size: int, attributes: int, flags: int = 0) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES under ``slots_lock``; GuestMemfdError with the kernel's errno."""
        host = self._vm.host
        if not host.has_vm_attributes:
            raise GuestMemfdError(errno.ENOTTY, f"memory attributes: {host.version} has none of the VM: files have")
        with self._vm.lock:
            self.of_vm.set(address, size, attributes, flags)

    def set_memory_attributes(self, argument: bytes) -> int:
        """The ioctl of the VM."""
        try:
            self.set(*MemoryAttributes.unpack(argument))
        except GuestMemfdError as error:
            raise MemslotError(error.errno or errno.EINVAL, str(error).partition(": ")[2]) from None
        return 0

    def file_ioctl(self, fd: int, request: int, argument: bytes | bytearray | int) -> int:
        """An ioctl on file ``fd`` of the VM: its structure as bytes, or the address of it in user memory.

        GuestMemfdError has the errno, and ``error_offset``, which is also written into the structure where that is an
        address or a bytearray: EBADF for a file that is not open, ENOTTY for any other than the VM's kernel has.
        """
        vm = self._vm
        file = vm.files.get(fd)
        if file is None:
            raise GuestMemfdError(errno.EBADF, f"ioctl: file {fd} is not open")
        known = {
            "attributes": (FileIoctl.SET_MEMORY_ATTRIBUTES2,),
            "shareability": (FileIoctl.GMEM_CONVERT_SHARED, FileIoctl.GMEM_CONVERT_PRIVATE),
        }.get(vm.host.file_states, ())
        if not isinstance(file, GuestMemfd) or request not in known:
            raise GuestMemfdError(
                errno.ENOTTY, f"ioctl: file {fd} of {vm.host.version} has none of number {operator.index(request):#x}"
            )
        request = FileIoctl(request)
        given = _given(vm, request, argument)
        try:
            self._convert(file, request, given)
        except GuestMemfdError as error:
            if error.error_offset is not None:
                _write_back(vm, argument, request.error_offset_at, error.error_offset)
            raise
        return 0

    def _convert(self, file: GuestMemfd, request: FileIoctl, given: bytes) -> None:
        content = file.content
        if request is FileIoctl.SET_MEMORY_ATTRIBUTES2:
            asked = MemoryAttributes2.unpack(given)
            if content is not None:
                content.set_memory_attributes2(asked.offset, asked.size, asked.attributes, asked.flags, asked.reserved)
                return
            private_vm = self._vm.host.private_memory
            check_attributes2(asked.attributes, asked.flags, asked.reserved, private_vm=private_vm)
            file.store_state(*check_range(file.size, asked.offset, asked.size), asked.attributes)
            return
        range_, private = GmemConvert.unpack(given), request is FileIoctl.GMEM_CONVERT_PRIVATE
        if range_.error_offset:
            raise GuestMemfdError(errno.EINVAL, f"guest_memfd: error_offset {range_.error_offset:#x} is not 0")
        if content is not None:
            content.convert(range_.offset, range_.size, private=private)
        elif range_.size:
            file.store_state(*check_range(file.size, range_.offset, range_.size), _PRIVATE if private else 0)


def _given(vm: KvmModel, request: FileIoctl, argument: bytes | bytearray | int) -> bytes:
    """The structure; EFAULT for an address that is not mapped, and for another number of bytes."""
    size = request.argument_bytes
    if not isinstance(argument, bytes | bytearray | memoryview):
        try:
            return vm.user.read(operator.index(argument), size)
        except TypeError:
            raise UsageError(f"{request.name}: {argument!r:.40} is no bytes and no address") from None
        except MemslotError as error:
            raise GuestMemfdError(error.errno or errno.EFAULT, str(error).partition(": ")[2]) from None
    if len(argument) != size:
        raise GuestMemfdError(errno.EFAULT, f"{request.name}: {len(argument)} bytes, not {size}")
    return bytes(argument)


def _write_back(vm: KvmModel, argument: bytes | bytearray | int, at: int, error_offset: int) -> None:
    if isinstance(argument, bytearray):
        _WORD.pack_into(argument, at, error_offset)
    elif not isinstance(argument, bytes | memoryview):
        vm.user.write(operator.index(argument) + at, _WORD.pack(error_offset))
