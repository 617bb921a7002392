"""``struct kvm_cpuid2``: what this kernel can give its guests, and what is read from it."""

from __future__ import annotations

import fcntl
import struct

from .registers import X86Ioctl

__all__ = ["physical_bits", "set_cpuid", "supported_cpuid"]

_ENTRIES = 256
_HEADER, _ENTRY = 8, 40
_ADDRESS_SIZES = 0x80000008
_NO_LEAF_BITS = 36


def supported_cpuid(device_fd: int) -> bytearray:
    """KVM_GET_SUPPORTED_CPUID on an open ``/dev/kvm``; OSError if the kernel refuses."""
    cpuid = bytearray(_HEADER + _ENTRY * _ENTRIES)
    struct.pack_into("<I", cpuid, 0, _ENTRIES)
    fcntl.ioctl(device_fd, X86Ioctl.GET_SUPPORTED_CPUID, cpuid)
    return cpuid


def set_cpuid(vcpu_fd: int, cpuid: bytearray) -> None:
    """KVM_SET_CPUID2 on a vCPU; OSError if the kernel refuses."""
    fcntl.ioctl(vcpu_fd, X86Ioctl.SET_CPUID2, cpuid)


def physical_bits(cpuid: bytes | bytearray) -> int:
    """Width of a guest physical address, by leaf 0x80000008; 36 if there is none.

    >>> physical_bits(bytes(8))
    36
    """
    (count,) = struct.unpack_from("<I", cpuid)
    for entry in range(count):
        leaf, eax = struct.unpack_from("<I8xI", cpuid, _HEADER + _ENTRY * entry)  # function, index, flags, eax
        if leaf == _ADDRESS_SIZES:
            return int(eax & 0xFF)
    return _NO_LEAF_BITS
