"""Threads change one VM's memory at once: each call is carried out or refused, and both sides' slots stay the same."""

from __future__ import annotations

import random
import threading

import pytest

from guestmem import MemslotError
from guestmem.engines.kvm import KvmEngine
from guestmem.engines.kvm.device import unusable
from guestmem.vm import Vm

PAGE = 0x1000
FRAMES = 24


@pytest.mark.compiled_only
@pytest.mark.parametrize(
    "engine", ["soft", pytest.param("kvm", marks=pytest.mark.skipif(bool(unusable()), reason=unusable()))]
)
def test_slots_agree(engine: str, seed: int) -> None:
    done: list[int] = []
    failures: list[BaseException] = []

    def change(vm: Vm, rng: random.Random) -> None:
        gpa, slot = rng.randrange(FRAMES) * PAGE, rng.randrange(8)
        match rng.randrange(4):
            case 0:
                vm.memory.create(slot, gpa=gpa, size=PAGE * rng.randrange(1, 4), flags=rng.randrange(2))
            case 1:
                vm.memory.delete(slot)
            case 2:
                vm.memory.move(slot, gpa)
            case _:
                with vm.memory.transaction() as update:
                    update.delete(slot)
                    update.create(slot + 8, gpa=gpa, size=PAGE)

    def work(vm: Vm, rng: random.Random) -> None:
        for _ in range(150):
            try:
                change(vm, rng)
                done.append(1)
            except MemslotError:
                pass
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails with it
                failures.append(error)

    with Vm(engine=engine) as vm:
        threads = [threading.Thread(target=work, args=(vm, random.Random(seed + turn))) for turn in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(done) > 20
        vm.check()
        if isinstance(vm.engine, KvmEngine):
            assert sorted(vm.memory) == vm.engine.slots()
            for slot in list(vm.memory):
                vm.memory.delete(slot.id)
            for slot_id in range(16):  # and the kernel has no others
                with pytest.raises(MemslotError, match="EINVAL"):
                    vm.memory.delete(slot_id)
