"""Prefixes, opcode, ModRM byte and operand of one instruction of 64-bit code; compiled, over bytes at a host address.

Enough to look it up in ``instruction_list`` and to say where it ends and which place it names. Source: Intel SDM
volume 2, 2.1 and 2.2.
"""

from __future__ import annotations

from ....atomics import host_load
from ....compiled import ONE, U64, compiled, const, u64, wrapping
from ....system import host_load8
from . import instruction_list as of

__all__ = [
    "DECODED",
    "INDEX",
    "REX_W",
    "after_opcode",
    "choice_of",
    "decode",
    "ends",
    "extension_of",
    "operand_address",
    "operand_size",
    "register_of",
    "segment_base",
]

INDEX = const(0x3FF)
_OPERAND_SIZE, _F2, _F3, _ADDRESS_SIZE = const(1 << 10), const(1 << 11), const(1 << 12), const(1 << 13)
_SEGMENT_SHIFT, _REX_SHIFT, _PLACE_SHIFT = const(14), const(16), const(20)
_REX_B, _REX_X, REX_W = const(1 << 16), const(1 << 17), const(1 << 19)
DECODED = const(1 << 31)
_SEGMENT = const(3 << 14)
_REPEATS = const((1 << 11) | (1 << 12))
_NIBBLE = const(0xF)
_ORDER = const(0x54761320)
"""Places in ``struct kvm_regs`` of rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi: a nibble each."""


@compiled
def decode(code: U64, count: U64) -> U64:
    """What the ``count`` bytes at a host address begin with, packed; 0 if they end too early, or have a VEX prefix.

    Bits: 0-9 map << 8 | opcode; 10 prefix 66; 11 F2; 12 F3 (the last of the two); 13 67; 14-15 FS or GS; 16-19 REX;
    20-24 where the opcode ends; 31 set.
    """
    found = DECODED
    rex = u64(0)
    place = u64(0)
    byte = u64(0)
    prefix = True
    while prefix:
        if place == count:
            return u64(0)
        byte = host_load8(code + place)
        place += ONE
        last = rex
        rex = u64(0)  # it counts right before the opcode only
        if byte == 0x66:
            found |= _OPERAND_SIZE
        elif byte == 0x67:
            found |= _ADDRESS_SIZE
        elif byte == 0xF2:
            found = (found & ~_REPEATS) | _F2
        elif byte == 0xF3:
            found = (found & ~_REPEATS) | _F3
        elif byte == 0x64 or byte == 0x65:
            found = (found & ~_SEGMENT) | ((byte - u64(0x63)) << _SEGMENT_SHIFT)
        elif byte & u64(0xF0) == 0x40:
            rex = byte & _NIBBLE
        elif byte & u64(0xE7) != 0x26 and byte != 0xF0:
            rex = last
            prefix = False
    opcode = byte
    if byte == 0x0F:
        if place == count:
            return u64(0)
        opcode = u64(0x100) | host_load8(code + place)
        place += ONE
        if opcode == 0x138:
            if place == count:
                return u64(0)
            opcode = u64(0x200) | host_load8(code + place)
            place += ONE
    elif byte == 0xC4 or byte == 0xC5 or byte == 0x62:
        return u64(0)
    return found | opcode | (rex << _REX_SHIFT) | (place << _PLACE_SHIFT)


@compiled
def after_opcode(found: U64) -> U64:
    """Bytes before what follows the opcode."""
    return (found >> 20) & u64(0x1F)


@compiled
def choice_of(found: U64) -> U64:
    """Which prefix chooses among instructions of one opcode, as a bit: 0 none, 1: 66, 2: F2, 3: F3."""
    if found & _F3 != 0:
        return u64(8)
    if found & _F2 != 0:
        return u64(4)
    if found & _OPERAND_SIZE != 0:
        return u64(2)
    return ONE


