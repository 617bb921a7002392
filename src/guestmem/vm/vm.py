"""A VM: memory, vCPUs, dirty logs, on the software engine or on ``/dev/kvm``."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, cast, overload

from ..abi.arguments import U16_MAX, U32_MAX, shown, whole
from ..abi.checks import Host
from ..abi.memory_attributes import MemoryAttributes
from ..abi.structures import MAX_VCPU_IDS, MemoryCap, MemoryIoctl
from ..abi.versions import KernelVersion, version_of
from ..errors import GuestMemfdError, MemslotError, UsageError
from ..interrupts import held
from ..units import PAGE_SIZE
from .arguments import argument_of, count_of, flags_of, request_of, ring_bytes_of
from .backends import Backend, ClosedBackend, SoftBackend, enable
from .logs import Logs
from .memory import Memory
from .protocol import Vcpu

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from ..abi.model import KvmModel
    from ..engines.kvm import KvmEngine
    from ..engines.soft import SoftEngine
    from ..gmem import GuestMemfd
    from .guest_memfd import File, KernelGuestMemfd
    from .map import Map

    _E_co = TypeVarWithDefault(
        "_E_co", covariant=True, bound="SoftEngine | KvmEngine", default="SoftEngine | KvmEngine"
    )
    _M_co = TypeVarWithDefault("_M_co", covariant=True, bound="KvmModel | None", default="KvmModel | None")
else:
    _E_co, _M_co = TypeVar("_E_co"), TypeVar("_M_co")

__all__ = ["Vm"]

_ENGINES = ("soft", "kvm")


class Vm(Logs, Generic[_E_co, _M_co]):
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

    @overload
    def __init__(
        self: Vm[SoftEngine, KvmModel],
        vcpus: int = 1,
        *,
        engine: Literal["soft"] = "soft",
        smm: bool = False,
        version: str | KernelVersion = "6.18",
        word_bits: int = 64,
        ring_entries: int = 0,
        manual_protect: bool = False,
        initially_set: bool = False,
        cores: int | None = None,
        private_memory: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self: Vm[KvmEngine, None],
        vcpus: int = 1,
        *,
        engine: Literal["kvm"],
        smm: bool = False,
        ring_entries: int = 0,
        manual_protect: bool = False,
        initially_set: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        vcpus: int = 1,
        *,
        engine: str,
        smm: bool = False,
        version: str | KernelVersion = "6.18",
        word_bits: int = 64,
        ring_entries: int = 0,
        manual_protect: bool = False,
        initially_set: bool = False,
        cores: int | None = None,
        private_memory: bool = False,
    ) -> None: ...

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
        vcpus = count_of("vcpus", vcpus, 1, MAX_VCPU_IDS)
        ring_bytes = ring_bytes_of(ring_entries)
        self._backend: Backend
        if engine == "soft":
            if not isinstance(version, KernelVersion):
                version = version_of(str(version))
            word_bits = count_of("word_bits", word_bits, 32, 64)
            if cores is not None:
                cores = count_of("cores", cores, 1, U16_MAX)
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
        self._harvested = []
        self._closed = False
        self._now = self._backend
        _all.add(self)

    @functools.cached_property
    def map(self) -> Map:
        """A memory map of this VM: say what memory looks like, and slots follow (docs/vmm.md). Made on first use."""
        from .map import Map

        return Map(self)

    @property
    def engine(self) -> _E_co:
        """The engine: loads for vCPU threads, counts, pauses, kicks; or the kernel's VM (``KvmEngine.vm``)."""
        return cast("_E_co", self._backend.engine)

    @property
    def model(self) -> _M_co:
        """The software engine's model of KVM's ABI (accounting, generation, capabilities); None on the kernel."""
        return cast("_M_co", getattr(self._backend, "model", None))

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
            request = request_of(request)
        return self._now.ioctl(request, argument if type(argument) is bytes else argument_of(argument))

    @overload
    def create_guest_memfd(
        self: Vm[SoftEngine, Any],
        size: int,
        flags: int | None = None,
        *,
        states: str | None = None,
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
    ) -> GuestMemfd: ...

    @overload
    def create_guest_memfd(self: Vm[KvmEngine, Any], size: int, flags: int | None = None) -> KernelGuestMemfd: ...

    @overload
    def create_guest_memfd(
        self,
        size: int,
        flags: int | None = None,
        *,
        states: str | None = None,
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
    ) -> File: ...

    def create_guest_memfd(
        self,
        size: int,
        flags: int | None = None,
        *,
        states: str | None = None,
        folio_size: int = PAGE_SIZE,
        joins: bool = True,
    ) -> File:
        """KVM_CREATE_GUEST_MEMFD: a file of ``size`` bytes for slots of this VM (``Memory.create(guest_memfd=…)``).

        ``flags``: MMAP 1, INIT_SHARED 2; unless given, all that this VM's kernel knows (where the VM has private
        memory without INIT_SHARED: all of it is private at first). On the software engine a
        ``gmem.GuestMemfd`` (docs/gmem.md), whose ``states`` are those of ``version``: UsageError for others; on the
        kernel its ``fd``, with ``mmap``, ``fallocate`` and ``punch``. It is closed with the VM. MemslotError: EINVAL
        for size and flags, ENOTTY where there are none, ENOMEM.

        >>> from guestmem.vm import Read, Write
        >>> with Vm(private_memory=True) as vm:
        ...     file = vm.create_guest_memfd(0x4000)
        ...     vm.set_memory_attributes(0x100000, 0x4000, 8)
        ...     _ = vm.memory.create(0, gpa=0x100000, size=0x4000, guest_memfd=file)
        ...     vm.vcpus[0].load([Write(0x100000, b"ours", private=True), Read(0x100000, 4)])
        ...     vm.vcpus[0].run()
        MemoryFault(flags=0, gpa=1048576, size=4096)
        """
        return self._now.create_guest_memfd(whole("size", size), flags_of(flags), states, folio_size, joins)

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: the VM's, for files whose states are ``vm-attributes``; PRIVATE is 8.

        GuestMemfdError: ENOTTY where files have attributes; EINVAL where the VM has no private memory, and for ranges.
        """
        self._open()
        asked = MemoryAttributes(whole("gpa", gpa), whole("size", size), whole("attributes", attributes))
        try:
            self.ioctl(MemoryIoctl.SET_MEMORY_ATTRIBUTES, asked.pack())
        except MemslotError as error:
            raise GuestMemfdError(error.errno or errno.EINVAL, str(error).partition(": ")[2]) from None

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: 0 for what there is not."""
        return self.ioctl(MemoryIoctl.CHECK_EXTENSION, whole("cap", cap, U32_MAX))

    def check(self) -> None:
        """Raise InvariantError if slots, logs and accounting do not agree. O(n)."""
        if self._closed:
            return
        with self._backend.section:
            if isinstance(self._backend, SoftBackend):
                self._backend.model.check()
                self._backend.engine.files.check()
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

    def __enter__(self) -> Self:
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
