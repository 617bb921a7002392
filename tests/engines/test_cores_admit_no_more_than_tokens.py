"""With C core tokens never more than C threads are inside; first come, first served; nobody sleeps for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from guestmem.atomics import fetch_add, load_relaxed, peek, poke, store_relaxed
from guestmem.compiled import U64, Words, compiled, u64, words
from guestmem.engines import Access
from guestmem.engines.soft import layout as at
from guestmem.engines.soft.cores import cores_wanted, give_core, take_core
from guestmem.explore import load
from soft_guest import Guest, Inline, WouldSleepError, until

INSIDE, TOO_MANY, ROUNDS = 0, 8, 16


@compiled(nogil=True)
def take_and_give(vm: Words, seen: Words, times: U64, cores: U64) -> None:
    """Be inside again and again; count who finds more inside than there are cores."""
    done = u64(0)
    while done < times:
        take_core(vm)
        if fetch_add(seen, u64(0), u64(1)) >= cores:
            fetch_add(seen, u64(8), u64(1))
        stay = u64(0)
        while stay < 20:
            store_relaxed(seen, u64(24), load_relaxed(seen, u64(24)))
            stay += u64(1)
        fetch_add(seen, u64(16), u64(1))
        fetch_add(seen, u64(0), u64(0xFFFFFFFFFFFFFFFF))
        give_core(vm)
        done += u64(1)


def tokens(cores: int) -> Words:
    vm = words(at.vm_words(1))
    poke(vm, int(at.CORES), cores)
    return vm


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (1, 5), (2, 3), (3, 6), (4, 4)])
def test_no_more_inside_than_tokens_and_everybody_gets_in(
    cores: int, threads: int, sized: Callable[[int, int], int]
) -> None:
    vm, seen = tokens(cores), words(32)
    times = sized(5_000, 60)
    running = [
        threading.Thread(target=take_and_give, args=(vm, seen, times, cores), daemon=True) for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
        assert not thread.is_alive(), "a wake was lost"
    assert (peek(seen, INSIDE), peek(seen, TOO_MANY), peek(seen, ROUNDS)) == (0, 0, threads * times)
    assert peek(vm, int(at.NEXT_TICKET)) == peek(vm, int(at.SERVING)) == threads * times
    assert not cores_wanted(vm)


@compiled(nogil=True)
def take_and_sign(vm: Words, order: Words, name: U64) -> None:
    """Get in once, and note as how many-th."""
    take_core(vm)
    place = fetch_add(order, u64(0), u64(1))
    store_relaxed(order, u64(1) + place, name)
    give_core(vm)


def test_first_come_first_served() -> None:
    vm, order = tokens(1), words(16)
    take_core(vm)
    take_and_sign_threads = []
    for name in range(6):
        thread = threading.Thread(target=take_and_sign, args=(vm, order, name), daemon=True)
        thread.start()
        take_and_sign_threads.append(thread)
        until(lambda name=name: peek(vm, int(at.NEXT_TICKET)) == 2 + name, "the next ticket")  # type: ignore[misc]
    assert cores_wanted(vm)
    assert peek(order, 0) == 0
    give_core(vm)
    for thread in take_and_sign_threads:
        thread.join(30)
    assert [peek(order, 1 + place) for place in range(6)] == list(range(6))


def inside(mutations: list[tuple[str, str, str]], cores: int) -> int:
    """How many get in when nobody gives a token back."""
    with load(mutations) as twin:
        room = twin.room("engines.soft.cores")
        vm = twin.room("compiled").words(at.vm_words(1))
        vm.cells[int(at.CORES)] = cores
        entered = 0
        with twin.room("atomics").schedule(Inline()):
            try:
                while entered < 10:
                    room.take_core(vm)
                    entered += 1
            except WouldSleepError:
                pass
        return entered


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_the_token_after_the_last_is_waited_for(cores: int) -> None:
    assert inside([], cores) == cores
    assert inside([("engines/soft/cores.py", "ticket < serving", "ticket <= serving")], cores) == cores + 1


def test_vcpus_share_one_core() -> None:
    """One token, four vCPUs: each goes on, and a kick is over as fast as the one inside acknowledges."""
    with Guest(4, access=Access(), cores=1) as guest:
        guest.create(0, 0, 8, 0)
        guest.run(guest.same({gfn: gfn for gfn in range(8)}))
        for _ in range(5):
            guest.engine.kick()
            guest.all_move()
    assert guest.total("killed_fetches") == guest.total("holes_read") == 0