@compiled
def extension_of(found: U64, entry: U64, code: U64) -> U64:
    """The ModRM byte's middle field as a bit; bit 0 where the instruction has none."""
    if entry & of.HAS_MODRM == 0:
        return ONE
    return ONE << ((host_load8(code + after_opcode(found)) >> 3) & u64(7))


@compiled
def operand_size(found: U64, stack: bool) -> U64:
    """Bytes of an integer operand; of ``stack``: of what a push writes."""
    if found & REX_W != 0:
        return u64(8)
    if found & _OPERAND_SIZE != 0:
        return u64(2)
    return u64(8) if stack else u64(4)


@compiled
def modrm_length(code: U64) -> U64:
    """Bytes of a ModRM byte at a host address, with SIB and displacement."""
    modrm = host_load8(code)
    mode = modrm >> 6
    if mode == 3:
        return ONE
    length = ONE
    base = modrm & u64(7)
    if base == 4:
        length += ONE
        base = host_load8(code + ONE) & u64(7)
    if mode == 1:
        length += ONE
    elif mode == 2 or (mode == 0 and base == 5):
        length += u64(4)
    return length


@compiled
def ends(found: U64, entry: U64, code: U64) -> U64:
    """Length of the whole instruction, whose ``entry`` says what follows its opcode."""
    end = after_opcode(found)
    if entry & of.HAS_MODRM != 0:
        end += modrm_length(code + end)
    immediate = (entry >> of.IMMEDIATE_SHIFT) & u64(7)
    if immediate == of.BYTE:
        end += ONE
    elif immediate == of.OPERAND:
        end += u64(2) if operand_size(found, False) == 2 else u64(4)
    elif immediate == of.ENTER:
        end += u64(3)
    elif immediate == of.ADDRESS:
        end += u64(4) if found & _ADDRESS_SIZE != 0 else u64(8)
    return end


@compiled
def register_of(regs: U64, number: U64) -> U64:
    """The general register that an instruction calls ``number``, in a ``struct kvm_regs``."""
    place = number
    if number < 8:
        place = (_ORDER >> (number << 2)) & _NIBBLE
    return host_load(regs + (place << 3))


@compiled
def displacement(code: U64, mode: U64) -> U64:
    """The low 16 bits of a displacement, modulo 2**64."""
    low = host_load8(code)
    if mode == 1:
        return wrapping((low ^ u64(0x80)) - u64(0x80))
    return low | (host_load8(code + ONE) << 8)


@compiled
def segment_base(found: U64, sregs: U64) -> U64:
    """Base of FS or GS if a prefix names it; of the others it is 0."""
    segment = (found >> 14) & u64(3)
    if segment == 0:
        return segment
    return host_load(sregs + (segment + u64(2)) * u64(24))  # FS is the third after CS


@compiled
def operand_address(found: U64, code: U64, regs: U64, sregs: U64, rip: U64) -> U64:
    """Address of the operand of the ModRM byte: its low 12 bits are right. ``rip``: behind the instruction.

    ``sregs``: a ``struct kvm_sregs``, looked at for FS and GS. With a register operand: of no meaning.
    """
    place = code + after_opcode(found)
    modrm = host_load8(place)
    mode = modrm >> 6
    base = modrm & u64(7)
    place += ONE
    address = u64(0)
    if base == 4:
        sib = host_load8(place)
        place += ONE
        base = sib & u64(7)
        index = (sib >> 3) & u64(7)
        if found & _REX_X != 0:
            index |= u64(8)
        if index != 4:
            address = wrapping(register_of(regs, index) << (sib >> 6))
        if mode == 0 and base == 5:
            address = wrapping(address + displacement(place, u64(2)))
        else:
            address = wrapping(address + register_of(regs, base | ((found & _REX_B) >> 13)))
    elif mode == 0 and base == 5:
        address = wrapping(rip + displacement(place, u64(2)))
    else:
        address = register_of(regs, base | ((found & _REX_B) >> 13))
    if mode == 1 or mode == 2:
        address = wrapping(address + displacement(place, mode))
    return wrapping(address + segment_base(found, sregs))
