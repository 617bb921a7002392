"""Read a trace of any known format into one Timeline."""

from __future__ import annotations

import io
import math
import re
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..errors import TraceError, UsageError
from . import ftrace_block
from .collector import without_collector
from .dispatch import PIECES, Lines, log_or_events_of
from .dma import about_dma
from .formats import known_formats
from .ftrace import FtraceReader
from .grouping import DEFAULT_GAP, SLOW_GAP, group
from .late_start import read_assumed_slots
from .lines import LONGEST_LINE, blocks_of, source_of
from .perf_trace import PerfTraceReader
from .qemu import QemuReader
from .recorder import MOST_VCPUS
from .recording import Recording
from .second_process import Ahead, cores
from .strace import StraceReader
from .timeline import RunState, Timeline

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from .late_start import AssumedSlot
    from .recording import Reader
    from .replay import Replay

__all__ = ["read", "read_run_state"]

BINARY = {
    b"\xff\xff\xff\xff\xff\xff\xff\xff": "QEMU's binary trace (backend simple): use its log backend or simpletrace.py",
    b"PERFILE2": "perf's binary file: give the output of perf script",
    b"\x17\x08\x44tracing": "trace-cmd's binary file: give the output of trace-cmd report",
    b"\x1f\x8b": "compressed with gzip: zcat FILE | guestmem check -",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: zstdcat FILE | guestmem check -",
    b"\xfd7zXZ": "compressed with xz: xzcat FILE | guestmem check -",
}
LARGE = 1 << 24
"""Bytes of a file from which on a second process reads ahead."""
AHEAD: dict[object, Callable[[str], Any]] = {
    QemuReader: log_or_events_of,
    FtraceReader: ftrace_block.pieces_of,
    **PIECES,
}
"""What it does of each block for a reader, if not only what ``pattern`` finds."""
OWN_SHARE: dict[object, int] = {QemuReader: 5, StraceReader: 3, PerfTraceReader: 3, FtraceReader: 3}
"""One block of how many is left to this one."""
WHOLE_CALL = re.compile(r"\)\s+= \S|\+\+\+$")


def read(
    path: str | os.PathLike[str],
    *,
    gap: float | None = None,
    vm: int | str | None = None,
    assume_slots: str | os.PathLike[str] | None = None,
    run_state: str | os.PathLike[str] | RunState | None = None,
    run_state_offset: float = 0.0,
    vcpus: int | None = None,
    progress: Callable[[int], object] | None = None,
    jobs: int | None = None,
) -> Timeline:
    """Read the trace at ``path`` (``-``: standard input); its format is found by looking at its lines.

    ``gap`` is the longest pause in seconds inside a transaction (None: 0.005, or what a slow
    recorder needs; see ``grouping``), ``vm`` the VM to read where there
    are several: its file descriptor (strace), process, or the first thread that made a change, or its number in the
    file; without it such a trace is refused, and the message says what to choose from. ``assume_slots`` is a file with
    the slots from before the trace began (see ``late_start``). ``run_state`` is a file, or a RunState, that tells
    when vCPUs were inside the guest, and is used instead of what the trace itself tells;
    ``run_state_offset`` seconds are added to its times to bring it to the trace's clock.
    ``vcpus`` is how many the VM has, if one may be there of which the recording has no sign. ``progress`` is called
    now and then with the number of bytes read. ``jobs``: in how many processes, 1 or 2, if the file is large; None: as
    many as there are cores.

    Raises TraceError, with file, line and text, for what cannot be read or cannot have happened. O(n log slots).
    """
    if gap is not None and not (math.isfinite(gap) and gap >= 0):
        raise UsageError(f"gap: {gap} seconds; a finite number of seconds, 0 or more, is allowed")
    if not math.isfinite(run_state_offset):
        raise UsageError(f"run_state_offset: {run_state_offset} seconds; a finite number of seconds is allowed")
    if vcpus is not None and not 1 <= vcpus <= MOST_VCPUS:
        raise UsageError(f"vcpus: {vcpus}; 1 to {MOST_VCPUS} are allowed")
    if str(path) == "-" and str(run_state) == "-":
        raise UsageError("run_state: standard input is the trace already")
    with without_collector():
        assumed = () if assume_slots is None else read_assumed_slots(assume_slots)
        recording, lines, skipped = _record(
            path, vm=vm, assumed=assumed, wants_changes=True, horizon=gap or 0.0, progress=progress, jobs=jobs
        )
        if not recording.format:
            hint = _because(recording)
            if not hint and recording.run.source:
                hint = " (it tells when vCPUs were in the guest: give it as --run-state, beside a trace of the changes)"
            message = f"no memslot event in {lines} line{'s' * (lines != 1)}{hint}; known are {known_formats()}"
            raise TraceError(message, path=recording.path)
        replay = recording.machines.replay
        changes = replay.changes
        if gap is None:
            gap = SLOW_GAP if recording.slow else DEFAULT_GAP
        state = recording.run.finish(recording.path)
        timeline = Timeline(
            recording.path,
            recording.format,
            changes,
            group(changes, gap, state if run_state is None else None),
            gap=gap,
            run_state=state,
            dirty_log_clears=recording.dirty_log_clears,
            global_dirty_changes=recording.global_dirty_changes,
            dma_changes=recording.dma_changes,
            guest_memfds=recording.guest_memfds,
            assumed=replay.assumed,
            untouched=replay.untouched(),
            notes=(*recording.notes, *_about_assumed(replay), *filter(None, (about_dma(recording.dma_changes),))),
            slow=recording.slow,
            lines=lines,
            skipped=skipped,
            resolution=recording.run.resolution,
        )
    if run_state is not None:
        if not isinstance(run_state, RunState):
            recording, lines, _ = _record(
                run_state,
                vm=vm,
                wants_changes=False,
                horizon=gap,
                changes_at=[time - run_state_offset for time in changes.time if not math.isnan(time)],
                jobs=jobs,
            )
            run_state = _state_of(recording, lines)
        timeline.run_state = _on_clock_of(timeline, run_state.shifted(run_state_offset))
        timeline.transactions = group(changes, gap, timeline.run_state)
    if vcpus is not None and timeline.run_state is not None:
        timeline.run_state = timeline.run_state.expecting(vcpus)
    return timeline


