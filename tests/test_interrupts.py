"""While signals are held off no handler raises, whoever takes the signal; afterwards each is told once."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from guestmem import interrupts
from guestmem.interrupts import Section, held


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ctrl-C raises, and nothing else has a handler that this file sets."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def by_kill() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def by_another_thread() -> None:
    """A thread that does not mask the signal takes it; a mask of the main thread's would not help."""

    def take() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()


def is_free(section: Section) -> bool:
    """Whether another thread gets the lock."""
    got: list[bool] = []

    def look() -> None:
        lock = section._lock
        if lock.acquire(blocking=False):
            got.append(True)
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return bool(got)


def masked_and_killed() -> str:
    """Of a process with one thread, which masks SIGINT: the signal waits, for certain, and a handler has it later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    by_kill()
    said = "pending" if signal.SIGINT in signal.sigpending() else "gone"
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        said += ", then raised"
    return said


def in_a_child_of_fork(work: Callable[[], str]) -> str:
    """What ``work`` says in a child, which has this thread alone; the exception, if it raises one."""
    receive, send = os.pipe()
    if not (child := os.fork()):
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            said = repr(error)
        os.write(send, said.encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


WAYS = [by_kill, by_another_thread, _thread.interrupt_main]


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_meanwhile_is_raised_at_the_end(way: Callable[[], None]) -> None:
    reached = []

    def work() -> None:
        with held:
            way()
            reached.append("after the signal")
            with held:
                reached.append("nested")
            reached.append("at the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the signal", "nested", "at the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_is_not_enough(way: Callable[[], None]) -> None:
    """What makes the tests above fail: the same signals, with SIGINT blocked in the main thread.

    A signal to the process goes to any thread that does not block it; an earlier test may have left some.
    So that one is sent where no other thread is: in a child of fork, which has this thread alone.
    """
    if way is by_kill:
        assert in_a_child_of_fork(masked_and_killed) == "pending, then raised"
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        raised = False
        try:
            way()
            time.sleep(0.01)
        except KeyboardInterrupt:
            raised = True
        assert raised
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def test_each_handler_is_told_once() -> None:
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: told.append(number))

    def work() -> None:
        with held:
            for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGUSR1, signal.SIGINT):
                os.kill(os.getpid(), number)
            assert not told

    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == [signal.SIGUSR1]


def test_a_section_that_is_waited_for_lets_signals_through() -> None:
    section = Section()
    taken, over = threading.Event(), threading.Event()

    def keep() -> None:
        with section:
            taken.set()
            over.wait(200)

    thread = threading.Thread(target=keep)
    thread.start()
    taken.wait()

    def wait() -> None:
        threading.Timer(0.1, by_kill).start()
        with section:
            raise AssertionError("the lock is the other thread's")

    with pytest.raises(KeyboardInterrupt):  # wherever in there it comes: this thread may lose its core right away
        wait()
    over.set()
    thread.join()
    with section:
        assert not is_free(section)
    assert is_free(section)


def test_an_exception_inside_leaves_nothing_behind() -> None:
    section = Section()
    for context in (held, section):
        with pytest.raises(ValueError, match="mine"), context:
            raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert is_free(section)


def test_other_threads_hold_nothing_off() -> None:
    seen: list[object] = []

    def look() -> None:
        with held, Section():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_child_of_fork_has_its_handlers_back() -> None:
    with held:
        if not (child := os.fork()):
            os._exit(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_wherever_the_signal_comes_lock_and_handlers_are_as_before() -> None:
    """SIGINT before each instruction of ``interrupts``, in turn: in the midst of entering and of leaving, too."""
    section = Section()
    places = 0
    while True:
        places += 1
        state = [0, False]

        def trace(
            frame: FrameType, event: str, _argument: object, state: list[int] = state, stop: int = places
        ) -> object:
            if not frame.f_code.co_filename.endswith("interrupts.py"):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                state[0] += 1
                if state[0] == stop:
                    by_kill()
            return trace

        raised = done = False
        sys.settrace(trace)  # type: ignore[arg-type] # it has defaults, for what the loop changes
        try:
            with section:
                done = True
        except KeyboardInterrupt:
            raised = True
        finally:
            sys.settrace(None)
        if state[0] < places:
            break
        assert raised, f"instruction {places}"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, f"instruction {places}"
        assert is_free(section), f"instruction {places}, {done}"
        assert not interrupts._depth, f"instruction {places}"
    assert places > 50


def below_the_limit(frames: int, action: Callable[[], None]) -> None:
    """Call ``action`` where so many frames are left up to Python's recursion limit."""

    def go_down(count: int) -> None:
        if count:
            go_down(count - 1)
        else:
            action()

    used, frame = 0, sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        used += 1
    go_down(sys.getrecursionlimit() - used - frames)


def test_near_the_recursion_limit_it_is_refused_before_anything_changes() -> None:
    """At each depth: either all of it, or RecursionError outside; handlers and lock are as before, and it ends."""
    section = Section()
    outcomes = set()
    for frames in range(3, 80):
        inside: list[bool] = []

        def work(inside: list[bool] = inside) -> None:
            with section, held:
                inside.append(True)

        try:
            below_the_limit(frames, work)
        except RecursionError:
            assert not inside, f"{frames} frames"
        outcomes.add(bool(inside))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, f"{frames} frames"
        assert is_free(section), f"{frames} frames"
        assert not interrupts._depth, f"{frames} frames"
        with pytest.raises(KeyboardInterrupt):
            by_kill()
    assert outcomes == {False, True}


def test_a_handler_that_cannot_be_put_back_is_put_back_by_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sets handlers fails for a while, as it does where no frames are left: it ends, and nothing is deaf after."""
    real = interrupts._set
    refuses: list[bool] = []

    def set_(number: int, handler: object) -> object:
        if refuses:
            raise RecursionError("no frames")
        return real(number, handler)

    monkeypatch.setattr(interrupts, "_set", set_)
    with pytest.raises(RecursionError), held:
        refuses.append(True)
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    refuses.clear()
    with pytest.raises(KeyboardInterrupt):
        by_kill()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        by_kill()
