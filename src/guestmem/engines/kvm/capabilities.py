"""Numbers of KVM's capabilities beside those that concern memory (``abi.structures.MemoryCap``).

Source: ``include/uapi/linux/kvm.h``, Linux 6.18.
"""

from __future__ import annotations

import enum

__all__ = ["Cap"]


class Cap(enum.IntEnum):
    """Argument of KVM_CHECK_EXTENSION; 0 is the answer for what a kernel does not have."""

    NR_VCPUS = 9
    MAX_VCPUS = 66
    VM_TYPES = 235
    DISABLE_QUIRKS2 = 213
    IMMEDIATE_EXIT = 136
    EXIT_ON_EMULATION_FAILURE = 204
