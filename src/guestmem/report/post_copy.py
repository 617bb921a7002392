"""What ``guestmem post-copy`` prints: a table by number of vCPUs and way, what was seen, and the verdict."""

from __future__ import annotations

import textwrap

from ..compare.post_copy import PostCopy, PostCopyRow
from ..units import format_ns, format_size

__all__ = ["post_copy_lines"]

_WIDTH = 80
_HEAD = ("vcpus", "way", "stopped", "complete", "exits", "median", "worst", "accesses/s")


def _cells(row: PostCopyRow) -> tuple[str, ...]:
    exits = (f"{row.exits:,}", format_ns(row.median), format_ns(row.worst)) if row.exits else ("0", "-", "-")
    return (
        str(row.vcpus),
        row.way,
        format_ns(row.stopped) if row.stopped else "0",
        format_ns(row.complete),
        *exits,
        f"{row.per_second:,.0f}",
    )


def post_copy_lines(result: PostCopy) -> list[str]:
    """The lines of a run, in 80 columns."""
    table = [_HEAD, *map(_cells, result.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEAD))]
    busy = max(row.vcpus for row in result.rows) + result.stream
    head = (
        f"post-copy: {format_size(result.size)} in pages of 4 KiB, a request for one takes {format_ns(result.latency)}"
        f" beside its copy{', all are sent in order meanwhile' if result.stream else ''}; {result.cores} cores"
        f"{' (oversubscribed: times include the scheduler)' if busy > result.cores else ''}; seed {result.seed}"
    )
    lines = textwrap.wrap(head, _WIDTH)
    lines += [
        "",
        *("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table),
        "",
        f"reads of a page that was not there: {result.missing_seen}; writes lost: {result.lost_writes}",
    ]
    for name, caught in result.caught.items():
        lines.append(f"broken on purpose, {name}: {'caught' if caught else 'NOT CAUGHT'}")
    lines.append("ok" if result.ok else "FAILED")
    return lines
