"""Which instruction a write exit comes from: KVM has put rip behind it, and x86 code cannot be read backwards.

So each stretch of bytes that ends at rip is tried: whether it is an instruction of ``instruction_list`` that stores so
many bytes at that place, with the registers as they are now. A near call's target is rip, so its store is looked at: it
is the return address. A string instruction that repeats has rip at itself until its last round.

What the emulator stores otherwise than the processor is told by what it stores: flags, selectors, a 16-bit enter, and
the second of a far call's stores. Source of how: ``em_*`` in ``arch/x86/kvm/emulate.c``, Linux 6.18.
"""

from __future__ import annotations

from ....atomics import host_load
from ....compiled import ONE, U64, compiled, const, u64, wrapping
from ....system import host_load8, host_load16
from . import instruction_list as of
from .decoding import (
    INDEX,
    REX_W,
    after_opcode,
    choice_of,
    decode,
    ends,
    extension_of,
    operand_address,
    operand_size,
    register_of,
    segment_base,
)
from .instruction_bytes import BEHIND, REGS, SREGS

__all__ = ["LOADS_FIRST", "STORES", "is_called", "is_far_call", "is_repeated", "is_stored_otherwise", "stored_before"]

_PAGE, _END = const(0xFFF), const(0x1000)
_HALF = const(8)
STORES, LOADS_FIRST = const(1), const(2)
"""What ``stored_by`` finds: a store, or one that has loaded the same place before."""
_RSP, _RBP, _RDI = const(4), const(5), const(7)
_RIP, _RFLAGS = REGS + const(16 * 8), REGS + const(17 * 8)
_DIRECTION = const(1 << 10)
_OTHER_FLAGS = const(0x30100)  # TF, RF, VM: not in what pushf stores
_SELECTOR, _SEGMENT = const(12), const(24)
_MOVQ, _MOVNTQ = const(0x17F), const(0x1E7)
_PUSHF, _ENTER, _MOV_SREG, _PUSH_FS, _PUSH_GS = const(0x9C), const(0xC8), const(0x8C), const(0x1A0), const(0x1A8)
_CALL, _GROUP, _NEAR, _FAR = const(0xE8), const(0xFF), const(2), const(3)


@compiled
def is_part_of(address: U64, whole: U64, gpa: U64, size: U64) -> bool:
    """Whether a store of ``whole`` bytes at ``address`` leaves the guest first with ``size`` bytes at ``gpa``.

    KVM hands out at most 8 bytes, up to the end of the page; a part in the page before may be in memory already.
    """
    offset = address & _PAGE
    left = whole
    if offset + whole > _END:
        left = offset + whole - _END
        if gpa & _PAGE == 0 and size == min(left, _HALF):
            return True
        left = _END - offset
    return gpa & _PAGE == offset and size == min(left, _HALF)


@compiled
def string_place(run: U64, whole: U64) -> U64:
    """Where a string instruction has stored, which has moved rdi on."""
    now = register_of(run + REGS, _RDI)
    if host_load(run + _RFLAGS) & _DIRECTION != 0:
        return wrapping(now + whole)
    return wrapping(now - whole)


@compiled
def place_of(run: U64, found: U64, code: U64, where: U64, whole: U64) -> U64:
    """Where an instruction stores, by registers after it: the low 12 bits are right."""
    if where == of.AT_MODRM:
        return operand_address(found, code, run + REGS, run + SREGS, host_load(run + _RIP))
    if where == of.AT_DI:
        return string_place(run, whole)
    if where == of.AT_MOFFS:
        place = code + after_opcode(found)
        low = host_load8(place) | (host_load8(place + ONE) << 8)
        return wrapping(low + segment_base(found, run + SREGS))
    return register_of(run + REGS, _RSP if where == of.AT_STACK else _RBP)


@compiled
def stored_by(listed: U64, run: U64, code: U64, length: U64, gpa: U64, size: U64) -> U64:
    """STORES or LOADS_FIRST if exactly the ``length`` bytes at a host address can be what has stored; else 0."""
    found = decode(code, length)
    entry = u64(0)
    if found != 0:
        entry = host_load(listed + ((found & INDEX) << 3))
    if (entry >> of.PREFIX_SHIFT) & choice_of(found) == 0:
        return u64(0)
    if entry & of.HAS_MODRM != 0 and after_opcode(found) == length:
        return u64(0)
    extension = extension_of(found, entry, code)
    both = (entry >> of.BOTH_SHIFT) & extension != 0
    if (not both and (entry >> of.STORE_SHIFT) & extension == 0) or ends(found, entry, code) != length:
        return u64(0)
    where = of.AT_MODRM if both else (entry >> of.WHERE_SHIFT) & u64(7)
    if where == of.AT_MODRM and host_load8(code + after_opcode(found)) >= 0xC0:
        return u64(0)
    whole = (entry >> of.SIZE_SHIFT) & u64(0x1F)
    if whole == 16 and choice_of(found) == 1 and (found & INDEX == _MOVQ or found & INDEX == _MOVNTQ):
        whole = _HALF
    if whole == 0 or whole == of.STACKED:
        whole = operand_size(found, whole != 0 or where == of.AT_STACK)
    if not is_part_of(place_of(run, found, code, where, whole), whole, gpa, size):
        return u64(0)
    return LOADS_FIRST if both else STORES


