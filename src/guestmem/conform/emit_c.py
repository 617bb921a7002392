"""A divergence as a C program against <linux/kvm.h>, for kernel developers: it needs nothing of guestmem."""

from __future__ import annotations

from .c_program import C_HEAD
from .calls import (
    ARENA,
    ARENA_BYTES,
    BUFFER,
    BUFFER_BYTES,
    DONE_GPA,
    HOME_GPA,
    HOME_HVA,
    HOME_SLOT,
    LOG_BYTES,
    SECOND_VCPU,
    Answer,
    Call,
)
from .emit import heading, other_in_short
from .guest import CODE, HOME_BYTES, MAPPED_BYTES, READ_CODE_GPA, TABLES_GPA
from .run import Divergence

__all__ = ["as_c"]

_C_NAMES = {"vcpu": "new_vcpu", "write": "write_pages", "read": "read_pages"}


def as_c(found: Divergence, name: str) -> str:
    """A C program against <linux/kvm.h> that carries the calls out; it exits with 1 if the kernel still diverges.

    Results, logs, exits and harvested entries are compared.
    """
    values = {
        "BUFFER": f"{BUFFER:#x}",
        "BUFFER_BYTES": str(BUFFER_BYTES),
        "LOG_BYTES": str(LOG_BYTES),
        "CODE": ", ".join(f"{byte:#04x}" for byte in CODE),
        "HOME_HVA": f"{HOME_HVA:#x}",
        "HOME_SLOT": str(HOME_SLOT),
        "SECOND_VCPU": str(SECOND_VCPU),
        "HOME_GPA": f"{HOME_GPA:#x}",
        "HOME_BYTES": f"{HOME_BYTES:#x}",
        "TABLES_GPA": f"{TABLES_GPA:#x}",
        "MAPPED": f"{MAPPED_BYTES:#x}",
        "READ_CODE_GPA": f"{READ_CODE_GPA:#x}",
        "OTHER": other_in_short(found),
        "DONE_GPA": f"{DONE_GPA:#x}",
        "ARENA": f"{ARENA:#x}",
        "ARENA_BYTES": f"{ARENA_BYTES:#x}",
    }
    head = C_HEAD
    for key, value in values.items():
        head = head.replace(f"@{key}@", value)
    said = [f" * {line}".replace("*/", "* /") for line in heading(found, name)]
    lines = ["/*", *said, " */", "#define _GNU_SOURCE" + head]
    for call, answer in zip(found.calls, found.expected, strict=True):
        if answer is not None:
            lines += _c_call(call, answer)
    lines += ["\treturn differs;", "}"]
    return "\n".join(lines) + "\n"


def _c_call(call: Call, answer: Answer) -> list[str]:
    numbers = ", ".join(f"{value:#x}{'ULL' if value >> 31 else ''}" for value in call.args)
    lines = [f'\tsays("{call}", {_C_NAMES.get(call.kind, call.kind)}({numbers}), {answer.result});']
    if call.kind.rstrip("2") in {"write", "read", "harvest"}:
        lines.append(f'\texits_are("{"; ".join(answer.exits)}");')
    if answer.log:
        log = ", ".join(f"{byte:#04x}" for byte in answer.log)
        lines.append(f"\tlog_says((const unsigned char[]){{ {log} }});")
    return lines
