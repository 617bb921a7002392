"""What else a VM answers: MMU pages from 64 on, vCPU ids once, unknown requests ENOTTY, capabilities by value."""

from __future__ import annotations

import errno

import pytest

from abi_words import EEXIST, EINVAL, OK, Ask
from guestmem.abi.structures import MAX_VCPUS


@pytest.mark.parametrize(("count", "expected"), [(0, EINVAL), (63, EINVAL), (64, OK), (1000, OK)])
def test_mmu_pages(ask: Ask, count: int, expected: int) -> None:
    assert ask("mmu_pages", count).result == expected


def test_vcpu_ids(ask: Ask) -> None:
    assert ask("vcpu", 1).result == OK
    assert ask("vcpu", 1).result == EEXIST
    assert ask("vcpu", 4096).result == EINVAL


@pytest.mark.slow
def test_as_many_vcpus_as_there_can_be(ask: Ask) -> None:
    """Before ids that are taken, and after ids that no vCPU has."""
    for vcpu in range(MAX_VCPUS):
        assert ask("vcpu", 2 * vcpu).result == OK
    assert [ask("vcpu", vcpu).result for vcpu in (0, 1, 4095, 4096)] == [EINVAL] * 4


@pytest.mark.parametrize("request_", [0xAEFE, 0xAE45, 0x4021AE46])
def test_unknown_requests(ask: Ask, request_: int) -> None:
    assert ask("unknown", request_).result == -errno.ENOTTY


@pytest.mark.parametrize(("cap", "value"), [(3, 1), (10, 32764), (81, 1), (118, 0), (168, 3), (192, 1 << 20), (225, 0)])
def test_capabilities_of_x86(ask: Ask, cap: int, value: int) -> None:
    if cap == 118 and ask("extension", cap).result == 2:
        pytest.skip("this kernel has SMM's second address space")
    assert ask("extension", cap).result == value
