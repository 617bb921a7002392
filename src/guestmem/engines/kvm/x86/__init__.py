"""What is x86 in the kernel engine: registers, CPUID, guests, instructions, tables, and what exit_retry may not meet.

The seam to another architecture, which would be a second folder with the same names: what stands beside this one takes
from it only those below, and what compiled code or a guest is made of (``instructions``, ``instruction_bytes``,
``load_guest``).
"""

from __future__ import annotations

from .apic import controller_zones, has_local_apic
from .cpuid import physical_bits, set_cpuid, supported_cpuid
from .guests import identity_tables, real_mode, user_mode
from .instruction_list import address_of_list
from .registers import REG_NAMES, REGS, SREGS_BYTES, X86Ioctl
from .safety import reasons_of_a_vcpu
from .tsc import share_tsc
from .vcpu_registers import Registers, instruction_met

__all__ = [
    "REGS",
    "REG_NAMES",
    "SREGS_BYTES",
    "Registers",
    "X86Ioctl",
    "address_of_list",
    "controller_zones",
    "has_local_apic",
    "identity_tables",
    "instruction_met",
    "physical_bits",
    "real_mode",
    "reasons_of_a_vcpu",
    "set_cpuid",
    "share_tsc",
    "supported_cpuid",
    "user_mode",
]
