"""Calls to send to a kernel and to the model, and how eight random bytes become one.

Values are small pools of what is likely to meet (five slots, their own host memory, neighbouring frames) and of what
sits on the edge of each check; so that a random sequence creates, moves, logs and deletes, and is refused in every way.
All addresses are fixed: a sequence is the same bytes in every process.
"""

from __future__ import annotations

from typing import NamedTuple

from ..abi.structures import MemoryCap, MemoryIoctl

__all__ = [
    "ARENA",
    "ARENA_BYTES",
    "BUFFER",
    "BUFFER_BYTES",
    "CALL_BYTES",
    "CAP_ARGUMENTS",
    "DONE_GPA",
    "GUEST_BYTES",
    "HOME_GPA",
    "HOME_HVA",
    "HOME_SLOT",
    "LOG_BYTES",
    "ODD_GPAS",
    "ODD_HVAS",
    "PROLOGUES",
    "RANGES",
    "SECOND_VCPU",
    "Answer",
    "Call",
    "argument_names",
    "checked",
    "decode",
    "decode_block",
    "in_short",
]

CALL_BYTES = 8
ARENA = 0x1000_0000_0000
"""Host memory of guests, in every process that conforms."""
ARENA_BYTES = 32 << 20
BUFFER = 0x1100_0000_0000
"""Where logs are copied to and from; nothing is mapped around it."""
BUFFER_BYTES = 4096
LOG_BYTES = 96
"""As much of the buffer is compared: more than any log has."""
GUEST_BYTES = 32 << 20
"""Frames that guest writes go to, and that ordinary slots lie in."""
HOME_SLOT = 100
SECOND_VCPU = 7
"""Id of the vCPU that ``second`` makes: random calls do not name it."""
HOME_GPA = 48 << 20
DONE_GPA = 60 << 20
"""Where there never is memory: a guest that has done its work writes there."""
HOME_HVA = ARENA + ARENA_BYTES - (1 << 20)
"""Code and page tables of the guest that writes: a slot that random calls do not name."""

_UNMAPPED = 0x2000_0000_0000
_TASK_SIZE_MAX = (1 << 47) - 4096
_TOP = 1 << 64

_IDS = (0, 1, 2, 3, 4, 5, 3, 4)
_ODD_IDS = (7, 32763, 32764, 32766, 32767, 32768, 65535, 1 << 16, 1 << 16 | 3, 2 << 16, 0xFFFF << 16, 100 | 1 << 16)
_FLAGS = (0, 0, 1, 1, 1, 1, 0, 1, 2, 3)
_ODD_FLAGS = (*(1 << bit for bit in range(2, 32)), 5, 6, 7, 0xFFFFFFFF)
_SIZES = (0x1000, 0x40000, 0x41000, 0x82000, 0x100000, 0x3000)
"""By slot id: 1, 64, 65, 130, 256 and 3 pages."""
_ODD_SIZES = (1, 0x800, 0x1800, 0x2000, 0x42000, 1 << 43, (1 << 43) + 0x1000, 1 << 44, 1 << 63, _TOP - 0x1000, _TOP - 1)
_SHIFTS = (0, 0, 0, 0x1000, 0x40000, 0x80000, 0xFF000, 0x3000)
_PLACES = (0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 8, 11, 15)
ODD_GPAS = (
    *(1, 0x800, 0xFFF, 0x100800, (1 << 52) - 0x1000, 1 << 52, (1 << 52) - 0x2000, (1 << 46) - 0x1000, 1 << 46),
    *(1 << 51, 1 << 63, _TOP - 0x1000, _TOP - 0x100000, _TOP - 1, 1 << 40, 3 << 50),
)
ODD_HVAS = (
    *(ARENA, ARENA + 0x1000, ARENA + 1, ARENA + 0x800, 0, 0x1000, _UNMAPPED, _TASK_SIZE_MAX - 0x1000),
    *(_TASK_SIZE_MAX, 1 << 47, 1 << 56, 1 << 63, _TOP - 0x1000, _TOP - 1, _TASK_SIZE_MAX - 0x100000),
)
_OFFSETS = (
    *(0, 0, 0, 0x1000, 0x40000, 0x80000, 1, _TOP - 0x1000, 1 << 63, 0x100000),
    *((1 << 63) - 0x1000, (1 << 63) - 0x40000, (1 << 63) - 0x100000),
)
"""The last three: with a slot's size the end is at 2**63 or past it, a negative loff_t, or still below."""
_GMEM_SIZES = (0x100000, 0x100000, 0x1000, 0x82000, 0, 1, 1 << 63, _TOP - 0x1000)
_CAPS = (168, 168, 168, 192, 223, 225, 166, 3, 10, 9999)
CAP_ARGUMENTS = (0, 1, 2, 3, 4, 4096, 2048, 5000, 1 << 21, 1 << 21, (1 << 32) + 4096, 1 << 63)
_PATTERNS = (0, 0xFF, 0xFF, 0x55, 0x01, 0x80)
_VCPUS = (1, 2, 1, 4095, 4096, 1 << 20)
_ATTRIBUTE_BITS = (0, 0, 8, 8, 1, 4, 16, 1 << 63)
_ATTRIBUTE_PLACES = (0, 0x1000, 0x100000, 1, 0x800, 1 << 63, _TOP - 0x1000, 1 << 40)
_ATTRIBUTE_SIZES = (0x1000, 0x40000, 0x100000, 0, 1, 0x1001, 1 << 63, _TOP - 0x1000)
_NR_MMU_PAGES = (64, 63, 0, 1000)
_POINTED_TO = (
    MemoryIoctl.SET_USER_MEMORY_REGION,
    MemoryIoctl.SET_USER_MEMORY_REGION2,
    MemoryIoctl.GET_DIRTY_LOG,
    MemoryIoctl.CLEAR_DIRTY_LOG,
    MemoryIoctl.ENABLE_CAP,
    MemoryIoctl.CREATE_GUEST_MEMFD,
    MemoryIoctl.SET_MEMORY_ATTRIBUTES,
)
_UNKNOWN = (0xAEFE, 0xAE45, 0x4021AE46, 0x4020AE49, 0xAED9)
_LENGTHS = (*(1,) * 8, 2, 2, 3, 3, 8, 8, 8, 40)


