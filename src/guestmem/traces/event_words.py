"""An event of a vCPU in 32 bits, as tracks keep them by the million."""

from __future__ import annotations

from .evidence import KVM_EXIT, Cause, Event, ExitMeaning

__all__ = [
    "CPU_SHIFT",
    "ELSEWHERE",
    "ENTRY",
    "ERRNOS",
    "EXIT",
    "FATAL",
    "FORGOTTEN",
    "GUEST_CAUSED",
    "IMMEDIATE",
    "KIND",
    "LOOKS",
    "NAMES",
    "NUMBER_MASK",
    "NUMBER_SHIFT",
    "OTHER_ERRNO",
    "RUN_BEGIN",
    "RUN_END",
    "USER_EXIT",
    "word",
]

ENTRY, EXIT, USER_EXIT, RUN_BEGIN, RUN_END, ELSEWHERE, FORGOTTEN = (int(each) for each in Event)
KIND, GUEST_CAUSED, LOOKS, FATAL, IMMEDIATE = 7, 8, 16, 32, 64
NUMBER_SHIFT, NUMBER_MASK = 8, 0xFF
CPU_SHIFT, CPU_MAX = 16, 0xFFFE
ERRNOS = {"EINTR": 0xF1, "EAGAIN": 0xF2, "EFAULT": 0xF3}
OTHER_ERRNO = 0xF0
NAMES = {number + 1: f"KVM_EXIT_{name}" for name, number in KVM_EXIT.items()}
NAMES |= {code: name for name, code in ERRNOS.items()} | {OTHER_ERRNO: "an error"}


def word(kind: int, meaning: ExitMeaning | None = None, cpu: int | None = None, *, immediate: bool = False) -> int:
    """An event in 32 bits: its kind, what its exit means, on which CPU."""
    bits = int(kind)
    if meaning is not None:
        bits |= GUEST_CAUSED * (meaning.cause is Cause.GUEST) | LOOKS * meaning.looks_at_memory | FATAL * meaning.fatal
        if meaning.number is not None:
            bits |= ((meaning.number + 1) & NUMBER_MASK) << NUMBER_SHIFT
        elif kind in (USER_EXIT, RUN_END) and meaning.cause is Cause.OUTSIDE:
            bits |= ERRNOS.get(meaning.name, OTHER_ERRNO) << NUMBER_SHIFT
    bits |= IMMEDIATE * immediate
    if cpu is not None:
        bits |= (min(cpu, CPU_MAX) + 1) << CPU_SHIFT
    return bits
