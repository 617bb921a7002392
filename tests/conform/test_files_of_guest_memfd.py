"""fallocate, mmap and touches of a guest_memfd: the model answers as this kernel does; a wrong model is found."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator

import pytest

from guestmem.abi.structures import CreateGuestMemfd, MemoryIoctl
from guestmem.cli import main
from guestmem.conform.gmem_files import FILE_PROMISES, Step, conform_files, draw_steps, replay_steps
from guestmem.conform.kernel import Kernel, host_of
from guestmem.engines.kvm.device import unusable
from guestmem.gmem import GuestMemfd

WHY_NOT = unusable()
PAGE = 4096


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    if host_of().gmem_flags != 3:
        pytest.skip(f"this kernel's guest_memfd has flags {host_of().gmem_flags:#x}, not 0x3")
    with Kernel() as opened:
        yield opened


def test_steps_are_a_seeds() -> None:
    assert draw_steps(3, 400) == draw_steps(3, 400)
    assert draw_steps(3, 400) != draw_steps(4, 400)
    assert {step.kind for step in draw_steps(1, 400)} == {
        *("create", "fallocate", "map", "read", "write", "file_read", "file_write", "truncate"),
    }


def test_the_kernel_agrees_and_every_promise_is_met(kernel: Kernel, seed: int) -> None:
    found = conform_files(kernel, steps=4000, seed=seed)
    assert not found.divergence, "\n".join(map(str, [*found.program, found.divergence]))
    assert found.checked() == [promise.name for promise in FILE_PROMISES]


@pytest.mark.parametrize("name", ["fallocate", "mmap"])
def test_a_wrong_model_is_found(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """fallocate that does nothing; mmap that lets MAP_PRIVATE pass."""
    right = GuestMemfd.mmap
    wrong = {
        "fallocate": lambda _file, _mode, _offset, _length: None,
        "mmap": lambda file, offset, size, shared: right(file, offset, size),
    }
    monkeypatch.setattr(GuestMemfd, name, wrong[name])
    found = conform_files(kernel, steps=2000, seed=1)
    assert found.divergence
    assert found.program[0].kind == "create"
    monkeypatch.undo()
    assert not replay_steps(kernel, found.program).divergence


@pytest.mark.parametrize("flags", [1, 3])
@pytest.mark.parametrize("page", [0, 3, 4])
def test_raw_touches_die_alike(kernel: Kernel, flags: int, page: int) -> None:
    """The kernel's own SIGBUS, in a child, beside that of a real mapping of the model."""

    def ends(address: int) -> int:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            ctypes.c_uint8.from_address(address).value = 1
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    with kernel.vm() as vm:
        fd = kernel.ioctl(vm.fd, MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(4 * PAGE, flags).pack())
        assert fd >= 0
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(8 * PAGE), 3, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        model = GuestMemfd(4 * PAGE, flags)
        with model.mmap(0, 8 * PAGE, real=True) as host:
            of_kernel, of_model = ends(address + page * PAGE), ends(host.address + page * PAGE)
        assert of_kernel == of_model == (0 if flags == 3 and page < 4 else signal.SIGBUS)
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(8 * PAGE))
        os.close(fd)
        model.close()


def test_what_this_kernel_has_not_is_refused(kernel: Kernel) -> None:
    """Attributes of VM and file, pre-fault: no default VM has them here; the facts of them are by source."""
    with kernel.vm() as vm:
        assert kernel.ioctl(vm.fd, MemoryIoctl.CHECK_EXTENSION, 233) == 0
        assert kernel.ioctl(vm.fd, MemoryIoctl.CHECK_EXTENSION, 250) == 0
        assert kernel.ioctl(vm.fd, 0x4020AED2, bytes(24) + bytes(8)) < 0
        fd = kernel.ioctl(vm.fd, MemoryIoctl.CREATE_GUEST_MEMFD, CreateGuestMemfd(PAGE, 3).pack())
        assert kernel.ioctl(fd, 0xC080AED2, bytes(128)) == -25
        os.close(fd)


def test_the_list_says_what_is_run_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(str(promise) in out for promise in FILE_PROMISES)
    assert "more answers are by source (guestmem explain)" in out
    assert str(Step("read", (8,))) == "read(0x8)"
