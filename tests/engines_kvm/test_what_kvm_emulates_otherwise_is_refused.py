"""An instruction that KVM's emulator carries out otherwise than the processor stops the vCPU, and says so.

Far calls, of whose two stores KVM hands out one, and lzcnt and tzcnt, which it takes for bsr and bsf. They are told
from all others by their bytes; the oracle for those is a decoder.
"""

from __future__ import annotations

import ctypes
import random
import struct

import pytest

from guestmem.engines.kvm.instructions import is_far_call, is_taken_for_another
from guestmem.errors import GuestmemError
from guestmem.memslots import Change
from kvm_instructions import INSTRUCTIONS, TAKEN_FOR_OTHERS
from kvm_window import CODE, PRIVATE, RESTLESS, Window, died

pytestmark = pytest.mark.compiled_only
FAR_CALL = bytes.fromhex("41ff1c24")  # call far [r12]: m16:32
FAR_CALL_64 = bytes.fromhex("49ff1c24")  # rex.w call far [r12]: m16:64
GDT, TARGET = 0x2000, 0x7000


def bytes_of(code: bytes) -> tuple[int, ctypes.Array[ctypes.c_char]]:
    held = ctypes.create_string_buffer(code, len(code) + 8)
    return ctypes.addressof(held), held


@pytest.mark.parametrize("assembly", TAKEN_FOR_OTHERS)
def test_lzcnt_and_tzcnt_stop_the_vcpu(assembly: str) -> None:
    with Window() as guest:
        guest.engine.retry_exits(True)
        guest.prepare(bytes.fromhex(TAKEN_FOR_OTHERS[assembly]))
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.start()
            guest.until_it_waits()
            guest.engine.set_memory_region(guest.slot1)
        guest.thread.join(20)
        (ended,) = guest.ended
        assert isinstance(ended, GuestmemError)
        assert "what an update changes was met by a far call, lzcnt, tzcnt" in str(ended)
        assert guest.counts()["refused"] >= 1  # a pause tries what is kept again
        with guest.engine.exits_held():  # nobody has kept the lock
            pass


@pytest.mark.parametrize("code", [FAR_CALL, FAR_CALL_64])
def test_a_far_call_stops_the_vcpu(code: bytes) -> None:
    """Its stack is in what changes, its operand elsewhere."""
    with Window() as guest:
        guest.engine.retry_exits(True)

        def prepare() -> None:
            guest.prepare(code)
            for index, value in {3: 0x00AFFB000000FFFF, 4: 0x00CFF3000000FFFF}.items():
                guest.poke(GDT + 8 * index, value)
            pointer = struct.pack("<QH" if code == FAR_CALL_64 else "<IH", TARGET, 0x1B)
            guest.memory[PRIVATE : PRIVATE + len(pointer)] = pointer
            guest.memory[TARGET : TARGET + 3] = bytes.fromhex("41ffe5")
            sregs = bytearray(guest.vcpu.sregs())
            struct.pack_into("<QH", sregs, 192, GDT, 0x7F)
            guest.vcpu.set_sregs(bytes(sregs))

        prepare()
        if not died(guest.run().exit) or guest.vcpu.registers()["rsp"] == RESTLESS + 0xA000:
            pytest.skip("this host runs no far call")
        prepare()
        with guest.engine.exits_held():
            guest.engine.set_memory_region(Change(1))
            guest.start()
            guest.until_it_waits()
            guest.engine.set_memory_region(guest.slot1)
        guest.thread.join(20)
        (ended,) = guest.ended
        assert isinstance(ended, GuestmemError), ended
        assert "far call" in str(ended)
        assert guest.counts()["refused"] >= 1  # a pause tries what is kept again


@pytest.mark.no_kvm
def test_no_other_instruction_of_the_tests_is_one() -> None:
    for kind in INSTRUCTIONS.values():
        for assembly, code in kind.items():
            place, held = bytes_of(bytes.fromhex(code).ljust(15, b"\x90"))
            assert not is_taken_for_another(place, 15), (assembly, held)


@pytest.mark.no_kvm
def test_against_a_decoder(rng: random.Random) -> None:
    """Random bytes and all prefixes: what iced-x86 takes for lzcnt, tzcnt, and for far calls of each size."""
    iced = pytest.importorskip("iced_x86")
    counted = {"LZCNT": 0, "TZCNT": 0, "CALL": 0}
    names = {getattr(iced.Mnemonic, name): name for name in counted}
    prefixes = [
        b"",
        b"\x66",
        b"\xf2",
        b"\xf3",
        b"\xf3\x66",
        b"\x66\xf3",
        b"\xf2\xf3",
        b"\xf3\xf2",
        b"\x64\xf3",
        b"\x2e",
    ]
    for _ in range(20_000):
        prefix = rng.choice(prefixes) + rng.choice([b"", bytes([rng.randrange(0x40, 0x50)])])
        opcode = rng.choice([b"\x0f\xbc", b"\x0f\xbd", b"\xff", b"\xff", rng.randbytes(2)])
        code = (prefix + opcode + rng.randbytes(15))[:15]
        decoded = iced.Decoder(64, code, ip=CODE).decode()
        name = names.get(decoded.mnemonic, "")
        memory = any(decoded.op_kind(n) == iced.OpKind.MEMORY for n in range(decoded.op_count))
        if memory:
            place, held = bytes_of(code)
            assert is_taken_for_another(place, 15) == (name in {"LZCNT", "TZCNT"}), (code.hex(), held)
            counted[name] = counted.get(name, 0) + 1
        if decoded.is_call_far_indirect and prefix.strip(b"\x64\x2e\xf2\xf3\x66") == prefix:
            size = 8 if prefix and prefix[-1] & 0x48 == 0x48 else 4
            place, held = bytes_of(bytes(15) + code[: decoded.len])
            last = place + len(held) - 8 - 15
            assert is_far_call(last, 15, size), code.hex()
            assert not is_far_call(last, 15, 12 - size), code.hex()
            counted["far"] = counted.get("far", 0) + 1
    assert min(counted["LZCNT"], counted["TZCNT"], counted["far"]) > 50, counted
