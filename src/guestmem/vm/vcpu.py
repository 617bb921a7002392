"""A vCPU of the software engine that carries out accesses one by one, and exits as KVM's does on x86.

For vCPUs in threads that keep touching memory while it changes, see ``engines.soft``; this one is for looking at single
exits, and for dirty logs that say exactly what was written. Source of the outcomes: Linux 6.18, ``arch/x86/kvm``
(``kvm_handle_noslot_fault()``, ``emulator_read_write()``, ``handle_emulation_failure()``).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..abi.arguments import content_of, whole
from ..abi.model import KvmModel
from ..abi.userfault import userfault_access
from ..errors import CapabilityError, GuestMemfdError, MemoryFaultError, MemslotError, UsageError
from ..interrupts import held
from ..memslots import Slot
from ..units import PAGE_SIZE
from .accesses import Access, Fetch, Read, Write
from .exits import DirtyRingFull, Exit, Hlt, InternalError, MemoryFault, Mmio
from .memory import Memory

if TYPE_CHECKING:
    from ..engines.soft.files import Files

__all__ = ["SoftVcpu"]

_FRAGMENT = 8
_EMULATION = 1
_OFTEN = 64


class SoftVcpu:
    """vCPU ``index`` of a VM on the software engine. ``smm``: it is in system management mode (address space 1).

    ``load`` gives it accesses, ``run`` carries them out until one exits; after the last one it halts. Reads that exited
    are answered by ``answer`` before the next ``run``. ``values`` is what it read.
    """

    def __init__(self, model: KvmModel, memory: Memory, index: int, files: Files) -> None:
        self._model, self._memory, self.index, self._files = model, memory, index, files
        self.smm = False
        self.values: list[bytes] = []
        self._steps: Iterator[Exit | None] = iter(())
        self._come: Exit | None = None
        """An exit that an interrupted run did not hand out."""
        self._left: tuple[Access, ...] = ()
        self._done = 0
        """Of them."""
        self._asked: Mmio | None = None
        self._answer = b""
        self._slot: Slot | None = None
        """Of the last look."""
        self._runner = 0

    def load(self, accesses: Iterable[Access]) -> None:
        """What to do next, instead of what was left to do. UsageError for what is no access."""
        self._left, self._done = tuple(_checked(accesses)), 0
        self.values = []
        self._asked = self._come = None
        self._steps = self._work()

    def load_code(self, code: Any, gpa: int, *, mode: str = "real", tables: int | None = None) -> None:
        """CapabilityError: the software engine carries out accesses, not instructions."""
        del code, tables
        raise CapabilityError(f"engine soft: {mode} mode code at {gpa}: it runs accesses only (use load)")

    def registers(self) -> dict[str, int]:
        """CapabilityError: see ``load_code``."""
        raise CapabilityError("engine soft: its vCPUs have no registers; they run accesses only")

    def set_registers(self, values: Any = None, /, **registers: int) -> None:
        """CapabilityError: see ``load_code``."""
        del values, registers
        raise CapabilityError("engine soft: its vCPUs have no registers; they run accesses only")

    def run(self) -> Exit:
        """Go on until an exit: ``Mmio`` (fragments of at most 8 bytes within a page), ``InternalError``, …, ``Hlt``.

        ``MemoryFault``, with which KVM_RUN fails: an access of the other kind than a guest_memfd's page, a private one
        where there is none, a file that is closed, a page that is poisoned, one that is missing by its slot's userfault
        bitmap (flag 16). MemslotError (EFAULT) where a slot's host memory, or that bitmap, is not mapped, as KVM_RUN
        fails. After either, the next run tries again.
        """
        self._memory.memslots  # noqa: B018 - EBADF if the VM is closed
        me = threading.get_ident()
        if self._runner not in (0, me):  # a mark of our own was left by an interrupt
            raise UsageError(f"vCPU {self.index}: another thread runs it")
        if self._asked is not None and not self._asked.is_write and len(self._answer) != self._asked.size:
            raise UsageError(f"vCPU {self.index}: the read of {self._asked.size} bytes was not answered")
        self._runner = me
        came: Exit | None = None
        try:
            while came is None:
                with held:  # an access is carried out, or not
                    came, self._come = self._come or next(self._steps, Hlt()), None
            self._runner = 0
            return came  # noqa: TRY300 - an interrupt here is one before it
        except MemslotError:
            self._asked = None
            self._steps = self._work()
            self._runner = 0
            raise
        except BaseException:  # Ctrl-C, when held is left: the next run gives what came
            with held:
                self._come = came
                self._runner = 0
            raise

    def answer(self, exit_: Exit, content: bytes) -> None:
        """Answer a read that exited, before the next ``run``."""
        self._memory.memslots  # noqa: B018 - EBADF if the VM is closed
        if not isinstance(exit_, Mmio) or exit_ != self._asked or exit_.is_write:
            raise UsageError(f"vCPU {self.index}: {exit_} is not the read that waits for an answer")
        if len(content) != exit_.size:
            raise UsageError(f"content: {len(content)} bytes; the exit asks for {exit_.size}")
        self._answer = content

    # -- one access --------------------------------------------------------------------------------------------------

    def _work(self) -> Iterator[Exit | None]:
        """Exits; None now and then, where it may be interrupted.

        What is behind a guest address is looked up again after each exit: what the caller does then is its business.
        """
        while self._done < len(self._left):
            if self._done % _OFTEN == _OFTEN - 1:
                yield None
            match self._left[self._done]:
                case Fetch(gpa, private):
                    # Run again, it fails again.
                    while not isinstance(found := self._look(gpa, write=False, private=private), int):
                        yield InternalError(_EMULATION, 0, b"") if found is None else found
                case Read(gpa, size, private):
                    yield from self._read(gpa, size, private)
                case Write(gpa, content, private):
                    yield from self._write(gpa, content, private)
            self._done += 1

    def _look(self, gpa: int, *, write: bool, private: bool) -> int | MemoryFault | None:
        """Host address behind a byte; None where the access is emulated: no slot, or a write to a read-only one.

        MemoryFault where memory is of the other kind. Who means to use the address holds an era from before the look.
        """
        gfn = gpa // PAGE_SIZE
        slot = self._slot = self._model.memslots.find(gfn, int(self.smm))
        try:
            if self._model.userfaults and (came := userfault_access(self._model, gpa, int(self.smm))) is not None:
                return MemoryFault(came.flags | 8 * private, came.gpa, came.size)
            if not private and self._model.attributes.is_private(gfn):
                return MemoryFault(0, gfn * PAGE_SIZE, PAGE_SIZE)  # whatever slot is there, or none
            if slot is not None and slot.guest_memfd:
                file = self._files.get(slot.guest_memfd)
                assert file is not None, "a slot names a file that the VM has"
                return file.guest_fault(slot, gfn, private=private).address + gpa % PAGE_SIZE
        except (MemoryFaultError, GuestMemfdError):
            pass
        else:
            if not private:
                return None if slot is None or (write and slot.readonly) else slot.hva(gfn) + gpa % PAGE_SIZE
        return MemoryFault(8 * private, gfn * PAGE_SIZE, PAGE_SIZE)

    def _read(self, gpa: int, size: int, private: bool) -> Iterator[Exit]:
        value = b""
        for at, part in _by_page(gpa, size):
            while isinstance(content := self._load(at, part, private), MemoryFault):
                yield content
            if content is not None:
                value += content
                continue
            for fragment, length in _fragments(at, part):
                yield self._exit(Mmio(fragment, length, False, b""))
                value += self._answer
        self.values.append(value)
        self._asked = None

    def _write(self, gpa: int, content: bytes, private: bool) -> Iterator[Exit]:
        done = 0
        for at, part in _by_page(gpa, len(content)):
            piece = content[done : done + part]
            done += part
            while isinstance(stored := self._store(at, piece, private), MemoryFault | DirtyRingFull):
                yield stored
            if not stored:
                for fragment, length in _fragments(at, part):
                    begin = fragment - at
                    yield self._exit(Mmio(fragment, length, True, piece[begin : begin + length]))
                continue
            slot, page = self._slot, at // PAGE_SIZE
            if slot is not None and self._model.dirty.mark(slot.key, page - slot.base_gfn, self.index):
                yield DirtyRingFull()
        self._asked = None

    def _load(self, gpa: int, size: int, private: bool) -> bytes | MemoryFault | None:
        """What is in memory there; None where the access is emulated. Memory stays mapped meanwhile."""
        era = self._memory.era
        host = self._look(gpa, write=False, private=private)
        found = self._memory.host_read(host, size) if isinstance(host, int) else host
        del era
        return found

    def _store(self, gpa: int, content: bytes, private: bool) -> bool | MemoryFault | DirtyRingFull:
        """The same to write: whether it was, or what is in the way."""
        era = self._memory.era
        host = self._look(gpa, write=True, private=private)
        ring = self._model.dirty.rings.get(self.index)
        if isinstance(host, int):
            if ring is not None and ring.soft_full:
                return DirtyRingFull()
            self._memory.host_write(host, content)
        del era
        return host if isinstance(host, MemoryFault) else host is not None

    def _exit(self, exit_: Mmio) -> Mmio:
        self._asked, self._answer = exit_, b""
        return exit_

    def __repr__(self) -> str:
        return f"SoftVcpu({self.index}{', smm' if self.smm else ''})"


def _checked(accesses: Any) -> Iterator[Access]:
    """The accesses, if that is what they are, in guest memory; UsageError, or MemslotError (EINVAL)."""
    try:
        given = list(accesses)
    except TypeError:
        raise UsageError(f"accesses: {type(accesses).__name__} is no sequence of accesses") from None
    for place, access in enumerate(given):
        name = f"accesses[{place}]"
        match access:
            case Fetch(gpa, private):
                yield Fetch(whole(f"{name}.gpa", gpa), bool(private))
                continue
            case Read(gpa, size, private):
                size = whole(f"{name}.size", size)
                made: Read | Write = Read(whole(f"{name}.gpa", gpa), size, bool(private))
            case Write(gpa, content, private):
                flat = content_of(f"{name}.content", content)
                made, size = Write(whole(f"{name}.gpa", gpa), flat, bool(private)), len(flat)
            case _:
                raise UsageError(f"{name}: {access!r} is no Fetch, Read or Write")
        if not size or made.gpa + size > 1 << 64:
            raise MemslotError(
                errno.EINVAL, f"{name}: [{made.gpa:#x}, {made.gpa + size:#x}) is no range of guest memory"
            )
        yield made


def _by_page(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """Parts of an access, page by page.

    >>> list(_by_page(0xFFE, 4))
    [(4094, 2), (4096, 2)]
    """
    while size:
        part = min(size, PAGE_SIZE - gpa % PAGE_SIZE)
        yield gpa, part
        gpa, size = gpa + part, size - part


def _fragments(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """What KVM exits with for ``size`` bytes of a page: eight bytes at most."""
    for at in range(0, size, _FRAGMENT):
        yield gpa + at, min(_FRAGMENT, size - at)
