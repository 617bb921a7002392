"""A VM: memory, vCPUs, dirty logs, on the software engine or on ``/dev/kvm``."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from ..dirty.bitmap import as_array
from ..dirty.ring import ENTRY_BYTES, DirtyEntry
from ..errors import UsageError
from ..memslots.abi import ClearDirtyLog, DirtyLog, MemoryCap, MemoryIoctl
from ..memslots.checks import Host
from ..memslots.versions import KernelVersion, version_of
from .backends import Backend, KvmBackend, SoftBackend, enable
from .memory import Memory

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Vm"]

_ENGINES = ("soft", "kvm")


class Vm:
    """A VM with ``vcpus`` vCPUs and no memory; closed by ``close()`` or as a context manager.

    ``engine``: "soft" runs anywhere, "kvm" drives the kernel (CapabilityError, in one line, where it cannot).
    ``smm``: a second address space, as x86 has with SMM. ``version``: whose answers the software engine gives ("6.12",
    "6.18", "7.3"). ``word_bits``: of the machine word that pages are counted in. ``ring_entries``: dirty rings of so
    many entries instead of bitmaps. ``manual_protect``: reading a log clears nothing, ``initially_set``: a new log has
    all pages. ``cores``: of the software engine's vCPU threads.

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
    ) -> None:
        if engine not in _ENGINES:
            raise UsageError(f"engine: {engine!r} is not one of {', '.join(_ENGINES)}")
        self._backend: Backend
        if engine == "soft":
            known = version if isinstance(version, KernelVersion) else version_of(version)
            host = Host(version=known, address_spaces=2 if smm else 1, word_bits=word_bits)
            self._backend = SoftBackend(vcpus, host, cores=cores)
            if ring_entries:
                enable(self._backend, MemoryCap.DIRTY_LOG_RING, ring_entries * ENTRY_BYTES)
        else:
            self._backend = KvmBackend(vcpus, ring_bytes=ring_entries * ENTRY_BYTES)
        self._manual = manual_protect or initially_set
        try:
            if self._manual:
                enable(self._backend, MemoryCap.MANUAL_DIRTY_LOG_PROTECT2, 3 if initially_set else 1)
            self.memory = Memory(self._backend)
            self.vcpus: list[Any] = self._backend.make_vcpus(self.memory)
        except BaseException:
            self._backend.close()
            raise
        self.rings = bool(ring_entries)

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

        On the kernel it is judged at each transaction: exit_retry where that is safe, else pause_if_overlap.
        """
        return self._backend.design

    @property
    def design_why(self) -> str:
        """Why ``design`` is what it is."""
        return self._backend.why

    def ioctl(self, request: int, argument: bytes | bytearray | memoryview | int = 0) -> int:
        """A memory ioctl on the VM, as recorded: its structure as bytes, or the number or address that it takes.

        Returns what the kernel returns; MemslotError has its errno. Structures: ``memslots.abi``.
        """
        return self._backend.ioctl(request, argument if isinstance(argument, (bytes, int)) else bytes(argument))

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on the VM: 0 for what there is not."""
        return self.ioctl(MemoryIoctl.CHECK_EXTENSION, cap)

    # -- dirty logs --------------------------------------------------------------------------------------------------

    def dirty_log(self, slot: int, as_id: int = 0) -> npt.NDArray[np.bool_]:
        """KVM_GET_DIRTY_LOG: a boolean a page, in a new array; the log is empty then, unless ``manual_protect``.

        MemslotError: ENOENT without a log, ENXIO with rings.
        """
        held = self.memory.get(slot, as_id)
        npages = 64 if held is None else held.npages  # the ioctl says what is wrong
        buffer = ctypes.create_string_buffer((npages + 63) // 64 * 8)
        log = DirtyLog(as_id << 16 | slot, 0, ctypes.addressof(buffer))
        self.ioctl(MemoryIoctl.GET_DIRTY_LOG, log.pack())
        array: npt.NDArray[np.bool_] = as_array(buffer.raw, npages)
        return array

    def clear_dirty_log(self, slot: int, pages: npt.ArrayLike, first_page: int = 0, as_id: int = 0) -> None:
        """KVM_CLEAR_DIRTY_LOG: forget the ``pages`` that are true, counted from ``first_page`` (a multiple of 64)."""
        import numpy as np

        flags = np.asarray(pages, np.bool_)
        bits = np.packbits(flags, bitorder="little").tobytes()
        held = ctypes.create_string_buffer(bits.ljust((len(flags) + 63) // 64 * 8 or 8, b"\0"))
        log = ClearDirtyLog(as_id << 16 | slot, len(flags), first_page, ctypes.addressof(held))
        self.ioctl(MemoryIoctl.CLEAR_DIRTY_LOG, log.pack())

    def harvest(self) -> list[DirtyEntry]:
        """All entries of all vCPUs' dirty rings; ``reset_dirty_rings`` frees their room. UsageError without rings."""
        if not self.rings:
            raise UsageError("dirty rings: the VM was made without (ring_entries)")
        if self.model is not None:
            return [entry for ring in self.model.dirty.rings.values() for entry in ring.harvest()]
        pairs = [pair for vcpu in self.vcpus for pair in vcpu.vcpu.harvest()]
        return [DirtyEntry(slot & 0xFFFF, offset, slot >> 16) for slot, offset in pairs]

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: how many harvested entries were given back."""
        return self.ioctl(MemoryIoctl.RESET_DIRTY_RINGS)

    # -- ends and looks ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise InvariantError if slots, logs and accounting do not agree. O(n)."""
        if self.model is not None:
            self.model.check()
        else:
            self.memory.memslots.check()

    def close(self) -> None:
        """Stop vCPUs and free what the VM has. Views of its memory stay."""
        self._backend.close()

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _title(self) -> str:
        vcpus = f"{len(self.vcpus)} vCPU{'s' if len(self.vcpus) != 1 else ''}"
        return f"Vm on engine {self.engine.name}, {vcpus}, {len(self.memory)} slots"

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.memory!r}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>{self.memory._repr_html_()}"