RANGES = {
    "region": range(1, 100),
    "region2": range(100, 130),
    "get_log": range(130, 160),
    "clear_log": range(160, 185),
    "write": range(185, 204),
    "attributes": range(204, 205),
    "file_attributes": range(205, 206),
    "write2": range(206, 217),
    "read": range(217, 222),
    "read2": range(222, 225),
    "cap": range(225, 230),
    "guest_memfd": range(230, 234),
    "extension": range(234, 238),
    "mmu_pages": range(238, 241),
    "vcpu": range(241, 243),
    "bad_pointer": range(243, 246),
    "unknown": range(246, 247),
    "harvest": range(247, 250),
    "harvest2": range(250, 252),
    "reset": range(252, 256),
}
"""Which first bytes stand for which kind of call: how often each is drawn."""
_KINDS = {byte: kind for kind, bytes_ in RANGES.items() for byte in bytes_}


class Call(NamedTuple):
    """One call: what it is, and its numbers.

    ``home`` makes a vCPU, which ``write`` and ``read`` send over pages; ``second`` another, with the same tables, for
    ``write2`` and ``read2``. ``harvest`` and ``harvest2`` empty their rings.
    """

    kind: str
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = _NAMES[self.kind]
        return f"{self.kind}({', '.join(f'{name}={value:#x}' for name, value in zip(names, self.args, strict=True))})"


class Answer(NamedTuple):
    """What came of a call: the result, or minus the errno; a log, if it copies one; a guest's exits, in order."""

    result: int
    log: bytes = b""
    exits: tuple[str, ...] = ()


def in_short(exits: list[tuple[str, int]]) -> tuple[str, ...]:
    """Exits by name and gpa (-1: none), with page after page of the same as one.

    >>> in_short([("mmio write 8", 0x1000), ("mmio write 8", 0x2000), ("done", -1)])
    ('mmio write 8 at 0x1000, 2 pages', 'done')
    """
    found: list[tuple[str, int, int]] = []
    for name, gpa in exits:
        if found and gpa >= 0 and found[-1][0] == name and found[-1][1] + found[-1][2] * 4096 == gpa:
            found[-1] = (name, found[-1][1], found[-1][2] + 1)
        else:
            found.append((name, gpa, 1))
    return tuple(
        name + (f" at {gpa:#x}" if gpa >= 0 else "") + (f", {pages} pages" if pages > 1 else "")
        for name, gpa, pages in found
    )


