"""The guest that ``compare`` and ``demo`` run: 64-bit user mode, over all of the VM's memory, counting for itself.

Its loop takes a target of the load, and reads it, increments it with a lock prefix, or calls the last byte of its
eight, which is a ``ret`` (``compare`` puts it there). What it reads tells by the byte before that, the tag, whether
it saw the old or the new memory: it stamps with the TSC the start of the last access in an update that saw old, and
the end of the first that saw new. LFENCE keeps the access behind the one stamp and before the other (Intel SDM,
RDTSC). Where its access left the guest, the VMM has meanwhile written what it met into the block, and the guest
counts the access under that; so counts survive the guest's death. It never leaves the guest by itself.
"""

from __future__ import annotations

__all__ = ["ASSEMBLY", "CODE_BYTES"]

ASSEMBLY = """
start:
    mov rbx, [r15+0x18]
new_load:
    mov rax, [r14+0x40]
    mov [r15+0x20], rax
    mov rcx, rax
    and eax, 1
    mov edx, eax
    shl edx, 6
    add rdx, r15
    cmp rcx, [rdx+0x180]
    je reported
    mov qword ptr [rdx+0x188], 0
    mov qword ptr [rdx+0x198], -1
    mov [rdx+0x180], rcx
reported:
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
    lea rax, [r10+1]
    cmp r9, rax
    jne unstamped
    rdtsc
    lfence
    shl rdx, 32
    or rax, rdx
    mov r8, rax
unstamped:
    cmp ecx, 1
    je write
    ja fetch
    mov rax, [rdi]
    jmp saw
write:
    mov eax, 1
    lock xadd [rdi], rax
    jmp saw
fetch:
    lea rax, [rdi+7]
    call rax
    jmp done
saw:
    cmp r9, r10
    jne judge
    cmp r9, [r14]
    je done
judge:
    mov rdx, [r15]
    shr rax, 48
    cmp edx, 3
    je no_memory
    test edx, 0xf9
    jz tagged
    jmp done
no_memory:
    xor eax, eax
tagged:
    movzx eax, al
    mov edx, ebp
    shr edx, 8
    cmp dl, dh
    je done
    cmp al, dl
    je saw_old
    cmp al, dh
    jne saw_neither
    lea rdx, [r10+1]
    cmp r9, rdx
    ja done
    mov rdx, [r15+0x20]
    and edx, 1
    shl edx, 6
    add rdx, r15
    cmp qword ptr [rdx+0x198], -1
    jne done
    mov [rdx+0x1a0], rdi
    mov rdi, rdx
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rdi+0x198], rax
    jmp done
saw_old:
    lea rdx, [r10+1]
    cmp r9, rdx
    jb done
    ja stale
    mov rdx, [r15+0x20]
    and edx, 1
    shl edx, 6
    add rdx, r15
    mov [rdx+0x188], r8
    mov [rdx+0x190], rdi
    jmp done
stale:
    inc qword ptr [r15+0x140]
    jmp done
saw_neither:
    inc qword ptr [r15+0x148]
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
    "498b5f18498b4640498947204889c183e00189c2c1e2064c01fa483b8a80010000741d48c782880100000000000048c7"
    "8298010000ffffffff48898a80010000c1e0124d8dac0600f003004d8b65004d8b5d084d8b5518498b4640493b472075"
    "a3e8100200004c89ee4883c6404c89e14d85e4740e4d85db74160fb7c3493b4740720d4c89e048c1e0054801c64c89d9"
    "4885c90f84d601000049837f4800742a4889d848c1e820480fafc148c1e82049837f48027524f7c300000f00741c31d2"
    "bf0a00000048f7f7eb1049ff4750498b475031d248f7f14889d048c1e0054801c6e890010000488b3e488b6e0831c90f"
    "b7c3493b47307304ffc1eb1df7c50100000074154889d848c1e8100fb7c0493b47387305b9020000004989770849894f"
    "1049c707000000004d8b0e498d42014939c1750f0f310faee848c1e2204809d04989c083f90174077711488b07eb17b8"
    "01000000f0480fc107eb0b488d4707ffd0e9b40000004d39d175094d3b0e0f84a6000000498b1748c1e83083fa03740d"
    "f7c2f90000007407e98d00000031c00fb6c089eac1ea0838f2747f38d0744338f07570498d52014939d1776e498b5720"
    "83e201c1e2064c01fa4883ba98010000ff75574889baa00100004889d70faee80f3148c1e2204809d048898798010000"
    "eb38498d52014939d1722f771d498b572083e201c1e2064c01fa4c8982880100004889ba90010000eb1049ff87400100"
    "00eb0749ff8748010000498b07488d14c849ff84d780000000f7c5010000000f8422feffff498b064c29d00f8416feff"
    "ff4c89ca4c29d24883fa0174094839c20f8401feffff49ff4758f7c5080000000f84f1fdffff49ff4760e9e8fdfffff3"
    "90e9e1fdffff4889d848c1e00d4831c34889d848c1e8074831c34889d848c1e0114831c349895f18c3"
)
"""The same, assembled (GNU as, Intel syntax)."""
