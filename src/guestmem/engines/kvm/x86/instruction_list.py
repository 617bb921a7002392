"""The instructions of 64-bit user code that ``exit_retry`` answers: an allow-list, by opcode.

On it is what KVM's emulator (Linux 6.18, ``arch/x86/kvm/emulate.c``: ``opcode_table``, ``twobyte_table``) carries out
as the processor does, with one store at most, which KVM hands out whole. Each was run both ways
(``tests/support/instruction_sweep.py``). What is not on it is refused, whatever it is. What the emulator does not know
at all leaves the guest by a failed emulation, not by MMIO, and runs natively after the update: no need to list it.

Off it, since the emulator does them otherwise: far calls, jumps and returns, and loads of segment registers
(``em_call_far()`` pushes twice, of which ``emulator_read_write()`` keeps the last store); segment registers to memory,
pushf and popf (a guest of kvm_pvm sees other selectors and flags than the emulator); enter of 16 bits (pushes eight
bytes); stores of system registers (sldt, str, smsw).

*Again*: loads that the emulator does otherwise, or may deny, and that change nothing but registers (tzcnt and lzcnt,
which it takes for bsf and bsr; popf; movbe): their effect is undone, and the processor runs them after the update.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from ....compiled import const

__all__ = [
    "ADDRESS",
    "AGAIN_SHIFT",
    "AT_DI",
    "AT_FRAME",
    "AT_MODRM",
    "AT_MOFFS",
    "AT_STACK",
    "BOTH_SHIFT",
    "BYTE",
    "ENTER",
    "HAS_MODRM",
    "IMMEDIATE_SHIFT",
    "LIST",
    "OPERAND",
    "PREFIX_SHIFT",
    "SIZE_SHIFT",
    "STACKED",
    "STORE_SHIFT",
    "WHERE_SHIFT",
    "address_of_list",
]

# An entry, a word for each opcode of three maps (one-byte, 0F, 0F 38). Where there is no ModRM byte, bit 0 of 8.
STORE_SHIFT, BOTH_SHIFT, PREFIX_SHIFT, AGAIN_SHIFT = const(8), const(16), const(24), const(28)
"""ModRM extensions whose load may meet a hole (bits 0 to 7); whose store may; that load and store one place. Prefixes
(bit 0 none, 1: 66, 2: F2, 3: F3) with which it is on the list; with which it is run again."""
HAS_MODRM, IMMEDIATE_SHIFT, SIZE_SHIFT, WHERE_SHIFT = const(1 << 32), const(33), const(36), const(44)
"""Immediate: below. Size of a store in bytes, 0: the operand's. Where a store goes: below."""
STACKED = const(31)
"""As a size: what push and pop move."""
NO_IMMEDIATE, BYTE, OPERAND, ENTER, ADDRESS = const(0), const(1), const(2), const(3), const(4)
AT_MODRM, AT_STACK, AT_DI, AT_FRAME, AT_MOFFS = const(0), const(1), const(2), const(3), const(4)

_NONE, _66, _F2, _F3 = 1, 2, 4, 8
_INTEGER = _NONE | _66
_STRING = _NONE | _66 | _F2 | _F3
_ALL = range(8)

_list: dict[int, int] = {}


def _allow(
    opcodes: Iterable[int],
    *,
    loads: Iterable[int] = (),
    stores: Iterable[int] = (),
    both: Iterable[int] = (),
    prefixes: int = _INTEGER,
    again: int = 0,
    modrm: bool = True,
    size: int = 0,
    immediate: int = NO_IMMEDIATE,
    where: int = AT_MODRM,
) -> None:
    """Put opcodes on the list, by extensions of the ModRM byte (0 where there is none)."""
    entry = 0
    for extensions, shift in ((loads, 0), (stores, STORE_SHIFT), (both, BOTH_SHIFT)):
        entry |= sum(1 << each + int(shift) for each in extensions)
    rest = (prefixes, PREFIX_SHIFT), (again, AGAIN_SHIFT), (immediate, IMMEDIATE_SHIFT), (where, WHERE_SHIFT)
    for value, shift in (*rest, (size, SIZE_SHIFT)):
        entry |= int(value) << int(shift)
    for opcode in opcodes:
        _list[opcode] = entry | modrm * int(HAS_MODRM)


_0F, _0F38 = 0x100, 0x200
_ONE = (0,)

# add, or, adc, sbb, and, sub, xor, cmp, test, xchg, mov, and what takes an immediate
for _row in range(0x00, 0x38, 8):
    _allow([_row], loads=_ALL, both=_ALL, size=1)
    _allow([_row + 1], loads=_ALL, both=_ALL)
    _allow([_row + 2, _row + 3], loads=_ALL)