_REGION = ("slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr")
_NAMES = {
    "region": _REGION,
    "region2": (*_REGION, "guest_memfd_offset", "file", "padding"),
    "get_log": ("slot", "padding", "address"),
    "clear_log": ("slot", "num_pages", "first_page", "address", "pattern"),
    "cap": ("cap", "flags", "argument"),
    "extension": ("cap",),
    "vcpu": ("id",),
    "guest_memfd": ("size", "flags"),
    "attributes": ("address", "size", "attributes", "flags"),
    "file_attributes": ("file", "offset", "size", "attributes", "flags", "reserved"),
    "mmu_pages": ("count",),
    "bad_pointer": ("request",),
    "unknown": ("request",),
    "home": (),
    "write": ("guest_phys_addr", "pages"),
    "read": ("guest_phys_addr", "pages"),
    "second": (),
    "write2": ("guest_phys_addr", "pages"),
    "read2": ("guest_phys_addr", "pages"),
    "harvest": (),
    "harvest2": (),
    "reset": (),
}
"""Names of the arguments of each kind. ``file``: 0 one that is not open, 1 /dev/kvm, 2 the VM, 3… guest_memfds."""


def argument_names(kind: str) -> tuple[str, ...]:
    """Names of the arguments of a kind of call, in order.

    >>> argument_names("write")
    ('guest_phys_addr', 'pages')
    """
    return _NAMES[kind]


_BITS = {"slot": 32, "num_pages": 32, "cap": 32, "file": 32, "flags": 32, "padding": 32, "pattern": 8, "pages": 9}
_OTHER_BITS = {
    ("guest_memfd", "flags"): 64,
    ("attributes", "flags"): 64,
    ("file_attributes", "flags"): 64,
    ("region2", "padding"): 8,
    **{(kind, "guest_phys_addr"): 25 for kind in ("write", "read", "write2", "read2")},
}
_REQUESTS = {"bad_pointer": frozenset(map(int, _POINTED_TO)), "unknown": frozenset(_UNKNOWN)}


def checked(call: Call) -> Call:
    """The call, if it is one that can be carried out; ValueError if its kind or its numbers are none that are drawn.

    >>> checked(Call("mmu_pages", (1 << 64,)))
    Traceback (most recent call last):
    ValueError: mmu_pages: count 18446744073709551616
    """
    names = _NAMES.get(call.kind)
    if names is None or len(names) != len(call.args):
        raise ValueError(f"{call.kind} with {len(call.args)} numbers")
    for name, value in zip(names, call.args, strict=True):
        bits = _OTHER_BITS.get((call.kind, name), _BITS.get(name, 64))
        if not 0 <= value < 1 << bits or value not in _REQUESTS.get(call.kind, (value,)):
            raise ValueError(f"{call.kind}: {name} {value}")
    return call


def decode(piece: bytes) -> Call | None:
    """The call that 8 bytes stand for, or None; zeroes stand for none, so that shrinking ends there.

    >>> decode(bytes(8))
    >>> str(decode(bytes([1, 0, 0, 0, 1, 0, 0, 0])))
    'region(slot=0x0, flags=0x0, guest_phys_addr=0x0, memory_size=0x1000, userspace_addr=0x100000000000)'
    """
    op, a, b, c, d, e, f, g = piece
    kind = _KINDS.get(op, "")
    if kind in {"region", "region2"}:
        return _region(kind, a, b, c, d, e, f, g)
    id_ = _IDS[a % len(_IDS)] if a < 232 else _ODD_IDS[a % len(_ODD_IDS)]
    match kind:
        case "get_log":
            return Call(kind, (id_, b, BUFFER if c < 240 else (8, BUFFER + BUFFER_BYTES - 8, _UNMAPPED)[c % 3]))
        case "clear_log":
            return _clear_log(id_, b, c, d, e)
        case "write" | "read" | "write2" | "read2":
            own = (0, 1, 2, 3, 3, 4, 4, 4, 4, 5)[b % 10]
            place = (
                (own << 20) + c * 0x1000 % _SIZES[own] if a < 150 else _near(b, c) if a < 220 else (b << 8 | c) << 12
            )
            pages = _LENGTHS[d % len(_LENGTHS)]
            pages = min(pages, 3) if a >= 150 else pages
            return Call(kind, (place % GUEST_BYTES, pages))
        case "cap":
            return Call(kind, (_CAPS[a % 10], b if b > 250 else 0, CAP_ARGUMENTS[c % 12]))
        case "guest_memfd":
            return Call(kind, (_GMEM_SIZES[a % 8], (0, 0, 1, 2, 3, 4, 0x80)[b % 7]))
        case "attributes":
            place, size = _ATTRIBUTE_PLACES[a % 8], _ATTRIBUTE_SIZES[b % 8]
            return Call(kind, (place, size, _ATTRIBUTE_BITS[c % 8], 1 if d > 230 else 0))
        case "file_attributes":
            place, size = _ATTRIBUTE_PLACES[a % 8], _ATTRIBUTE_SIZES[b % 8]
            file = (3, 4, 3, 4, 3, 5, 0, 2)[c % 8]
            return Call(kind, (file, place, size, _ATTRIBUTE_BITS[d % 8], int(e > 230), int(f > 230)))
        case "extension":
            return Call(kind, (list(MemoryCap)[a % len(MemoryCap)] if a < 240 else a,))
        case "mmu_pages":
            return Call(kind, (_NR_MMU_PAGES[a % 4],))
        case "vcpu":
            return Call(kind, (_VCPUS[a % len(_VCPUS)],))
        case "bad_pointer":
            return Call(kind, (int(_POINTED_TO[a % len(_POINTED_TO)]),))
        case "unknown":
            return Call(kind, (_UNKNOWN[a % len(_UNKNOWN)],))
        case _:
            return Call(kind) if kind else None


