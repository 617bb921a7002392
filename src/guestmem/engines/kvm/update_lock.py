"""The update lock of ``exit_retry``: shared by vCPUs that answer exits, exclusive for an update, and a sequence.

UPDATES is odd while an update runs. So a vCPU whose instruction fetch failed can tell whether an update was in flight
at any time since its KVM_RUN began: odd then, or another number now. Updaters go first: answering vCPUs that find an
update under way step back, so a stream of exits cannot keep an update out. Updaters exclude each other elsewhere.
"""

from __future__ import annotations

from ...atomics import fence, fetch_add, load_acquire, wait, wait_for, wake
from ...compiled import ONE, U64, Words, compiled, const, u64
from .layout import ANSWERING, LOOK_NS, LOOKS, UPDATES

__all__ = [
    "give_exclusive",
    "give_shared",
    "take_exclusive",
    "try_shared",
    "updates_since",
    "wait_out_update",
]

_MINUS_ONE = const(0xFFFFFFFFFFFFFFFF)
_EVERYBODY = const(0x7FFFFFFF)


@compiled
def give_shared(vm: Words) -> None:
    """Stop answering; the last one wakes an updater that waits."""
    if fetch_add(vm, ANSWERING, _MINUS_ONE) == 1:
        fence()  # the count is down before we look for an updater; pairs with take_exclusive
        if load_acquire(vm, UPDATES) & ONE != 0:
            wake(vm, ANSWERING, _EVERYBODY)


@compiled
def try_shared(vm: Words) -> bool:
    """No update begins until ``give_shared``; False, and nothing taken, if one is under way."""
    fetch_add(vm, ANSWERING, ONE)
    fence()  # we are counted before we look for an update; pairs with take_exclusive
    if load_acquire(vm, UPDATES) & ONE == 0:
        return True
    give_shared(vm)
    return False


@compiled
def updates_since(vm: Words, began: U64) -> bool:
    """Whether an update was in flight at any time since UPDATES was ``began``."""
    return began & ONE != 0 or load_acquire(vm, UPDATES) != began


@compiled
def wait_out_update(vm: Words) -> bool:
    """Wait for the end of an update, a moment at most, and less if a signal comes; whether none is under way."""
    updates = load_acquire(vm, UPDATES)
    if updates & ONE != 0:
        wait_for(vm, UPDATES, updates, LOOK_NS)
    return load_acquire(vm, UPDATES) & ONE == 0


@compiled(nogil=True)
def take_exclusive(vm: Words) -> U64:
    """An update begins: exits that fall into it wait. Returns, once nobody answers any more, how often it slept."""
    slept = u64(0)
    fetch_add(vm, UPDATES, ONE)
    fence()  # the update is announced before we look for who answers; pairs with try_shared and give_shared
    while True:
        looks = u64(0)
        answering = load_acquire(vm, ANSWERING)
        while answering != 0 and looks < LOOKS:
            answering = load_acquire(vm, ANSWERING)
            looks += ONE
        if answering == 0:
            return slept
        slept += ONE
        wait(vm, ANSWERING, answering)


@compiled
def give_exclusive(vm: Words) -> None:
    """The update is over."""
    fetch_add(vm, UPDATES, ONE)
    wake(vm, UPDATES, _EVERYBODY)
