"""Instructions of 64-bit user code that KVM's emulator carries out otherwise than the processor: none is answered.

A read exit comes before the instruction has ended, with rip at it, so its bytes are looked at. A write exit comes with
rip behind it, wherever that is; of a far call, whose two stores KVM hands out as one, the store itself says where the
call was: it is the return address. What is listed was found by running instructions that access memory both ways
(``tests/engines_kvm/test_every_instruction.py``; not yet all of them); how it looks to the
emulator is by source, Linux 6.18,
``arch/x86/kvm/emulate.c``: ``em_call_far()`` pushes twice, and ``emulator_read_write()`` keeps the last store only;
``em_bsf_c()`` and ``em_bsr_c()`` do not look at the prefix that makes them tzcnt and lzcnt; ``em_enter()`` pushes words
of the stack's size, not of the operand's; ``em_mov_rm_sreg()`` stores eight bytes where REX.W is given, of which the
processor stores two. Flags and selectors that the processor itself gives a guest of kvm_pvm are not those that the
emulator gives it: pushf, popf, and a segment register to memory are not answered either.
"""

from __future__ import annotations

from ...atomics import host_load, host_store, load_relaxed
from ...compiled import U64, Own, Words, compiled, const, u64, wrapping
from ...system import SYS_IOCTL, failed, host_load8, host_load16, host_may_access, host_store8, system_call
from . import layout as at
from .abi import RUN_DATA, RUN_SYNC
from .address_map import MAP_HOST, map_find

__all__ = ["is_far_call", "is_refused", "is_taken_for_another"]

_ONE = const(1)
_GET_REGS, _TRANSLATE = const(0x8090AE81), const(0xC018AE85)
_REGS = RUN_SYNC + const(0x40)
_RSP, _RIP = _REGS + const(6 * 8), _REGS + const(16 * 8)
_TRANSLATION = RUN_SYNC + const(0x100)
_BYTES = RUN_SYNC + const(0x140)
_PAGE = const(0xFFF)
_MOST = const(15)
_FF, _CALL_FAR = const(0xFF), const(3)
_REX, _REX_W = const(0x40), const(0x48)
_GET_SREGS = const(0x8138AE83)
_SREGS = RUN_SYNC + const(0x180)
_SELECTOR, _SEGMENT = const(12), const(24)
_RBP, _RFLAGS = _REGS + const(7 * 8), _REGS + const(17 * 8)
_OTHER_FLAGS = const(0x30100)  # TF, RF, VM: not in what pushf stores
_POPF, _PUSHF, _ENTER, _MOV_SREG = const(0x9D), const(0x9C), const(0xC8), const(0x8C)


@compiled
def host_of(entries: Words, own: Own, linear: U64) -> U64:
    """Host address of the guest's byte at a linear address; 0 if it cannot be read."""
    place = own[at.RUN] + _TRANSLATION
    host_store(place, linear)
    if failed(system_call(SYS_IOCTL, own[at.FD], _TRANSLATE, place)) != 0 or host_load8(place + u64(16)) == 0:
        return u64(0)
    gpa = host_load(place + u64(8))
    entry = map_find(entries, gpa)
    if entry == 0:
        return u64(0)
    host = load_relaxed(entries, entry + MAP_HOST) + (gpa - load_relaxed(entries, entry))
    if not host_may_access(host, False):
        return u64(0)
    return host


@compiled
def fetch(entries: Words, own: Own, linear: U64, count: U64) -> U64:
    """Copy the guest's bytes at a linear address to ``kvm_run``; returns how many could be read."""
    target = own[at.RUN] + _BYTES
    host = u64(0)
    done = u64(0)
    while done < count:
        byte = wrapping(linear + done)
        if done == 0 or byte & _PAGE == 0:
            host = host_of(entries, own, byte)
            if host == 0:
                return done
        host_store8(target + done, host_load8(host))
        host += _ONE
        done += _ONE
    return done


@compiled
def is_taken_for_another(code: U64, count: U64) -> bool:
    """Whether the ``count`` bytes at a host address begin with lzcnt, tzcnt or popf, or end before that is clear.

    The emulator takes the first two for bsr and bsf, and popf changes other flags.
    """
    repeat = False
    place = u64(0)
    while place < count:
        byte = host_load8(code + place)
        if byte == 0xF3:
            repeat = True
        elif byte == 0xF2:
            repeat = False  # the last of the two decides
        elif (
            (byte & u64(0xE7) != 0x26)  # 26, 2e, 36, 3e: segments
            and (byte & u64(0xFC) != 0x64)  # 64, 65: segments; 66, 67: sizes
            and byte != 0xF0
        ):
            break
        place += _ONE
    if place < count and host_load8(code + place) & u64(0xF0) == 0x40:
        place += _ONE
    if place < count and host_load8(code + place) == _POPF:
        return True
    if place + _ONE >= count:
        return count < _MOST or place >= _MOST
    if not repeat or host_load8(code + place) != 0x0F:
        return False
    opcode = host_load8(code + place + _ONE)
    return opcode == 0xBC or opcode == 0xBD


