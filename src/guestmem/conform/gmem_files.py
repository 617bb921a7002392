"""System calls on a guest_memfd, of the kernel and of the model: fallocate, mmap, and touches that end in SIGBUS.

Steps are drawn at random; each is carried out on a file of the kernel and on ``gmem.GuestMemfd``, and both must answer
alike: result or errno, and bytes. A touch goes through the kernel (a pipe reads from, or writes to, the mapping), where
SIGBUS is EFAULT. Default VMs have no private memory, so no page of a file is converted.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..abi.structures import CreateGuestMemfd, MemoryIoctl
from ..errors import GuestmemError, GuestMemfdError
from ..gmem import GuestMemfd, HostMapping, VmMemoryAttributes
from ..units import PAGE_SIZE

if TYPE_CHECKING:
    from .kernel import Kernel

__all__ = ["FILE_PROMISES", "FileOutcome", "FilePromise", "Step", "conform_files", "draw_steps", "replay_steps"]

_PAGES = 8
_OFFSETS = (0, 0, PAGE_SIZE, 3 * PAGE_SIZE, 7 * PAGE_SIZE, 8 * PAGE_SIZE, 9 * PAGE_SIZE, 1, PAGE_SIZE - 1, 1 << 62)
_LENGTHS = (PAGE_SIZE, PAGE_SIZE, 2 * PAGE_SIZE, 8 * PAGE_SIZE, 0, 1, PAGE_SIZE + 1, 1 << 62, (1 << 63) - PAGE_SIZE)
_KINDS = (*("fallocate",) * 3, *("read",) * 4, *("write",) * 4, "map", "file_read", "file_write", "truncate")
_MODES = (1, 1, 3, 3, 3, 0, 2, 8, 1 | 16)


class Step(NamedTuple):
    """One step, and its numbers; offsets are in the file.

    create(size, flags), fallocate(mode, offset, length), map(shared, offset, length), read(offset), write(offset,
    value), file_read(), file_write(), truncate(size).
    """

    kind: str
    args: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(hex, self.args))})"


class FilePromise(NamedTuple):
    """A promise of files, with its source in Linux 6.18, and the (kind, errno) that must have been met."""

    name: str
    says: str
    source: str
    cases: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.says} ({self.source})"


_GMEM = "virt/kvm/guest_memfd.c"
FILE_PROMISES = (
    FilePromise(
        "guest-memfd-fallocate",
        "KEEP_SIZE, alone or with PUNCH_HOLE, or EOPNOTSUPP; whole pages of the file, or EINVAL; holes may lie past it",
        f"{_GMEM}: kvm_gmem_fallocate()",
        (("fallocate", 0), ("fallocate", errno.EOPNOTSUPP), ("fallocate", errno.EINVAL)),
    ),
    FilePromise(
        "guest-memfd-hole",
        "a page reads as zero after a hole, and what was written before elsewhere is still there",
        f"{_GMEM}: kvm_gmem_punch_hole()",
        (("read after a hole", 0), ("read", 0)),
    ),
    FilePromise(
        "guest-memfd-mmap",
        "ENODEV without the flag MMAP; EINVAL for MAP_PRIVATE; any size, which is not looked at",
        f"{_GMEM}: kvm_gmem_mmap()",
        (("map", 0), ("map", errno.ENODEV), ("map", errno.EINVAL)),
    ),
    FilePromise(
        "guest-memfd-sigbus",
        "a touch past the end, or of a file without INIT_SHARED, is SIGBUS; EFAULT for a system call",
        f"{_GMEM}: kvm_gmem_fault_user_mapping()",
        (("read", 0), ("read", errno.EFAULT), ("write", 0), ("write", errno.EFAULT)),
    ),
    FilePromise(
        "guest-memfd-no-io",
        "read(2) and write(2) of the file, and ftruncate(2), fail: EINVAL",
        f"{_GMEM}: kvm_gmem_fops, kvm_gmem_setattr()",
        (("file_read", errno.EINVAL), ("file_write", errno.EINVAL), ("truncate", errno.EINVAL)),
    ),
)


def draw_steps(seed: int, count: int) -> list[Step]:
    """``count`` steps, in programs that begin with a creation, mostly of a file that can be mapped."""
    rng, steps = random.Random(seed), list[Step]()  # noqa: S311 - no secret
    while len(steps) < count:
        flags = rng.choice((0, 1, 3, 3, 3, 3, 2, 4))
        steps.append(Step("create", (rng.choice((_PAGES * PAGE_SIZE,) * 10 + (0, 1)), flags)))
        if rng.random() < 0.8:
            steps.append(Step("map", (1, 0, (_PAGES + 2) * PAGE_SIZE)))
        steps += [_step(rng) for _ in range(rng.randrange(4, 24))]
    return steps[:count]


def _step(rng: random.Random) -> Step:
    at = rng.randrange(_PAGES + 2) * PAGE_SIZE + rng.choice((0, 8, PAGE_SIZE - 8))
    kind = rng.choice(_KINDS)
    arguments: dict[str, tuple[int, ...]] = {
        "fallocate": (rng.choice(_MODES), rng.choice(_OFFSETS), rng.choice(_LENGTHS)),
        "map": (rng.choice((0, 1, 1)), rng.choice((0, 0, PAGE_SIZE, 9 * PAGE_SIZE)), rng.choice((10, 2)) * PAGE_SIZE),
        "read": (at,),
        "write": (at, rng.randrange(1, 1 << 63)),
        "truncate": (rng.choice((0, PAGE_SIZE, _PAGES * PAGE_SIZE)),),
    }
    return Step(kind, arguments.get(kind, ()))


class _OfKernel:
    """A file of the kernel; its answers are a result or minus an errno, and bytes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._vm, self._fd, self._at = kernel, kernel.vm(), -1, (0, 0, 0)
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        for name in ("read", "write"):
            getattr(self._libc, name).argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
            getattr(self._libc, name).restype = ctypes.c_ssize_t
        self._pipe = os.pipe()

    def answer(self, step: Step) -> tuple[int, bytes]:
        """Carry ``step`` out."""
        return getattr(self, f"_{step.kind}")(*step.args)  # type: ignore[no-any-return]

    def _result(self, result: int) -> tuple[int, bytes]:
        return (0 if result >= 0 else -ctypes.get_errno()), b""

    def _create(self, size: int, flags: int) -> tuple[int, bytes]:
        self._drop()
        fd = self._kernel.ioctl(self._vm.fd, MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(size, flags).pack())
        self._fd = fd if fd >= 0 else -1
        return min(fd, 0), b""

    def _fallocate(self, mode: int, offset: int, length: int) -> tuple[int, bytes]:
        return self._result(self._libc.fallocate(self._fd, mode, offset, length))

    def _map(self, shared: int, offset: int, length: int) -> tuple[int, bytes]:
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        address = self._libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, self._fd, offset)
        if address == ctypes.c_void_p(-1).value:
            return -ctypes.get_errno(), b""
        self._unmap()
        self._at = address, offset, length
        return 0, b""

    def _place(self, offset: int) -> int:
        address, start, length = self._at
        return address + offset - start if start <= offset < start + length else 0

    def _read(self, offset: int) -> tuple[int, bytes]:
        place = self._place(offset)
        if not place:
            return 1, b""
        if self._libc.write(self._pipe[1], place, 8) < 0:
            return -ctypes.get_errno(), b""
        return 0, os.read(self._pipe[0], 8)

    def _write(self, offset: int, value: int) -> tuple[int, bytes]:
        place = self._place(offset)
        if not place:
            return 1, b""
        os.write(self._pipe[1], value.to_bytes(8, "little"))
        if self._libc.read(self._pipe[0], place, 8) < 0:
            number = ctypes.get_errno()
            os.set_blocking(self._pipe[0], False)
            try:
                os.read(self._pipe[0], 8)
            except BlockingIOError:
                pass  # a kernel that takes bytes from a pipe that it cannot hand over
            finally:
                os.set_blocking(self._pipe[0], True)
            return -number, b""
        return 0, b""

    def _file_read(self) -> tuple[int, bytes]:
        return self._result(self._libc.read(self._fd, ctypes.addressof(ctypes.create_string_buffer(8)), 8))

    def _file_write(self) -> tuple[int, bytes]:
        return self._result(self._libc.write(self._fd, ctypes.addressof(ctypes.create_string_buffer(8)), 8))

    def _truncate(self, size: int) -> tuple[int, bytes]:
        return self._result(self._libc.ftruncate(self._fd, ctypes.c_long(size)))

    def _unmap(self) -> None:
        if self._at[0]:
            self._libc.munmap(self._at[0], self._at[2])
        self._at = 0, 0, 0

    def _drop(self) -> None:
        self._unmap()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        """Close all."""
        self._drop()
        for end in self._pipe:
            os.close(end)
        self._vm.close()


