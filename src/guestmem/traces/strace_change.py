"""What strace shows of a KVM_SET_USER_MEMORY_REGION: its fields, its result, and what it means if it shows neither."""

from __future__ import annotations

import errno
import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from ..memslots.slot import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from .requests import integer
from .strace_line import REGION, result_of

if TYPE_CHECKING:
    from .recording import Recording
    from .strace_line import Request

__all__ = ["SET_REGION", "Region", "flags_of", "region_of"]

SET_REGION = "KVM_SET_USER_MEMORY_REGION"
"""The request, and what the name of its second version begins with."""
FLAGS = {
    "KVM_MEM_LOG_DIRTY_PAGES": KVM_MEM_LOG_DIRTY_PAGES,
    "KVM_MEM_READONLY": KVM_MEM_READONLY,
    "KVM_MEM_GUEST_MEMFD": 4,
}
POINTER = re.compile(r", (?:arg=|argp=)?(?:0x[0-9a-f]+|NULL)\)")


class Region(NamedTuple):
    """The fields of a change, its result (negative: an errno), and how long it took in seconds, if strace says."""

    slot: int
    flags: int
    gpa: int
    size: int
    hva: int
    ret: int
    duration: float | None


def region_of(recording: Recording, number: int, text: str, call: str, request: Request, name: str) -> Region | None:
    """The change in ``call``, which begins with ``request``, as ``name`` of which it is on line ``number``.

    None for one that was not made, or of which nothing is lost. Raises TraceError for what cannot be read.
    """
    result = result_of(call)
    if result is not None and result.ret is None:  # the process died in the call
        return None
    arguments = call[request.end :]
    region = REGION.match(arguments, 2) if arguments.startswith(", ") else None
    flags = flags_of(region[2]) if region else None
    if region is None and result is not None and POINTER.match(arguments):
        if result.errno:  # refused, whatever it was
            recording.note(f"{name} that failed, of which strace does not show the slot", number)
            return None
        recording.bad_line(_only_a_pointer(name, request), number, text)
    if region is None or result is None or result.ret is None or flags is None:
        recording.bad_line(f"{SET_REGION}: its arguments or result cannot be read", number, text)
    try:
        slot, gpa, size, hva = map(_number, region.group(1, 3, 4, 5))
    except ValueError:
        recording.bad_line(f"{SET_REGION}: a field is not a number", number, text)
    ret = result.ret if result.ret >= 0 else -int(getattr(errno, result.errno, 1))
    return Region(slot, flags, gpa, size, hva, ret, result.duration)


def _only_a_pointer(name: str, request: Request) -> str:
    """Why strace shows the address of the argument, and not what is there."""
    if name.endswith("2"):
        return (
            f"strace does not decode {SET_REGION}2, so it cannot show this VM's memslots; record the VMM's own trace "
            "(QEMU: -trace kvm_set_user_memory), or guestmem record --with bpftrace"
        )
    was = "raw" if request.number is not None else "verbose"
    return (
        f"strace shows the address of {SET_REGION}'s argument only, not the slot: it was told so (-e {was}=…), or "
        "could not read it; record without"
    )


def _number(text: str) -> int:
    """Decimal or hex, or NULL. Raises ValueError."""
    return 0 if text == "NULL" else integer(text)


@functools.lru_cache(maxsize=64)
def flags_of(text: str) -> int | None:
    """Flags as strace prints them, by name, as a number with a comment, or both; None if a name is unknown."""
    flags = 0
    for word in re.sub(r"/\*.*?\*/", "", text).split("|"):
        name = word.strip()
        try:
            flags |= FLAGS[name] if name in FLAGS else integer(name)
        except ValueError:
            return None
    return flags
