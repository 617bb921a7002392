"""While a vCPU runs: other slots come and go unseen, and every page it changes is in a log."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from chance import until_met
from guestmem.engines.kvm import KvmEngine
from guestmem.engines.kvm.device import unusable
from guestmem.engines.load import Access, Load, Target
from guestmem.vm import Vm

PAGE = 0x1000
PAGES = 128
TARGET = 8 << 20
AT = 1 << 20
DISABLE_QUIRKS2, SLOT_ZAP_ALL = 213, 1 << 7
# mov rbx, TARGET; again: rdx = rdx * 1103515245 + 12345; inc qword [rbx + page of rdx]; jmp again
CODE = (
    b"\x48\xbb"
    + struct.pack("<Q", TARGET)
    + bytes.fromhex("4869d26d4ec641 4881c239300000 4889d0 48c1e810 83e07f 48c1e00c 48ff0403 ebde")
)
needs_kvm = pytest.mark.skipif(bool(unusable()), reason=unusable())


@pytest.fixture
def running() -> Iterator[Vm]:
    """A guest in user mode that increments a word in pages of slot 1, at random, for ever."""
    with Vm(engine="kvm") as vm:
        vm.memory.create(0, gpa=AT, size=64 * PAGE)
        vm.memory.create(1, gpa=TARGET, size=PAGES * PAGE, flags=1)
        vm.vcpus[0].load_code(CODE, AT, mode="long", tables=AT + PAGE)
        vm.engine.vm.start()
        yield vm
        assert vm.engine.vm.running == 1, vm.engine.vm.ended
        vm.engine.vm.stop()


def dirty(vm: Vm) -> set[int]:
    return {int(page) for page in vm.dirty_log(1).nonzero()[0]}


@needs_kvm
def test_what_changed_is_in_a_log(running: Vm) -> None:
    seen = running.memory.view(TARGET, PAGES * PAGE).reshape(PAGES, PAGE)
    before = np.zeros_like(seen)
    logged: set[int] = set()
    rounds = 0

    def written(_: int) -> bool:
        time.sleep(0.001)
        return bool(seen.any())

    until_met(written, "a write of the guest's")
    for turn in range(12):
        time.sleep(0.01)
        logged = dirty(running)  # once while it runs
        with running_stopped(running):
            logged |= dirty(running)
            changed = {int(page) for page in (seen != before).any(axis=1).nonzero()[0]}
            assert changed <= logged, turn
            assert logged <= set(range(PAGES))
            rounds += bool(changed)
            before = seen.copy()
            assert dirty(running) == set()
    assert rounds


class running_stopped:  # noqa: N801 - reads as a clause
    def __init__(self, vm: Vm) -> None:
        self._engine = vm.engine

    def __enter__(self) -> None:
        self._engine.pause()

    def __exit__(self, *_exception: object) -> None:
        self._engine.resume()


@needs_kvm
@pytest.mark.parametrize("zap", ["all", "slot"])
def test_a_slot_nearby_comes_and_goes_unseen_by_the_kernels_vcpu(running: Vm[KvmEngine, None], zap: str) -> None:
    """As the kernel's memslot_modification_stress_test, with and without KVM_X86_QUIRK_SLOT_ZAP_ALL."""
    if zap == "slot":
        if not running.engine.vm.device.check_extension(DISABLE_QUIRKS2) & SLOT_ZAP_ALL:
            pytest.skip("this kernel cannot zap the slot alone")
        running.engine.vm.enable_cap(DISABLE_QUIRKS2, SLOT_ZAP_ALL)
    word = running.memory.view(TARGET, 8).view("<u8")
    before = int(word[0])
    for turn in range(100):
        running.memory.create(7, gpa=TARGET - PAGE, size=PAGE)
        if turn % 2:
            running.memory.move(7, TARGET - 4 * PAGE)
        running.memory.delete(7)

    def counted(_: int) -> bool:
        time.sleep(0.001)
        assert running.engine.vm.running == 1, running.engine.vm.ended
        return int(word[0]) > before

    until_met(counted, "another write of the guest's to this page")


@pytest.mark.compiled_only
def test_a_slot_nearby_comes_and_goes_unseen_by_the_software_engines_vcpus() -> None:
    with Vm(2) as vm:
        slot = vm.memory.create(0, gpa=TARGET, size=PAGES * PAGE)
        hosts = [slot.userspace_addr + PAGE * page for page in range(PAGES)]
        targets = [Target(TARGET + PAGE * page, host, host) for page, host in enumerate(hosts)]
        vm.engine.set_access(Access())
        vm.engine.start()
        vm.engine.set_load(Load(targets))
        for _ in range(100):
            vm.memory.create(7, gpa=TARGET - PAGE, size=PAGE)
            vm.memory.delete(7)
        vm.check()
        until_met(lambda _: all(counts["accesses"] for counts in vm.engine.vcpu_counts()), "an access of each vCPU")
        vm.engine.stop()
        for counts in vm.engine.vcpu_counts():
            wrong = ("holes_read", "holes_write", "killed_fetches", "strange", "stale")
            assert [counts[name] for name in wrong] == [0] * len(wrong)
