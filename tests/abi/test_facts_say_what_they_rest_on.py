"""Each answer of `guestmem explain` was run or read, and says which; what was run is a promise that conform checks."""

from __future__ import annotations

import errno
import json
import re

import pytest

from guestmem import UsageError
from guestmem.abi.facts import ARCHITECTURES, CALLS, FACTS, KERNELS, TREES, call_of, facts_of
from guestmem.abi.structures import MemoryCap, MemoryIoctl
from guestmem.abi.versions import VERSIONS
from guestmem.cli import main
from guestmem.conform.gmem_files import FILE_PROMISES
from guestmem.conform.promises import PROMISES
from guestmem.report.explain import facts_lines

RUN = [fact for fact in FACTS if fact.promise]


def test_how_many_were_run_and_how_many_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert (
        out.splitlines()[-1] == f"{len(FACTS)} answers: {len(RUN)} run on a kernel, {len(FACTS) - len(RUN)} by source"
    )
    assert len(RUN) >= 20
    assert all(call in out for call in CALLS)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("fact", RUN, ids=lambda fact: fact.answer[:40])
def test_what_was_run_is_a_promise_of_conform(fact) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    assert fact.promise in {promise.name for promise in (*PROMISES, *FILE_PROMISES)}
    assert "6.18" in fact.kernels, "that is the kernel that it was run on"
    assert "x86-64" in fact.architectures
    assert fact.evidence.startswith("run on Linux 6.18 x86-64")


def test_what_was_read_names_its_source() -> None:
    for fact in FACTS:
        assert fact.source
        assert fact.promise or fact.evidence == f"by source {fact.source}"
        assert fact.call in CALLS
        assert fact.kernels
        assert set(fact.kernels) <= set(KERNELS)
        assert set(fact.architectures) <= set(ARCHITECTURES)
        assert fact.tree in TREES


def answers(call: str, kernel: str, words: str) -> list[str]:
    return [fact.answer for fact in facts_of(call, kernel=kernel, architecture="x86-64") if words in fact.answer]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_the_model_differs_where_the_facts_do(version) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    """The table of the model (versions) and this one say the same of the same kernel."""
    (overlap,) = answers("KVM_SET_USER_MEMORY_REGION2", version.name, "a range of the file that another slot has")
    assert overlap.endswith(errno.errorcode[version.gmem_overlap_errno])
    assert bool(answers("KVM_CREATE_GUEST_MEMFD", version.name, "any flag: EINVAL")) == (version.gmem_flags == 0)
    assert (
        bool(answers("KVM_SET_USER_MEMORY_REGION2", version.name, "without private memory"))
        == version.gmem_needs_private_vm
    )
    assert bool(answers("KVM_PRE_FAULT_MEMORY", version.name, "tries again for ever")) == version.prefault_retries


def test_numbers_are_those_of_the_structures() -> None:
    for call, place in CALLS.items():
        name = call.removeprefix("KVM_")
        if name in MemoryIoctl.__members__:
            assert f"0x{MemoryIoctl[name]:08X}" in place
    assert f"KVM_CAP_GUEST_MEMFD {int(MemoryCap.GUEST_MEMFD)}" in CALLS["KVM_CREATE_GUEST_MEMFD"]
    assert f"KVM_CAP_PRE_FAULT_MEMORY {int(MemoryCap.PRE_FAULT_MEMORY)}" in CALLS["KVM_PRE_FAULT_MEMORY"]


def test_one_kernel_one_architecture_one_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "set_user_memory_region", "--arch", "pkvm", "--kernel", "7.3"]) == 0
    out = capsys.readouterr().out
    assert "a move or a delete is EPERM" in out
    assert "no read-only slots, no dirty logs" in out
    assert main(["explain", "capabilities", "--tree", "amazon", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "245 is USERFAULT" in [fact["answer"] for fact in found]
    assert {fact["run"] for fact in found} == {False}
    assert main(["explain", "kvm_link", "--arch", "s390"]) == 0
    assert "unknown: the table says nothing of it for arch s390" in capsys.readouterr().out


@pytest.mark.parametrize("call", CALLS)
def test_80_columns(call: str) -> None:
    assert all(len(line) <= 80 for line in facts_lines(call, facts_of(call), ""))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nonsense"], "call: 'nonsense' is not one of KVM_CREATE_GUEST_MEMFD, "),
        (["set_"], "call: 'set_' is not one of KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, "),
        ([""], "call: '' is not one of KVM_CREATE"),
        (["mmap", "--kernel", "5.10"], "kernel: '5.10' is not one of 6.12, 6.18, 7.3, 7.4"),
        (["mmap", "--arch", "riscv"], "architecture: 'riscv' is not one of x86-64, arm64, pkvm, s390"),
        (["mmap", "--tree", "mine"], "tree: 'mine' is not one of amazon, mainline, mm, openeuler"),
    ],
)
def test_what_there_is_not(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"guestmem: {line}")
    with pytest.raises(UsageError):
        call_of("")


def test_each_call_that_a_title_names_can_be_asked_for() -> None:
    for call, where in CALLS.items():
        beside = where.partition("with ")[2]
        named = {*call.split(", "), *re.findall(r"KVM_[A-Z_]+|ftruncate", beside)}
        assert {call_of(name) for name in named} == {call}
