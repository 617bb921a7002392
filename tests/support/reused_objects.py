"""A reader of objects that an updater takes away and scribbles over: it sees one that is gone too early.

Words of what they share: 0 where the object in use is, 8 non-zero when readers are to end, 16 scribbled objects that
readers met, 24 sections, 248 readers that have ended a section. An object that is whole holds 0x600D.
"""

from __future__ import annotations

from guestmem.atomics import fetch_add, load_acquire
from guestmem.compiled import INTERPRETED, U64, Words, compiled, u64
from guestmem.rcu.srcu import srcu_enter, srcu_exit

LOOKS = 16 if INTERPRETED else 256  # a section is long, so that it is cut into: by another core, or by the scheduler


@compiled(nogil=True)
def read_objects(shared: Words, srcu: Words, reader: U64, looks: U64) -> None:
    caught = u64(0)
    sections = u64(0)
    while load_acquire(shared, u64(8)) == 0:
        srcu_enter(srcu, u64(0), reader)
        where = load_acquire(shared, u64(0))
        look = u64(0)
        while look < looks:
            if load_acquire(shared, where) != 0x600D:
                caught += u64(1)
            look += u64(1)
        srcu_exit(srcu, u64(0), reader)
        if sections == 0:
            fetch_add(shared, u64(248), u64(1))
        sections += u64(1)
    fetch_add(shared, u64(16), caught)
    fetch_add(shared, u64(24), sections)
