"""One time-stamp counter for all vCPUs of a VM, so that what one stamps can be held against what another stamps.

KVM gives each vCPU the offset of its TSC from the host's (KVM_VCPU_TSC_OFFSET, Linux 5.16 on,
``kvm_arch_tsc_set_attr()``). The host's own counters are the same on all cores where Linux keeps ``tsc`` among its
clock sources: it takes it out when they are found to differ (``mark_tsc_unstable()``).
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Sequence
from pathlib import Path

from ..abi import iow

__all__ = ["share_tsc"]

_ATTRIBUTE = struct.Struct("<IIQQ")
"""kvm_device_attr: flags, group, attr, addr."""
_SET, _GET = iow(0xE1, _ATTRIBUTE.size), iow(0xE2, _ATTRIBUTE.size)
_TSC_CONTROL, _TSC_OFFSET = 0, 0
_SOURCES = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")


def share_tsc(vcpus: Sequence[int]) -> bool:
    """Give the vCPUs with these files the TSC of the first; False if this kernel or machine cannot. O(vCPUs)."""
    try:
        if "tsc" not in _SOURCES.read_text().split():
            return False
        offset = ctypes.c_uint64()
        attribute = _ATTRIBUTE.pack(0, _TSC_CONTROL, _TSC_OFFSET, ctypes.addressof(offset))
        fcntl.ioctl(vcpus[0], _GET, attribute)
        for vcpu in vcpus:
            fcntl.ioctl(vcpu, _SET, attribute)
    except OSError:
        return False
    return True