def _clear_log(id_: int, b: int, c: int, d: int, e: int) -> Call:
    own = _SIZES[id_ % len(_SIZES)] >> 12
    first = (0, 0, 0, 64, 128, 192, 1, 63, own, own + 64)[b % 10] if b < 240 else b
    count = (own, max(own - first, 0), 64, 0, 1, 63, 65, 128, own + 1, 0xFFFFFFFF)[c % 10]
    address = BUFFER if d < 220 else (8, BUFFER + BUFFER_BYTES - 8)[d % 2]
    return Call("clear_log", (id_, count, first, address, _PATTERNS[e % len(_PATTERNS)]))


def _near(b: int, c: int) -> int:
    return (_PLACES[b & 15] << 20) + _SHIFTS[b >> 5] + ((c & 3) << 12 if c < 128 else 0)


def _region(kind: str, a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> Call:
    id_ = _IDS[a % len(_IDS)] if a < 240 else _ODD_IDS[a % len(_ODD_IDS)]
    flags = _FLAGS[b % 10] if b < 230 else _ODD_FLAGS[(b + g) % len(_ODD_FLAGS)]
    gpa = id_ << 20 if c < 110 else _near(c, 255) if c < 236 else ODD_GPAS[(c + f) % len(ODD_GPAS)]
    own = _SIZES[id_ % len(_SIZES)]
    size = 0 if d < 1 or 180 < d < 200 else own if d <= 180 else _ODD_SIZES[(d + f) % len(_ODD_SIZES)]
    hva = ARENA + 0x200000 * (id_ % 8) if e < 228 else ODD_HVAS[(e + f) % len(ODD_HVAS)]
    if kind == "region":
        return Call(kind, (id_, flags, gpa, size, hva))
    file = (3, 4, 3, 5, 0, 1, 2, 6)[f & 7]
    if d % 8 < 5:
        flags = 4 if b < 200 else flags | 4
    return Call(kind, (id_, flags, gpa, size, hva, _OFFSETS[g % len(_OFFSETS)], file, g & 1))


PROLOGUES: tuple[tuple[Call, ...], ...] = (
    (),
    (Call("home"),),
    (Call("cap", (168, 0, 1)), Call("home")),
    (Call("cap", (168, 0, 3)), Call("home")),
    (Call("cap", (192, 0, 4096)), Call("home")),
    (Call("cap", (223, 0, 4096)), Call("home")),
    (Call("home"), Call("second")),
    (Call("cap", (168, 0, 3)), Call("home"), Call("second")),
    (Call("cap", (192, 0, 4096)), Call("home"), Call("second")),
    (Call("cap", (223, 0, 4096)), Call("home"), Call("second")),
    (Call("guest_memfd", (0x100000, 0)), Call("guest_memfd", (0x82000, 0)), Call("home")),
)
"""How a VM begins: without a vCPU, with one, with which kind of log."""


def decode_block(block: bytes) -> list[Call]:
    """The calls of a block; its first bytes say how the VM begins: without a vCPU, with one, with which kind of log."""
    calls = list(PROLOGUES[block[0] % len(PROLOGUES)] if block else ())
    rings = bool(calls) and calls[0].kind == "cap" and calls[0].args[0] == MemoryCap.DIRTY_LOG_RING
    for at in range(CALL_BYTES, len(block) - CALL_BYTES + 1, CALL_BYTES):
        call = decode(block[at : at + CALL_BYTES])
        if rings and call is not None and call.kind.endswith("_log") and block[at + 7] < 230:  # else only ENXIO
            call = Call("harvest") if block[at + 7] < 180 else Call("reset")
        if call is not None:
            calls.append(call)
    return calls
