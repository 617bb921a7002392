"""A Vm that is dropped while its vCPUs run: what its guest reaches is the guest's, until nothing can reach it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from guestmem.engines.kvm import unusable

DROPPED = """
import ctypes, gc, os, sys, threading, time
from guestmem.vm import Vm

SIZE, GPA = 0x100000, 0x200000
how = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

def begin():
    vm = Vm(2, engine="kvm")
    vm.memory.create(0, gpa=0, size=0x100000)
    vm.memory.create(1, gpa=GPA, size=SIZE)
    # mov rbx, GPA; l: mov [rbx], rcx; inc rcx; jmp l
    code = bytes.fromhex("48c7c300002000 48890b 48ffc1 ebf8")
    for number, vcpu in enumerate(vm.vcpus):
        vcpu.load_code(code, 0x1000 + number * 0x100, mode="long", tables=0x10000)
    address = vm.memory.hva(GPA)
    if how == "run":
        for vcpu in vm.vcpus:
            threading.Thread(target=vcpu.run, daemon=True).start()
    else:
        vm.engine.vm.start()
    cell = ctypes.c_uint64.from_address(address)
    end = time.monotonic() + 60
    while cell.value < 1000:  # it stores, for certain
        assert time.monotonic() < end, "the guest does not run"
        time.sleep(0.001)
    if how == "cycle":
        vm.itself = vm
    return address

address = begin()
gc.collect()
# The VMM's next mapping, at the very place: refused while something is there.
FIXED_NOREPLACE, PRIVATE, ANONYMOUS = 0x100000, 2, 0x20
mine = libc.mmap(address, SIZE, 3, PRIVATE | ANONYMOUS | FIXED_NOREPLACE, -1, 0)
if mine == address:
    files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    links = [os.readlink(file) for file in files if os.path.islink(file)]
    alive = [link for link in links if "kvm-vm" in link]
    print("FREED, and the kernel's slot leads there" if alive else "freed, and no VM", flush=True)
else:
    value = ctypes.c_uint64.from_address(address).value  # SIGSEGV, if this place is nobody's
    print("held", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(bool(unusable()), reason=unusable())
@pytest.mark.parametrize("how", ["start", "cycle", "run"])
def test_the_guest_does_not_write_into_the_next_mapping(how: str) -> None:
    """In a child, which may be hurt. Freed while the kernel has the VM is a fault: no guest need be quick."""
    program = [sys.executable, "-c", DROPPED, how]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    named = signal.Signals(-ended.returncode).name if ended.returncode < 0 else str(ended.returncode)
    assert ended.returncode == 0, f"{named}: {ended.stderr}"
    assert ended.stdout in {"freed, and no VM\n", "held\n"}, ended.stdout + ended.stderr
