"""Guest programs of the kernel tests: assembly and, since no assembler is needed to run them, bytes.

Slot 0 is [0, 0x10000) and stays; slot 1 is [0x20000, 0x30000), is deleted and re-created all the time, and holds what
the programs work on, vCPU 1's code among it. vCPU i starts with the registers of ``registers(i)``; rcx counts rounds
(``wide``: r11).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import NamedTuple

from guestmem.engines.kvm import KvmEngine, identity_tables, user_mode
from guestmem.memslots import Change
from guestmem.units import PAGE_SHIFT

__all__ = ["PROGRAMS", "RESTLESS", "Guest", "Program", "registers"]


class Program(NamedTuple):
    """What decides: ``counter`` [rbx], ``private`` [r8], ``wide`` [r9] must hold the rounds, ``bad`` [r12] 0."""

    decides: str
    assembly: str
    code: bytes


PROGRAMS = {
    "inc": Program(
        "counter",
        """
            l: lock inc dword ptr [rbx]
            inc rcx
            jmp l
        """,
        bytes.fromhex("f0ff0348ffc1ebf8"),
    ),
    "xadd": Program(
        "counter",
        """
            l: mov edx, 1
            lock xadd dword ptr [rbx], edx
            inc rcx
            jmp l
        """,
        bytes.fromhex("ba01000000f00fc11348ffc1ebf2"),
    ),
    "cmpxchg": Program(
        "counter",
        """
            l: mov eax, [rbx]
            r: lea edx, [rax+1]
            lock cmpxchg dword ptr [rbx], edx
            jnz r
            inc rcx
            jmp l
        """,
        bytes.fromhex("8b038d5001f00fb11375f748ffc1ebf0"),
    ),
    "bts": Program(
        "private",
        """
            l: lock bts dword ptr [rbx], 3
            jc l
            inc dword ptr [r8]
            inc rcx
            lock btr dword ptr [rbx], 3
            jmp l
        """,
        bytes.fromhex("f00fba2b0372f941ff0048ffc1f00fba3303ebec"),
    ),
    "xchg spinlock": Program(
        "private",
        """
            l: mov eax, 1
            xchg dword ptr [rbx+64], eax
            test eax, eax
            jnz l
            inc dword ptr [r8]
            mov dword ptr [rbx+64], 0
            inc rcx
            jmp l
        """,
        bytes.fromhex("b80100000087434085c075f441ff00c743400000000048ffc1ebe5"),
    ),
    "cmpxchg16b": Program(
        "wide",
        """
            l: lea rbx, [rax+1]
            mov rcx, rdx
            lock cmpxchg16b [r9]
            jnz l
            mov rax, rbx
            inc r11
            jmp l
        """,
        bytes.fromhex("488d58014889d1f0490fc70975f24889d849ffc3ebea"),
    ),
    "stack": Program(
        "bad",
        """
            l: push rcx
            call f
            pop rax
            cmp rax, rcx
            jne b
            inc rcx
            jmp l
            f: push rbx
            pop rdx
            ret
            b: inc qword ptr [r12]
            inc rcx
            jmp l
        """,
        bytes.fromhex("51e80b000000584839c8750848ffc1ebef535ac349ff042448ffc1ebe3"),
    ),
    "string": Program(
        "bad",
        """
            l: mov rsi, r14
            mov rdi, r15
            mov ecx, 64
            rep movsq
            mov rsi, r14
            mov rdi, r15
            mov ecx, 64
            repe cmpsq
            je m
            inc qword ptr [r12]
            m: mov rdi, r15
            xor eax, eax
            mov ecx, 64
            rep stosq
            jmp l
        """,
        bytes.fromhex(
            "4c89f64c89ffb940000000f348a54c89f64c89ffb940000000f348a7740449ff04244c89ff31c0b940000000f348abebcf"
        ),
    ),
    "sse": Program(
        "bad",
        """
            l: inc rcx
            movq xmm0, rcx
            punpcklqdq xmm0, xmm0
            movdqa [rdi], xmm0
            movdqa xmm1, [rdi]
            movq rax, xmm1
            cmp rax, rcx
            je l
            inc qword ptr [r12]
            jmp l
        """,
        bytes.fromhex("48ffc166480f6ec1660f6cc0660f7f07660f6f0f66480f7ec84839c874e249ff0424ebdc"),
    ),
    "avx": Program(
        "bad",
        """
            l: inc rcx
            vmovq xmm0, rcx
            vpbroadcastq ymm0, xmm0
            vmovdqu [rdi], ymm0
            vmovdqu ymm1, [rdi]
            vmovq rax, xmm1
            cmp rax, rcx
            je l
            inc qword ptr [r12]
            jmp l
        """,
        bytes.fromhex("48ffc1c4e1f96ec1c4e27d59c0c5fe7f07c5fe6f0fc4e1f97ec84839c874e149ff0424ebdb"),
    ),
    "page crossing": Program(
        "crossing",
        """
            l: lock inc dword ptr [r10]
            inc rcx
            jmp l
        """,
        bytes.fromhex("f041ff0248ffc1ebf7"),
    ),
    "jump into nothing": Program(
        "dies",
        """
            mov eax, 0x40000
            jmp rax
        """,
        bytes.fromhex("b800000400ffe0"),
    ),
}

SIZE = 0x40000
RESTLESS = 0x20000
TABLES = 0x8000
CODE = 0x1000


def registers(vcpu: int, *, code_in_slot_1: bool) -> dict[str, int]:
    return {
        "rip": (RESTLESS if code_in_slot_1 else 0) + CODE,
        "rflags": 2,
        "rsp": 0x2A000 + 0x2000 * vcpu,
        "rbx": RESTLESS,
        "rax": 0,
        "rcx": 0,
        "rdx": 0,
        "r11": 0,
        "rdi": 0x22000 + 0x100 * vcpu,
        "r8": 0xF000,
        "r9": 0x23000,
        "r10": 0x22FFE,
        "r12": 0xF100 + 8 * vcpu,
        "r14": 0x24000,
        "r15": 0x25000 + 0x1000 * vcpu,
    }


class Guest:
    """An engine with two slots on memory of its own, and every vCPU at the start of a program, in user mode."""

    def __init__(self, name: str, vcpus: int = 2, *, fetch: bool = True, ring_bytes: int = 0) -> None:
        self.program = PROGRAMS[name]
        self.engine = KvmEngine(vcpus, ring_bytes=ring_bytes)
        self.memory = mmap.mmap(-1, SIZE)
        self._view = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.addressof(self._view)
        self.slot1 = Change(1, RESTLESS >> PAGE_SHIFT, 0x10, self.address + RESTLESS)
        self.engine.set_memory_region(Change(0, 0, 0x10, self.address))
        self.engine.set_memory_region(self.slot1)
        tables = identity_tables(TABLES, 0x200000)
        self.memory[TABLES : TABLES + len(tables)] = tables
        for place in (CODE, RESTLESS + CODE):
            self.memory[place : place + len(self.program.code)] = self.program.code
        for byte in range(512):
            self.memory[0x24000 + byte] = byte * 37 % 251
        for vcpu in self.engine.vm.vcpus:
            vcpu.set_xcr0(7)
            vcpu.set_sregs(user_mode(vcpu.sregs(), TABLES, avx=True))
            vcpu.set_registers(registers(vcpu.index, code_in_slot_1=fetch and vcpu.index == 1))

    def word(self, gpa: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, gpa)[0])

    def rounds(self) -> int:
        """What all vCPUs have counted."""
        register = "r11" if self.program.decides == "wide" else "rcx"
        return sum(vcpu.registers()[register] for vcpu in self.engine.vm.vcpus)

    def missing(self) -> int:
        """Rounds that memory does not have; a stop may fall between the two, so -1 a vCPU is none."""
        place = {"counter": RESTLESS, "private": 0xF000, "wide": 0x23000, "crossing": 0x22FFE}.get(self.program.decides)
        if place is None:
            return sum(self.word(0xF100 + 8 * vcpu.index) for vcpu in self.engine.vm.vcpus)
        held = self.word(place) if self.program.decides == "wide" else self.word(place) & 0xFFFFFFFF
        return ((self.rounds() - held + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)

    def close(self) -> None:
        self.engine.close()
        del self._view
        self.memory.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
