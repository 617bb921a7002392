"""What is x86 in the kernel engine: registers, CPUID, guests and their tables, the load guest's machine code.

The seam to another architecture: what stands beside this folder takes from it only the names below, and modules of it
whose guests it runs (``load_guest``).
"""

from __future__ import annotations

from .cpuid import physical_bits, supported_cpuid
from .guests import identity_tables, real_mode, user_mode
from .registers import REG_NAMES, REGS, SREGS_BYTES, X86Ioctl
from .tsc import share_tsc

__all__ = [
    "REGS",
    "REG_NAMES",
    "SREGS_BYTES",
    "X86Ioctl",
    "identity_tables",
    "physical_bits",
    "real_mode",
    "share_tsc",
    "supported_cpuid",
    "user_mode",
]
