"""What an exit's instruction is, is told from its bytes as a decoder tells it; what is not on the list is refused.

Forwards at rip for loads; backwards from rip for stores, by the place and the size of what was stored. The oracle for
lengths, kinds and addresses is iced-x86.
"""

from __future__ import annotations

import ctypes
import random
import struct
from typing import Any

import pytest

from guestmem.engines.kvm.x86.decoding import INDEX, decode, ends
from guestmem.engines.kvm.x86.instruction_bytes import BEHIND, REGS, SREGS
from guestmem.engines.kvm.x86.instruction_list import LIST, address_of_list
from guestmem.engines.kvm.x86.instructions import AGAIN, ANSWERED, REFUSED, verdict_of_load
from guestmem.engines.kvm.x86.registers import REG_NAMES
from guestmem.engines.kvm.x86.stores import (
    LOADS_FIRST,
    STORES,
    is_called,
    is_far_call,
    is_stored_otherwise,
    stored_before,
)
from kvm_every_instruction import every_instruction, every_vector_instruction, stores

pytestmark = [pytest.mark.compiled_only, pytest.mark.no_kvm]
iced = pytest.importorskip("iced_x86")
NAMES = {getattr(iced.Mnemonic, name): name for name in dir(iced.Mnemonic) if name.isupper()}
OTHERWISE = {"LZCNT", "TZCNT", "POPF", "POPFQ"}
RIP, SEGMENT_BYTES = 0x7000_0000, 24


def name_of(instruction: Any) -> str:
    return NAMES[instruction.mnemonic]


class Run:
    """A page that holds what ``struct kvm_run`` holds when an exit is looked at."""

    def __init__(self) -> None:
        self.page = ctypes.create_string_buffer(4096)
        self.address = ctypes.addressof(self.page)
        self.registers = dict.fromkeys(REG_NAMES, 0)

    def set(self, code: bytes, rip: int = RIP, **registers: int) -> None:
        """``code`` before rip, and registers."""
        self.registers |= registers | {"rip": rip}
        struct.pack_into("<18Q", self.page, int(REGS), *self.registers.values())
        struct.pack_into("<15s", self.page, int(BEHIND) - 15, code[-15:].rjust(15, b"\x90"))

    def segment(self, number: int, base: int, selector: int) -> None:
        struct.pack_into("<QIH", self.page, int(SREGS) + SEGMENT_BYTES * number, base, 0, selector)

    def stored(self, gpa: int, size: int) -> int:
        return int(stored_before(address_of_list(), self.address, 15, gpa, size))


def judged(code: bytes) -> int:
    held = ctypes.create_string_buffer(code.ljust(15, b"\x90"), 32)
    return int(verdict_of_load(address_of_list(), ctypes.addressof(held), 15))


