"""``/dev/kvm``: opening it, with one clear line for each way in which it can be absent, and what the host's KVM is.

A figure or a verdict from a real kernel means something only beside the module that gave it: ``Host``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ...abi.structures import MemoryCap, MemoryIoctl
from ...errors import CapabilityError, MemslotError
from .abi import API_VERSION, Ioctl
from .capabilities import Cap

__all__ = ["DEVICE", "REDELIVERING", "Device", "Host", "host", "left_alone", "unusable"]

DEVICE = "/dev/kvm"
REDELIVERING = frozenset({"kvm_intel", "kvm_amd"})
"""Backends that deliver an event again after its delivery failed (KVM_INTERNAL_ERROR_DELIVERY_EV), by their source.

They take what was being delivered from the IDT-vectoring information, and inject it at the next entry (Linux 6.18,
``vmx_complete_interrupts()``, ``svm_complete_interrupts()``). Not run.
"""
_MODULES = Path("/sys/module")
_TDP = (("kvm_intel", "ept"), ("kvm_amd", "npt"))


@dataclass(frozen=True, slots=True)
class Host:
    """The KVM of this machine: what must stand beside every figure that comes from it."""

    kernel: str
    module: str
    """kvm_intel, kvm_amd, or another backend; "" if none is loaded."""
    tdp: bool
    """Whether the hardware walks two dimensions of tables (EPT, NPT). Without it, KVM shadows the guest's tables."""
    tdp_mmu: bool
    mmio_caching: bool
    unrestricted_guest: bool = True
    """Whether the hardware runs real mode: kvm_intel without this emulates it."""

    @property
    def software(self) -> bool:
        """Whether the backend runs guests without the hardware's virtualization."""
        return self.module not in {"kvm_intel", "kvm_amd"}

    def __str__(self) -> str:
        tdp = ("TDP, TDP MMU" if self.tdp_mmu else "TDP, no TDP MMU") if self.tdp else "no TDP (shadow paging)"
        caching = "on" if self.mmio_caching else "off"
        return f"Linux {self.kernel}, {self.module or 'no KVM module'}, {tdp}, mmio_caching {caching}"


def _parameter(modules: Path, module: str, name: str) -> bool:
    try:
        return (modules / module / "parameters" / name).read_text().strip() in {"Y", "1"}
    except OSError:
        return False


def host(modules: Path = _MODULES) -> Host:
    """What the host's KVM is, read from ``/sys/module``.

    >>> host(Path("/nonexistent")).module
    ''
    """
    names = sorted(path.name for path in modules.glob("kvm_*") if path.is_dir())
    tdp = any(name in names and _parameter(modules, name, parameter) for name, parameter in _TDP)
    return Host(
        kernel=platform.release(),
        module=names[0] if names else "",
        tdp=tdp,
        tdp_mmu=tdp and _parameter(modules, "kvm", "tdp_mmu"),
        mmio_caching=_parameter(modules, "kvm", "mmio_caching"),
        unrestricted_guest="kvm_intel" not in names or _parameter(modules, "kvm_intel", "unrestricted_guest"),
    )


class Device:
    """An open ``/dev/kvm``. Raises CapabilityError, in one line that says what is missing.

    ``path`` and ``machine`` are for tests of these lines.
    """

    def __init__(self, path: str = DEVICE, *, machine: str = "") -> None:
        machine = machine or platform.machine()
        if machine != "x86_64":
            raise CapabilityError(f"engine kvm: this machine is {machine}; its guests are x86_64")
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise CapabilityError(f"engine kvm: {path}: {_why(error.errno or 0)}") from None
        try:
            version = fcntl.ioctl(self.fd, Ioctl.GET_API_VERSION, 0)
        except OSError as error:
            self.close()
            raise CapabilityError(f"engine kvm: {path} is no KVM device: {error.strerror}") from None
        if version != API_VERSION:
            self.close()
            raise CapabilityError(f"engine kvm: {path} speaks KVM API {version}; {API_VERSION} is needed")

    def check_extension(self, cap: Cap | MemoryCap | int) -> int:
        """What this kernel says of a capability; 0 if it does not have it."""
        if self.fd < 0:
            raise MemslotError(errno.EBADF, "vm: it is closed")
        try:
            return fcntl.ioctl(self.fd, MemoryIoctl.CHECK_EXTENSION, int(cap))
        except OSError as error:
            raise CapabilityError(f"engine kvm: KVM_CHECK_EXTENSION({int(cap)}): {error.strerror}") from None

    def need(self, cap: Cap | MemoryCap) -> int:
        """As ``check_extension``; CapabilityError if the kernel does not have it."""
        if not (value := self.check_extension(cap)):
            raise CapabilityError(f"engine kvm: this kernel has no KVM_CAP_{cap.name} ({platform.release()})")
        return value

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _why(number: int) -> str:
    if number == errno.ENOENT:
        if (_MODULES / "kvm").is_dir():
            return "no such file; the module kvm is there, the device node is not"
        return "no such file; load kvm_intel or kvm_amd (in a VM, nested virtualization must be on)"
    if number in {errno.EACCES, errno.EPERM}:
        return "no permission; be root or in the group that owns it (kvm)"
    if number in {errno.ENODEV, errno.ENXIO}:
        return "the file is there, but no module is behind it; load kvm_intel or kvm_amd"
    return os.strerror(number)


def left_alone() -> str:
    """What to say where ``GUESTMEM_KVM=0`` asks to leave the kernel's KVM alone; else ""."""
    return "engine kvm: GUESTMEM_KVM=0 leaves the kernel's KVM alone" if os.environ.get("GUESTMEM_KVM") == "0" else ""


def unusable() -> str:
    """Why the engine cannot be used on this machine, in one line; "" if it can."""
    if why := left_alone():
        return why
    try:
        with Device() as device:
            device.need(Cap.IMMEDIATE_EXIT)
            os.close(fcntl.ioctl(device.fd, Ioctl.CREATE_VM, 0))
    except CapabilityError as error:
        return str(error)
    except OSError as error:
        return f"engine kvm: {DEVICE} opens, but no VM can be made: {error.strerror}"
    return ""
