"""Made-up VMMs: traces of loads that the debate about memory updates was about, as QEMU would log them.

Nobody recorded these. Each is a list of transactions drawn from a seed, on slots that stay within KVM's limits, written
as lines of QEMU's ``kvm_set_user_memory``; ``check`` and ``compare`` read them as any other trace.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..memslots.slot import KVM_MEM_READONLY
from ..units import PAGE_SIZE

__all__ = ["SCENES", "Call", "Scene", "scene_lines", "transactions"]

_HOST = 0x7F0000000000
_READONLY = int(KVM_MEM_READONLY)
_GIB, _MIB = 1 << 30, 1 << 20
SLOTS_MOST = 32_764
"""Slots of a VM on x86 (KVM_USER_MEM_SLOTS, Linux 6.18)."""


class Call(NamedTuple):
    """One call: slot, guest address, size (0 deletes), host address, flags."""

    slot: int
    gpa: int = 0
    size: int = 0
    host: int = 0
    flags: int = 0


Transaction = list[Call]


class Scene(NamedTuple):
    """A load by name: in a line what happens, how many steps it has unless told, and what makes them."""

    name: str
    summary: str
    steps: int
    make: Callable[[random.Random, int], Iterator[Transaction]]


class _Region:
    """A region as slots that follow its pieces: neighbours with the same flags are one slot, as in QEMU's flat view.

    ``gpa`` and ``host`` are where it begins; a piece is [start, end) in bytes from there, with flags.
    """

    def __init__(self, gpa: int, host: int, free: list[int]) -> None:
        self.gpa, self.host, self.free = gpa, host, free
        self.starts: list[int] = []
        self.pieces: dict[int, tuple[int, int, int]] = {}  # start: end, flags, slot

    def put(self, start: int, end: int, flags: int | None) -> Transaction:
        """Make ``[start, end)`` have ``flags``, or no slot (None): the calls, all deletes first. O(log n + k)."""
        gone, kept = [], []
        low, high = start, end
        first = bisect_left(self.starts, start)
        if first and self.pieces[self.starts[first - 1]][0] >= start:
            first -= 1
        for at in self.starts[first:]:
            stop, was, slot = self.pieces[at]
            if at > end:
                break
            if stop == start or at == end:  # a neighbour: one slot with it if the flags are the same
                if was != flags:
                    continue
                low, high = min(low, at), max(high, stop)
            else:
                if at < start:
                    kept.append((at, start, was)) if was != flags else None
                    low = at if was == flags else low
                if stop > end:
                    kept.append((end, stop, was)) if was != flags else None
                    high = stop if was == flags else high
            gone.append((at, slot))
        made = kept + ([(low, high, flags)] if flags is not None else [])
        calls = [Call(slot, host=self.host + at) for at, slot in gone]
        for at, slot in gone:
            del self.pieces[at]
            self.starts.remove(at)
            self.free.append(slot)
        for at, stop, flags_of in sorted(made):
            if not self.free:
                raise UsageError(f"scene: more than {SLOTS_MOST} slots")
            slot = self.free.pop()
            self.pieces[at] = (stop, flags_of, slot)
            self.starts.insert(bisect_left(self.starts, at), at)
            calls.append(Call(slot, self.gpa + at, stop - at, self.host + at, flags_of))
        return calls


def _free() -> list[int]:
    return list(range(SLOTS_MOST - 1, -1, -1))


def _ram(size: int) -> tuple[_Region, Transaction]:
    region = _Region(0, _HOST, _free())
    return region, region.put(0, size, 0)


def _virtio_mem(rng: random.Random, steps: int) -> Iterator[Transaction]:
    """1 TiB of device memory of which blocks of 2 MiB are plugged and unplugged; neighbours are one slot."""
    ram, calls = _ram(_GIB)
    yield calls
    region = _Region(4 * _GIB, _HOST + 4 * _GIB, ram.free)
    block, blocks = 2 * _MIB, (1 << 40) // (2 * _MIB)
    plugged: list[int] = []
    there: set[int] = set()
    for _ in range(steps):
        if plugged and rng.random() < 0.2:
            place = plugged.pop(rng.randrange(len(plugged)))
            there.discard(place)
            yield region.put(place * block, (place + 1) * block, None)
            continue
        # Half of the blocks come beside one that is there, as a guest that grows takes them: those merge.
        place = plugged[rng.randrange(len(plugged))] + 1 if plugged and rng.random() < 0.5 else rng.randrange(blocks)
        while place in there or place >= blocks:
            place = rng.randrange(blocks)
        plugged.append(place)
        there.add(place)
        yield region.put(place * block, (place + 1) * block, 0)


def _pam(rng: random.Random, steps: int) -> Iterator[Transaction]:
    """Firmware shadows itself: segments of 16 KiB below 1 MiB switch between read-only and writable RAM."""
    ram, calls = _ram(256 * _MIB)
    yield calls
    for start in range(0xC0000, 0x100000, 0x4000):
        yield ram.put(start, start + 0x4000, _READONLY)
    for _ in range(steps):
        segment = 0xC0000 + 0x4000 * rng.randrange(16)
        yield ram.put(segment, segment + 0x4000, rng.choice((0, _READONLY)))


def _bar(rng: random.Random, steps: int) -> Iterator[Transaction]:
    """A guest moves a BAR of 16 MiB that is memory, step by step past and over where it was."""
    ram, calls = _ram(256 * _MIB)
    yield calls
    slot, size, host = ram.free.pop(), 16 * _MIB, _HOST + 4 * _GIB
    at = 0xE0000000
    yield [Call(slot, at, size, host)]
    for _ in range(steps):
        at = 0xE0000000 + 4 * _MIB * rng.randrange(64)
        yield [Call(slot, host=host), Call(slot, at, size, host)]


def _poison(rng: random.Random, steps: int) -> Iterator[Transaction]:
    """Pages of a slot of 4 GiB go bad one after another: each is punched out of it, the rest stays."""
    region, calls = _ram(4 * _GIB)
    yield calls
    for page in rng.sample(range(1, (4 * _GIB >> 12) - 1), steps):
        yield region.put(page * PAGE_SIZE, (page + 1) * PAGE_SIZE, None)


def _vsm(rng: random.Random, steps: int) -> Iterator[Transaction]:
    """Permissions page by page, as Hyper-V's VSM sets them in a boot: one slot is split and merged, again and again."""
    region, calls = _ram(_GIB)
    yield calls
    pages = _GIB >> 12
    hot = pages // 16
    for _ in range(steps):
        page = rng.randrange(hot)
        npages = rng.choice((1, 1, 1, 2, 8))
        flags = _READONLY if rng.random() < 0.5 else 0
        yield region.put(page * PAGE_SIZE, min(page + npages, pages) * PAGE_SIZE, flags)


