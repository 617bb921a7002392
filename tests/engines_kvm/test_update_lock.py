"""No exit is answered while an update runs, none waits for ever, and the sequence tells an update since a run began."""

from __future__ import annotations

import threading
import time

import pytest

from chance import until_met
from guestmem.atomics import fetch_add, load_acquire, peek, poke
from guestmem.compiled import U64, Own, Words, compiled, own, u64, words
from guestmem.engines.kvm import layout as at
from guestmem.engines.kvm.answers import keep_turn
from guestmem.engines.kvm.update_lock import (
    give_exclusive,
    give_shared,
    take_exclusive,
    updates_since,
    wait_out_update,
)

pytestmark = pytest.mark.no_kvm
INSIDE, BROKEN, ANSWERED = 200, 208, 216


@compiled(nogil=True)
def answer_until_stopped(vm: Words, mine: Own) -> U64:
    answered = u64(0)
    while load_acquire(vm, at.STOP) == 0:
        if keep_turn(vm, mine) == at.GO_ON:
            if load_acquire(vm, u64(200)) != 0:
                fetch_add(vm, u64(208), u64(1))
            give_shared(vm)
            fetch_add(vm, u64(216), u64(1))
            answered += u64(1)
    return answered


def test_answers_and_updates_exclude_each_other() -> None:
    vm = words(256)
    poke(vm, int(at.STOP), 1)
    answer_until_stopped(vm, own(int(at.OWN_WORDS)))  # compiles
    poke(vm, int(at.STOP), 0)
    answered: list[int] = []

    def answer() -> None:
        answered.append(int(answer_until_stopped(vm, own(int(at.OWN_WORDS)))))

    threads = [threading.Thread(target=answer) for _ in range(2)]
    for thread in threads:
        thread.start()

    def update(number: int) -> bool:
        take_exclusive(vm)
        poke(vm, INSIDE, 1)
        time.sleep(0.0002)
        poke(vm, INSIDE, 0)
        give_exclusive(vm)
        time.sleep(0.0002)
        return number >= 200 and peek(vm, ANSWERED) > 0

    try:
        until_met(update, "an answer between two updates")
    finally:
        poke(vm, int(at.STOP), 1)
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert peek(vm, BROKEN) == 0
    assert sum(answered) == peek(vm, ANSWERED)
    assert peek(vm, int(at.ANSWERING)) == 0


def test_an_update_since_then_is_told() -> None:
    vm = words(256)
    began = peek(vm, int(at.UPDATES))
    assert not updates_since(vm, began)
    take_exclusive(vm)
    during = peek(vm, int(at.UPDATES))
    assert updates_since(vm, began)
    assert updates_since(vm, during), "it is under way"
    give_exclusive(vm)
    assert updates_since(vm, began)
    assert updates_since(vm, during), "it was under way when the run began"
    assert not updates_since(vm, peek(vm, int(at.UPDATES)))


def test_a_stop_ends_a_wait_for_an_update() -> None:
    vm, mine = words(256), own(int(at.OWN_WORDS))
    take_exclusive(vm)
    poke(vm, int(at.STOP), 1)
    assert keep_turn(vm, mine) == at.STOPPED
    assert peek(vm, int(at.ANSWERING)) == 0
    assert wait_out_update(vm) == 0
    give_exclusive(vm)
    assert keep_turn(vm, mine) == at.GO_ON
    give_shared(vm)
