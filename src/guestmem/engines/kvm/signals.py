"""The signal that takes a vCPU thread out of KVM_RUN.

A kick is ``immediate_exit`` (for a vCPU on its way in) and a signal (for one inside). The handler only has to exist;
it is a function of libc that changes nothing, so no Python runs when it arrives, and the host program's own signals
stay as they are.
"""

from __future__ import annotations

import ctypes
import functools
import signal

from ...errors import GuestmemError

__all__ = ["block_all_but", "kick_signal"]

_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT)


@functools.cache
def kick_signal() -> int:
    """A real-time signal that nobody else uses, with its handler installed. GuestmemError if all are taken."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = ctypes.cast(libc.abs, ctypes.c_void_p)
    for number in range(signal.SIGRTMIN + 2, signal.SIGRTMAX):
        before = libc.signal(number, handler)
        if not before:  # SIG_DFL
            return int(number)
        libc.signal(number, before)
    raise GuestmemError("engine kvm: all real-time signals have handlers; one must be free to kick vCPUs")


def block_all_but(number: int) -> None:
    """In a vCPU thread: leave every other signal to the program's other threads.

    Not those that a fault of its own raises: blocked, they would end the program without a word.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, set(signal.valid_signals()) - {number, *_FAULTS})