def some_code(rng: random.Random) -> bytes:
    """Random legacy code: prefixes, an opcode of one of the maps, and more."""
    prefixes = bytes(rng.choice(b"\x66\x67\xf2\xf3\xf0\x2e\x64\x65") for _ in range(rng.choice((0, 0, 0, 1, 1, 2))))
    rex = bytes([rng.randrange(0x40, 0x50)]) if rng.random() < 0.4 else b""
    return (prefixes + rex + rng.choice((b"", b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")) + rng.randbytes(16))[:15]


def test_lengths_of_all_that_is_listed(rng: random.Random) -> None:
    checked = 0
    for _ in range(60_000):
        code = some_code(rng)
        decoded = iced.Decoder(64, code, ip=RIP).decode()
        held = ctypes.create_string_buffer(code, 32)
        found = int(decode(ctypes.addressof(held), 15))
        entry = int(LIST[found & INDEX]) if found else 0
        extension = 1 << (code[(found >> 20) & 31] >> 3 & 7) if entry >> 32 & 1 and (found >> 20) & 31 < 15 else 1
        stores_there = (entry >> 8 & 0xFF | entry >> 16 & 0xFF) & extension
        if decoded.is_invalid or not stores_there or decoded.encoding != iced.EncodingKind.LEGACY:
            continue
        assert ends(found, entry, ctypes.addressof(held)) == decoded.len, (code.hex(), str(decoded))
        checked += 1
    assert checked > 2000


def test_no_load_is_answered_that_the_decoder_calls_otherwise(rng: random.Random) -> None:
    """And each that the decoder knows as listed, without needless prefixes, is."""
    answered = {name_of(each) for _, code, each in every_instruction(iced) if judged(code) == ANSWERED}
    assert answered.isdisjoint(OTHERWISE | {"XSAVE", "FLD", "PADDB", "SGDT", "LFS", "LSS", "LGS", "IRETQ", "RETF"})
    count = dict.fromkeys((ANSWERED, REFUSED, AGAIN), 0)
    for _ in range(60_000):
        code = some_code(rng)
        decoded = iced.Decoder(64, code, ip=RIP).decode()
        said = judged(code)
        if decoded.is_invalid or decoded.is_privileged or not iced.InstructionInfoFactory().info(decoded).used_memory():
            continue
        count[said] += 1
        if said == ANSWERED:
            assert name_of(decoded) in answered, (code.hex(), str(decoded))
            assert decoded.encoding == iced.EncodingKind.LEGACY
            assert not decoded.is_call_far_indirect
            assert not decoded.is_jmp_far_indirect
        if said == AGAIN:
            assert name_of(decoded) in OTHERWISE | {"MOVBE", "BSF", "BSR"}, (code.hex(), str(decoded))
    assert min(count.values()) > 20, count


def test_no_vector_instruction_is_answered() -> None:
    every = [code for _, code, _ in every_vector_instruction(iced)]
    assert len(every) > 1000
    assert {judged(code) for code in every} == {REFUSED}


@pytest.mark.parametrize(
    "code",
    ["f3480fbc03", "f30fbd03", "66f30fbc03", "f3660fbc03", "f2f30fbc03", "9d", "669d", "480f38f003", "660f38f003"],
)
def test_these_are_run_again(code: str) -> None:
    assert judged(bytes.fromhex(code)) == AGAIN


@pytest.mark.parametrize(
    "code",
    [
        "ff1b",
        "48ff2b",
        "cb",
        "cf",
        "0fa1",
        "0fa9",
        "480fb203",
        "8e03",
        "0fae0b",
        "0f0003",
        "0f0123",
        "c5f96f03",
        "dd03",
    ],
)
def test_these_are_refused(code: str) -> None:
    """far call, jump and return, iret, pop and load of segments, fxrstor, sldt, smsw, VEX, x87."""
    assert judged(bytes.fromhex(code)) == REFUSED


def test_bytes_that_end_too_early_are_refused() -> None:
    held = ctypes.create_string_buffer(bytes.fromhex("66480f"), 32)
    for count in range(4):
        assert verdict_of_load(address_of_list(), ctypes.addressof(held), count) == REFUSED
    held = ctypes.create_string_buffer(bytes.fromhex("488b"), 32)
    assert verdict_of_load(address_of_list(), ctypes.addressof(held), 2) == REFUSED


# -- stores ------------------------------------------------------------------------------------------------------------


def a_store(rng: random.Random) -> bytes:
    opcode = rng.choice(("88", "89", "c6", "c7", "0f90", "0f9f", "0fc3", "01", "ff", "83", "0f11", "660f7f", "f30f7f"))
    given = bytes.fromhex(opcode)
    legacy, given = (given[:1], given[1:]) if given[0] in (0x66, 0xF3) else (b"", given)
    segment = rng.choice((b"", b"", b"\x64", b"\x65"))
    size = rng.choice((b"", b"", b"\x66")) if opcode in ("89", "c7", "01", "ff", "83") else b""
    rex = bytes([rng.randrange(0x40, 0x50)]) if rng.random() < 0.6 else b""
    modrm = rng.randrange(0xC0)
    if opcode in ("c6", "c7", "ff", "83"):
        modrm &= ~0x38
    return legacy + segment + size + rex + given + bytes([modrm]) + rng.randbytes(12)


def test_a_store_is_told_by_its_place_and_size(rng: random.Random) -> None:
    """Against the decoder's address, with random registers, and with random bytes before it."""
    counted = {STORES: 0, LOADS_FIRST: 0}
    by_chance = 0
    run = Run()
    for _ in range(6000):
        code = a_store(rng)
        decoded = iced.Decoder(64, code, ip=RIP).decode()
        if decoded.is_invalid or decoded.len > 15:
            continue
        code = code[: decoded.len]
        values = {name: rng.randrange(1 << 64) for name in REG_NAMES if name != "rip"}
        bases = {"FS": rng.randrange(1 << 40), "GS": rng.randrange(1 << 40)}
        run.segment(3, bases["FS"], 0)
        run.segment(4, bases["GS"], 0)
        run.set(code, RIP + decoded.len, **values)
        known = {getattr(iced.Register, name.upper()): value for name, value in values.items() if name != "rflags"}
        known |= {getattr(iced.Register, name): value for name, value in bases.items()}
        address = decoded.memory_displacement + known.get(decoded.memory_base, 0)  # of rip it has the sum
        address += known.get(decoded.memory_index, 0) * decoded.memory_index_scale + known.get(
            decoded.memory_segment, 0
        )
        whole = iced.MemorySizeExt.size(decoded.memory_size)
        offset = address & 0xFFF
        size = min(8, whole, 0x1000 - offset)
        expected = LOADS_FIRST if name_of(decoded) in {"ADD", "INC"} else STORES
        assert run.stored(address & 0xFFFFF, size) == expected, (code.hex(), str(decoded), hex(address))
        if offset + whole > 0x1000:  # the part in the page before is in memory already
            assert run.stored(0x5000, min(8, offset + whole - 0x1000)) == expected
        else:
            by_chance += run.stored((address + 1) & 0xFFFFF, size) != 0  # the end of it can be another store there
        counted[expected] += 1
    assert min(counted.values()) > 500, counted
    assert by_chance < 60  # of 4096 addresses it is one


@pytest.mark.parametrize(("prefix", "place"), [("64", 3), ("65", 4)])
def test_a_store_at_an_offset_is_from_its_segments_base(prefix: str, place: int) -> None:
    """mov fs:[0x100], al, where FS does not begin with a page."""
    run = Run()
    run.segment(place, 0x7F0000000340, 0)
    run.set(bytes.fromhex(prefix + "a20001000000000000"), RIP + 10)
    assert run.stored(0x12440, 1) == STORES
    assert run.stored(0x12240, 1) == 0


def test_bytes_before_rip_can_mislead() -> None:
    """smsw [rcx + 0x3896600], which is not listed, ends with 66 89 03, mov [rbx], ax, which is."""
    run = Run()
    run.set(bytes.fromhex("0f01a100668903"), RIP + 7, rbx=0x5600, rcx=(0x5600 - 0x3896600) % (1 << 64))
    assert run.stored(0x5600, 2) == STORES
    run.set(bytes.fromhex("0f01a100668903"), RIP + 7, rbx=0x5700, rcx=(0x5600 - 0x3896600) % (1 << 64))
    assert run.stored(0x5600, 2) == 0, "elsewhere"


@pytest.mark.parametrize(
    ("code", "registers", "gpa", "size", "expected"),
    [
        ("50", {"rsp": 0x2FF8}, 0x12FF8, 8, STORES),
        ("6650", {"rsp": 0x2FFE}, 0x12FFE, 2, STORES),
        ("6a07", {"rsp": 0x2FF8}, 0x12FF8, 8, STORES),
        ("6805000000", {"rsp": 0x2FF8}, 0x12FF8, 8, STORES),
        ("ff33", {"rsp": 0x2FF8, "rbx": 0x100}, 0x12FF8, 8, STORES),
        ("8f03", {"rbx": 0x100}, 0x10100, 8, STORES),
        ("aa", {"rdi": 0x101}, 0x10100, 1, STORES),
        ("48ab", {"rdi": 0x108}, 0x10100, 8, STORES),
        ("48a5", {"rdi": 0xF8, "rflags": 0x402}, 0x10100, 8, STORES),
        ("c8100000", {"rbp": 0x2FF8}, 0x12FF8, 8, STORES),
        ("a20001000000000000", {}, 0x10100, 1, STORES),
        ("c8100001", {"rbp": 0x2FF8}, 0x12FF8, 8, STORES),
        ("0fa0", {"rsp": 0x2FF8}, 0x12FF8, 8, 0),
        ("9c", {"rsp": 0x2FF8}, 0x12FF8, 8, 0),
        ("8c03", {"rbx": 0x100}, 0x10100, 2, 0),
        ("66c8100000", {"rbp": 0x2FF8}, 0x12FF8, 2, 0),
        ("0f0103", {"rbx": 0x100}, 0x10100, 8, 0),
        ("dd33", {"rbx": 0x100}, 0x10100, 8, 0),
        ("480fc10b", {"rbx": 0x100}, 0x10100, 8, LOADS_FIRST),
        ("480fb10b", {"rbx": 0x100}, 0x10100, 8, LOADS_FIRST),
        ("8703", {"rbx": 0x100}, 0x10100, 4, LOADS_FIRST),
    ],
)
def test_stores_beside_the_operand(code: str, registers: dict[str, int], gpa: int, size: int, expected: int) -> None:
    run = Run()
    run.set(bytes.fromhex(code), **registers)
    assert run.stored(gpa, size) == expected
    assert run.stored(gpa + 1, size) == 0


def test_calls(rng: random.Random) -> None:
    for _ in range(2000):
        target = RIP + rng.randrange(-(1 << 30), 1 << 30)
        code = rng.choice((b"", b"\x48", b"\x2e", b"\x41")) + b"\xe8" + struct.pack("<i", target - RIP)
        held = ctypes.create_string_buffer(code.rjust(15, b"\x90"), 32)
        assert is_called(ctypes.addressof(held), 15, RIP, target)
        assert not is_called(ctypes.addressof(held), 15, RIP, target + 1)
    for text, near in {
        "ffd3": True,
        "41ff5330": True,
        "ff1424": True,
        "ff1c24": False,
        "66ffd3": True,
        "ffe3": False,
    }.items():
        held = ctypes.create_string_buffer(bytes.fromhex(text).rjust(15, b"\x90"), 32)
        assert is_called(ctypes.addressof(held), 15, RIP, 0) == near, text


def test_far_calls(rng: random.Random) -> None:
    for _ in range(4000):
        rex = bytes([rng.randrange(0x40, 0x50)]) if rng.random() < 0.5 else b""
        code = rex + b"\xff" + bytes([rng.randrange(0xC0) & ~0x38 | 3 << 3]) + rng.randbytes(8)
        decoded = iced.Decoder(64, code, ip=RIP).decode()
        assert decoded.is_call_far_indirect
        held = ctypes.create_string_buffer(code[: decoded.len].rjust(15, b"\x90"), 32)
        size = 8 if rex and rex[0] & 8 else 4
        assert is_far_call(ctypes.addressof(held), 15, size), code.hex()


def test_what_the_emulator_stores_otherwise_is_told_by_its_data() -> None:
    run = Run()
    run.segment(4, 0, 0x53)
    for code, gpa, size, data in (
        ("9c", 0x2FF8, 8, 0x246),
        ("669c", 0x2FF8, 2, 0x246),
        ("0fa8", 0x2FF8, 8, 0x53),
        ("660fa8", 0x2FF8, 2, 0x53),
        ("8c2b", 0x100, 2, 0x53),
        ("488c6b01", 0x101, 8, 0x53),
        ("66c8100000", 0x700, 8, 0),
    ):
        run.set(bytes.fromhex(code), rsp=0x2FF8, rbx=0x100, rbp=0x700, rflags=0x246)
        assert is_stored_otherwise(run.address, 15, gpa, size, data), code
        if code[:2] != "66" or code[2:4] != "c8":
            assert not is_stored_otherwise(run.address, 15, gpa, size, data ^ 0x1000), code


def test_what_stores_more_than_once_is_the_far_call() -> None:
    """By the decoder; enter with levels, xsave and their like it counts as one. These KVM's emulator does not know."""
    several = {name_of(found) for _, _, found in every_instruction(iced) if stores(iced, found) > 1}
    assert several == {"CALL"}
    assert all(found.is_call_far_indirect for _, _, found in every_instruction(iced) if stores(iced, found) > 1)