_allow(range(0x38, 0x3C), loads=_ALL)
_allow([0x63, 0x69, 0x6B, 0x84, 0x85, 0x8A, 0x8B], loads=_ALL)  # movsxd, imul, test, mov
_allow([0x80], loads=_ALL, both=range(7), size=1, immediate=BYTE)
_allow([0x81], loads=_ALL, both=range(7), immediate=OPERAND)
_allow([0x83], loads=_ALL, both=range(7), immediate=BYTE)
_allow([0x86], loads=_ALL, both=_ALL, size=1)
_allow([0x87], loads=_ALL, both=_ALL)
_allow([0x88], stores=_ALL, size=1)
_allow([0x89], stores=_ALL)
_allow([0xC6], stores=_ONE, size=1, immediate=BYTE)
_allow([0xC7], stores=_ONE, immediate=OPERAND)
_allow([0xA0, 0xA1], loads=_ONE, modrm=False)
_allow([0xA2], stores=_ONE, modrm=False, size=1, immediate=ADDRESS, where=AT_MOFFS)
_allow([0xA3], stores=_ONE, modrm=False, immediate=ADDRESS, where=AT_MOFFS)
# shifts, not, neg, mul, div, inc, dec
_allow([0xC0], loads=_ALL, both=_ALL, size=1, immediate=BYTE)
_allow([0xC1], loads=_ALL, both=_ALL, immediate=BYTE)
_allow([0xD0, 0xD2], loads=_ALL, both=_ALL, size=1)
_allow([0xD1, 0xD3], loads=_ALL, both=_ALL)
_allow([0xF6], loads=_ALL, both=(2, 3), size=1)
_allow([0xF7], loads=_ALL, both=(2, 3))
_allow([0xFE], loads=(0, 1), both=(0, 1), size=1)
# stack and jumps
_allow(range(0x50, 0x58), stores=_ONE, modrm=False, where=AT_STACK)
_allow(range(0x58, 0x60), loads=_ONE, modrm=False)
_allow([0x68], stores=_ONE, modrm=False, where=AT_STACK, immediate=OPERAND)
_allow([0x6A], stores=_ONE, modrm=False, where=AT_STACK, immediate=BYTE)
_allow([0x8F], loads=_ONE, stores=_ONE, size=int(STACKED))
_allow([0xFF], loads=(0, 1, 2, 4, 6), both=(0, 1), stores=(6,), where=AT_STACK)  # a near call's store: see stores.py
_allow([0xC2, 0xC3], loads=_ONE, modrm=False, prefixes=_NONE | _F2 | _F3)  # rep ret, bnd ret
_allow([0xC8], stores=_ONE, modrm=False, prefixes=_NONE, immediate=ENTER, size=8, where=AT_FRAME)
_allow([0xC9], loads=_ONE, modrm=False, prefixes=_NONE)
_allow([0x9D], again=_INTEGER, loads=_ONE, prefixes=0, modrm=False)  # popf
# strings
_allow([0xA4], loads=_ONE, stores=_ONE, modrm=False, prefixes=_STRING, size=1, where=AT_DI)
_allow([0xA5], loads=_ONE, stores=_ONE, modrm=False, prefixes=_STRING, where=AT_DI)
_allow([0xA6, 0xA7, 0xAC, 0xAD, 0xAE, 0xAF], loads=_ONE, modrm=False, prefixes=_STRING)
_allow([0xAA], stores=_ONE, modrm=False, prefixes=_STRING, size=1, where=AT_DI)
_allow([0xAB], stores=_ONE, modrm=False, prefixes=_STRING, where=AT_DI)
_allow([0x6C], stores=_ONE, modrm=False, prefixes=_STRING, size=1, where=AT_DI)  # ins
_allow([0x6D], stores=_ONE, modrm=False, prefixes=_STRING, where=AT_DI)
_allow([0x6E, 0x6F], loads=_ONE, modrm=False, prefixes=_STRING)  # outs
_allow([0xD7], loads=_ONE, modrm=False)  # xlat
# 0F: cmov, setcc, bit operations, double shifts, imul, cmpxchg, extending moves, xadd, movnti, cmpxchg8b
_allow(range(_0F | 0x40, _0F | 0x50), loads=_ALL)
_allow(range(_0F | 0x90, _0F | 0xA0), stores=_ALL, size=1)
_allow([_0F | 0xA3, _0F | 0xAB, _0F | 0xB3, _0F | 0xBB], loads=_ALL)
_allow([_0F | 0xBA], loads=range(4, 8), both=range(5, 8), immediate=BYTE)
_allow([_0F | 0xA4, _0F | 0xAC], loads=_ALL, both=_ALL, immediate=BYTE)
_allow([_0F | 0xA5, _0F | 0xAD], loads=_ALL, both=_ALL)
_allow([_0F | 0xAF], loads=_ALL)
_allow([_0F | 0xB0, _0F | 0xC0], loads=_ALL, both=_ALL, size=1)
_allow([_0F | 0xB1, _0F | 0xC1], loads=_ALL, both=_ALL)
_allow([_0F | 0xB6, _0F | 0xB7, _0F | 0xBE, _0F | 0xBF], loads=_ALL)
_allow([_0F | 0xBC, _0F | 0xBD], loads=_ALL, again=_F3)
_allow([_0F | 0xC3], stores=_ALL, prefixes=_NONE)
_allow([_0F | 0xC7], loads=(1,), both=(1,), size=8, prefixes=_NONE)
# moves of MMX and SSE registers
_allow([_0F | 0x10, _0F | 0x28, _0F | 0x2B], loads=_ALL)
_allow([_0F | 0x11, _0F | 0x29, _0F | 0x2B], stores=_ALL, size=16)
_allow([_0F | 0x6F], loads=_ALL, prefixes=_NONE | _66 | _F3)
_allow([_0F | 0x7F], stores=_ALL, prefixes=_NONE | _66 | _F3, size=16)
_allow([_0F | 0xE7], stores=_ALL, prefixes=_66, size=16)
# 0F 38: movbe, whose load is run again, since CPUID may deny it to the emulator
_allow([_0F38 | 0xF0], loads=_ALL, prefixes=0, again=_INTEGER)
_allow([_0F38 | 0xF1], stores=_ALL)
# clflush and clflushopt, which the emulator takes for loads; fnstcw, fnstsw
_allow([_0F | 0xAE], loads=(7,))
_allow([0xD9, 0xDD], stores=(7,), prefixes=_NONE, size=2)

LIST = (ctypes.c_uint64 * 0x300)(*(_list.get(opcode, 0) for opcode in range(0x300)))
"""By map << 8 | opcode; 0: not on it."""


def address_of_list() -> int:
    """Host address of ``LIST``, which stays."""
    return ctypes.addressof(LIST)
