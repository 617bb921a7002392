"""What decides a kernel's answers is read from the machine's files, so that it holds on other machines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from guestmem.conform.host import host_of


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root directory with these files, and a CPU."""
    files = {"proc/cpuinfo": "flags\t: fpu la57\naddress sizes\t: 46 bits physical, 57 bits virtual\n", **files}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return root


CONFIG = "CONFIG_KVM_SMM=y\nCONFIG_KVM_GUEST_MEMFD=y\nCONFIG_KVM_MAX_NR_VCPUS=4096\n# CONFIG_KVM_XEN is not set\n"


@pytest.mark.parametrize("place", ["proc/config.gz", "boot/config-6.18.1", "lib/modules/6.18.1/config"])
def test_the_configuration_says_what_is_built_in(tmp_path: Path, place: str) -> None:
    host = host_of("6.18.1", machine(tmp_path, {place: CONFIG}))
    assert (host.address_spaces, host.guest_memfd, host.max_vcpu_ids) == (2, True, 16384)
    without = CONFIG.replace("CONFIG_KVM_SMM=y", "# CONFIG_KVM_SMM is not set").replace("GUEST_MEMFD=y", "OTHER=y")
    host = host_of("6.18.1", machine(tmp_path, {place: without}))
    assert (host.address_spaces, host.guest_memfd) == (1, False)


def test_older_kernels_call_guest_memfd_private_memory(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/config.gz": "CONFIG_KVM_PRIVATE_MEM=y\n"})
    assert host_of("6.12.3", root).guest_memfd


def test_without_a_configuration_symbols_say_it(tmp_path: Path) -> None:
    symbols = "0000000000000000 t enter_smm\t[kvm]\n0000000000000000 T kvm_gmem_create\t[kvm]\n"
    host = host_of("6.18.1", machine(tmp_path, {"proc/kallsyms": symbols}))
    assert (host.address_spaces, host.guest_memfd, host.max_vcpu_ids) == (2, True, 4096)
    host = host_of("6.18.1", machine(tmp_path, {"proc/kallsyms": "0000000000000000 t schedule\n"}))
    assert (host.address_spaces, host.guest_memfd) == (1, False)


def test_frames_and_rings_follow_the_hardware(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/config.gz": CONFIG})
    assert host_of("6.18.1", root).max_gfn == (1 << 40) - 1, "without TDP 52 bits"
    root = machine(tmp_path, {f"sys/module/kvm_intel/parameters/{name}": "Y\n" for name in ("ept", "pml")})
    host = host_of("6.18.1", root)
    assert (host.tdp, host.pml, host.max_gfn) == (True, True, (1 << 34) - 1)
    assert host.task_size_max == (1 << 56) - 4096
