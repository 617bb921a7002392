"""All that reading a trace leaves behind, as it is kept: of two ways to read, one can be held against the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guestmem.errors import TraceError
from guestmem.traces import reading

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["SMALL", "damaged", "left_behind"]

SMALL = {"EDGE": 4, "TAIL": 6, "MANY": 40, "FEW": 60}
"""What is kept around changes, so small that much is forgotten in a few hundred lines."""


def left_behind(path: Path, vm: str | None = None, **options: Any) -> Any:
    """All that reading knows at its end, as it is kept."""
    try:
        recording, count, skipped = reading._record(path, vm=vm, **options)
    except TraceError as error:
        return str(error)
    run, changes = recording.run, recording.machines.replay.changes
    tracks = {
        thread: (list(track.times), list(track.words), track.settled, track.until, track.full, track.known_from)
        for thread, track in run._tracks.items()
    }
    columns = [repr(getattr(changes, name)) for name in changes.__slots__]
    return (
        *(tracks, columns, run.first, run.last, run.next_mark, run._whole, run.source, run.resolution, count, skipped),
        *(recording.notes, recording.format, run._losses, run._open_losses, run.last_on, run._kinds),
    )


def damaged(rng: random.Random, found: list[str], other: Sequence[str]) -> list[str]:
    """``found``, with lines that are cut, doubled, changed by a character, ``other`` ones, or late."""
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(found))
        line = found[at]
        place = rng.randrange(len(line) - 1)
        found[at : at + 1] = rng.choice(
            (
                [],
                [line, line],
                ["0" + line],
                [line[:place] + "\n"],
                [line[:place] + rng.choice("0123456789abcx=#,()<>. -K_é\0") + line[place + 1 :]],
                [rng.choice(other), line],
                [*found[at + 1 : at + 4], line],
            )
        )
    return found
