"""Unicorn's own x86 MMU over our tables: real instructions, at CPL 3, whose addresses go through CR3.

The pool and the memory are mapped where they really are, so that descriptors mean the same to both. A nested walk
counts as a user access, hence CPL 3. Each access runs one instruction; a page fault ends it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import unicorn as uc
from unicorn import unicorn_const as const
from unicorn import x86_const as x86

__all__ = ["CODE", "CODE_SLOT", "PA_BITS", "Guest"]

PA_BITS = 40
"""Larger physical addresses are reserved bits to Unicorn."""
CODE_SLOT = 255
"""Root entry that the guest's own code page takes."""
CODE = CODE_SLOT << 39
_LOAD, _STORE, _SYSRET, _NOP = b"\x48\x8b\x03", b"\x48\x89\x0b", b"\x48\x0f\x07", b"\x90"
_LOAD_AT, _STORE_AT, _SYSRET_AT = 0, 16, 32
_PAGE_FAULT = 14
_EFER, _STAR = 0xC0000080, 0xC0000081
_SCE, _NXE = 1, 1 << 11
_PE, _WP, _PG, _PAE = 1, 1 << 16, 1 << 31, 1 << 5


def _canonical(address: int) -> int:
    return address | 0xFFFF << 48 if address >> 47 & 1 else address


class Guest:
    """``regions``: (address, size) of all memory that tables and leaves use. ``code``: a page for instructions.

    The table of ``root`` must map CODE to ``code``, executable, when the guest starts and whenever it runs.
    """

    def __init__(self, regions: list[tuple[int, int]], code: int, root: int) -> None:
        self.machine = uc.Uc(const.UC_ARCH_X86, const.UC_MODE_64)
        for address, size in regions:
            self.machine.mem_map_ptr(address, size, const.UC_PROT_ALL, ctypes.c_void_p(address))
        for at, text in ((_LOAD_AT, _LOAD), (_STORE_AT, _STORE), (_SYSRET_AT, _SYSRET)):
            ctypes.memmove(code + at, text, len(text))
        set_ = self.machine.reg_write
        set_(x86.UC_X86_REG_MSR, (_EFER, self.machine.reg_read(x86.UC_X86_REG_MSR, _EFER) | _SCE | _NXE))
        set_(x86.UC_X86_REG_MSR, (_STAR, 0x10 << 48 | 0x8 << 32))
        set_(x86.UC_X86_REG_CR4, _PAE)
        set_(x86.UC_X86_REG_CR3, root)
        set_(x86.UC_X86_REG_CR0, _PG | _WP | _PE)
        self._fault = False
        self.machine.hook_add(const.UC_HOOK_INTR, self._interrupted)
        set_(x86.UC_X86_REG_RCX, CODE + _STORE_AT)  # sysret goes here, to CPL 3
        set_(x86.UC_X86_REG_R11, 2)
        set_(x86.UC_X86_REG_RBX, CODE + 0x800)
        self.machine.emu_start(CODE + _SYSRET_AT, CODE + _STORE_AT + len(_STORE))
        assert self.machine.reg_read(x86.UC_X86_REG_CS) & 3 == 3
        self._fresh = self.machine.context_save()
        self.accesses = self.faults = 0

    def _interrupted(self, machine: Any, number: int, _: object) -> None:
        if number != _PAGE_FAULT:
            raise AssertionError(f"exception {number}")
        self._fault = True
        machine.emu_stop()

    def _run(self, root: int, start: int, size: int, rbx: int = 0, rcx: int = 0) -> bool:
        """One instruction, with an empty TLB; False if it faulted."""
        self.machine.context_restore(self._fresh)  # also forgets the last fault: a second one would be a double fault
        self.machine.reg_write(x86.UC_X86_REG_CR3, root)
        self.machine.reg_write(x86.UC_X86_REG_RBX, rbx)
        self.machine.reg_write(x86.UC_X86_REG_RCX, rcx)
        self._fault = False
        self.machine.emu_start(start, start + size)
        self.accesses += 1
        self.faults += self._fault
        done = int(self.machine.reg_read(x86.UC_X86_REG_RIP)) == start + size
        assert done != self._fault
        return done

    def read(self, root: int, gpa: int) -> int | None:
        """The 8 bytes at ``gpa``; None if it faulted."""
        if not self._run(root, CODE + _LOAD_AT, len(_LOAD), rbx=_canonical(gpa)):
            return None
        return int(self.machine.reg_read(x86.UC_X86_REG_RAX))

    def write(self, root: int, gpa: int, value: int) -> bool:
        """Write 8 bytes at ``gpa``; False if it faulted."""
        return self._run(root, CODE + _STORE_AT, len(_STORE), rbx=_canonical(gpa), rcx=value)

    def fetch(self, root: int, gpa: int) -> bool:
        """Run the NOP that lies at ``gpa``; False if fetching it faulted."""
        return self._run(root, _canonical(gpa), len(_NOP))