SCENES = (
    Scene("virtio-mem", "1 TiB of device memory, blocks of 2 MiB plugged, merged and unplugged", 4096, _virtio_mem),
    Scene("pam", "firmware shadows itself: segments of 16 KiB turn read-only and writable", 64, _pam),
    Scene("bar", "a BAR of 16 MiB is moved, also over where it was", 64, _bar),
    Scene("poison", "pages are punched out of a slot of 4 GiB as they go bad", 64, _poison),
    Scene("vsm", "permissions page by page: one slot split and merged (a boot of Hyper-V's VSM: 100000)", 1000, _vsm),
)


def transactions(name: str, *, steps: int = 0, seed: int = 1) -> Iterator[Sequence[Call]]:
    """The transactions of a scene; those that would change nothing are left out. UsageError lists the names.

    >>> [len(calls) for calls in transactions("poison", steps=2)]
    [1, 3, 3]
    """
    for scene in SCENES:
        if scene.name == name:
            rng = random.Random(seed)  # noqa: S311 - to be drawn again, not to be secret
            yield from (calls for calls in scene.make(rng, steps or scene.steps) if calls)
            return
    raise UsageError(f"scene: {name!r} is not one of {', '.join(scene.name for scene in SCENES)}")


def scene_lines(name: str, *, steps: int = 0, seed: int = 1) -> Iterator[str]:
    """A scene as lines of QEMU's log, a transaction every 10 ms, a call every 20 µs. Memory O(slots alive).

    >>> for line in scene_lines("bar", steps=1):
    ...     print(line)
    1@0.000000:kvm_set_user_memory AddrSpace#0 Slot#0 flags=0x0 gpa=0x0 size=0x10000000 ua=0x7f0000000000 ret=0
    1@0.010000:kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x0 gpa=0xe0000000 size=0x1000000 ua=0x7f0100000000 ret=0
    1@0.020000:kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x0 gpa=0xe0000000 size=0x0 ua=0x7f0100000000 ret=0
    1@0.020020:kvm_set_user_memory AddrSpace#0 Slot#1 flags=0x0 gpa=0xe4400000 size=0x1000000 ua=0x7f0100000000 ret=0
    """
    there: dict[int, int] = {}
    for step, calls in enumerate(transactions(name, steps=steps, seed=seed)):
        for place, call in enumerate(calls):
            micros = step * 10_000 + place * 20
            gpa = call.gpa if call.size else there.pop(call.slot)
            if call.size:
                there[call.slot] = call.gpa
            yield (
                f"1@{micros // 1_000_000}.{micros % 1_000_000:06}:kvm_set_user_memory AddrSpace#0 Slot#{call.slot} "
                f"flags={call.flags:#x} gpa={gpa:#x} size={call.size:#x} ua={call.host:#x} ret=0"
            )
