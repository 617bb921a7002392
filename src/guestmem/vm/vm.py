"""A VM: memory, vCPUs, dirty logs, on the software engine or on ``/dev/kvm``."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import operator
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..abi.arguments import U16_MAX, U32_MAX, content_of, hexadecimal, shown, whole
from ..abi.checks import Host
from ..abi.structures import MAX_VCPU_IDS, ClearDirtyLog, DirtyLog, MemoryCap, MemoryIoctl
from ..abi.versions import KernelVersion, version_of
from ..dirty.bitmap import as_array
from ..dirty.ring import ENTRY_BYTES, DirtyEntry, ring_size
from ..errors import CapabilityError, MemslotError, UsageError
from ..interrupts import held
from ..slot_key import SlotKey
from ..units import PAGE_SIZE
from .backends import Backend, ClosedBackend, SoftBackend, enable
from .memory import Memory
from .protocol import Vcpu

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .map import Map

__all__ = ["Vm"]

_ENGINES = ("soft", "kvm")


class Vm:
    """A VM with ``vcpus`` vCPUs and no memory; closed by ``close()`` or as a context manager.

    ``engine``: "soft" runs anywhere, "kvm" drives the kernel (CapabilityError, in one line, where it cannot).
    ``smm``: a second address space, as x86 has with SMM. ``ring_entries``: dirty rings of so many entries instead of
    bitmaps. ``manual_protect``: reading a log clears nothing, ``initially_set``: a new log has all pages.

    Of the software engine only: ``version``, whose answers it gives ("6.12", "6.18", "7.3"); ``word_bits`` of the
    machine word that pages are counted in; ``cores`` of its vCPU threads; ``private_memory``: whether the VM's type has
    it, so that pages of a guest_memfd can be private.

    Once it is closed, every call is MemslotError (EBADF).

    >>> from guestmem.vm import Write
    >>> with Vm() as vm:
    ...     _ = vm.memory.create(0, gpa=0, size=0x3000, flags=1)
    ...     vm.vcpus[0].load([Write(0x1004, b"abcd"), Write(0xFEE00000, b"x")])
    ...     vm.vcpus[0].run(), vm.vcpus[0].run()
    ...     vm.dirty_log(0).tolist(), int(vm.dirty_log(0).sum())
    (Mmio(gpa=4276092928, size=1, is_write=True, data=b'x'), Hlt())
    ([False, True, False], 0)
    """

    def __init__(
        self,
        vcpus: int = 1,
        *,
        engine: str = "soft",
        smm: bool = False,
        version: str | KernelVersion = "6.18",
        word_bits: int = 64,
        ring_entries: int = 0,
        manual_protect: bool = False,
        initially_set: bool = False,
        cores: int | None = None,
        private_memory: bool = False,
    ) -> None:
        if not isinstance(engine, str) or engine not in _ENGINES:
            raise UsageError(f"engine: {shown(engine)} is not one of {', '.join(_ENGINES)}")
        vcpus = _count("vcpus", vcpus, 1, MAX_VCPU_IDS)
        ring_bytes = _ring_bytes(ring_entries)
        self._backend: Backend
        if engine == "soft":
            if not isinstance(version, KernelVersion):
                version = version_of(str(version))
            word_bits = _count("word_bits", word_bits, 32, 64)
            if cores is not None:
                cores = _count("cores", cores, 1, U16_MAX)
            host = Host(
                version=version,
                address_spaces=2 if smm else 1,
                word_bits=word_bits,
                private_memory=private_memory,
            )
            self._backend = SoftBackend(vcpus, host, cores=cores)
        else:
            for name, given, default in (
                ("version", version, "6.18"),
                ("word_bits", word_bits, 64),
                ("cores", cores, None),
                ("private_memory", private_memory, False),
            ):
                if given != default:
                    raise UsageError(f"{name}: {given!r} is for engine soft; engine kvm is as this kernel is")
            from .kvm_backend import KvmBackend

            self._backend = KvmBackend(vcpus, ring_bytes=ring_bytes, address_spaces=2 if smm else 1)
        self._manual = manual_protect or initially_set
        try:
            if ring_bytes and engine == "soft":
                enable(self._backend, MemoryCap.DIRTY_LOG_RING, ring_bytes)
            if self._manual:
                enable(self._backend, MemoryCap.MANUAL_DIRTY_LOG_PROTECT2, 3 if initially_set else 1)
            self.memory = Memory(self._backend)
            self.vcpus: Sequence[Vcpu] = self._backend.make_vcpus(self.memory)
        except BaseException:
            self._backend.close()
            raise
        self.rings = bool(ring_bytes)
        self._harvested: list[DirtyEntry] = []
        """What a harvest took that was interrupted: the next one gives it."""
        self._closed = False
        self._now = self._backend
        """What answers calls: the backend until it is closed."""
        _all.add(self)

    @functools.cached_property
    def map(self) -> Map:
        """A memory map of this VM: say what memory looks like, and slots follow (docs/vmm.md). Made on first use."""
        from .map import Map

        return Map(self)

    @property
    def engine(self) -> Any:
        """The engine: loads for vCPU threads, counts, pauses, kicks; or the kernel's VM."""
        return self._backend.engine

    @property
    def model(self) -> Any:
        """The software engine's model of KVM's ABI (accounting, generation, capabilities); None on the kernel."""
        return getattr(self._backend, "model", None)

    @property
    def design(self) -> str:
        """The design that transactions use unless told otherwise; ``design_why`` says why.

        "atomic" on the software engine, "pause_if_overlap" on the kernel; others by name: ``Memory.transaction``.
        """
        return self._backend.design

    @property
    def design_why(self) -> str:
        """Why ``design`` is what it is."""
        return self._backend.why

    def ioctl(self, request: int, argument: bytes | bytearray | memoryview | int = 0) -> int:
        """A memory ioctl on the VM, as recorded: its structure as bytes, or the number or address that it takes.

        Returns what the kernel returns; MemslotError has its errno. Structures: ``abi.structures``.
        """
        if type(request) is not int or not 0 <= request <= U32_MAX:
            request = _request(request)
        return self._now.ioctl(request, argument if type(argument) is bytes else _argument(argument))

    def create_guest_memfd(
        self,
        size: int,
        flags: int | None = None,
        *,
        states: str = "attributes",
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
    ) -> Any:
        """KVM_CREATE_GUEST_MEMFD: a file of ``size`` bytes for slots of this VM (``Memory.create(guest_memfd=…)``).

        ``flags``: MMAP 1, INIT_SHARED 2; all that this VM's kernel knows unless given. On the software engine a
        ``gmem.GuestMemfd`` (docs/gmem.md), whose generation ``states`` names; on the kernel its ``fd``, with ``mmap``,
        ``fallocate`` and ``punch``. It is closed with the VM. MemslotError: EINVAL for size and flags, ENOTTY where
        there are none, ENOMEM.

        >>> from guestmem.vm import Read, Write
        >>> with Vm(private_memory=True) as vm:
        ...     file = vm.create_guest_memfd(0x4000)
        ...     _ = vm.memory.create(0, gpa=0x100000, size=0x4000, guest_memfd=file)
        ...     vm.vcpus[0].load([Write(0x100000, b"ours", private=True), Read(0x100000, 4)])
        ...     vm.vcpus[0].run()
        MemoryFault(flags=0, gpa=1048576, size=4096)
        """
        return self._now.create_guest_memfd(whole("size", size), _flags(flags), states, folio_size, joins)

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: the VM's, for files whose states are ``vm-attributes``; PRIVATE is 8.

        GuestMemfdError: EINVAL where the VM has no private memory, and for ranges. CapabilityError on the kernel.
        """
        self._open()
        if not isinstance(self._backend, SoftBackend):
            raise CapabilityError("engine kvm: set_memory_attributes: by ioctl, where the kernel has it")
        self._backend.attributes.set(whole("gpa", gpa), whole("size", size), whole("attributes", attributes))

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: 0 for what there is not."""
        return self.ioctl(MemoryIoctl.CHECK_EXTENSION, whole("cap", cap, U32_MAX))

    # -- dirty logs --------------------------------------------------------------------------------------------------

    def dirty_log(self, slot: int, as_id: int = 0) -> npt.NDArray[np.bool_]:
        """KVM_GET_DIRTY_LOG: a boolean a page, in a new array; the log is empty then, unless ``manual_protect``.

        MemslotError: ENOENT without a log, ENXIO with rings.
        """
        slot, as_id = whole("slot", slot, U16_MAX), whole("as_id", as_id, U16_MAX)
        there, buffer = None, b""
        try:
            with self._now.section:  # the slot keeps its size
                there = self._now.slot(slot, as_id)
                npages = 64 if there is None else there.npages  # the ioctl says what is wrong
                room = ctypes.create_string_buffer((npages + 63) // 64 * 8)
                log = DirtyLog(SlotKey(as_id, slot).word, 0, ctypes.addressof(room))
                self.ioctl(MemoryIoctl.GET_DIRTY_LOG, log.pack())
                buffer = room.raw
            array: npt.NDArray[np.bool_] = as_array(buffer, npages)
            return array  # noqa: TRY300 - an interrupt here is one before it
        except BaseException:  # Ctrl-C: nobody got it
            if there is not None and buffer and not self._manual:
                with self._now.section:
                    self._now.give_back(there, buffer)
            raise

    def clear_dirty_log(self, slot: int, pages: npt.ArrayLike, first_page: int = 0, as_id: int = 0) -> None:
        """KVM_CLEAR_DIRTY_LOG: forget the ``pages`` that are true, counted from ``first_page`` (a multiple of 64)."""
        import numpy as np

        slot, as_id = whole("slot", slot, U16_MAX), whole("as_id", as_id, U16_MAX)
        try:
            flags = np.asarray(pages, np.bool_)
        except (TypeError, ValueError):
            flags = np.zeros((), np.bool_)
        if flags.ndim != 1 or isinstance(pages, str | bytes):
            raise UsageError(f"pages: {type(pages).__name__} is not a sequence of booleans, one a page")
        bits = np.packbits(flags, bitorder="little").tobytes()
        held = ctypes.create_string_buffer(bits.ljust((len(flags) + 63) // 64 * 8 or 8, b"\0"))
        log = ClearDirtyLog(
            SlotKey(as_id, slot).word, len(flags), whole("first_page", first_page), ctypes.addressof(held)
        )
        self.ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, log.pack())

    def harvest(self) -> list[DirtyEntry]:
        """All entries of all vCPUs' dirty rings; ``reset_dirty_rings`` frees their room. UsageError without rings."""
        if not self.rings:
            raise UsageError("dirty rings: the VM was made without (ring_entries)")
        self._open()
        found: list[DirtyEntry] = []
        try:
            with self._now.section:
                found, self._harvested = self._harvested, []
                self._now.harvest(found)
            return found  # noqa: TRY300 - an interrupt here is one before it
        except BaseException:  # Ctrl-C: nobody got them
            with held:
                self._harvested = found + self._harvested
            raise

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: how many harvested entries were given back."""
        return self.ioctl(MemoryIoctl.RESET_DIRTY_RINGS)

    # -- ends and looks ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if slots, logs and accounting do not agree. O(n)."""
        if self._closed:
            return
        with self._backend.section:
            if self.model is not None:
                self.model.check()
                self.engine.files.check()
            else:
                self.memory.memslots.check()

    def close(self) -> None:
        """Stop vCPUs and free what the VM has; a second time, nothing. Views of its memory stay."""
        if self._closed:
            return
        self._backend.stop()  # Ctrl-C meanwhile: it is not closed, and can be
        with self._backend.section:  # no change is half done
            self._backend.end()
        self._backend.close()
        with self._backend.section:  # who looks at memory, to keep it, is done
            self.forget()

    def forget(self) -> None:
        """Be closed, without a word to engine or vCPUs: they are closed already, or a parent's (after fork)."""
        with held:
            self._closed = True
            self._now = _CLOSED
            self.memory.end(_CLOSED)

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self._closed

    def _open(self) -> None:
        if self._closed:
            raise MemslotError(errno.EBADF, "vm: it is closed")

    def __copy__(self) -> Vm:
        raise UsageError("vm: there is one of it; it cannot be copied")

    def __enter__(self) -> Vm:
        self._open()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _title(self) -> str:
        what = "closed" if self._closed else _several(len(self.memory), "slot")
        return f"Vm on engine {self.engine.name}, {_several(len(self.vcpus), 'vCPU')}, {what}"

    def __repr__(self) -> str:
        return self._title() if self._closed else f"{self._title()}\n{self.memory!r}"

    def _repr_html_(self) -> str:
        title = f"<p>{self._title()}</p>"
        return title if self._closed else title + self.memory._repr_html_()


_CLOSED: Any = ClosedBackend()
_all: weakref.WeakSet[Vm] = weakref.WeakSet()


def _close_in_a_child() -> None:
    """After fork: a VM's vCPUs, and who runs them, are the parent's. Here it is closed, and nobody is told."""
    for vm in list(_all):
        with contextlib.suppress(Exception):
            vm.forget()


os.register_at_fork(after_in_child=_close_in_a_child)


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _count(name: str, value: Any, least: int, most: int) -> int:
    """A number in ``least..most``; UsageError for anything else."""
    try:
        number = int(operator.index(value))
    except TypeError:
        raise UsageError(f"{name}: {shown(value)} is not a whole number") from None
    if number < least:
        raise UsageError(f"{name}: {_shown(number)} is not at least {least}")
    if number > most:
        raise UsageError(f"{name}: {_shown(number)} is more than {most}")
    return number


def _shown(number: int) -> str:
    """In decimal, which Python refuses from some thousand digits on."""
    return str(number) if abs(number) >> 64 == 0 else hexadecimal(number)


def _ring_bytes(entries: Any) -> int:
    """Size of a dirty ring; MemslotError (EINVAL, E2BIG) as the kernel refuses it, where it is the same everywhere."""
    size = _count("ring_entries", entries, 0, U32_MAX) * ENTRY_BYTES
    if size:
        try:
            ring_size(size)
        except MemslotError as error:
            raise MemslotError(error.errno or 0, f"ring_entries: {entries}: {str(error).partition(': ')[2]}") from None
    return size


def _flags(given: Any) -> int | None:
    return None if given is None else whole("flags", given)


def _request(given: Any) -> int:
    """The number of an ioctl; ENOTTY for one that has more than 32 bits, UsageError for what is no number."""
    try:
        number = int(operator.index(given))
    except TypeError:
        raise UsageError(f"request: {shown(given)} is not a whole number") from None
    if not 0 <= number <= U32_MAX:
        raise MemslotError(errno.ENOTTY, f"ioctl: {hexadecimal(number)} is not in 0..{U32_MAX:#x}")
    return number


def _argument(given: Any) -> bytes | int:
    """What an ioctl is given, as bytes or as the number or address that it is."""
    try:
        number: int = operator.index(given)
    except TypeError:
        return content_of("argument", given)
    if not -1 << 63 <= number < 1 << 64:
        raise UsageError(f"argument: {hexadecimal(number)} is no number of 64 bits")
    return number
