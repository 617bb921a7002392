"""What the load guest says it is at is checked: no word that it can write is followed as a pointer."""

from __future__ import annotations

import ctypes
import mmap
import random

import pytest

from guestmem.compiled import own
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm import load_layout as area
from guestmem.engines.kvm.load_exits import find_target
from guestmem.engines.kvm.signals import block_all_but, kick_signal

GPA = 1 << 46
HEADER, TARGET = 64, 32


class Area:
    """The load guest's memory, with ``targets`` in each of the two loads."""

    def __init__(self, *targets: int) -> None:
        self.memory = mmap.mmap(-1, area.AREA_BYTES)
        self.view = ctypes.c_char.from_buffer(self.memory)
        self.host = ctypes.addressof(self.view)
        self.own = own(at.OWN_WORDS)
        self.own[int(at.GUEST)] = self.host + area.BLOCKS
        self.own[int(at.GUEST_HOST)] = self.host
        self.own[int(at.GUEST_GPA)] = GPA
        self.valid = {}
        for parity, count in enumerate(targets):
            load = int(area.LOADS) + parity * int(area.LOAD_BYTES)
            changed = count // 3
            self.poke(load, changed)
            self.poke(load + 8, count - changed)
            for index in range(count):
                place = load + HEADER + TARGET * index
                self.valid[GPA + place] = self.host + place

    def poke(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_address(self.host + offset).value = value

    def found(self, said: int) -> int:
        self.poke(area.BLOCKS + int(area.BLOCK_TARGET), said)
        return int(find_target(self.own))


@pytest.mark.no_kvm
@pytest.mark.parametrize("targets", [(0, 0), (5, 0), (3, 7), (1, 8190)])
def test_only_targets_of_the_loads_are_found(targets: tuple[int, int], rng: random.Random) -> None:
    area_ = Area(*targets)
    some = [GPA, GPA + area.AREA_BYTES, GPA + int(area.LOADS), 0, 1, (1 << 64) - 1, GPA - 8, area_.host]
    some += [place + step for place in [*area_.valid][:5] + [*area_.valid][-5:] for step in (-32, -8, 0, 1, 8, 32)]
    some += [GPA + rng.randrange(area.AREA_BYTES) for _ in range(200)]
    some += [rng.getrandbits(64) for _ in range(200)]
    for said in some:
        assert area_.found(said) == area_.valid.get(said, 0), hex(said)


@pytest.mark.no_kvm
def test_the_guest_can_write_its_blocks_only() -> None:
    assert int(area.LOADS) + 2 * int(area.LOAD_BYTES) <= area.TABLES
    assert area.TABLES + area.TABLE_PAGES * 0x1000 <= area.BLOCKS
    assert area.BLOCKS + area.VCPUS_MAX * area.BLOCK_BYTES == area.AREA_BYTES
    assert area.BLOCKS % 0x1000 == 0


@pytest.mark.no_kvm
def test_a_fault_in_a_vcpu_thread_is_not_silent() -> None:
    import signal
    import threading

    blocked: list[set[int]] = []

    def work() -> None:
        block_all_but(kick_signal())
        blocked.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, set())})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not blocked[0] & {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, kick_signal()}
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} <= blocked[0]
