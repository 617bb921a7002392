"""Sequences come from Hypothesis' stateful testing, in bursts; a seed decides; every call of the ABI is in them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import stateful

from guestmem.abi.checks import Host
from guestmem.abi.structures import MemoryCap, MemoryIoctl
from guestmem.conform import draw
from guestmem.conform.calls import PROLOGUES, RANGES, Call, decode
from guestmem.conform.draw import BURST_CALLS, STEPS, drawn
from guestmem.conform.modelled import ModelledVm
from guestmem.conform.promises import PROMISES
from guestmem.conform.run import Answers, conform


class Agreeing:
    """A kernel made of the model: all that is asked of a run is what it asks."""

    name = "the model"

    def __init__(self, host: Host) -> None:
        self._host = host

    def answers(self, calls: Sequence[Call], expected: Answers) -> Answers:
        del calls
        return list(expected)


@pytest.fixture(scope="module")
def sequences() -> list[list[Call]]:
    return [calls for seed in range(8) for calls in drawn(seed, 100)]


def test_they_are_runs_of_a_state_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = []
    run = stateful.run_state_machine_as_test

    def noted(machine: type[stateful.RuleBasedStateMachine], **options: object) -> None:
        machines.append(machine)
        run(machine, **options)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(stateful, "run_state_machine_as_test", noted)
    assert drawn(1, 10)
    assert issubclass(machines[0], stateful.RuleBasedStateMachine)
    rules = {name for name, value in vars(machines[0]).items() if hasattr(value, "hypothesis_stateful_rule")}
    assert rules >= {"anything", "memory", "bitmaps", "rings_", "files"}


def test_a_step_draws_a_burst(sequences: list[list[Call]]) -> None:
    longest = max(map(len, sequences))
    assert longest > BURST_CALLS * (STEPS - 2), "steps are bursts, or drawing alone costs more than asking"
    assert longest <= BURST_CALLS * STEPS + max(map(len, PROLOGUES))


def test_the_seed_decides() -> None:
    assert drawn(7, 10) == drawn(7, 10)
    assert drawn(7, 10) != drawn(8, 10)


def of_a_process(imports: str) -> list[str]:
    """What two seeds draw in a process that has imported something before; and with Hypothesis' own backend."""
    program = (
        f"{imports}\nfrom guestmem.conform import draw\n"
        "print(repr([draw.drawn(seed, 60) for seed in (0, 2)]))\n"
        "draw._backend = lambda: 'hypothesis'\n"
        "print(repr([draw.drawn(seed, 60) for seed in (0, 2)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_seed_decides_whatever_else_is_loaded() -> None:
    """Hypothesis draws from constants of the modules that are loaded, if it is let."""
    more = "import guestmem.vmm, guestmem.traces, guestmem.explore, guestmem.stage2, guestmem.check, guestmem.report"
    (alone, let), (beside, let_beside) = of_a_process(""), of_a_process(more)
    assert alone == beside == repr([drawn(seed, 60) for seed in (0, 2)])
    if let == let_beside:
        pytest.skip("this version of Hypothesis draws the same all the same")


def test_every_call_of_the_abi_is_drawn(sequences: list[list[Call]]) -> None:
    """Both region ioctls with every flag, address spaces, deletes and moves; every ioctl of memory, valid and not."""
    calls = [call for sequence in sequences for call in sequence]
    kinds = Counter(call.kind for call in calls)
    assert kinds.keys() == {*RANGES, "home", "second"}
    ioctls = {
        *("region", "region2", "get_log", "clear_log", "cap", "extension", "vcpu", "guest_memfd", "mmu_pages", "reset"),
        "attributes",
    }
    assert len(ioctls) == len(MemoryIoctl)
    assert ioctls <= kinds.keys()
    for kind in ("region", "region2"):
        regions = [call.args for call in calls if call.kind == kind]
        assert {bit for args in regions for bit in range(32) if args[1] >> bit & 1} == set(range(32))
        assert {args[0] >> 16 for args in regions} >= {0, 1, 2}
        assert any(args[3] == 0 for args in regions), "deletes"
        assert {args[2] & 0xFFF for args in regions} > {0}, "unaligned ones"
        assert any(args[4] >= 1 << 47 for args in regions)
        assert any(args[2] >= 1 << 52 for args in regions)
    assert {call.args[0] for call in calls if call.kind == "cap"} >= {168, 192, 223, 3}
    assert {call.args[2] for call in calls if call.kind == "cap" and call.args[0] == 168} >= {0, 1, 2, 3, 4}
    asked = {decode(bytes([RANGES["extension"][0], cap, *bytes(6)])) for cap in range(240)}
    assert asked == {Call("extension", (int(cap),)) for cap in MemoryCap}
    assert len({call.args[0] for call in calls if call.kind == "extension"} & set(map(int, MemoryCap))) > 8
    assert {call.args[0] & 0xFFFF for call in calls if call.kind == "get_log"} >= {0, 5, 32764}
    bound = [call.args for call in calls if call.kind == "region2" and call.args[1] & 4]
    assert any(args[5] < 1 << 63 <= args[5] + args[3] < 1 << 64 for args in bound), "a negative loff_t"
    files = {call.args[6] for call in calls if call.kind == "region2"}
    assert files >= {0, 1, 2, 3}, "none, /dev/kvm, the VM, a guest_memfd"


def test_every_case_of_every_promise_is_met() -> None:
    """With two address spaces. What no run meets would be a promise that is not checked.

    Seeds follow until all is met, with an end.
    """
    host = Host(address_spaces=2)
    missing = [(promise.name, case) for promise in PROMISES for case in promise.cases]
    unchecked = {promise.name for promise in PROMISES}
    for seed in range(11, 19):
        outcome = conform(host, Agreeing(host), steps=20_000, seed=seed)
        missing = [each for each in missing if not any(each[1].is_in(seen) for seen in outcome.seen)]
        unchecked &= {getattr(each, "name", each) for each in outcome.unchecked}
        if not missing and not unchecked:
            return
    assert not missing
    assert not unchecked


def test_a_slot_of_the_second_address_space_can_be_made() -> None:
    calls = [call for seed in range(2) for sequence in drawn(seed, 50) for call in sequence if call.kind == "region"]
    vm = ModelledVm(Host(address_spaces=2))
    for call in calls:
        vm.answer(call)
        if any(key.as_id for key in vm.vm.slots):
            return
    pytest.fail("no slot of address space 1 was made")


def test_a_run_of_one_step_ends() -> None:
    outcome = conform(Host(), Agreeing(Host()), steps=1, seed=-3)
    assert outcome.calls >= 1


def test_nothing_is_left_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(3, 5)
    assert not list(tmp_path.iterdir())


def test_what_a_burst_is_about() -> None:
    block = bytes(range(256)) * 2
    calls = list(draw._calls(block, ("write",)))
    assert {call.kind for call in calls} == {"write"}
    assert not list(draw._calls(bytes(512), draw._ALL)), "zeroes, which shrinking ends at, are no calls"
