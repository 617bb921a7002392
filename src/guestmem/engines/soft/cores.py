"""Core tokens: a vCPU thread holds one of as many tokens as there are cores while it is in the guest.

Without a token it is outside, as a vCPU whose thread the host does not run: nobody waits for its acknowledgement.
Otherwise an oversubscribed machine measures the host's scheduler, not the design. First come, first served: a ticket
lock that lets the first ``cores`` tickets in.
"""

from __future__ import annotations

from ...atomics import fence, fetch_add, load_acquire, load_relaxed, wait, wake
from ...compiled import U64, Words, compiled, const, u64
from .layout import CORES, NEXT_TICKET, SERVING

__all__ = ["cores_wanted", "give_core", "take_core"]

_ONE = const(1)


@compiled
def take_core(vm: Words) -> U64:
    """Wait for a core token, first come, first served; returns how often it slept."""
    ticket = fetch_add(vm, NEXT_TICKET, _ONE)
    # No fence, although give_core counts on our ticket being there before we look at SERVING: who sees an old SERVING
    # waits, and wait() is a full fence before it looks at SERVING again (a system call, futex(2)).
    slept = u64(0)
    cores = load_relaxed(vm, CORES)
    while True:
        serving = load_acquire(vm, SERVING)
        if ticket < serving + cores:
            return slept
        slept += _ONE
        wait(vm, SERVING, serving)


@compiled
def give_core(vm: Words) -> None:
    """Give the token back and wake the waiters: the next in line goes on, the others sleep again."""
    serving = fetch_add(vm, SERVING, _ONE) + _ONE
    fence()  # SERVING has moved before we look for tickets: a waiter that we miss sees it moved
    if load_relaxed(vm, NEXT_TICKET) >= serving + load_relaxed(vm, CORES):
        wake(vm, SERVING, u64(0x7FFFFFFF))


@compiled
def cores_wanted(vm: Words) -> bool:
    """Whether somebody waits for a token."""
    return load_relaxed(vm, NEXT_TICKET) > load_relaxed(vm, SERVING) + load_relaxed(vm, CORES)
