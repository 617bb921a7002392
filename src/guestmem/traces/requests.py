"""KVM's ioctl requests that matter to a trace, by number and by name.

A request is ``_IOC(dir, 0xae, nr, size)`` (Linux ``include/uapi/linux/kvm.h``). Direction bits differ between
architectures: ``_IO`` has none on x86 and arm64 and 0x20000000 on powerpc, mips and sparc; so only type, number and
size are looked at.
"""

from __future__ import annotations

import functools

__all__ = ["NAMES", "integer", "request_name"]

KVMIO = 0xAE
NAMES = {
    0x01: "KVM_CREATE_VM",
    0x41: "KVM_CREATE_VCPU",
    0x46: "KVM_SET_USER_MEMORY_REGION",
    0x49: "KVM_SET_USER_MEMORY_REGION2",
    0x60: "KVM_CREATE_IRQCHIP",
    0x80: "KVM_RUN",
    0xA3: "KVM_ENABLE_CAP",
    0xE0: "KVM_CREATE_DEVICE",
}
"""Name of a request by its number in KVM's type."""
SIZES = {0x46: 32, 0x49: 160}


@functools.lru_cache(maxsize=1024)
def request_name(request: int) -> str:
    """The name of an ioctl request, or "" if it is none of those above. O(1).

    >>> request_name(0x4020AE46), request_name(0x8020AE46), request_name(0x2000AE80), request_name(0x5401)
    ('KVM_SET_USER_MEMORY_REGION', 'KVM_SET_USER_MEMORY_REGION', 'KVM_RUN', '')
    """
    if (request >> 8) & 0xFF != KVMIO or request >> 32:
        return ""
    number = request & 0xFF
    if number in SIZES and (request >> 16) & 0x1FFF != SIZES[number]:
        return ""
    return NAMES.get(number, "")


def integer(text: str) -> int:
    """A number as tracers print it: hexadecimal after 0x, else decimal, also after zeros. Raises ValueError."""
    return int(text, 16) if "x" in text else int(text)
