"""A real-mode guest halts, writes a port, reads and writes a device, and runs out of memory: each exit by its kind."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from guestmem.engines.kvm import Hlt, InternalError, Io, KvmEngine, KvmVcpu, Mmio, Shutdown, real_mode
from guestmem.errors import GuestmemError, UsageError
from guestmem.memslots import Change

# mov ax, 0x2000; mov ds, ax; mov ax, [0]; mov [8], ax; mov dx, 0x3f8; out dx, al; in al, dx; mov [0x10], al; hlt
DEVICES = bytes.fromhex("b80020 8ed8 a10000 a30800 baf803 ee ec a21000 f4")
ENDLESS = bytes.fromhex("ebfe")  # jmp $


@pytest.fixture
def engine() -> Iterator[KvmEngine]:
    with KvmEngine(1) as made:
        memory = mmap.mmap(-1, 0x10000)
        view = ctypes.c_char.from_buffer(memory)
        made.set_memory_region(Change(0, 0, 16, ctypes.addressof(view)))
        yield made
        made.close()
        del view
        memory.close()


def start(engine: KvmEngine, code: bytes) -> KvmVcpu:
    vcpu = engine.vm.vcpus[0]
    vcpu.set_sregs(real_mode(vcpu.sregs()))
    vcpu.set_registers(rip=0x1000, rflags=2)
    slot = engine.slot(0)
    assert slot
    ctypes.memmove(slot.userspace_addr + 0x1000, code, len(code))
    return vcpu


def test_devices_ports_and_halt(engine: KvmEngine) -> None:
    vcpu = start(engine, DEVICES)
    read = vcpu.run()
    assert read == Mmio(0x20000, 2, is_write=False, data=b"")
    assert isinstance(read, Mmio)
    with pytest.raises(UsageError, match="the exit asks for 2"):
        vcpu.answer(read, b"x")
    vcpu.answer(read, b"\x34\x12")
    assert vcpu.run() == Mmio(0x20008, 2, is_write=True, data=b"\x34\x12")
    assert vcpu.run() == Io(0x3F8, 1, 1, is_write=True, data=b"\x34")
    port = vcpu.run()
    assert port == Io(0x3F8, 1, 1, is_write=False, data=b"")
    assert isinstance(port, Io)
    vcpu.answer(port, b"\x77")
    assert vcpu.run() == Mmio(0x20010, 1, is_write=True, data=b"\x77")
    assert vcpu.run() == Hlt()


def test_devices_are_left_to_the_caller_under_exit_retry_too(engine: KvmEngine) -> None:
    engine.retry_exits(True)
    test_devices_ports_and_halt(engine)


def test_no_memory_to_run_from(engine: KvmEngine) -> None:
    vcpu = start(engine, bytes.fromhex("ea00000030"))  # jmp 0x3000:0
    exit_ = vcpu.run()
    assert isinstance(exit_, InternalError | Shutdown)


def test_registers_by_name(engine: KvmEngine) -> None:
    vcpu = start(engine, ENDLESS)
    vcpu.set_registers(rbx=0x1234)
    assert vcpu.registers()["rbx"] == 0x1234
    assert vcpu.registers()["rip"] == 0x1000
    with pytest.raises(UsageError, match="registers: rex"):
        vcpu.set_registers(rex=1)


def test_registers_of_a_running_vcpu_are_refused(engine: KvmEngine) -> None:
    """The kernel would make the caller wait for the guest, for ever."""
    vcpu = start(engine, ENDLESS)
    engine.vm.start()
    for _ in range(100):  # from the moment that it may run, whether it does already or not
        with pytest.raises(GuestmemError, match="pause or stop"):
            vcpu.registers()
    engine.pause()
    assert vcpu.registers()["rip"] == 0x1000
    engine.resume()


def test_ctrl_c_ends_a_run() -> None:
    program = (
        "import ctypes, mmap, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a script starts with &
        "from guestmem.engines.kvm import KvmEngine, real_mode\n"
        "from guestmem.memslots import Change\n"
        "CODE = bytes.fromhex('ff060030 ebfa')  # l: inc word [0x3000]; jmp l\n"
        "engine = KvmEngine(1); memory = mmap.mmap(-1, 0x10000); memory[0x1000:0x1006] = CODE\n"
        "engine.set_memory_region(Change(0, 0, 16, ctypes.addressof(ctypes.c_char.from_buffer(memory))))\n"
        "vcpu = engine.vm.vcpus[0]; vcpu.set_sregs(real_mode(vcpu.sregs())); vcpu.set_registers(rip=0x1000, rflags=2)\n"
        "vcpu.compile()\n"  # an exception in a callback of what compiles would be lost
        "import threading, time\n"
        "def tell():\n"  # a signal before KVM_RUN would interrupt nothing: wait for what the guest writes
        "    while not any(memory[0x3000:0x3002]):\n"
        "        time.sleep(0.001)\n"
        "    print('runs', flush=True)\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
        "vcpu.run()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"runs\n"
        os.kill(process.pid, signal.SIGINT)
        try:
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert b"KeyboardInterrupt" in err