def read_run_state(path: str | os.PathLike[str], *, vm: int | str | None = None) -> RunState:
    """Read from ``path`` when vCPUs were inside the guest: KVM's tracepoints as text, or strace. O(n).

    Raises TraceError if the file cannot be read or does not tell.
    """
    recording, lines, _ = _record(path, vm=vm, wants_changes=False)
    return _state_of(recording, lines)


def _state_of(recording: Recording, lines: int) -> RunState:
    """What a recording tells of vCPUs. Raises TraceError if it tells nothing."""
    state = recording.run.finish(recording.path)
    if state is None:
        message = (
            f"no vCPU enters or leaves the guest in {lines} line{'s' * (lines != 1)}{_because(recording)}; "
            "known are kvm_entry, kvm_exit, "
            "kvm_userspace_exit (ftrace, trace-cmd, perf script), and KVM_RUN in strace with times (-f -ttt)"
        )
        raise TraceError(message, path=recording.path)
    return state


def _record(
    path: str | os.PathLike[str],
    *,
    vm: int | str | None,
    wants_changes: bool,
    assumed: tuple[AssumedSlot, ...] = (),
    horizon: float = 0.0,
    changes_at: Sequence[float] = (),
    progress: Callable[[int], object] | None = None,
    jobs: int | None = 1,
) -> tuple[Recording, int, int]:
    """Go through one file; the recording, the number of lines, and how many of them said nothing."""
    with _open(path) as (name, stream):
        recording = Recording(name, wants_changes=wants_changes, vm=None if vm is None else str(vm), assumed=assumed)
        recording.run.horizon = max(recording.run.horizon, horizon)
        if changes_at:
            recording.run.changes_are_at(changes_at)
        lines, source = Lines(recording), source_of(stream)
        blocks = blocks_of(source)
        number = done = 0
        text = ""
        used = True
        ahead: Ahead | None = None
        leading: Reader | None = None
        try:
            for block in blocks:
                made = None if ahead is None else ahead.of(block)
                if block[-1] != "\n":
                    lines.look_at_all()
                    text = block
                    number += 1
                    used = _last_line(lines, number, text, name)
                else:
                    number += lines.take_block(number + 1, block, made if lines.leading is leading else None)
                    text = ""
                    if lines.leading is not leading and source.left > LARGE and cores(jobs) > 1:
                        ahead, leading = _read_ahead(blocks, lines.leading, ahead), lines.leading
                if progress is not None:
                    done += len(block)
                    progress(done)
        finally:
            if ahead is not None:
                ahead.close()
        cut = len(text) == LONGEST_LINE
        if not (used or cut) and text.strip() and not WHOLE_CALL.search(text[-1000:]):
            raise TraceError("the file ends inside a line: truncated?", path=name, line=number, text=text)
        for reader in lines.readers:
            reader.finish()
        recording.machines.finish()
    return recording, number, lines.skipped


