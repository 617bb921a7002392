"""The interrupt controllers in the kernel: whether a VM has them, and where they take accesses.

Source: Documentation/virt/kvm/api.rst (KVM_GET_IRQCHIP, KVM_GET_LAPIC); ``arch/x86/kvm/ioapic.h``.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from collections.abc import Iterator

from ....errors import MemslotError
from ..zones import Zone

__all__ = ["controller_zones", "has_local_apic"]

_GET_IRQCHIP, _GET_LAPIC = 0xC208AE62, 0x8400AE8E
_IOAPIC = 2
_IOAPIC_BASE, _IOAPIC_BYTES = 0xFEC00000, 0x100


def _has(fd: int, request: int, argument: bytearray) -> bool:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENXIO, errno.ENOTTY):
            return False
        raise MemslotError(error.errno or 0, f"ioctl {request:#x}") from None
    return True


def controller_zones(vm_fd: int) -> Iterator[Zone]:
    """Where the kernel's interrupt controllers of the VM take accesses: its IOAPIC, after KVM_CREATE_IRQCHIP."""
    if _has(vm_fd, _GET_IRQCHIP, bytearray(struct.pack("<II512x", _IOAPIC, 0))):
        yield Zone(_IOAPIC_BASE, _IOAPIC_BASE + _IOAPIC_BYTES, "the IOAPIC in the kernel")


def has_local_apic(vcpu_fd: int) -> bool:
    """Whether the kernel has the vCPU's local APIC."""
    return _has(vcpu_fd, _GET_LAPIC, bytearray(1024))
