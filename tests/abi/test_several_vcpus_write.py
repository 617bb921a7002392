"""A log has the pages of every vCPU that wrote; with rings, a page is in the ring of whoever wrote it first."""

from __future__ import annotations

import threading

import pytest

from abi_words import ARENA, BUFFER, OK, PAGE, Ask
from guestmem.conform.calls import Answer, Call
from guestmem.conform.kernel import Kernel

LOGGED = (0, 1, 0, 256 * PAGE, ARENA)
DONE, FULL = ("done",), ("dirty ring full",)


def pages_of(log: Answer) -> set[int]:
    bits = int.from_bytes(log.log[:32], "little")
    return {page for page in range(256) if bits >> page & 1}


def test_a_log_of_two_writers(ask: Ask) -> None:
    assert ask("home").result == ask("second").result == OK
    assert ask("region", *LOGGED).result == OK
    assert ask("write", 0, 8).exits == DONE
    assert ask("write2", 6 * PAGE, 8).exits == DONE
    assert pages_of(ask("get_log", 0, 0, BUFFER)) == set(range(14))
    assert ask("write2", 3 * PAGE, 1).exits == DONE
    assert ask("write", 200 * PAGE, 1).exits == DONE
    assert pages_of(ask("get_log", 0, 0, BUFFER)) == {3, 200}


def test_a_page_is_in_the_ring_of_its_first_writer(ask: Ask) -> None:
    assert ask("cap", 192, 0, PAGE).result == OK
    assert ask("home").result == ask("second").result == OK
    assert ask("region", *LOGGED).result == OK
    assert ask("write", 0, 3).exits == DONE
    assert ask("write2", 2 * PAGE, 3).exits == DONE
    assert ask("harvest").exits == ("0x0+0x0", "0x0+0x1", "0x0+0x2")
    assert ask("harvest2").exits == ("0x0+0x3", "0x0+0x4")
    assert ask("reset").result == OK, "as many as were harvested of both"
    assert ask("write2", 0, 5).exits == DONE
    assert ask("harvest").exits == ()
    assert len(ask("harvest2").exits) == 5, "protected again: now they are the second's"


def test_one_full_ring_stops_one_vcpu(ask: Ask) -> None:
    assert ask("cap", 192, 0, PAGE).result == OK
    assert ask("home").result == ask("second").result == OK
    assert ask("region", *LOGGED).result == OK
    assert ask("write2", 0, 250).exits == FULL
    assert ask("write2", 0, 1).exits == FULL, "it does not enter"
    assert ask("write", 251 * PAGE, 1).exits == DONE
    assert ask("harvest").exits == ("0x0+0xfb",)
    assert ask("harvest2").exits != ()
    assert ask("reset").result == OK
    assert ask("write2", 0, 1).exits == DONE


@pytest.mark.parametrize("rings", [False, True], ids=["bitmap", "rings"])
def test_both_at_once_on_the_kernel(kernel: Kernel, rings: bool) -> None:
    """Two threads, the same pages: each page once, whoever came first."""
    with kernel.vm() as vm:
        if rings:
            assert vm.answer(Call("cap", (192, 0, 2 * PAGE))).result == OK
        for call in (Call("home"), Call("second"), Call("region", LOGGED)):
            assert vm.answer(call).result == OK
        for _ in range(20):
            second: list[Answer] = []
            thread = threading.Thread(target=lambda into=second: into.append(vm.answer(Call("write2", (0, 200)))))
            thread.start()
            first = vm.answer(Call("write", (50 * PAGE, 200)))
            thread.join()
            assert first.exits == second[0].exits == DONE
            if rings:
                one, other = vm.answer(Call("harvest")).exits, vm.answer(Call("harvest2")).exits
                assert {*one, *other} == {f"0x0+{page:#x}" for page in range(250)}
                assert vm.answer(Call("reset")).result == OK
            else:
                assert pages_of(vm.answer(Call("get_log", (0, 0, BUFFER)))) == set(range(250))
