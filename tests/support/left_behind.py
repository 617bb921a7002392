"""All that reading a trace leaves behind, as it is kept: of two ways to read, one can be held against the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guestmem.errors import TraceError
from guestmem.traces import reading

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["left_behind"]


def left_behind(path: Path, **options: Any) -> Any:
    """All that reading knows at its end, as it is kept."""
    try:
        recording, count, skipped = reading._record(path, vm=None, **options)
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
        *(recording.notes, recording.format),
    )
