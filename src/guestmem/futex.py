"""Numbers of the futex system call (``include/uapi/linux/futex.h``)."""

from __future__ import annotations

import platform

__all__ = ["FUTEX_WAIT_PRIVATE", "FUTEX_WAKE_PRIVATE", "SYS_FUTEX"]

SYS_FUTEX = 202 if platform.machine() == "x86_64" else 98
"""Its number on x86-64; on arm64, riscv64 and loongarch64 it is that of the generic table."""
FUTEX_WAIT_PRIVATE = 0 | 128
FUTEX_WAKE_PRIVATE = 1 | 128
