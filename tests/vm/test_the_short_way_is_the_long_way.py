"""split, merge, resize in one compiled call end as by a transaction: slots, errors, generations, accounting, memory."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable
from typing import Any

import pytest

from guestmem.engines.soft import SoftEngine
from guestmem.errors import GuestmemError
from guestmem.vm import VhostMap, Vm

PAGE, PAGES = 4096, 256
LAST = 32763
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def state(vm: Vm[SoftEngine, Any]) -> tuple[Any, ...]:
    """All that a primitive may change."""
    kept = {
        key: {id(piece.buffer and piece.buffer.obj) for piece in vm._backend.owned.of_slot(key)} for key in keys(vm)
    }
    logs = [(held.bitmap is None, vm.engine.dirty.bitmap(key.slot, key.as_id) is None) for key, held in model_slots(vm)]
    accounting = vm.model.accounting
    generations = [vm.memory.memslots.generation(as_id) for as_id in range(2)]
    return list(vm.memory), kept, logs, accounting.pages, accounting.mmu_pages, generations, vm.engine.counts.swaps


def model_slots(vm: Vm[SoftEngine, Any]) -> list[Any]:
    return sorted(vm.model.slots.items(), key=lambda each: each[0])


def keys(vm: Vm[SoftEngine, Any]) -> list[Any]:
    return [slot.key for slot in vm.memory]


def outcome(vm: Vm[SoftEngine, Any], name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> object:
    try:
        return getattr(vm.memory, name)(*arguments, **named)
    except GuestmemError as error:
        return type(error), str(error)


def calls(rng: random.Random, vm: Vm[SoftEngine, Any], hosts: list[mmap.mmap]) -> Call:
    """The next call, as a rule one that fits the slots that there are."""
    slots = list(vm.memory)
    kind = rng.choice(["split"] * 5 + ["merge"] * 5 + ["resize"] * 5 + ["create", "create", "delete", "set_readonly"])
    if kind == "create" or not slots:
        size, gpa = PAGE * rng.randrange(1, 40), PAGE * rng.randrange(4096)
        flags = rng.choice([0, 0, 0, 0, 1, 2])
        as_id = rng.randrange(2)
        return "create", (rng.randrange(30),), {
            "gpa": gpa, "size": size, "host": rng.choice(hosts), "flags": flags, "as_id": as_id,
        }  # fmt: skip
    slot = rng.choice(slots)
    where = {"as_id": slot.as_id if rng.random() < 0.95 else rng.randrange(3)}
    if kind == "split":
        gfn = slot.base_gfn + (rng.randrange(1, slot.npages) if slot.npages > 1 and rng.random() < 0.9 else 0)
        upper = rng.choice([rng.randrange(30), rng.randrange(30), slot.id, LAST, LAST + 1])
        return "split", (slot.id, gfn * PAGE + rng.choice([0] * 20 + [8]), upper), where
    if kind == "merge":
        next_to = [each.id for each in slots if each.as_id == slot.as_id and each.base_gfn == slot.end_gfn]
        return "merge", (slot.id, rng.choice(next_to or [rng.randrange(30)])), where
    if kind == "resize":
        return "resize", (slot.id, PAGE * rng.choice([rng.randrange(60), slot.npages, PAGES + 1, 1 << 40])), where
    return (kind, (slot.id,), where) if kind == "delete" else (kind, (slot.id, rng.random() < 0.5), where)


@pytest.mark.parametrize("ran", [False, True], ids=["", "after vCPUs ran"])
def test_random_calls(rng: random.Random, sized: Callable[..., int], ran: bool) -> None:
    hosts = [mmap.mmap(-1, PAGES * PAGE) for _ in range(2)]
    with Vm(smm=True) as short, Vm(smm=True) as long:
        short.engine.short_cut, long.engine.short_cut = True, False
        if ran:
            for vm in (short, long):
                vm.engine.start()
                vm.engine.stop()
        taken: list[bool] = []
        real = short.engine.reshape

        def reshape(words: Any) -> bool:
            taken.append(real(words))
            return taken[-1]

        short.engine.reshape = reshape  # type: ignore[method-assign]
        for number in range(sized(400, 150)):
            name, arguments, named = calls(rng, long, hosts)
            ends = [outcome(vm, name, arguments, named) for vm in (short, long)]
            assert ends[0] == ends[1], f"{number}: {name}{arguments} {named}"
            assert state(short) == state(long), f"{number}: {name}{arguments} {named}"
            if number % 50 == 0:
                short.check()
        short.check()
        assert taken.count(True) > 20
        assert taken.count(False) > 3


def test_what_is_cut_off_is_zapped_whether_vcpus_run_or_not() -> None:
    with Vm() as vm:
        vm.engine.short_cut = True
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        vm.memory.resize(0, 4 * PAGE)
        assert vm.engine.counts.ranges_in_flux == 1
        vm.engine.start()
        vm.engine.counts.ranges_in_flux = 0
        vm.memory.resize(0, 2 * PAGE)
        assert vm.engine.counts.ranges_in_flux == 1
        vm.memory.split(0, PAGE, 1)
        vm.memory.merge(0, 1)
        assert vm.engine.counts.ranges_in_flux == 1
        vm.engine.stop()


def test_another_map_is_told() -> None:
    with Vm() as vm:
        vm.engine.short_cut = True
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        device = VhostMap()
        told = vm.memory.listen(device)
        vm.memory.resize(0, 4 * PAGE)
        assert [(first, end) for first, end, _ in device] == [(0, 4)]
        assert (told.instants, told.windows) == (1, 0)


def test_what_another_design_set_up_ends() -> None:
    with Vm() as vm:
        vm.engine.short_cut = True
        vm.memory.create(0, gpa=0, size=8 * PAGE)
        vm.memory.split(0, 4 * PAGE, 1, design="exit_retry")
        assert not vm.engine.exits_plainly
        vm.memory.merge(0, 1)
        assert vm.engine.exits_plainly


def both(call: Callable[[Vm[SoftEngine, Any]], object]) -> None:
    """One call ends alike with and without the short way, and is refused."""
    ends = []
    for short in (True, False):
        with Vm(smm=True) as vm:
            vm.engine.short_cut = short
            with pytest.raises(GuestmemError) as error:
                call(vm)
            ends.append((type(error.value), str(error.value), state(vm)))
    assert ends[0] == ends[1]


def test_what_the_model_of_the_host_refuses() -> None:
    def past_the_last_frame(vm: Vm[SoftEngine, Any]) -> None:
        frame = vm.model.host.max_gfn
        vm.memory.create(0, gpa=frame * PAGE, size=PAGE, host=0x5000_0000_0000)
        vm.memory.resize(0, 2 * PAGE)

    def past_the_last_host_address(vm: Vm[SoftEngine, Any]) -> None:
        last = vm.model.host.task_size_max // PAGE * PAGE - PAGE
        vm.memory.create(0, gpa=0, size=PAGE, host=last)
        vm.memory.resize(0, 4 * PAGE)

    def more_pages_than_a_word_holds(vm: Vm[SoftEngine, Any]) -> None:
        vm.model.accounting.largest = 10  # as if a word were that small
        vm.memory.create(0, gpa=0, size=8 * PAGE, host=0x5000_0000_0000)
        vm.memory.resize(0, 11 * PAGE)

    def an_upper_that_could_be_moved(vm: Vm[SoftEngine, Any]) -> None:
        host = 0x5000_0000_0000
        vm.memory.create(0, gpa=0, size=8 * PAGE, host=host)
        vm.memory.create(1, gpa=100 * PAGE, size=4 * PAGE, host=host + 4 * PAGE)
        vm.memory.split(0, 4 * PAGE, 1)

    both(an_upper_that_could_be_moved)
    both(past_the_last_frame)
    both(past_the_last_host_address)
    both(more_pages_than_a_word_holds)
