"""Numbers of KVM's capabilities, and what of them a kernel has.

Source: ``include/uapi/linux/kvm.h``, Linux 6.18.
"""

from __future__ import annotations

import enum

__all__ = ["Cap"]


class Cap(enum.IntEnum):
    """Argument of KVM_CHECK_EXTENSION; 0 is the answer for what a kernel does not have."""

    USER_MEMORY = 3
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    SYNC_MMU = 16
    MAX_VCPUS = 66
    READONLY_MEM = 81
    VM_TYPES = 235
    DISABLE_QUIRKS2 = 213
    IMMEDIATE_EXIT = 136
    MULTI_ADDRESS_SPACE = 118
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    DIRTY_LOG_RING = 192
    EXIT_ON_EMULATION_FAILURE = 204
    DIRTY_LOG_RING_ACQ_REL = 223
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232
    MEMORY_ATTRIBUTES = 233
    GUEST_MEMFD = 234
    PRE_FAULT_MEMORY = 236
    GUEST_MEMFD_FLAGS = 244