@compiled
def _operand_length(code: U64) -> U64:
    """Bytes of the memory operand whose ModRM byte is at a host address; 0 if it is a register."""
    modrm = host_load8(code)
    mode = modrm >> 6
    if mode == 3:
        return u64(0)
    length = _ONE
    low = modrm & u64(7)
    base = low
    if low == 4:
        length += _ONE
        base = host_load8(code + _ONE) & u64(7)
    if mode == 1:
        length += _ONE
    elif mode == 2 or (mode == 0 and base == 5):
        length += u64(4)
    return length


@compiled
def is_far_call(code: U64, count: U64, size: U64) -> bool:
    """Whether the ``count`` bytes at a host address can end with a far call that pushes words of ``size`` bytes."""
    length = u64(2)
    while length <= count and length <= 8:
        place = code + (count - length)
        modrm = place + _ONE
        if (
            host_load8(place) == _FF
            and (host_load8(modrm) >> 3) & u64(7) == _CALL_FAR
            and _operand_length(modrm) == length - _ONE
        ):
            wide = False
            if length < count:
                before = host_load8(place - _ONE)
                wide = before & _REX_W == _REX_W and before & u64(0xF0) == _REX
            if wide == (size == 8):
                return True
        length += _ONE
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
        place = number - _ONE
    return u64(host_load16(sregs + place * _SEGMENT + _SELECTOR))


@compiled
def stores_selector(code: U64, count: U64, sregs: U64, size: U64, data: U64) -> bool:
    """Whether the bytes before rip are a move of a segment register to memory, and ``data`` is its selector."""
    if size != 2 and size != 8:
        return False
    length = u64(2)
    while length <= count and length <= 8:
        place = code + (count - length)
        number = (host_load8(place + _ONE) >> 3) & u64(7)
        if (
            host_load8(place) == _MOV_SREG
            and number <= 5
            and _operand_length(place + _ONE) == length - _ONE
            and selector_of(sregs, number) == data
        ):
            return True
        length += _ONE
    return False


@compiled
def stores_flags(code: U64, count: U64, rflags: U64, size: U64, data: U64) -> bool:
    """Whether the bytes before rip end with pushf, and ``data`` are the flags: an immediate may end so, too."""
    if count == 0 or host_load8(code + count - _ONE) != _PUSHF or (size != 2 and size != 8):
        return False
    mask = u64(0xFFFF) if size == 2 else ~u64(0)
    return (rflags ^ data) & mask & ~_OTHER_FLAGS == 0


@compiled
def is_short_enter(code: U64, count: U64) -> bool:
    """Whether the bytes before rip are an enter of 16-bit operands, without levels."""
    if count < 5 or host_load8(code + count - u64(4)) != _ENTER or host_load8(code + count - _ONE) != 0:
        return False
    before = host_load8(code + count - u64(5))
    if before & u64(0xF8) == _REX and count >= 6:
        before = host_load8(code + count - u64(6))
    return before == 0x66


@compiled
def fetch_before(entries: Words, own: Own, rip: U64) -> U64:
    """Copy the bytes before rip, at most 15 and of its page at least; returns how many could be read."""
    if fetch(entries, own, wrapping(rip - _MOST), _MOST) == _MOST:
        return _MOST
    count = rip & _PAGE
    if count >= _MOST or fetch(entries, own, rip - count, count) != count:
        return u64(0)
    return count


@compiled
def is_stored_otherwise(entries: Words, own: Own, gpa: U64, size: U64) -> bool:
    """Whether a write exit is of pushf, of a segment register, or of a 16-bit enter, whose ends are at rip."""
    run = own[at.RUN]
    code = run + _BYTES
    count = fetch_before(entries, own, host_load(run + _RIP))
    data = host_load(run + RUN_DATA)
    if size < 8:
        data &= (_ONE << (size << 3)) - _ONE
    if stores_flags(code, count, host_load(run + _RFLAGS), size, data):
        return True
    if size == 8 and is_short_enter(code, count) and (host_load(run + _RBP) ^ gpa) & _PAGE == 0:
        return True
    if data > 0xFFFF or failed(system_call(SYS_IOCTL, own[at.FD], _GET_SREGS, run + _SREGS)) != 0:
        return False
    return stores_selector(code, count, run + _SREGS, size, data)


@compiled
def is_refused(entries: Words, own: Own, gpa: U64, size: U64, writes: bool) -> bool:
    """Whether the first exit of an instruction, at ``gpa``, is of one that cannot be answered rightly."""
    run = own[at.RUN]
    if failed(system_call(SYS_IOCTL, own[at.FD], _GET_REGS, run + _REGS)) != 0:
        return False  # the vCPU is gone, and KVM_RUN says so
    code = run + _BYTES
    if not writes:
        return is_taken_for_another(code, fetch(entries, own, host_load(run + _RIP), _MOST))
    if is_stored_otherwise(entries, own, gpa, size):
        return True
    if (host_load(run + _RSP) ^ gpa) & _PAGE != 0 or (size != 8 and size != 4 and size != 2):
        return False
    back = host_load(run + RUN_DATA)
    if size != 8:
        back &= (_ONE << (size << 3)) - _ONE
    if back < _MOST:
        return False
    return fetch(entries, own, back - _MOST, _MOST) == _MOST and is_far_call(code, _MOST, size)