class _OfModel:
    """The model's file."""

    def __init__(self, flags: int) -> None:
        self._known = flags
        self.holes: set[int] = set()
        self._file: GuestMemfd | None = None
        self._host: HostMapping | None = None

    def answer(self, step: Step) -> tuple[int, bytes]:
        """What the kernel should answer."""
        try:
            if self._file is None and step.kind not in {"create", "read", "write"}:
                return -errno.EBADF, b""
            return getattr(self, f"_{step.kind}")(*step.args)  # type: ignore[no-any-return]
        except GuestMemfdError as error:
            return -(error.errno or 0), b""

    def _create(self, size: int, flags: int) -> tuple[int, bytes]:
        self.close()
        self._file = GuestMemfd(
            size, flags, states="vm-attributes", attributes=VmMemoryAttributes(0), known=self._known, private_vm=False
        )
        return 0, b""

    def _fallocate(self, mode: int, offset: int, length: int) -> tuple[int, bytes]:
        assert self._file is not None
        self._file.fallocate(mode, offset, length)
        if mode & 2:
            self.holes |= set(range(offset // PAGE_SIZE, min((offset + length) // PAGE_SIZE, _PAGES)))
        return 0, b""

    def _map(self, shared: int, offset: int, length: int) -> tuple[int, bytes]:
        assert self._file is not None
        host = self._file.mmap(offset, length, shared=bool(shared))
        if self._host is not None:
            self._host.close()
        self._host = host
        return 0, b""

    def _place(self, offset: int) -> int | None:
        host = self._host
        return offset - host.offset if host is not None and host.offset <= offset < host.offset + host.size else None

    def _read(self, offset: int) -> tuple[int, bytes]:
        place = self._place(offset)
        if place is None or self._host is None:
            return 1, b""
        return 0, self._host.read(place, 8)

    def _write(self, offset: int, value: int) -> tuple[int, bytes]:
        place = self._place(offset)
        if place is None or self._host is None:
            return 1, b""
        self._host.write(place, value.to_bytes(8, "little"))
        return 0, b""

    def _file_read(self) -> tuple[int, bytes]:
        return -errno.EINVAL, b""

    def _file_write(self) -> tuple[int, bytes]:
        return -errno.EINVAL, b""

    def _truncate(self, size: int) -> tuple[int, bytes]:
        del size
        return -errno.EINVAL, b""

    def close(self) -> None:
        """Close all."""
        if self._host is not None:
            self._host.close()
        if self._file is not None:
            self._file.close()
        self._host = self._file = None
        self.holes.clear()


@dataclass(slots=True)
class FileOutcome:
    """What a comparison came to: steps that agreed, and the first that did not, with the steps before it."""

    steps: int = 0
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)
    divergence: str = ""
    program: list[Step] = field(default_factory=list)
    """Of a divergence: the shortest beginning of a program that shows it."""

    def checked(self) -> list[str]:
        """Names of the promises of which every case was met."""
        return [promise.name for promise in FILE_PROMISES if all(self.seen[case] for case in promise.cases)]


def replay_steps(kernel: Kernel, steps: list[Step], flags: int = 3) -> FileOutcome:
    """Carry ``steps`` out on both, up to the first that differs."""
    outcome, real, model = FileOutcome(), _OfKernel(kernel), _OfModel(flags)
    program: list[Step] = []
    try:
        for step in steps:
            program = [step] if step.kind == "create" else [*program, step]
            answered, expected = real.answer(step), model.answer(step)
            if answered != expected:
                outcome.divergence = f"{step}: the kernel answers {answered}, the model {expected}"
                outcome.program = program
                return outcome
            outcome.steps += 1
            outcome.seen[step.kind, -answered[0]] += 1
            if step.kind == "read" and step.args[0] // PAGE_SIZE in model.holes and answered == (0, bytes(8)):
                outcome.seen["read after a hole", 0] += 1
    finally:
        real.close()
        model.close()
    return outcome


def conform_files(
    kernel: Kernel, *, steps: int, seed: int, flags: int = 3, stop: Callable[[], bool] = lambda: False
) -> FileOutcome:
    """Compare ``steps`` random steps; GuestmemError without guest_memfd. ``flags``: those that the kernel knows."""
    whole = FileOutcome()
    for block in range(-(-steps // 500)):
        if stop():
            break
        found = replay_steps(kernel, draw_steps(seed * 10_007 + block, min(500, steps - whole.steps)), flags)
        whole.steps += found.steps
        whole.seen.update(found.seen)
        if found.divergence:
            whole.divergence, whole.program = found.divergence, found.program
            break
    if whole.steps >= 100 and not whole.seen["create", 0] and not whole.divergence:
        raise GuestmemError("conform: the kernel makes no guest_memfd")
    return whole
