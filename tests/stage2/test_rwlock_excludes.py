"""The table's lock: a writer is alone, readers are not, nobody waits for ever, in both forms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from guestmem.atomics import load_relaxed, peek, store_relaxed
from guestmem.compiled import U64, Words, compiled, u64, words
from guestmem.explore.scene import Model, Scene
from guestmem.explore.search import Report, explore
from guestmem.explore.twin import Mutation
from guestmem.stage2.rwlock import read_lock, read_unlock, rwlock_words, write_lock, write_unlock

READERS = 3
VALUE = 128
"""Two words here and a line further that only the writer changes, to the same number."""


@compiled(nogil=True)
def write_many(lock: Words, readers: U64, times: U64) -> U64:
    slept = u64(0)
    done = u64(0)
    while done < times:
        slept += write_lock(lock, u64(0), readers)
        store_relaxed(lock, u64(128), load_relaxed(lock, u64(128)) + u64(1))
        store_relaxed(lock, u64(136), load_relaxed(lock, u64(136)) + u64(1))
        write_unlock(lock, u64(0))
        done += u64(1)
    return slept


@compiled(nogil=True)
def read_many(lock: Words, reader: U64, times: U64) -> U64:
    """How often the two words differed."""
    torn = u64(0)
    done = u64(0)
    while done < times:
        read_lock(lock, u64(0), reader)
        if load_relaxed(lock, u64(128)) != load_relaxed(lock, u64(136)):
            torn += u64(1)
        read_unlock(lock, u64(0), reader)
        done += u64(1)
    return torn


def race(times: int, readers: int) -> tuple[list[int], int]:
    """What three readers saw, and the value, after two writers; ``readers``: how many the writers wait for."""
    lock = words(192)
    assert rwlock_words(READERS) < VALUE
    torn = [0] * READERS

    def read(reader: int) -> None:
        torn[reader] = int(read_many(lock, reader, times))

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(READERS)]
    threads += [threading.Thread(target=write_many, args=(lock, readers, times)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peek(lock, VALUE) == peek(lock, VALUE + 8)
    assert [peek(lock, word) for word in range(0, rwlock_words(READERS), 8) if word != 8] == [0] * 4
    return torn, int(peek(lock, VALUE))


def test_writers_are_alone(sized: Callable[[int, int], int]) -> None:
    times = sized(100_000, 500)
    assert race(times, READERS) == ([0] * READERS, 2 * times)


def reader_and_writer(scene: Scene, waits_for: int) -> None:
    """A reader, and a writer that waits for ``waits_for`` readers; two words that only the writer changes."""
    atomics, lock = scene.room("atomics"), scene.room("stage2.rwlock")
    state = scene.words("lock", lock.rwlock_words(1), lock.LOCK.label)
    values = scene.words("value", 2)

    def read(state: Words, values: Words) -> None:
        lock.read_lock(state, 0, 0)
        first = atomics.load_relaxed(values, 0)
        assert atomics.load_relaxed(values, 1) == first, "a reader saw half of a write"
        lock.read_unlock(state, 0, 0)

    def write(state: Words, values: Words) -> None:
        lock.write_lock(state, 0, waits_for)
        atomics.store_relaxed(values, 0, 1)
        atomics.store_relaxed(values, 1, 1)
        lock.write_unlock(state, 0)

    scene.thread("reader", read, state, values)
    scene.thread("writer", write, state, values)


def explored(waits_for: int, mutations: Sequence[Mutation] = ()) -> Report:
    model = Model(
        "rwlock", "a writer is alone", "1 reader, 1 writer", lambda scene: reader_and_writer(scene, waits_for)
    )
    return explore(model, mutations=mutations, weak=False, shrink_s=1)


@pytest.mark.compiled_only  # the explorer's own copy is interpreted in either form
def test_in_every_order_a_writer_is_alone() -> None:
    report = explored(1)
    assert report.clean
    assert report.complete


@pytest.mark.compiled_only
def test_a_writer_that_waits_for_nobody_is_caught() -> None:
    """Proof that the tests above can fail: in some order, for certain."""
    assert "a reader saw half of a write" in explored(0).counterexamples[0].finding.message


@pytest.mark.compiled_only
def test_a_reader_that_does_not_look_for_the_writer_is_caught() -> None:
    alone = Mutation("stage2/rwlock.py", "        if load_acquire(lock, base) == 0:\n", "        if base == 0:\n")
    assert "a reader saw half of a write" in explored(1, [alone]).counterexamples[0].finding.message


def test_readers_are_together() -> None:
    lock = words(192)
    for reader in range(READERS):
        read_lock(lock, 0, reader)
    writer = threading.Thread(target=write_lock, args=(lock, 0, READERS))
    writer.start()
    for reader in range(READERS):
        writer.join(0.01)
        assert writer.is_alive()
        read_unlock(lock, 0, reader)
    writer.join()
    reader_ = threading.Thread(target=read_lock, args=(lock, 0, 1))
    reader_.start()
    reader_.join(0.01)
    assert reader_.is_alive()
    write_unlock(lock, 0)
    reader_.join()
    read_unlock(lock, 0, 1)
