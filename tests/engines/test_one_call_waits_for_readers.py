"""A batch in one call, with a reader inside: it is published, and over when the reader has left."""

from __future__ import annotations

import threading

from guestmem.designs import find
from guestmem.engines.soft import SoftEngine
from guestmem.memslots import Change
from guestmem.memslots.phases import publish, stage_asked
from soft_guest import until

HVA = 0x7F0000000000
SPLIT = [Change(0), Change(0, 0, 8, HVA), Change(1, 8, 8, HVA + 8 * 4096)]


def test_it_ends_with_the_reader() -> None:
    with SoftEngine(1) as engine:
        engine.short_cut = True
        engine.set_memory_region(Change(0, 0, 16, HVA))
        apply = find("atomic").prepare(engine)
        engine.srcu.enter(1)
        thread = threading.Thread(target=apply, args=(engine, SPLIT))
        thread.start()
        until(lambda: engine.memslots.updating, "it is published")
        assert engine.memslots.find(8) == SPLIT[2].as_slot()  # it has happened
        assert thread.is_alive()
        engine.srcu.exit(1)
        thread.join()
        assert not engine.memslots.updating
        assert list(engine.memslots) == [change.as_slot() for change in SPLIT[1:]]
        engine.memslots.check()


def test_what_is_left_unfinished_the_next_one_ends() -> None:
    """As after Ctrl-C while it waited: ``at_once`` leaves it to the phases, which finish it first."""
    with SoftEngine(1) as engine:
        engine.short_cut = True
        engine.set_memory_region(Change(0, 0, 16, HVA))
        with engine.memslots.slots_lock:
            engine.memslots.ask(Change(1, 64, 1, HVA), 8)
            stage_asked(engine.memslots.words, engine.memslots.desk)
            publish(engine.memslots.words, engine.memslots.desk)
        assert not engine.at_once([Change(2, 70, 1, HVA)])
        find("atomic").prepare(engine)(engine, [Change(2, 70, 1, HVA)])
        assert [slot.id for slot in engine.memslots] == [0, 1, 2]
        engine.memslots.check()