def _read_ahead(blocks: Iterator[str], reader: Reader, before: Ahead | None) -> Ahead | None:
    """A second process that does for ``reader`` what takes no more than a block to know, instead of ``before``."""
    if before is not None:
        before.close()
    if reader.pattern is None:
        return None
    return Ahead(blocks, AHEAD.get(type(reader), reader.pattern.findall), OWN_SHARE.get(type(reader), sys.maxsize))


def _last_line(lines: Lines, number: int, text: str, name: str) -> bool:
    """Take what has no line end; whether it said anything. Raises TraceError, and says so, if it was cut off."""
    try:
        return lines.take(number, text)
    except TraceError as error:
        if error.line != number or len(text) == LONGEST_LINE:
            raise
        message = f"{error.message}; the file ends inside this line: truncated?"
        raise TraceError(message, path=name, line=number, text=text.strip()) from None


def _because(recording: Recording) -> str:
    """What the readers noted, as the reason for which there is nothing."""
    return "".join(f": {note}" for note in recording.notes[:2])


def _about_assumed(replay: Replay) -> Iterator[str]:
    if replay.assumed:
        lines = sorted({replay.changes[index].line for index in replay.assumed})
        count = len(replay.assumed)
        yield (
            f"{count} slot{'s' * (count != 1)} assumed: there before the trace began (line{'s' * (len(lines) != 1)} "
            f"{', '.join(map(str, lines[:4]))}{' …' * (len(lines) > 4)}); --assume-slots FILE says which there were"
        )


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[str, BinaryIO]]:
    """The name to show, and the bytes. Raises TraceError for what cannot be opened or is no text."""
    name = "<stdin>" if str(path) == "-" else str(path)
    if "\0" in name:
        raise TraceError("a path cannot hold a NUL", path=repr(name))
    try:
        with nullcontext(sys.stdin.buffer) if name == "<stdin>" else Path(path).open("rb") as stream:
            stream = _with_look_ahead(stream)  # noqa: PLW2901 (the same, or a copy)
            _refuse_binary(name, stream)
            yield name, stream
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror or error}", path=name) from None


def _with_look_ahead(stream: BinaryIO) -> io.BufferedReader:
    """Standard input itself, or what it has, if somebody replaced it by a stream without ``peek``."""
    if hasattr(stream, "peek"):
        return cast("io.BufferedReader", stream)
    return io.BufferedReader(cast("io.RawIOBase", io.BytesIO(stream.read())))


def _refuse_binary(name: str, stream: io.BufferedReader) -> None:
    head = stream.peek(1 << 16)
    if not head:
        raise TraceError("the file is empty", path=name)
    for magic, what in BINARY.items():
        if head.startswith(magic):
            raise TraceError(what, path=name)
    if b"\0" in head:
        raise TraceError(f"a binary file; known are {known_formats()}", path=name)


def _on_clock_of(timeline: Timeline, state: RunState) -> RunState:
    """``state``, if its times and those of the changes meet."""
    span = timeline.span
    if span is None:
        raise TraceError(
            "the trace has no times, so run state cannot be placed in it (QEMU: -msg timestamp=on; strace: -ttt)",
            path=timeline.path,
        )
    if state.last < span[0] or span[1] < state.first:
        raise TraceError(
            f"run state is known from {state.first:.6f} to {state.last:.6f}, the changes are from {span[0]:.6f} to "
            f"{span[1]:.6f}: not the same clock? --run-state-offset SECONDS shifts the run state",
            path=timeline.path,
        )
    return state
