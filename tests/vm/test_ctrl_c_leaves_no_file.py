"""Ctrl-C while a VM of the kernel is made: no file of ``/dev/kvm`` stays open."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from guestmem.engines.kvm import unusable
from guestmem.engines.kvm.vm import KvmVm

pytestmark = pytest.mark.skipif(bool(unusable()), reason=unusable() or "-")
PLACES = ("KvmVm.__init__", "Device.__init__")
STRIDE = 3


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def files() -> int:
    """How many files of KVM this process has."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += "kvm" in link.readlink().name
    return count


def make(stop: int) -> tuple[bool, bool]:
    """Make a VM, with SIGINT before instruction ``stop`` of what makes it: whether it came to that, and was raised."""
    passed = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        nonlocal passed
        if frame.f_code.co_qualname not in PLACES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == stop:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    raised = False
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        KvmVm(1).close()
    except KeyboardInterrupt:
        raised = True
    finally:
        sys.settrace(None)
    return passed >= stop, raised


def test_wherever_it_comes() -> None:
    make(1 << 30)  # compiled
    gc.collect()
    stop, count = 1, 0
    while True:
        before = files()
        came, raised = make(stop)
        if not came:
            break
        assert raised, f"instruction {stop}"
        gc.collect()
        assert files() <= before, f"instruction {stop}"  # fewer, if what another test left is closed by now
        stop, count = stop + STRIDE, count + 1
    assert count > 20
