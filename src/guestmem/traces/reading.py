"""Read a trace of any known format into one Timeline."""

from __future__ import annotations

import io
import math
import re
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from ..errors import TraceError, UsageError
from .collector import without_collector
from .formats import READERS, known_formats
from .grouping import DEFAULT_GAP, SLOW_GAP, group
from .recording import Reader, Recording
from .timeline import RunState, Timeline

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

__all__ = ["read", "read_run_state"]

BINARY = {
    b"\xff\xff\xff\xff\xff\xff\xff\xff": "QEMU's binary trace (backend simple): use its log backend or simpletrace.py",
    b"PERFILE2": "perf's binary file: give the output of perf script",
    b"\x17\x08\x44tracing": "trace-cmd's binary file: give the output of trace-cmd report",
    b"\x1f\x8b": "compressed with gzip: zcat FILE | guestmem check -",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: zstdcat FILE | guestmem check -",
    b"\xfd7zXZ": "compressed with xz: xzcat FILE | guestmem check -",
}
WHOLE_CALL = re.compile(r"\)\s+= \S|\+\+\+$")
PROGRESS_LINES = 1 << 14


def read(
    path: str | os.PathLike[str],
    *,
    gap: float | None = None,
    vm: int | None = None,
    run_state: str | os.PathLike[str] | RunState | None = None,
    run_state_offset: float = 0.0,
    progress: Callable[[int], object] | None = None,
) -> Timeline:
    """Read the trace at ``path`` (``-``: standard input); its format is found by looking at its lines.

    ``gap`` is the longest pause in seconds inside a transaction (None: 0.005, or what a slow recorder needs; see
    ``grouping``), ``vm`` the file descriptor of the
    VM to read where strace shows several. ``run_state`` is a second file, or a RunState, that tells when vCPUs were
    inside the guest, and is used instead of what the trace itself tells; ``run_state_offset`` seconds are added to its
    times to bring it to the trace's clock. ``progress`` is called now and then with the number of bytes read.

    Raises TraceError, with file, line and text, for what cannot be read or cannot have happened. O(n log slots).
    """
    if gap is not None and not (math.isfinite(gap) and gap >= 0):
        raise UsageError(f"gap: {gap} seconds; a finite number of seconds, 0 or more, is allowed")
    if not math.isfinite(run_state_offset):
        raise UsageError(f"run_state_offset: {run_state_offset} seconds; a finite number of seconds is allowed")
    if str(path) == "-" and str(run_state) == "-":
        raise UsageError("run_state: standard input is the trace already")
    with without_collector():
        recording, lines, skipped = _record(path, vm=vm, wants_changes=True, progress=progress)
        if not recording.format:
            hint = ""
            if recording.run.source:
                hint = " (it tells when vCPUs were in the guest: give it as --run-state, beside a trace of the changes)"
            message = f"no memslot event in {lines} line{'s' * (lines != 1)}{hint}; known are {known_formats()}"
            raise TraceError(message, path=recording.path)
        if vm is not None and recording.format != "strace":
            message = f"--vm {vm}: only strace's lines name a VM's fd; this is {recording.format}'s"
            raise TraceError(message, path=recording.path)
        changes = recording.replay.changes
        if gap is None:
            gap = SLOW_GAP if recording.slow else DEFAULT_GAP
        timeline = Timeline(
            recording.path,
            recording.format,
            changes,
            group(changes, gap),
            gap=gap,
            slow=recording.slow,
            run_state=recording.run.finish(recording.path),
            dirty_log_clears=recording.dirty_log_clears,
            global_dirty_changes=recording.global_dirty_changes,
            lines=lines,
            skipped=skipped,
            resolution=recording.run.resolution,
        )
    if run_state is not None:
        if not isinstance(run_state, RunState):
            run_state = read_run_state(run_state, vm=vm)
        timeline.run_state = _on_clock_of(timeline, run_state.shifted(run_state_offset))
    return timeline


def read_run_state(path: str | os.PathLike[str], *, vm: int | None = None) -> RunState:
    """Read from ``path`` when vCPUs were inside the guest: KVM's tracepoints as text, or strace. O(n).

    Raises TraceError if the file cannot be read or does not tell.
    """
    recording, lines, _ = _record(path, vm=vm, wants_changes=False)
    state = recording.run.finish(recording.path)
    if state is None:
        message = (
            f"no vCPU enters or leaves the guest in {lines} line{'s' * (lines != 1)}; known are kvm_entry, kvm_exit, "
            "kvm_userspace_exit (ftrace, trace-cmd, perf script), and KVM_RUN in strace with times (-f -ttt)"
        )
        raise TraceError(message, path=recording.path)
    return state


def _record(
    path: str | os.PathLike[str],
    *,
    vm: int | None,
    wants_changes: bool,
    progress: Callable[[int], object] | None = None,
) -> tuple[Recording, int, int]:
    """Go through one file; the recording, the number of lines, and how many of them said nothing."""
    with _open(path) as (name, stream):
        recording = Recording(name, wants_changes=wants_changes, vm=vm)
        readers: list[Reader] = [reader(recording) for reader in READERS]
        skipped = number = 0
        text = ""
        done, last_used = 0, True
        for number, text in enumerate(stream, 1):
            last_used = readers[0].line(number, text)
            if not last_used:
                for i in range(1, len(readers)):
                    if readers[i].line(number, text):
                        readers.insert(0, readers.pop(i))  # the next line is likely of the same kind
                        last_used = True
                        break
                else:
                    skipped += 1
            if progress is not None:
                done += len(text)
                if number % PROGRESS_LINES == 0:
                    progress(done)
        if not last_used and not text.endswith("\n") and text.strip() and not WHOLE_CALL.search(text):
            raise TraceError("the file ends inside a line: truncated?", path=name, line=number, text=text)
        for reader in readers:
            reader.finish()
    return recording, number, skipped


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[tuple[str, TextIO]]:
    """The name to show, and the text. Raises TraceError for what cannot be opened or is no text."""
    name = "<stdin>" if str(path) == "-" else str(path)
    if "\0" in name:
        raise TraceError("a path cannot hold a NUL", path=repr(name))
    try:
        with nullcontext(sys.stdin.buffer) if name == "<stdin>" else Path(path).open("rb") as stream:
            stream = _with_look_ahead(stream)  # noqa: PLW2901 (the same, or a copy)
            _refuse_binary(name, stream)
            text = io.TextIOWrapper(stream, "utf-8", "replace", newline="\n")
            try:
                yield name, text
            finally:
                text.detach()  # standard input stays open
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
