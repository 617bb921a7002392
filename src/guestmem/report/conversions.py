"""What ``guestmem conversions`` prints: a table by length of the range, what was seen, and the verdict."""

from __future__ import annotations

import textwrap

from ..compare.conversions import Conversions, Row
from ..units import format_ns, format_size

__all__ = ["conversions_lines"]

_WIDTH = 80
_HEAD = ("length", "per second", "median", "worst", "refused", "splits", "joins", "ranges", "resident")


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.1f} MiB"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        format_size(row.length),
        f"{row.per_second:,.0f}" if row.per_second >= 10 else f"{row.per_second:.1f}",
        format_ns(row.median) if row.conversions else "-",
        format_ns(row.worst) if row.conversions else "-",
        *map(str, (row.refused, row.splits, row.joins, row.ranges)),
        _mib(row.resident),
    )


def conversions_lines(result: Conversions) -> list[str]:
    """The lines of a run, in 80 columns."""
    table = [_HEAD, *map(_cells, result.rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEAD))]
    threads = result.vcpus + result.hosts + 1
    counts = result.counts
    vcpus, hosts = (f"{n} {one}{'s' * (n != 1)}" for n, one in ((result.vcpus, "vCPU"), (result.hosts, "host thread")))
    head = (
        f"conversions: {result.generation}, {result.structure}; file of {format_size(result.size)}, folios of up to "
        f"{format_size(result.folio_size)}{'' if result.joins else ', never joined'}; {vcpus}, "
        f"{hosts}, one that converts, on {result.cores} cores"
        f"{' (oversubscribed: times include the scheduler)' if threads > result.cores else ''}; seed {result.seed}"
    )
    seen = (
        f"vCPUs made {counts['vcpu_accesses']:,} accesses, {counts['vcpu_faults']:,} faults (the longest "
        f"{format_ns(counts['worst_fault_ns'])}) and {counts['vcpu_memory_faults']:,} exits "
        f"KVM_EXIT_MEMORY_FAULT; the host made {counts['host_accesses']:,} accesses, "
        f"{counts['host_refused']:,} ended in SIGBUS or EFAULT, and pinned {counts['host_held']:,} pages"
    )
    lines = textwrap.wrap(head, _WIDTH)
    lines += [
        "",
        *("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table),
        "",
    ]
    lines += textwrap.wrap(seen, _WIDTH)
    lines.append(f"private words seen by the host or by a shared access: {result.seen}")
    for name, caught in result.caught.items():
        lines.append(f"broken on purpose, {name}: {'caught' if caught else 'NOT CAUGHT'}")
    lines.append("ok" if result.ok else "FAILED")
    return lines
