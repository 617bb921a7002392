"""Without a usable /dev/kvm the engine says in one line what is missing, and tells the host from /sys/module."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from guestmem.abi.structures import MemoryCap
from guestmem.engines.kvm import Device, host
from guestmem.errors import CapabilityError

pytestmark = pytest.mark.no_kvm


def refused(number: int) -> str:
    def open_(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_)
        with pytest.raises(CapabilityError) as caught:
            Device()
    return str(caught.value)


def test_each_way_of_being_absent() -> None:
    assert "no such file" in refused(errno.ENOENT)
    assert "no permission" in refused(errno.EACCES)
    assert "no module is behind it" in refused(errno.ENODEV)
    for number in (errno.ENOENT, errno.EACCES, errno.ENODEV, errno.EBUSY):
        assert refused(number).startswith("engine kvm: /dev/kvm: ")
        assert "\n" not in refused(number)


def test_the_wrong_architecture() -> None:
    with pytest.raises(CapabilityError, match="this machine is aarch64; its guests are x86_64"):
        Device(machine="aarch64")


def test_a_file_that_is_no_kvm_device() -> None:
    with pytest.raises(CapabilityError, match="/dev/null is no KVM device"):
        Device("/dev/null")


def test_a_capability_that_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "check_extension", lambda _self, _cap: 0)
    lame = object.__new__(Device)
    with pytest.raises(CapabilityError, match="no KVM_CAP_GUEST_MEMFD"):
        lame.need(MemoryCap.GUEST_MEMFD)


@pytest.mark.parametrize(
    ("files", "module", "tdp", "tdp_mmu", "software"),
    [
        ({}, "", False, False, True),
        ({"kvm_intel/parameters/ept": "Y", "kvm/parameters/tdp_mmu": "Y"}, "kvm_intel", True, True, False),
        ({"kvm_amd/parameters/npt": "0", "kvm/parameters/tdp_mmu": "Y"}, "kvm_amd", False, False, False),
        ({"kvm_amd/parameters/npt": "1", "kvm/parameters/tdp_mmu": "N"}, "kvm_amd", True, False, False),
        ({"kvm_pvm/parameters/force": "N"}, "kvm_pvm", False, False, True),
    ],
)
def test_the_host_is_told(
    tmp_path: Path, files: dict[str, str], module: str, tdp: bool, tdp_mmu: bool, software: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    found = host(tmp_path)
    assert (found.module, found.tdp, found.tdp_mmu, found.software) == (module, tdp, tdp_mmu, software)
    assert ("shadow paging" in str(found)) != tdp
    assert "mmio_caching off" in str(found)
