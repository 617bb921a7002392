"""What slots the kernel has, found out without changing any; and calls of it that fail or are interrupted on demand.

A region with the id of a slot that exists and another size is EINVAL before anything else is looked at; one with an id
that is free is EEXIST where a slot is. So ids and frames can be asked for. Source: ``kvm_set_memory_region()``.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from guestmem.engines.kvm import KvmEngine
from guestmem.vm import Vm

__all__ = ["Injector", "agree", "kernel_has", "kernel_ids"]

_SET_USER_MEMORY_REGION = 0x4020AE46
_ioctl = fcntl.ioctl
_mmap: Any = mmap.mmap
PAGE = 4096


def _answer(vm: Vm[KvmEngine, None], key: int, gpa: int, size: int) -> int:
    """The errno of a region that the kernel must not carry out; 0 if it did."""
    region = struct.pack("<IIQQQ", key, 0, gpa, size, 0x10000)
    try:
        _ioctl(vm.engine.vm.file, _SET_USER_MEMORY_REGION, region)
    except OSError as error:
        return error.errno or 0
    return 0


def kernel_ids(vm: Vm[KvmEngine, None], ids: range, as_id: int = 0) -> list[int]:
    """Ids that the kernel has a slot for. There must be one at guest address 0, of other than 3 pages."""
    found = []
    for id_ in ids:
        answer = _answer(vm, as_id << 16 | id_, 0, 3 * PAGE)
        assert answer in (errno.EINVAL, errno.EEXIST), f"slot {id_}: {errno.errorcode.get(answer, answer)}"
        if answer == errno.EINVAL:
            found.append(id_)
    return found


def kernel_has(vm: Vm[KvmEngine, None], gpa: int, free: int, as_id: int = 0) -> bool:
    """Whether the kernel has a slot at guest address ``gpa``; ``free`` is an id that it has none for."""
    answer = _answer(vm, as_id << 16 | free, gpa, PAGE)
    if answer == 0:
        _ioctl(vm.engine.vm.file, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", as_id << 16 | free, 0, 0, 0, 0))
    assert answer in (0, errno.EEXIST), errno.errorcode.get(answer, answer)
    return answer == errno.EEXIST


def agree(vm: Vm[KvmEngine, None], ids: range, pages: range, *, frames: bool = True) -> None:
    """AssertionError unless kernel, engine, front door and host memory have the same slots."""
    slots = list(vm.memory)
    assert sorted(slots) == sorted(vm.engine.slots())
    assert kernel_ids(vm, ids) == sorted(slot.id for slot in slots)
    if frames:
        there = {frame for slot in slots for frame in range(slot.base_gfn, slot.end_gfn)}
        for frame in pages:
            assert kernel_has(vm, frame * PAGE, ids.stop) == (frame in there), f"frame {frame:#x}"
    mapped = _mapped()
    for slot in slots:
        start, end = slot.userspace_addr, slot.userspace_addr + slot.npages * PAGE
        assert any(low <= start and end <= high for low, high in mapped), f"{slot!r}: its memory is gone"
        assert vm.memory.get(slot.id) == slot
    vm.check()


def _mapped() -> list[tuple[int, int]]:
    """Mapped host ranges, joined where they touch."""
    ranges: list[tuple[int, int]] = []
    with open("/proc/self/maps") as file:
        for line in file:
            low, high = (int(word, 16) for word in line.split()[0].split("-"))
            if ranges and ranges[-1][1] == low:
                ranges[-1] = ranges[-1][0], high
            else:
                ranges.append((low, high))
    return ranges


class Injector:
    """Every ``ioctl`` and ``mmap`` of a block goes through here: counted, and from call ``first`` on refused.

    ``count``: how many are refused. ``error``: what they raise. ``after``: the call is made, and then it raises.
    """

    def __init__(self, first: int = -1, count: int = 1, error: Callable[[], BaseException] | None = None) -> None:
        self.first, self.last = first, first + count
        self.error = error or (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"))
        self.after = False
        self.calls: list[str] = []

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        refused = self.first <= number < self.last
        if refused and not self.after:
            raise self.error()
        try:
            return function(*arguments, **named)
        finally:
            if refused:
                raise self.error()

    @contextmanager
    def on(self) -> Iterator[Injector]:
        """Everywhere in this process."""
        injector = self

        class Mmap(_mmap):  # type: ignore[misc]
            def __new__(cls, *arguments: Any, **named: Any) -> Any:
                return injector._call("mmap", _mmap, *arguments, **named)

        fcntl.ioctl = lambda *arguments: self._call("ioctl", _ioctl, *arguments)
        mmap.mmap = Mmap  # type: ignore[misc]
        try:
            yield self
        finally:
            fcntl.ioctl, mmap.mmap = _ioctl, _mmap  # type: ignore[misc]
