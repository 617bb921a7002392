"""Every instruction of 64-bit user code that accesses memory, once by each of its forms, as a decoder has them.

Legacy encodings: all opcodes of the four maps, with each prefix that chooses another instruction, and each extension of
the ModRM byte. VEX and EVEX have no entry in the emulator of Linux 6.18 (``arch/x86/kvm/emulate.c``): a failed
emulation, and native after the update.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["every_instruction", "every_vector_instruction", "stores"]

_MAPS = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
_PREFIXES = (b"", b"\x66", b"\xf2", b"\xf3", b"\x48", b"\x66\x48", b"\xf2\x48", b"\xf3\x48", b"\xf0", b"\xf0\x48")
_HINTS = (b"\xf2\xf0", b"\xf3\xf0", b"\xf2\xf0\x48", b"\xf3\xf0\x48", b"\x66\xf0")
_WRITES = ("WRITE", "READ_WRITE", "COND_WRITE", "READ_COND_WRITE")


def every_instruction(iced: Any) -> Iterator[tuple[str, bytes, Any]]:
    """A text, the bytes, and what the decoder says; memory operands are at rbx, no displacement."""
    seen = set()
    for opcodes in _MAPS:
        for opcode in range(256):
            for prefix in _PREFIXES + _HINTS:
                for extension in range(8):
                    code = prefix + opcodes + bytes([opcode, extension << 3 | 3]) + bytes(8)
                    found = iced.Decoder(64, code, ip=0x1000).decode()
                    if found.is_invalid or found.encoding != iced.EncodingKind.LEGACY:
                        continue
                    repeats = found.is_string_instruction and (found.has_rep_prefix or found.has_repne_prefix)
                    hints = found.has_xacquire_prefix, found.has_xrelease_prefix
                    key = found.code, found.has_lock_prefix, repeats, hints
                    info = iced.InstructionInfoFactory().info(found)
                    touches = [each for each in info.used_memory() if each.access != iced.OpAccess.NO_MEM_ACCESS]
                    if key in seen or not touches or found.is_privileged:
                        continue
                    seen.add(key)
                    yield str(found), code[: found.len], found


def every_vector_instruction(iced: Any) -> Iterator[tuple[str, bytes, Any]]:
    """The same of VEX (C4) and EVEX encodings: all opcodes of three maps, prefixes, W and vector lengths."""
    seen = set()
    for opcodes in (1, 2, 3):
        for opcode in range(256):
            for low in range(16):  # W, L, pp
                wide, length, prefix = low >> 3, low >> 2 & 1, low & 3
                vex = bytes([0xC4, 0xE0 | opcodes, wide << 7 | 0xF << 3 | length << 2 | prefix])
                evex = bytes([0x62, 0xF0 | opcodes, wide << 7 | 0xF << 3 | 4 | prefix, length << 5 | 8])
                for start in (vex, evex):
                    for extension in range(8):
                        code = start + bytes([opcode, extension << 3 | 3]) + bytes(8)
                        found = iced.Decoder(64, code, ip=0x1000).decode()
                        if found.is_invalid or found.encoding == iced.EncodingKind.LEGACY or found.code in seen:
                            continue
                        info = iced.InstructionInfoFactory().info(found)
                        if found.is_privileged or not [*info.used_memory()]:
                            continue
                        seen.add(found.code)
                        yield str(found), code[: found.len], found


def stores(iced: Any, instruction: Any) -> int:
    """How often it stores, by the decoder."""
    writes = {getattr(iced.OpAccess, name) for name in _WRITES}
    return sum(each.access in writes for each in iced.InstructionInfoFactory().info(instruction).used_memory())
