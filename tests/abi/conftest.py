"""Each promise of the ABI is asked twice: of the model, and of this machine's kernel, if it has a usable KVM."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from abi_words import ARENA, OK, Ask
from guestmem.abi.checks import Host
from guestmem.conform.calls import Answer, Call
from guestmem.conform.kernel import Kernel, host_of
from guestmem.conform.modelled import ModelledVm
from guestmem.engines.kvm.device import unusable

WHY_NOT = unusable()
MANY = 64
RING = 192


@pytest.fixture(scope="session")
def kernel() -> Iterator[Kernel]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with Kernel() as opened:
        yield opened


@pytest.fixture(params=["model", "kernel"])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """``ask(kind, *numbers)`` on a new VM; the answer."""
    if request.param == "model":
        host = Host() if WHY_NOT else host_of()
        modelled = ModelledVm(host)
        asked = itertools.count(1)

        def of_model(kind: str, *numbers: int) -> Answer:
            answer = modelled.answer(Call(kind, numbers))
            number = next(asked)
            if len(modelled.vm.slots) < MANY and (number < MANY or not number % 16):  # it looks at every slot
                modelled.vm.check()
            assert answer is not None
            return answer

        yield of_model
        return
    with request.getfixturevalue("kernel").vm() as vm:
        yield lambda kind, *numbers: vm.answer(Call(kind, numbers))


@pytest.fixture
def ringed(ask: Ask) -> Ask:
    """A vCPU with a ring of 256 entries, and a logged slot of 256 pages at 0."""
    assert ask("cap", RING, 0, 4096).result == OK
    assert ask("home").result == OK
    assert ask("region", 0, 1, 0, 0x100000, ARENA).result == OK
    return ask
