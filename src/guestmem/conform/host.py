"""What of this machine decides a kernel's answers, found without asking KVM for what is then compared with it.

From ``/proc``, ``/sys`` and the configuration that the kernel was built with; where there is none to read, its symbols
say which parts were built in.
"""

from __future__ import annotations

import gzip
import platform
from pathlib import Path

from ..abi.checks import Host
from ..abi.structures import MAX_VCPUS
from ..abi.versions import version_of
from ..engines.kvm.device import host as kvm_host

__all__ = ["BuiltIn", "built_in", "host_of"]

_ROOT = Path("/")
_VCPU_IDS = 4
"""vCPU ids for each vCPU that there may be: ``KVM_VCPU_ID_RATIO`` of x86."""


class BuiltIn:
    """Options of a kernel's configuration, from its lines; or whether it has a function, from its symbols.

    >>> kernel = BuiltIn(["CONFIG_KVM_SMM=y", "# CONFIG_KVM_XEN is not set"], [])
    >>> kernel.has("CONFIG_KVM_SMM", "enter_smm"), kernel.has("CONFIG_KVM_XEN", "kvm_xen_init_vm")
    (True, False)
    >>> BuiltIn([], ["0000000000000000 T enter_smm [kvm]"]).has("CONFIG_KVM_SMM", "enter_smm")
    True
    """

    def __init__(self, config: list[str], symbols: list[str]) -> None:
        self._options = dict(line.split("=", 1) for line in config if line.startswith("CONFIG_"))
        self._symbols = {words[2] for words in map(str.split, symbols) if len(words) > 2}

    def has(self, option: str, symbol: str) -> bool:
        """Whether ``option`` is set, or, without a configuration, whether there is ``symbol``."""
        return self._options.get(option) in {"y", "m"} if self._options else symbol in self._symbols

    def number(self, option: str, default: int) -> int:
        """The value of ``option``."""
        return int(self._options.get(option, default))


def built_in(release: str, root: Path = _ROOT) -> BuiltIn:
    """What the kernel ``release`` of the machine whose files are in ``root`` was built with."""
    places = ("boot/config-{}", "lib/modules/{}/config", "lib/modules/{}/build/.config", "usr/lib/modules/{}/config")
    for path in (root / "proc/config.gz", *(root / place.format(release) for place in places)):
        try:
            content = path.read_bytes()
            text = gzip.decompress(content).decode() if path.suffix == ".gz" else content.decode()
        except OSError:
            continue
        return BuiltIn(text.splitlines(), [])
    try:
        return BuiltIn([], (root / "proc/kallsyms").read_text().splitlines())
    except OSError:
        return BuiltIn([], [])


def _is_on(parameter: Path) -> bool:
    return parameter.exists() and parameter.read_text().strip() in {"Y", "1"}


def host_of(release: str = "", root: Path = _ROOT) -> Host:
    """What decides answers here; ``release`` and ``root`` are for other machines than this."""
    here = kvm_host(root / "sys/module")
    cpuinfo = (root / "proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in cpuinfo if line.startswith("flags")), "")
    bits = 52
    if here.tdp:
        bits = int(next(line for line in cpuinfo if line.startswith("address sizes")).partition(":")[2].split()[0])
    pml = root / "sys/module/kvm_intel/parameters/pml"
    release = release or platform.release()
    kernel = built_in(release, root)
    vcpus = kernel.number("CONFIG_KVM_MAX_NR_VCPUS", MAX_VCPUS)
    return Host(
        version=version_of(release),
        address_spaces=2 if kernel.has("CONFIG_KVM_SMM", "enter_smm") else 1,
        guest_memfd=kernel.has("CONFIG_KVM_GUEST_MEMFD", "kvm_gmem_create")
        or kernel.has("CONFIG_KVM_PRIVATE_MEM", "kvm_gmem_create"),
        in_place_conversion=_is_on(root / "sys/module/kvm/parameters/gmem_in_place_conversion"),
        vm_attributes=kernel.has("CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES", "kvm_range_has_memory_attributes")
        or kernel.has("CONFIG_KVM_VM_MEMORY_ATTRIBUTES", "kvm_range_has_vm_memory_attributes"),
        task_size_max=(1 << (56 if " la57" in flags else 47)) - 4096,
        max_gfn=(1 << (bits - 12)) - 1,
        tdp=here.tdp,
        pml=here.tdp and _is_on(pml),
        max_vcpu_ids=_VCPU_IDS * vcpus,
        max_vcpus=vcpus,
    )
