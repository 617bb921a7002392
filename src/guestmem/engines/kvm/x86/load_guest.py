"""The guest that ``compare`` and ``demo`` run: 64-bit user mode, over all of the VM's memory, counting for itself.

Its loop takes a target of the load, and reads it, increments it with a lock prefix, or calls the last byte of its
eight, which is a ``ret`` (``compare`` puts it there). Where its access left the guest, the VMM has meanwhile written
what it met into the block, and the guest counts the access under that; so counts survive the guest's death. It never
leaves the guest by itself.
"""

from __future__ import annotations

__all__ = ["ASSEMBLY", "CODE_BYTES"]

ASSEMBLY = """
start:
    mov rbx, [r15+0x18]
new_load:
    mov rax, [r14+0x40]
    mov [r15+0x20], rax
    and eax, 1
    shl eax, 18
    lea r13, [r14+rax+0x3f000]
    mov r12, [r13]
    mov r11, [r13+8]
    mov r10, [r13+24]
next:
    mov rax, [r14+0x40]
    cmp rax, [r15+0x20]
    jne new_load
    call random
    mov rsi, r13
    add rsi, 64
    mov rcx, r12
    test r12, r12
    jz others
    test r11, r11
    jz area
    movzx eax, bx
    cmp rax, [r15+0x40]
    jb area
others:
    mov rax, r12
    shl rax, 5
    add rsi, rax
    mov rcx, r11
area:
    test rcx, rcx
    jz idle
    cmp qword ptr [r15+0x48], 0
    je sequential
    mov rax, rbx
    shr rax, 32
    imul rax, rcx
    shr rax, 32
    cmp qword ptr [r15+0x48], 2
    jne picked
    test ebx, 0xf0000
    jz picked
    xor edx, edx
    mov edi, 10
    div rdi
    jmp picked
sequential:
    inc qword ptr [r15+0x50]
    mov rax, [r15+0x50]
    xor edx, edx
    div rcx
    mov rax, rdx
picked:
    shl rax, 5
    add rsi, rax
    call random
    mov rdi, [rsi]
    mov rbp, [rsi+8]
    xor ecx, ecx
    movzx eax, bx
    cmp rax, [r15+0x30]
    jae no_write
    inc ecx
    jmp access
no_write:
    test ebp, 1
    jz access
    mov rax, rbx
    shr rax, 16
    movzx eax, ax
    cmp rax, [r15+0x38]
    jae access
    mov ecx, 2
access:
    mov [r15+8], rsi
    mov [r15+0x10], rcx
    mov qword ptr [r15], 0
    mov r9, [r14]
    cmp ecx, 1
    je write
    ja fetch
    mov rax, [rdi]
    jmp done
write:
    lock inc qword ptr [rdi]
    jmp done
fetch:
    lea rax, [rdi+7]
    call rax
done:
    mov rax, [r15]
    lea rdx, [rax+rcx*8]
    inc qword ptr [r15+rdx*8+0x80]
    test ebp, 1
    jz next
    mov rax, [r14]
    sub rax, r10
    jz next
    mov rdx, r9
    sub rdx, r10
    cmp rdx, 1
    je inside
    cmp rdx, rax
    je next
inside:
    inc qword ptr [r15+0x58]
    test ebp, 8
    jz next
    inc qword ptr [r15+0x60]
    jmp next
idle:
    pause
    jmp next
random:
    mov rax, rbx
    shl rax, 13
    xor rbx, rax
    mov rax, rbx
    shr rax, 7
    xor rbx, rax
    mov rax, rbx
    shl rax, 17
    xor rbx, rax
    mov [r15+0x18], rbx
    ret
"""
"""Registers: r15 the vCPU's block, r14 the common page, r13 the load, rbx the random numbers' state; the places are
those of ``load_layout`` and of ``load_words``'s loads. Random numbers as the software engine's (xorshift 13-7-17)."""

CODE_BYTES = bytes.fromhex(
    "498b5f18498b46404989472083e001c1e0124d8dac0600f003004d8b65004d8b5d084d8b5518498b4640493b472075d4"
    "e8390100004c89ee4883c6404c89e14d85e4740e4d85db74160fb7c3493b4740720d4c89e048c1e0054801c64c89d948"
    "85c90f84ff00000049837f4800742a4889d848c1e820480fafc148c1e82049837f48027524f7c300000f00741c31d2bf"
    "0a00000048f7f7eb1049ff4750498b475031d248f7f14889d048c1e0054801c6e8b9000000488b3e488b6e0831c90fb7"
    "c3493b47307304ffc1eb1df7c50100000074154889d848c1e8100fb7c0493b47387305b9020000004989770849894f10"
    "49c707000000004d8b0e83f9017407770b488b07eb0cf048ff07eb06488d4707ffd0498b07488d14c849ff84d7800000"
    "00f7c5010000000f84f9feffff498b064c29d00f84edfeffff4c89ca4c29d24883fa0174094839c20f84d8feffff49ff"
    "4758f7c5080000000f84c8feffff49ff4760e9bffefffff390e9b8feffff4889d848c1e00d4831c34889d848c1e80748"
    "31c34889d848c1e0114831c349895f18c3"
)
"""The same, assembled (GNU as, Intel syntax)."""