@compiled
def stored_before(listed: U64, run: U64, count: U64, gpa: U64, size: U64) -> U64:
    """What ends the ``count`` bytes before rip and can have stored: STORES, LOADS_FIRST or 0.

    Of several the longest: movups is 0F and then, to the eye, adc, and few instructions end with a 0F.
    """
    result = u64(0)
    length = ONE
    while length <= count:
        found = stored_by(listed, run, run + BEHIND - length, length, gpa, size)
        if found != 0:
            result = found
        length += ONE
    return result


@compiled
def is_repeated(listed: U64, run: U64, count: U64, gpa: U64, size: U64) -> bool:
    """Whether the ``count`` bytes at rip are a string instruction that repeats, and has stored."""
    found = decode(run + BEHIND, count)
    if found == 0 or choice_of(found) < 4:
        return False
    entry = host_load(listed + ((found & INDEX) << 3))
    if (entry >> of.WHERE_SHIFT) & u64(7) != of.AT_DI:
        return False
    return stored_by(listed, run, run + BEHIND, after_opcode(found), gpa, size) == STORES


@compiled
def is_called(code: U64, count: U64, back: U64, rip: U64) -> bool:
    """Whether the ``count`` bytes before ``back``, at a host address, can end with a near call of ``rip``.

    Not with prefix 66, which AMD's processors heed, unless REX.W follows.
    """
    length = u64(2)
    while length <= count and length <= 9:
        found = decode(code + (count - length), length)
        if found != 0 and (operand_size(found, True) == 8):
            place = code + (count - length) + after_opcode(found)
            if found & INDEX == _CALL and after_opcode(found) + u64(4) == length:
                low = host_load8(place) | (host_load8(place + ONE) << 8)
                if (back + low - rip) & u64(0xFFFF) == 0:
                    return True
            if found & INDEX == _GROUP and after_opcode(found) < length:
                ended = ends(found, of.HAS_MODRM, code + (count - length)) == length
                if ended and (host_load8(place) >> 3) & u64(7) == _NEAR:
                    return True
        length += ONE
    return False


@compiled
def is_far_call(code: U64, count: U64, size: U64) -> bool:
    """Whether the ``count`` bytes at a host address can end with a far call that pushes words of ``size`` bytes."""
    length = u64(2)
    while length <= count:
        place = code + (count - length)
        found = decode(place, length)
        if found & INDEX == _GROUP and found != 0 and after_opcode(found) < length:
            far = (host_load8(place + after_opcode(found)) >> 3) & u64(7) == _FAR
            if far and ends(found, of.HAS_MODRM, place) == length and operand_size(found, False) == size:
                return True
        length += ONE
    return False


@compiled
def selector_of(sregs: U64, number: U64) -> U64:
    """Selector of the segment register that a ModRM byte names (es, cs, ss, ds, fs, gs) in a ``struct kvm_sregs``."""
    place = number  # 4, 5 are 3, 4 there
    if number == 0:
        place = u64(2)
    elif number == 1:
        place = u64(0)
    elif number == 2:
        place = u64(5)
    elif number == 3:
        place = u64(1)
    else:
        place = number - ONE
    return u64(host_load16(sregs + place * _SEGMENT + _SELECTOR))


@compiled
def stores_selector(run: U64, code: U64, length: U64, gpa: U64, data: U64) -> bool:
    """Whether exactly these bytes are a store of a segment register at ``gpa``, and ``data`` is its selector."""
    found = decode(code, length)
    index = found & INDEX
    if found == 0:
        return False
    number = u64(0)
    if index == _PUSH_FS:
        number = u64(4)
    elif index == _PUSH_GS:
        number = u64(5)
    if number != 0:
        return (
            after_opcode(found) == length
            and selector_of(run + SREGS, number) == data
            and (register_of(run + REGS, _RSP) ^ gpa) & _PAGE == 0
        )
    if index != _MOV_SREG or after_opcode(found) == length or ends(found, of.HAS_MODRM, code) != length:
        return False
    number = (host_load8(code + after_opcode(found)) >> 3) & u64(7)
    if number > 5 or selector_of(run + SREGS, number) != data:
        return False
    return (place_of(run, found, code, of.AT_MODRM, u64(2)) ^ gpa) & _PAGE == 0


@compiled
def stores_flags(run: U64, code: U64, length: U64, size: U64, data: U64) -> bool:
    """Whether exactly the ``length`` bytes are pushf, and ``data`` are the flags: an immediate may end so, too."""
    found = decode(code, length)
    if found == 0 or found & INDEX != _PUSHF or after_opcode(found) != length:
        return False
    mask = u64(0xFFFF) if size == 2 else ~u64(0)
    return (host_load(run + _RFLAGS) ^ data) & mask & ~_OTHER_FLAGS == 0


@compiled
def is_short_enter(run: U64, code: U64, length: U64, gpa: U64) -> bool:
    """Whether exactly the ``length`` bytes are an enter of 16-bit operands, without levels, and rbp its frame."""
    found = decode(code, length)
    if found == 0 or found & INDEX != _ENTER or after_opcode(found) + u64(3) != length:
        return False
    return choice_of(found) == 2 and found & REX_W == 0 and (register_of(run + REGS, _RBP) ^ gpa) & _PAGE == 0


@compiled
def is_stored_otherwise(run: U64, count: U64, gpa: U64, size: U64, data: U64) -> bool:
    """Whether the ``count`` bytes before rip can end with pushf, a segment register's store, or a 16-bit enter."""
    length = ONE
    while length <= count:
        code = run + BEHIND - length
        if (
            stores_selector(run, code, length, gpa, data)
            or stores_flags(run, code, length, size, data)
            or is_short_enter(run, code, length, gpa)
        ):
            return True
        length += ONE
    return False
