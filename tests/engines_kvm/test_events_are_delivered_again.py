"""An event that could not be delivered within an update (suberror 3) is as a failed fetch, where KVM delivers it again.

By source (vmx_complete_interrupts, svm_complete_interrupts, Linux 6.18); this host has neither backend, so the decision
alone is run, on a kvm_run that says so.
"""

from __future__ import annotations

import ctypes
import struct

import pytest

from guestmem.atomics import poke
from guestmem.compiled import own, words
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.device import REDELIVERING
from guestmem.engines.kvm.run_loop import is_due_to_update

pytestmark = [pytest.mark.no_kvm, pytest.mark.compiled_only]
INTERNAL_ERROR, MMIO = 17, 6


def test_only_these_backends_are_known_to() -> None:
    assert sorted(REDELIVERING) == ["kvm_amd", "kvm_intel"]


@pytest.mark.parametrize("redelivers", [0, 1])
@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(
    ("reason", "suberror"), [(INTERNAL_ERROR, 1), (INTERNAL_ERROR, 2), (INTERNAL_ERROR, 3), (MMIO, 3)]
)
def test_it_is_run_again_if_an_update_was_in_flight(redelivers: int, update: bool, reason: int, suberror: int) -> None:
    vm, vcpu, run = words(at.vm_words(1)), own(at.OWN_WORDS), ctypes.create_string_buffer(4096)
    vcpu[int(at.RUN)] = ctypes.addressof(run)
    poke(vm, int(at.HOLES), int(at.RETRY))
    poke(vm, int(at.REDELIVERS), redelivers)
    vcpu[int(at.BEGAN)] = 2
    poke(vm, int(at.UPDATES), 4 if update else 2)
    struct.pack_into("<I", run, 8, reason)
    struct.pack_into("<I", run, 32, suberror)
    expected = update and reason == INTERNAL_ERROR and (suberror == 1 or (suberror == 3 and bool(redelivers)))
    assert is_due_to_update(vm, vcpu) == expected
