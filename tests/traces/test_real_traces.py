"""The recorded boots of QEMU are read whole."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from guestmem import traces
from guestmem.errors import TraceError
from guestmem.memslots.changes import ChangeKind

EXAMPLES = Path(__file__).parents[2] / "examples" / "traces"


@pytest.mark.parametrize(
    ("name", "form", "creates", "deletes", "flags_only", "transactions", "skipped"),
    [
        ("pc-seabios-smp2.log", "qemu", 22, 13, 0, 11, 0),
        ("q35-seabios-smp2.log", "qemu", 23, 14, 0, 12, 0),
        ("pc-migration.log", "qemu", 14, 10, 3, 10, 0),
        ("strace-pc.txt", "strace", 22, 13, 0, 11, 484),
    ],
)
def test_every_trace_is_read(
    name: str, form: str, creates: int, deletes: int, flags_only: int, transactions: int, skipped: int
) -> None:
    timeline = traces.read(EXAMPLES / name)
    kinds = Counter(each.kind for each in timeline.changes)
    assert kinds == Counter({ChangeKind.CREATE: creates, ChangeKind.DELETE: deletes, ChangeKind.FLAGS_ONLY: flags_only})
    assert (timeline.format, len(timeline.transactions), timeline.skipped) == (form, transactions, skipped)
    assert timeline.run_state is None
    assert timeline.lines == len((EXAMPLES / name).read_text().splitlines())
    used = {each.line for each in timeline.changes} | {each.line for each in timeline.dirty_log_clears}
    assert len(used) + len(timeline.global_dirty_changes) + timeline.skipped == timeline.lines


def test_a_table_of_memory_regions_is_no_trace() -> None:
    with pytest.raises(TraceError, match=r"pc-hotplug-mtree.txt: no memslot event in 133 lines; known are QEMU"):
        traces.read(EXAMPLES / "pc-hotplug-mtree.txt")


def test_qemu_and_strace_tell_the_same_story() -> None:
    """Two recordings of one firmware, with other sizes of memory: the same kinds, ids and groups."""
    shapes = [
        [[(each.kind, each.change.slot, each.old and each.old.base_gfn) for each in group.changes] for group in groups]
        for groups in (
            traces.read(EXAMPLES / "pc-seabios-smp2.log").transactions,
            traces.read(EXAMPLES / "strace-pc.txt").transactions,
        )
    ]
    assert shapes[0] == shapes[1]


def test_migration_turns_logging_on_and_clears_by_page() -> None:
    timeline = traces.read(EXAMPLES / "pc-migration.log")
    group = timeline.transactions[-1]
    assert [(each.change.slot, each.change.flags) for each in group.changes] == [(0, 1), (2, 1), (1, 3)]
    assert [(each.slot, each.start, each.npages) for each in timeline.dirty_log_clears[:4]] == [
        (0, 0, 0xA0),
        (2, 0, 0xFF40),
        (3, 0, 0x1000),
        (1, 0, 0x40),
    ]
    assert [each.bitmask for each in timeline.global_dirty_changes] == [1]


def test_standard_input_is_read_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (EXAMPLES / "pc-seabios-smp2.log").read_bytes()
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdin", stdin)
    timeline = traces.read("-")
    assert (timeline.path, len(timeline.changes)) == ("<stdin>", 35)
    assert not stdin.closed


def test_reading_imports_no_array_library() -> None:
    program = (
        "import sys\nfrom guestmem import traces\nfrom guestmem.check import check\n"
        f"check(traces.read({str(EXAMPLES / 'pc-seabios-smp2.log')!r}))\n"
        "sys.exit(bool({'numpy', 'numba', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
