"""Kinds of instruction for long_exit_retry.py: what vCPUs run, over and over, and how it is seen whether one went wrong.

Assembly (GNU as, Intel syntax), and the bytes that it is, since no assembler is needed to run them.
"""

# ruff: noqa: E501 - one kind of instruction is one line
from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """What vCPUs run; "bad": [r12] stays 0; "word": the word at rbx counts the rounds; "shared": of both; "pair": 16 bytes do; "lock": what they increment under it does; "halves": of 16 bytes are equal; "fetch": they live."""

    decides: str
    assembly: str
    code: tuple[str, ...]
    """Of all, or of those of even number and of the others."""
    start: int = 0
    """Where a round begins."""


KINDS = {
    "mov load": Kind(
        "bad",
        "l: mov rax,[rbx]; cmp rax,rdx; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; jmp l",
        ("488b034839d0750548ffc1ebf349ff0424ebed",),
    ),
    "mov store, 8 bytes": Kind(
        "word",
        "l: inc rcx; mov [rbx],rcx; cmp [rbx],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148890b48390b74f549ff0424ebef",),
    ),
    "mov store, 4 bytes": Kind(
        "bad",
        "l: inc rcx; mov [rbx],ecx; cmp [rbx],ecx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1890b390b74f749ff0424ebf1",),
    ),
    "mov store, 2 bytes": Kind(
        "bad",
        "l: inc rcx; mov [rbx+2],cx; cmp [rbx+2],cx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166894b0266394b0274f349ff0424ebed",),
    ),
    "mov store, 1 byte": Kind(
        "bad",
        "l: inc rcx; mov [rbx+1],cl; cmp [rbx+1],cl; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1884b01384b0174f549ff0424ebef",),
    ),
    "movnti": Kind(
        "word",
        "l: inc rcx; movnti [rbx],rcx; mov rax,[rbx]; cmp rax,rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1480fc30b488b034839c874f149ff0424ebeb",),
    ),
    "setcc, cmovcc": Kind(
        "bad",
        "l: inc rcx; test rcx,1; setne byte ptr [rbx]; xor eax,eax; cmp rcx,rcx; cmove rax,[rbx]; mov rsi,rcx; and rsi,1; cmp al,sil; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148f7c1010000000f950331c04839c9480f44034889ce4883e6014038f074de49ff0424ebd8",),
    ),
    "inc": Kind("word", "l: inc qword ptr [rbx]; inc rcx; jmp l", ("48ff0348ffc1ebf8",)),
    "add, sub": Kind(
        "bad",
        "l: add [rbx],rcx; sub [rbx],rcx; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48010b48290b48ffc148391374f249ff0424ebec",),
    ),
    "and, or, xor, not, neg": Kind(
        "bad",
        "l: xor [rbx],rcx; xor [rbx],rcx; not qword ptr [rbx]; not qword ptr [rbx]; neg qword ptr [rbx]; neg qword ptr [rbx]; or qword ptr [rbx],0; and qword ptr [rbx],-1; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48310b48310b48f71348f71348f71b48f71b48830b00488323ff48ffc148391374de49ff0424ebd8",),
    ),
    "rol, ror": Kind(
        "bad",
        "l: rol qword ptr [rbx],5; ror qword ptr [rbx],5; inc rcx; cmp [rbx],rdx; je l; inc qword ptr [r12]; jmp l",
        ("48c1030548c10b0548ffc148391374f049ff0424ebea",),
    ),
    "bt, bts, btr": Kind(
        "bad",
        "l: bts qword ptr [rbx],0; btr qword ptr [rbx],0; jnc b; inc rcx; cmp [rbx],rdx; je l; b: inc qword ptr [r12]; jmp l",
        ("480fba2b00480fba3300730848ffc148391374ec49ff0424ebe6",),
    ),
    "imul, bsf, popcnt": Kind(
        "bad",
        "l: inc rcx; mov rax,1; imul rax,[rbx]; cmp rax,rdx; jne b; bsf rax,[rbx]; bsf rsi,rdx; cmp rax,rsi; jne b; popcnt rax,[rbx]; popcnt rsi,rdx; cmp rax,rsi; je l; b: inc qword ptr [r12]; jmp l",
        ("48ffc148c7c001000000480faf034839d0751c480fbc03480fbcf24839f0750ff3480fb803f3480fb8f24839f074d149ff0424ebcb",),
    ),
    "tzcnt, lzcnt": Kind(
        "bad",
        "l: tzcnt rax,[rbx]; tzcnt rsi,rdx; cmp rax,rsi; jne b; lzcnt rax,[rbx]; lzcnt rsi,rdx; cmp rax,rsi; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; jmp l",
        ("f3480fbc03f3480fbcf24839f07514f3480fbd03f3480fbdf24839f0750548ffc1ebdd49ff0424ebd7",),
    ),
    "lock inc": Kind("shared", "l: lock inc qword ptr [rbx]; inc rcx; jmp l", ("f048ff0348ffc1ebf7",)),
    "lock xadd": Kind(
        "shared", "l: mov edx,1; lock xadd [rbx],rdx; inc rcx; jmp l", ("ba01000000f0480fc11348ffc1ebf1",)
    ),
    "lock cmpxchg": Kind(
        "shared",
        "l: mov rax,[rbx]; r: lea rdx,[rax+1]; lock cmpxchg [rbx],rdx; jnz r; inc rcx; jmp l",
        ("488b03488d5001f0480fb11375f548ffc1ebed",),
    ),
    "lock bts, btr": Kind(
        "lock",
        "l: lock bts dword ptr [rbx+64],3; jc l; inc qword ptr [r13]; inc rcx; lock btr dword ptr [rbx+64],3; jmp l",
        ("f00fba6b400372f849ff450048ffc1f00fba734003ebe9",),
    ),
    "xchg (a spinlock)": Kind(
        "lock",
        "l: mov eax,1; xchg [rbx+64],eax; test eax,eax; jnz l; inc qword ptr [r13]; mov dword ptr [rbx+64],0; inc rcx; jmp l",
        ("b80100000087434085c075f449ff4500c743400000000048ffc1ebe4",),
    ),
    "lock cmpxchg16b": Kind(
        "pair",
        "mov r9,rbx; mov rax,[r9]; mov rdx,[r9+8]; l: lea rbx,[rax+1]; mov rcx,rdx; lock cmpxchg16b [r9]; jnz l; mov rax,rbx; inc r11; jmp l",
        ("4989d9498b01498b5108488d58014889d1f0490fc70975f24889d849ffc3ebea",),
        start=10,
    ),
    "push, pop": Kind(
        "bad",
        "l: push rcx; pop rax; cmp rax,rcx; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; jmp l",
        ("51584839c8750548ffc1ebf449ff0424ebee",),
    ),
    "call, ret": Kind(
        "bad",
        "l: mov rax,rcx; call f; cmp rax,rcx; jne b; jmp l; f: inc rcx; inc rax; ret; b: inc qword ptr [r12]; jmp l",
        ("4889c8e8070000004839c87509ebf148ffc148ffc0c349ff0424ebe4",),
    ),
    "enter, leave": Kind(
        "bad",
        "l: mov rbp,rcx; mov rsi,rsp; enter 16,0; leave; cmp rbp,rcx; jne b; cmp rsp,rsi; jne b; inc rcx; jmp l; b: inc qword ptr [r12]; mov rsp,rsi; jmp l",
        ("4889cd4889e6c8100000c94839cd750a4839f4750548ffc1ebe649ff04244889f4ebdd",),
    ),
    "rep movsq, stosq, cmpsq": Kind(
        "bad",
        "l: mov r10,rcx; lea rdi,[rbx+0x100]; mov rax,r10; mov ecx,16; rep stosq; lea rsi,[rbx+0x100]; lea rdi,[rbx+0x200]; mov ecx,16; rep movsq; lea rsi,[rbx+0x100]; lea rdi,[rbx+0x200]; mov ecx,16; repe cmpsq; jne b; cmp [rbx+0x278],r10; jne b; lea rcx,[r10+1]; jmp l; b: inc qword ptr [r12]; lea rcx,[r10+1]; jmp l",
        (
            "4989ca488dbb000100004c89d0b910000000f348ab488db300010000488dbb00020000b910000000f348a5488db300010000488dbb00020000b910000000f348a7750f4c3993780200007506498d4a01ebae49ff0424498d4a01eba4",
        ),
    ),
    "movdqa, one stores and one loads": Kind(
        "halves",
        "l: inc rcx; movq xmm0,rcx; punpcklqdq xmm0,xmm0; movdqa [rbx],xmm0; jmp l | l: movdqa xmm1,[rbx]; movq rax,xmm1; psrldq xmm1,8; movq rdx,xmm1; inc rcx; cmp rax,rdx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166480f6ec1660f6cc0660f7f03ebee", "660f6f0b66480f7ec8660f73d90866480f7eca48ffc14839d074e549ff0424ebdf"),
    ),
    "movups, unaligned": Kind(
        "bad",
        "l: inc rcx; movq xmm0,rcx; punpcklqdq xmm0,xmm0; movups [rbx+4],xmm0; movups xmm1,[rbx+4]; pcmpeqb xmm1,xmm0; pmovmskb eax,xmm1; cmp eax,0xffff; je l; inc qword ptr [r12]; jmp l",
        ("48ffc166480f6ec1660f6cc00f1143040f104b04660f74c8660fd7c13dffff000074dd49ff0424ebd7",),
    ),
    "vmovdqu, 32 bytes": Kind(
        "bad",
        "l: inc rcx; vmovq xmm0,rcx; vpbroadcastq ymm0,xmm0; vmovdqu [rbx],ymm0; vmovdqu ymm1,[rbx]; vpcmpeqb ymm1,ymm1,ymm0; vpmovmskb eax,ymm1; cmp eax,-1; je l; inc qword ptr [r12]; jmp l",
        ("48ffc1c4e1f96ec1c4e27d59c0c5fe7f03c5fe6f0bc5f574c8c5fdd7c183f8ff74de49ff0424ebd8",),
    ),
    "fild, fistp": Kind(
        "bad",
        "l: inc rcx; mov [rbx],rcx; fild qword ptr [rbx]; fistp qword ptr [rbx+8]; cmp [rbx+8],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148890bdf2bdf7b0848394b0874ef49ff0424ebe9",),
    ),
    "mov across a page": Kind(
        "bad",
        "l: inc rcx; mov [rbx-4],rcx; cmp [rbx-4],rcx; je l; inc qword ptr [r12]; jmp l",
        ("48ffc148894bfc48394bfc74f349ff0424ebed",),
    ),
    "instruction fetch": Kind("fetch", "l: inc rcx; jmp l", ("48ffc1ebfb",)),
}
