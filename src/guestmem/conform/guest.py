"""The guest: 64-bit user-mode code that stores to page after page, or loads from them; its tables, its state.

It ends with a store where there never is memory: an exit that every backend has (a software backend refuses ``out``).
"""

from __future__ import annotations

import struct

from ..engines.kvm.x86 import identity_tables
from .calls import DONE_GPA, HOME_GPA

__all__ = ["CODE", "CODE_GPA", "HOME_BYTES", "MAPPED_BYTES", "READ_CODE_GPA", "RFLAGS", "TABLES_GPA", "home_memory"]

MAPPED_BYTES = 64 << 20
TABLES_GPA = HOME_GPA + 0x1000
CODE_GPA = HOME_GPA
RFLAGS = 0x2
READ_CODE_GPA = CODE_GPA + 0x40
# again: mov [rbx], rax; add rbx, 4096; dec rcx; jnz again; mov rbx, done; mov [rbx], rax
_WRITES = (
    bytes.fromhex("488903 4881c300100000 48ffc9 75f1 48bb") + struct.pack("<Q", DONE_GPA) + bytes.fromhex("488903")
)
_READS = bytes.fromhex("488b03") + _WRITES[3:]  # again: mov rax, [rbx]; and so on
CODE = _WRITES.ljust(READ_CODE_GPA - CODE_GPA, b"\xf4") + _READS
HOME_BYTES = 0x1000 + (3 + (MAPPED_BYTES >> 21)) * 0x1000


def home_memory() -> bytes:
    """What the guest's home slot holds: a page of code, then the page tables."""
    return CODE.ljust(0x1000, b"\xf4") + identity_tables(TABLES_GPA, MAPPED_BYTES)
