"""A capability's number is read together with the tree that the kernel is from."""

from __future__ import annotations

import dataclasses

import pytest

from guestmem.abi.checks import Host
from guestmem.abi.model import KvmModel
from guestmem.abi.structures import EnableCap, MemoryCap, MemoryIoctl
from guestmem.abi.trees import CAPABILITIES, MAINLINE, TREES, capability_name
from guestmem.abi.versions import LINUX_7_3, VERSIONS
from guestmem.errors import MemslotError


def test_245_is_two_things() -> None:
    assert capability_name(245) == "ARM_SEA_TO_USER"
    assert capability_name(245, "amazon") == "USERFAULT"


def test_what_memory_needs_is_the_same_everywhere() -> None:
    for tree in TREES:
        assert {capability_name(int(cap), tree) for cap in MemoryCap} == {cap.name for cap in MemoryCap}


def test_a_number_of_one_tree_is_none_of_another() -> None:
    for number, names in CAPABILITIES.items():
        for tree in TREES:
            assert capability_name(number, tree) == (names[MAINLINE] if number <= 244 else names.get(tree, ""))


def test_every_version_says_its_tree() -> None:
    assert {version.tree for version in VERSIONS} == {MAINLINE}
    assert str(LINUX_7_3) == "Linux 7.3"
    assert str(dataclasses.replace(LINUX_7_3, tree="amazon")) == "Linux 7.3 (amazon)"


@pytest.mark.parametrize(("tree", "name"), [(MAINLINE, "ARM_SEA_TO_USER"), ("amazon", "USERFAULT")])
def test_a_refusal_names_it_as_the_kernel_does(tree: str, name: str) -> None:
    model = KvmModel(Host(version=dataclasses.replace(LINUX_7_3, tree=tree)))
    with pytest.raises(MemslotError, match=rf"EINVAL: cap: 245 \({name}\) with flags 0x0 cannot be enabled here"):
        model.ioctl(MemoryIoctl.ENABLE_CAP, EnableCap(245).pack())
